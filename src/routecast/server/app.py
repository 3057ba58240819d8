"""`create_app`: builds all parts of the application from the settings, and connects them."""

import asyncio
import logging
import math
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from msgspec import UNSET
from starlette.exceptions import HTTPException
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from routecast import audit
from routecast.adapters.bus.memory import MemoryBus
from routecast.adapters.cache.memory import MemoryCache
from routecast.adapters.clock import SystemClock, SystemTimers
from routecast.adapters.cluster.memory import MemoryCluster
from routecast.adapters.prices import GenaiPrices
from routecast.adapters.records.memory import MemoryRecords
from routecast.adapters.store.null import NullStore
from routecast.core.cardinality import COMBINATION, CardinalityLimiter
from routecast.core.claims import ClaimRules
from routecast.core.client_limits import ClientLimit, LimitMode, LimitModes
from routecast.core.decision import Rules
from routecast.core.group_rules import GroupRules, parse_group_rules
from routecast.core.metrics import Baseline
from routecast.core.render_budget import RenderBudget
from routecast.core.sites import Sites
from routecast.core.topology import Topology
from routecast.core.v1_session import MessageLimits
from routecast.edge.access import Access
from routecast.edge.access_control import AccessControl, route_of
from routecast.edge.admission import AdmissionControl
from routecast.edge.asyncapi import asyncapi_router
from routecast.edge.cors import Cors
from routecast.edge.gate import Gate
from routecast.edge.head_method import as_get
from routecast.edge.http.decisions import DECISIONS, Decisions
from routecast.edge.http.docs import docs_router
from routecast.edge.http.history import history_router
from routecast.edge.http.login import login_router
from routecast.edge.http.metrics import metrics_router
from routecast.edge.http.operator import operator_router
from routecast.edge.http.ops import ops_router, page_router
from routecast.edge.http.session import session_router
from routecast.edge.http.tickets import tickets_router
from routecast.edge.openapi import describe
from routecast.edge.problem import http_error_handler, on_crash, on_routecast_error
from routecast.edge.proxies import Proxies
from routecast.edge.proxy_sign_in import ProxySignIn
from routecast.edge.slow_refusals import SlowRefusals
from routecast.edge.sse import MetricsEvents
from routecast.edge.ws.asgi_route import MetricsSocket
from routecast.edge.ws.connection import WebSocketEdge
from routecast.edge.ws.upgrade_probe import METHODS, UpgradeProbe
from routecast.errors import BadSettings, RoutecastError, Unavailable
from routecast.instruments import Instruments
from routecast.ports import (
    Bus,
    Cache,
    Clock,
    Cluster,
    IdentityProvider,
    KeyStore,
    Prices,
    Store,
    TemporaryRecords,
    TokenVerifier,
)
from routecast.protocol import Components, EngineStatus, HealthReport
from routecast.server.config import Settings
from routecast.server.databases import file_of, open_store
from routecast.services.authenticator import Authenticator
from routecast.services.history import HistoryService
from routecast.services.ingest import Ingest
from routecast.services.ingest_limit import IngestLimit
from routecast.services.key_refresh import KEY_SERVICE, KeyRefresh
from routecast.services.key_ring import KeyRing
from routecast.services.live_state import LiveState
from routecast.services.metrics_reader import MetricsReader
from routecast.services.node_summary import NodeReporter
from routecast.services.person_rules import AssertionRules, PersonRules
from routecast.services.position_poller import PositionPoller
from routecast.services.presence import ClusterPresence
from routecast.services.renders import Renders
from routecast.services.retention import Retention, Summaries, run_retention
from routecast.services.sessions import Sessions
from routecast.services.snapshot_loader import SnapshotLoader
from routecast.services.supervisor import Supervisor
from routecast.services.tickets import Tickets
from routecast.services.windows import Windows
from routecast.slices import Slices
from routecast.streaming.channels import Channels
from routecast.streaming.cluster_view import ClusterView
from routecast.streaming.connections import ConnectionManager
from routecast.streaming.frame_limit import FrameLimit
from routecast.streaming.heartbeat import Heartbeat
from routecast.streaming.history_limits import HistoryLimits
from routecast.streaming.history_subscriptions import HistorySubscriptions
from routecast.streaming.operator_view import OperatorView
from routecast.streaming.peers import Peers
from routecast.streaming.principals import StreamPrincipals

