"""`LimitsPerClient`: the limits per client that the settings name."""

from routecast.core.client_limits import ClientLimit, LimitMode, LimitModes
from routecast.core.record_limit import RecordLimit
from routecast.core.v1_session import MessageLimits
from routecast.edge.slow_refusals import SlowRefusals
from routecast.instruments import Instruments
from routecast.ports import Cluster
from routecast.server.config import Settings
from routecast.services.ingest_limit import IngestLimit
from routecast.streaming.frame_limit import FrameLimit


class LimitsPerClient:
    """The limits per client that the settings name; nodes of a `cluster` share one of them."""

    def __init__(
        self, settings: Settings, instruments: Instruments, cluster: Cluster | None
    ) -> None:
        hits = {
            (limit, mode): instruments.limit_hits.labels(limit, mode)
            for limit in ClientLimit
            for mode in LimitMode
        }
        self.modes = modes = LimitModes(
            settings.dry_run, lambda limit, mode: hits[limit, mode].inc()
        )
        self.ingest = IngestLimit(settings.max_decisions_a_minute, modes, cluster)
        self.frames = FrameLimit(settings.max_frames_a_second, modes)
        self.messages = MessageLimits(
            settings.max_messages_a_minute, settings.max_bytes_a_minute, modes
        )
        day, minute = 24 * 60 * 60.0, 60.0
        self.sessions = RecordLimit(ClientLimit.SESSIONS, settings.max_sessions_a_day, day, modes)
        self.tickets = RecordLimit(
            ClientLimit.TICKETS, settings.max_tickets_a_minute, minute, modes
        )
        self.refusals = SlowRefusals(settings.failed_sign_ins, modes)
