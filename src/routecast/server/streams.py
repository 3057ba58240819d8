"""`Streams`: the parts that serve open connections, built and connected."""

from routecast.adapters.clock import SystemTimers
from routecast.edge.admission import AdmissionControl
from routecast.edge.ws.connection import WebSocketEdge
from routecast.server.authentication import Authentication
from routecast.server.config import Settings
from routecast.server.engines import Engines
from routecast.server.limits_per_client import LimitsPerClient
from routecast.server.numbers import Numbers
from routecast.services.node_summary import NodeReporter
from routecast.services.presence import ClusterPresence
from routecast.streaming.channels import Channels
from routecast.streaming.cluster_view import ClusterView
from routecast.streaming.connections import ConnectionManager
from routecast.streaming.heartbeat import Heartbeat
from routecast.streaming.history_limits import HistoryLimits
from routecast.streaming.history_subscriptions import HistorySubscriptions
from routecast.streaming.operator_view import OperatorView
from routecast.streaming.peers import Peers
from routecast.streaming.principals import StreamPrincipals


class Streams:
    """Admission, channels, connections and the operator's view of one application.

    A revocation, or the end of a session, closes the streams that it concerns.
    """

    def __init__(
        self,
        settings: Settings,
        engines: Engines,
        numbers: Numbers,
        authentication: Authentication,
        limits: LimitsPerClient,
        reporter: NodeReporter,
    ) -> None:
        instruments, clock, timers = engines.instruments, engines.clock, SystemTimers()
        self.manager = ConnectionManager(instruments, settings.max_connections, clock.now)
        self.presence = ClusterPresence(
            engines.cluster, lambda: self.manager.active, reporter.encoded
        )
        self.cluster_view = ClusterView(
            OperatorView(self.manager, engines.slices, reporter.name),
            engines.cluster,
            reporter.others,
        )
        self.admission = AdmissionControl(
            self.manager,
            numbers.renders,
            interval=settings.interval,
            sites=authentication.sites,
            max_per_address=settings.max_per_address,
            max_per_subject=settings.max_per_subject,
            max_a_minute=settings.max_connections_a_minute,
            frames=limits.frames,
            modes=limits.modes,
            access=authentication.access,
        )
        self.channels = Channels(
            self.manager, numbers.metrics, numbers.renders, clock, timers, instruments
        )
        numbers.live.followers.append(self.channels)
        self.history_limits = HistoryLimits()
        self.history_subscriptions = HistorySubscriptions(numbers.history, self.history_limits)
        self.peers = Peers(
            self.manager,
            self.channels,
            self.history_subscriptions,
            timers,
            StreamPrincipals(clock, timers),
            authentication.access,
            limits.frames,
            limits.messages,
        )
        authentication.authenticator.followers.append(self.peers.revoke)
        authentication.sessions.followers.append(self.peers.revoke)
        self.websockets = WebSocketEdge(
            self.peers,
            self.admission,
            Heartbeat(timers),
            instruments,
            compress=settings.compress,
            proxies=authentication.proxies,
        )