# The modules of Redis, PostgreSQL and tokens are imported in the functions that use them. A process
# that uses none of them starts a third sooner.
if TYPE_CHECKING:
    from routecast.adapters.redis_check import RedisCheck

log = logging.getLogger(__name__)

VERSION = version("routecast")
# What the pages show with --insecure.
INSECURE = (
    "This server runs with --insecure: other machines may use it without authentication, or send "
    "credentials that others can read"
)
# At shutdown, waiting decisions may be committed for this time, in seconds. Then they are refused,
# and the database is interrupted.
DRAIN_SECONDS = 4.0
# After that, a commit under way has this time, in seconds, to report its outcome.
ABORT_SECONDS = 2.0
# At shutdown, streams get this time to close, in seconds.
STREAMS_CLOSE_SECONDS = 3.0
# Shares of the memory for live state: of a snapshot (the one in use, and another one while it is
# loaded), and of the answers to windows from the database.
SNAPSHOT_SHARE = 3 / 8
WINDOWS_SHARE = 1 / 4
# A node waits for its first load of live state before it takes requests; for at most this time, in
# seconds, because decisions can be taken without it.
LOADED_SECONDS = 30.0
# Between two tries to open a database that could not be reached at the start.
REOPEN_SECONDS = 1.0
# Where Cloudflare Access publishes the keys of a team.
CLOUDFLARE_KEYS = "/cdn-cgi/access/certs"
# The setting that limits a part of names, if it is not ROUTECAST_MAX_NAMES.
_LIMITS = {COMBINATION: "ROUTECAST_MAX_SERIES"}


@dataclass(frozen=True, slots=True)
class Engines:
    """The adapters that an application uses."""

    store: Store
    cache: Cache
    bus: Bus
    cluster: Cluster
    clock: Clock
    prices: Prices
    instruments: Instruments = field(default_factory=Instruments)
    slices: Slices = field(default_factory=Slices)
    redis: "RedisCheck | None" = None  # None without a Redis
    tokens: TokenVerifier | None = None  # None if no setting names a key for tokens
    keys: KeyStore | None = None  # None without a database
    records: TemporaryRecords | None = None  # None: this process keeps them itself


def open_engines(settings: Settings) -> Engines:
    """Return the engines that the settings name, not yet opened. Raises BadSettings."""
    clock, instruments, slices = SystemClock(), Instruments(), Slices()
    database = None
    if settings.role != "stream":
        database = open_store(settings.database_url, connections=settings.database_connections)
    engines = Engines(
        store=database or NullStore(),
        cache=MemoryCache(clock, settings.cache_seconds, slices),
        bus=MemoryBus(),
        cluster=MemoryCluster(),
        clock=clock,
        prices=GenaiPrices(instruments.prices_skipped.inc),
        instruments=instruments,
        slices=slices,
        tokens=open_verifier(settings),
        keys=database,
    )
    if settings.redis_url:
        return _on_redis(engines, settings, settings.redis_url)
    instruments.redis_up.set(math.nan)
    return engines


def open_verifier(settings: Settings) -> TokenVerifier | None:
    """Return the keys for tokens that the settings name; None for none. Raises BadSettings."""
    if not settings.takes_tokens:
        return None
    from routecast.adapters.jwks import JwkSet
    from routecast.adapters.jwt_keys import JwtVerifier, public_keys, secret_key

    keys = []
    if settings.jwt_secret is not None:
        keys.append(secret_key(settings.jwt_secret.get_secret_value()))
    if settings.jwt_public_key is not None:
        keys.extend(public_keys(settings.jwt_public_key))
    fetch = JwkSet(settings.jwks_url).fetch if settings.jwks_url is not None else None
    return JwtVerifier(keys, fetch)


def open_provider(settings: Settings) -> IdentityProvider | None:
    """Return the identity provider that the settings name; None for none. Raises BadSettings."""
    if settings.oidc_issuer is None:
        return None
    from routecast.adapters.oidc import OidcProvider

    secret = settings.oidc_client_secret
    return OidcProvider(
        settings.oidc_issuer,
        settings.oidc_client_id,
        None if secret is None else secret.get_secret_value(),
        scopes=settings.oidc_scopes,
        needed=settings.oidc_groups_claim,
    )


def group_rules(settings: Settings, subject_claim: str | None = None) -> GroupRules:
    """Return what people may do who are signed in by a provider or a proxy."""
    return GroupRules(
        parse_group_rules(settings.group_rules or ""),
        subject_claim=subject_claim or settings.oidc_subject_claim,
        groups_claim=settings.oidc_groups_claim,
    )


def _on_redis(engines: Engines, settings: Settings, url: str) -> Engines:
    """Return engines whose cache, bus and cluster are those of a Redis."""
    from routecast.adapters.bus.redis import RedisBus
    from routecast.adapters.cache.redis import RedisCache
    from routecast.adapters.cluster.redis import RedisCluster
    from routecast.adapters.records.redis import RedisRecords
    from routecast.adapters.redis_check import RedisCheck
    from routecast.adapters.redis_client import RedisLink
    from routecast.circuit_breaker import CircuitBreaker

    link = partial(RedisLink, url, settings.redis_prefix, CircuitBreaker("Redis"))
    return replace(
        engines,
        cache=RedisCache(link(), settings.cache_seconds, engines.slices),
        bus=RedisBus(link(), engines.instruments),
        cluster=RedisCluster(link()),
        redis=RedisCheck(link(), engines.instruments.redis_up.set),
        records=RedisRecords(link()),
    )


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
        self.refusals = SlowRefusals(settings.failed_sign_ins, modes)


class Services:
    """Every service of one application, connected; `running` starts and ends them.

    `supervisor.give_up` is called when the application cannot go on; its runner may replace it.
    """

    _assertion_refresh: KeyRefresh | None = None  # without Cloudflare Access there is none

    def __init__(self, settings: Settings, engines: Engines) -> None:
        self.engines = engines
        self.instruments = engines.instruments
        self.supervisor = Supervisor(self.instruments, _end_process)
        self._summaries = Summaries(engines.store, engines.cluster, engines.clock, self.supervisor)
        self._retention = Retention(settings.decision_days, settings.minute_days)
        has_store = settings.role != "stream"
        self._topology = topology = Topology(
            has_bus=settings.redis_url is not None,
            has_store=has_store,
            shares_store=has_store and file_of(settings.database_url) is None,
        )
        self._needs_prices = settings.prices and topology.has_store
        self._stopping: asyncio.Task[None] | None = None
        timers = SystemTimers()
        room = settings.live_memory * 2**20
        names = CardinalityLimiter(settings.max_names, settings.max_series, self._log_full)
        self.names = names
        _measure_names(names, self.instruments)
        self.instruments.wal_bytes.set_function(partial(_wal_bytes, engines.store))
        self.slices = engines.slices
        self._key_refresh = (
            KeyRefresh(engines.tokens, timers, self.supervisor)
            if engines.tokens is not None and engines.tokens.fetches
            else None
        )
        self.key_ring: KeyRing | None = None  # without one there are no API keys
        if engines.keys is not None or not has_store:
            self.key_ring = KeyRing(engines.keys, engines.cluster, engines.clock)
        self.authenticator = Authenticator(
            engines.tokens,
            self.key_ring,
            ClaimRules(settings.jwt_audience, settings.jwt_issuer),
            engines.clock,
            self._key_refresh,
            signs_in=settings.signs_in,
        )
        rules = Rules(
            high=settings.band_high,
            medium=settings.band_medium,
            price=engines.prices.cost if settings.prices else lambda *_: None,
        )
        self.loader = SnapshotLoader(
            engines.store,
            engines.cache,
            engines.bus,
            engines.cluster,
            engines.clock,
            timers,
            self.instruments,
            topology,
            room=int(room * SNAPSHOT_SHARE),
        )
        self.windows = Windows(engines.store, engines.clock, int(room * WINDOWS_SHARE))
        poller = PositionPoller(
            self.loader, engines.store, engines.bus, engines.cluster, timers, topology
        )
        self.live = LiveState(
            self.loader,
            engines.store,
            engines.bus,
            poller,
            engines.clock,
            timers,
            names,
            self.instruments,
            topology,
        )
        self.ingest = Ingest(
            *(engines.store, engines.bus, engines.clock, names, rules, self.instruments),
            *(self.slices, self.live),
        )
        self.metrics = MetricsReader(
            self.live.current,
            self.live.last_known,
            self.loader,
            engines.clock,
            self.instruments,
            _baseline(settings, engines.prices),
            windows=self.windows,
            settled=self.live.settled,
            budget=(budget := RenderBudget()),
        )
        self.renders = Renders(self.metrics, budget, self.instruments, timers, self.slices)
        self.history = HistoryService(
            engines.store, self.live.current, self.live.changes, engines.clock
        )
        self.manager = ConnectionManager(
            self.instruments, settings.max_connections, engines.clock.now
        )
        self.reporter = NodeReporter(
            *(engines.cluster, self.instruments, engines.clock, lambda: self.live.position),
            version=VERSION,
            role=settings.role,
        )
        self.cluster_view = ClusterView(
            OperatorView(self.manager, self.slices, self.reporter.name),
            engines.cluster,
            self.reporter.others,
        )
        self.presence = ClusterPresence(
            engines.cluster, lambda: self.manager.active, self.reporter.encoded
        )
        self.limits = limits = LimitsPerClient(
            settings, self.instruments, engines.cluster if topology.has_bus else None
        )
        self.sites = Sites(
            settings.allowed_origins, settings.allowed_hosts, lambda: self.authenticator.required
        )
        self._records = engines.records or MemoryRecords(engines.clock)
        self.tickets = Tickets(self._records)
        self.sessions = Sessions(self._records, self.authenticator.check, engines.clock)
        self.proxies = Proxies(settings.trusted_proxies)
        self.access = self._build_access(settings, limits.refusals)
        self.admission = AdmissionControl(
            self.manager,
            self.renders,
            interval=settings.interval,
            sites=self.sites,
            max_per_address=settings.max_per_address,
            max_per_subject=settings.max_per_subject,
            max_a_minute=settings.max_connections_a_minute,
            frames=limits.frames,
            modes=limits.modes,
            access=self.access,
        )
        self.channels = Channels(
            self.manager, self.metrics, self.renders, engines.clock, timers, self.instruments
        )
        self.live.followers.append(self.channels)
        self.history_limits = HistoryLimits()
        self.history_subscriptions = HistorySubscriptions(self.history, self.history_limits)
        self.peers = Peers(
            *(self.manager, self.channels, self.history_subscriptions, timers),
            StreamPrincipals(engines.clock, timers),
            self.access,
            limits.frames,
            limits.messages,
        )
        self.authenticator.followers.append(self.peers.revoke)
        self.sessions.followers.append(self.peers.revoke)
        self.websockets = WebSocketEdge(
            self.peers,
            self.admission,
            Heartbeat(timers),
            self.instruments,
            compress=settings.compress,
            proxies=self.proxies,
        )

    def _build_access(self, settings: Settings, refusals: SlowRefusals) -> Access:
        """Return what tells whose a request is, by all ways to say so."""
        proxy = ProxySignIn(
            self.proxies,
            name_field=settings.auth_header,
            groups_field=settings.auth_groups_header,
            cloudflare=settings.cloudflare_team is not None,
        )
        return Access(
            *(self.authenticator, self.tickets, self.sessions, self.sites, refusals),
            *(proxy, self._person_rules(settings)),
            insecure=settings.insecure,
        )

    def _person_rules(self, settings: Settings) -> PersonRules:
        """Return who people are whom a proxy has signed in."""
        verifier = None
        team = (settings.cloudflare_team or "").rstrip("/")
        if team:
            from routecast.adapters.jwks import JwkSet
            from routecast.adapters.jwt_keys import JwtVerifier

            verifier = JwtVerifier([], JwkSet(f"{team}{CLOUDFLARE_KEYS}").fetch)
            timers = SystemTimers()
            self._assertion_refresh = KeyRefresh(verifier, timers, self.supervisor, "cloudflare")
        claims = ClaimRules(settings.cloudflare_audience, team)
        assertions = Authenticator(
            *(verifier, None),
            AssertionRules(claims, group_rules(settings, subject_claim="email")),
            self.engines.clock,
            self._assertion_refresh,
            signs_in=True,
        )
        return PersonRules(group_rules(settings), assertions, self.engines.clock)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Open the engines and run the services; at the end commit what waits and close all."""
        engines = self.engines
        async with AsyncExitStack() as stack:
            for engine in (engines.store, engines.cache, engines.bus, engines.cluster):
                stack.push_async_callback(engine.close)
            stack.push_async_callback(self._records.close)
            stack.push_async_callback(self.windows.close)
            if self._needs_prices:
                await asyncio.to_thread(engines.prices.load)
            await stack.enter_async_context(self._opened())
            start = self.supervisor.running
            if engines.redis is not None:
                stack.push_async_callback(engines.redis.close)
                await stack.enter_async_context(start("redis", engines.redis.run))
            if self._key_refresh is not None:
                await stack.enter_async_context(start(KEY_SERVICE, self._key_refresh.run))
            if self._assertion_refresh is not None:
                refresh = self._assertion_refresh
                await stack.enter_async_context(start(refresh.service, refresh.run))
            if self.key_ring is not None:
                with suppress(Unavailable):  # known before the first request, if possible
                    await self.key_ring.refresh()
                await stack.enter_async_context(start("keys", self.key_ring.run))
            await stack.enter_async_context(start("sessions", self.sessions.run))
            if self._topology.has_store:
                await stack.enter_async_context(start("retention", self._run_retention))
                await stack.enter_async_context(start("summaries", self._summaries.run))
            await stack.enter_async_context(start("bus", engines.bus.run))
            await stack.enter_async_context(start("live", self.live.run))
            await stack.enter_async_context(self._ingesting())
            if self._topology.has_bus:
                await stack.enter_async_context(start("census", self.presence.run))
                await stack.enter_async_context(start("operator", self.cluster_view.run))
                if self.limits.ingest.is_on:
                    await stack.enter_async_context(start("limits", self.limits.ingest.run))
            await stack.enter_async_context(start("renders", self.renders.run))
            await stack.enter_async_context(start("channels", self.channels.run))
            await stack.enter_async_context(start("histories", self.history_subscriptions.run))
            stack.push_async_callback(self.manager.close, STREAMS_CLOSE_SECONDS)
            with suppress(TimeoutError):
                async with asyncio.timeout(LOADED_SECONDS):
                    await self.live.loaded()
            yield

    def begin_stop(self) -> asyncio.Task[None]:
        """Have all producers answered within DRAIN_SECONDS of the first call."""
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop_later(), name="stop")
        return self._stopping

    async def _stop_later(self) -> None:
        await asyncio.sleep(DRAIN_SECONDS)
        self.ingest.give_up()
        self.engines.store.stop()

    @asynccontextmanager
    async def _ingesting(self) -> AsyncIterator[None]:
        """Run ingest beside the body; at its end commit the waiting batches, or refuse them."""
        task = self.supervisor.start("ingest", self.ingest.run, vital=True, ends=True)
        try:
            yield
        finally:
            self.ingest.close()
            stopping = self.begin_stop()
            await asyncio.wait([task, stopping], return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait([task], timeout=ABORT_SECONDS)
            stopping.cancel()
            task.cancel()
            await asyncio.wait([task, stopping])

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[None]:
        """Open the store; if it cannot be reached now, try again beside the body."""
        try:
            await self.engines.store.open()
        except Unavailable as error:
            log.error("The database cannot be opened, and will be tried again: %s", error)
            again = partial(self._open_again, str(error))
            async with self.supervisor.running("open", again, ends=True):
                yield
        else:
            yield

    async def _open_again(self, cause: str) -> None:
        """Open the store as soon as it can be reached. Raises BadSettings if it never can be."""
        while True:
            await asyncio.sleep(REOPEN_SECONDS)
            try:
                await self.engines.store.open()
            except Unavailable as error:
                if str(error) != cause:
                    cause = str(error)
                    log.error("The database still cannot be opened: %s", cause)
            else:
                log.warning("The database is open")
                return

    async def _run_retention(self) -> None:
        engines = self.engines
        await run_retention(
            engines.store, engines.cluster, engines.clock, self._retention, self.supervisor
        )

    async def check(self) -> list[str]:
        """Return what fails without keeping decisions from being acknowledged; [] for nothing.

        Raises Unavailable when decisions could not be acknowledged now.
        """
        if (down := self.supervisor.down) is not None:
            raise Unavailable(down)
        await self.ingest.check()
        return self._degraded()

    async def health(self) -> HealthReport:
        """Return the state of the engines and services, and the source of numbers now."""
        try:
            source = (await self.metrics.read()).source.value
        except Unavailable:
            source = "none"
        failing = self.live.failing or self.ingest.failing
        files = self.engines.store.condition
        missing = self.engines.redis.parts if self.engines.redis is not None else []

        def shared(part: str, why: object) -> EngineStatus:
            return "failing" if why or part in missing else "ok"

        components = Components(
            database="corrupt" if files.error else "failing" if failing else "ok",
            cache=shared("cache", self.loader.cache_failing),
            bus=shared("bus", self.engines.bus.failing),
            census=shared("census", self.presence.failing),
        )
        degraded = self._degraded()
        if source == "none":
            degraded.append("there are no numbers to serve")
        return HealthReport(
            status="degraded" if degraded else "ok",
            active_connections=self.presence.total,
            version=VERSION,
            position=self.live.position,
            components=components,
            source=source,
            full_names=self.names.full,
            database_check=files.check or UNSET,
            database_error=files.error or UNSET,
            database_warning=files.warning or UNSET,
            database_wal_bytes=UNSET if files.wal_bytes is None else files.wal_bytes,
            services=self.supervisor.services,
            degraded=degraded or UNSET,
        )

    def _degraded(self) -> list[str]:
        """Return a text for each thing that fails."""
        engines, redis = self.engines, self.engines.redis
        files = engines.store.condition
        failing = {
            "database": files.error or self.live.failing or self.ingest.failing or files.warning,
            "redis": redis.problem if redis is not None else None,
            "cache": "it cannot be used" if self.loader.cache_failing else None,
            "bus": engines.bus.failing,
            "census": self.presence.failing,
            "keys": self.key_ring.failing if self.key_ring is not None else None,
            "sessions": self.sessions.failing,
        }
        texts = [f"{part}: {why}" for part, why in failing.items() if why]
        for name, state in self.supervisor.failing.items():
            texts.append(f"service {name}: {state.status}: {state.last_error}")
        return texts

    def _log_full(self, part: str) -> None:
        limit, setting = self.names.limits[part], _LIMITS.get(part, "ROUTECAST_MAX_NAMES")
        log.warning(
            "The limit of %s names for %s is reached: new ones count as `other`. Raise %s, or make "
            "room with `routecast names fold` or `routecast names forget`",
            *(f"{limit:,}", part, setting),
        )


def _measure_names(names: CardinalityLimiter, instruments: Instruments) -> None:
    for part, limit in names.limits.items():
        instruments.names.labels(part).set_function(partial(names.used, part))
        instruments.names_limit.labels(part).set(limit)


def _notice(settings: Settings) -> str:
    """Return the line that the pages show."""
    return " · ".join(text for text in (settings.notice, INSECURE * settings.insecure) if text)


def _end_process(_: str) -> None:
    """Have any ASGI server stop properly, with an exit code that shows the signal."""
    signal.raise_signal(signal.SIGTERM)


def _wal_bytes(store: Store) -> float:
    size = store.condition.wal_bytes
    return math.nan if size is None else size


def _baseline(settings: Settings, prices: Prices) -> Baseline | None:
    if settings.baseline_model is None:
        return None
    price = prices.per_million(settings.baseline_model)
    if price is None:
        raise BadSettings(
            f"baseline_model (ROUTECAST_BASELINE_MODEL): no price is known of "
            f"{settings.baseline_model!r}"
        )
    if price.upto is not None:
        log.warning(
            "ROUTECAST_BASELINE_MODEL: %s has another price in requests of over %s input tokens. "
            "The field `savings` uses the one below that, since it knows sums of tokens only",
            *(settings.baseline_model, f"{price.upto:,}"),
        )
    return Baseline(settings.baseline_model, price.input, price.output)


class App(FastAPI):
    """FastAPI, with `POST /v1/decisions` in front of its middleware, which costs more than that."""

    decisions: Decisions
    take: ASGIApp  # `decisions`, with CORS and access control
    gate: ASGIApp  # `route`, behind the checks of `edge/gate.py`

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.gate(scope, receive, send)

    async def route(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request that the gate let through."""
        if scope["type"] == "http":
            if scope["path"] == DECISIONS and scope["method"] == "POST":
                await self.take(scope, receive, send)
                return
            scope = as_get(scope)
        await super().__call__(scope, receive, send)


def create_app(settings: Settings, engines: Engines | None = None) -> App:
    """Return the ASGI application. `engines` replaces those that the settings name.

    Raises BadSettings. The services start with the application's lifespan, which every ASGI
    server runs; a database that cannot be used fails there, with BadDatabase.
    """
    audit.record("settings", "The server starts", settings=settings.shown(), version=VERSION)
    services = Services(settings, engines or open_engines(settings))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with services.running():
            yield

    app = App(
        title="Routecast",
        version=VERSION,
        summary="Live, exact metrics of LLM routing decisions.",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's pages load scripts of other hosts; see `edge/http/docs.py`
        redoc_url=None,
        redirect_slashes=False,  # a redirect names the host and path that the client sent
    )
    app.state.services = services
    _add_routes(app, settings, services)
    app.add_exception_handler(RoutecastError, on_routecast_error)
    app.add_exception_handler(HTTPException, http_error_handler(route_of))
    app.add_exception_handler(Exception, on_crash)
    return app


def _add_routes(app: App, settings: Settings, services: Services) -> None:
    sites = services.sites
    access = services.access
    decisions = Decisions(services.ingest, sites, services.slices, access, services.limits.ingest)
    app.decisions, app.take = decisions, Cors(AccessControl(decisions, access), sites, access)
    app.gate = Gate(app.route, sites, services.proxies, route_of)
    app.add_middleware(AccessControl, access=access)
    app.add_middleware(Cors, sites=sites, access=access)  # the last one added is the first
    streams = (services.peers, services.admission, services.instruments)
    app.router.routes[:0] = [
        # For an application mounted in another one, and to answer 405 to other methods.
        Route(DECISIONS, decisions, methods=["POST"]),
        WebSocketRoute("/ws/metrics", MetricsSocket(*streams)),
        Route("/ws/metrics", UpgradeProbe(services.admission), methods=METHODS),
        Route("/sse/metrics", MetricsEvents(*streams), methods=["GET"]),
    ]
    app.include_router(metrics_router(services.renders.encoded_document))
    app.include_router(history_router(services.history.answer, services.history_limits))
    app.include_router(ops_router(services.health, services.check, services.instruments))
    app.include_router(operator_router(services.cluster_view, services.reporter.all, sites))
    app.include_router(tickets_router(services.tickets))
    provider = open_provider(settings)
    has_provider = provider is not None
    app.include_router(session_router(access, services.sessions, sites, lambda: has_provider))
    app.include_router(login_router(provider, group_rules(settings), services.sessions))
    app.include_router(asyncapi_router(VERSION))
    app.include_router(docs_router(lambda: app.openapi()))
    app.include_router(page_router(_notice(settings), settings.frame_ancestors))
    derive = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            describe(derive())
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # -- how FastAPI lets one extend it
