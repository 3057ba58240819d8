"""`Services`: all parts of the application, started and ended in order, and their health."""

import asyncio
import logging
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from importlib.metadata import version

from msgspec import UNSET

from routecast.errors import Unavailable
from routecast.protocol import Components, EngineStatus, HealthReport
from routecast.server.authentication import Authentication
from routecast.server.config import Settings
from routecast.server.engines import Engines, topology_of
from routecast.server.limits_per_client import LimitsPerClient
from routecast.server.numbers import Numbers
from routecast.server.streams import Streams
from routecast.services.node_summary import NodeReporter
from routecast.services.retention import Retention, Summaries, run_retention
from routecast.services.supervisor import Supervisor

log = logging.getLogger(__name__)

VERSION = version("routecast")
# At shutdown, waiting decisions may be committed for this time, in seconds. Then they are refused,
# and the database is interrupted.
DRAIN_SECONDS = 4.0
# After that, a commit under way has this time, in seconds, to report its outcome.
ABORT_SECONDS = 2.0
# At shutdown, streams get this time to close, in seconds.
STREAMS_CLOSE_SECONDS = 3.0
# A node waits for its first load of live state before it takes requests; for at most this time, in
# seconds, because decisions can be taken without it.
LOADED_SECONDS = 30.0
# Between two tries to open a database that could not be reached at the start.
REOPEN_SECONDS = 1.0


class Services:
    """Every service of one application, connected; `running` starts and ends them.

    `supervisor.give_up` is called when the application cannot go on; its runner may replace it.
    """

    def __init__(self, settings: Settings, engines: Engines) -> None:
        self.engines = engines
        self.instruments = engines.instruments
        self.supervisor = Supervisor(self.instruments, _end_process)
        self._summaries = Summaries(engines.store, engines.cluster, engines.clock, self.supervisor)
        self._retention = Retention(settings.decision_days, settings.minute_days)
        self._topology = topology_of(settings)
        self._needs_prices = settings.prices and self._topology.has_store
        self._stopping: asyncio.Task[None] | None = None
        self.numbers = Numbers(settings, engines, self._topology)
        self.limits = LimitsPerClient(
            settings, self.instruments, engines.cluster if self._topology.has_bus else None
        )
        self.authentication = Authentication(
            *(settings, engines, self.supervisor),
            *(self.limits.refusals, self.limits.sessions, self.limits.tickets),
        )
        self.reporter = NodeReporter(
            engines.cluster,
            self.instruments,
            engines.clock,
            lambda: self.numbers.live.position,
            version=VERSION,
            role=settings.role,
        )
        self.streams = Streams(
            settings, engines, self.numbers, self.authentication, self.limits, self.reporter
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Open the engines and run the services; at the end commit what waits and close all."""
        engines, numbers, streams = self.engines, self.numbers, self.streams
        async with AsyncExitStack() as stack:
            for engine in (engines.store, engines.cache, engines.bus, engines.cluster):
                stack.push_async_callback(engine.close)
            stack.push_async_callback(self.authentication.close)
            stack.push_async_callback(numbers.windows.close)
            if self._needs_prices:
                await asyncio.to_thread(engines.prices.load)
            await stack.enter_async_context(self._opened())
            start = self.supervisor.running
            if engines.redis is not None:
                stack.push_async_callback(engines.redis.close)
                await stack.enter_async_context(start("redis", engines.redis.run))
            await stack.enter_async_context(self.authentication.running())
            if self._topology.has_store:
                await stack.enter_async_context(start("retention", self._run_retention))
                await stack.enter_async_context(start("summaries", self._summaries.run))
            await stack.enter_async_context(start("bus", engines.bus.run))
            await stack.enter_async_context(start("live", numbers.live.run))
            await stack.enter_async_context(self._ingesting())
            if self._topology.has_bus:
                await stack.enter_async_context(start("census", streams.presence.run))
                await stack.enter_async_context(start("operator", streams.cluster_view.run))
                if self.limits.ingest.is_on:
                    await stack.enter_async_context(start("limits", self.limits.ingest.run))
            await stack.enter_async_context(start("renders", numbers.renders.run))
            await stack.enter_async_context(start("channels", streams.channels.run))
            await stack.enter_async_context(start("histories", streams.history_subscriptions.run))
            stack.push_async_callback(streams.manager.close, STREAMS_CLOSE_SECONDS)
            with suppress(TimeoutError):
                async with asyncio.timeout(LOADED_SECONDS):
                    await numbers.live.loaded()
            yield

    def begin_stop(self) -> asyncio.Task[None]:
        """Have all producers answered within DRAIN_SECONDS of the first call."""
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop_later(), name="stop")
        return self._stopping

    async def _stop_later(self) -> None:
        await asyncio.sleep(DRAIN_SECONDS)
        self.numbers.ingest.give_up()
        self.engines.store.stop()

    @asynccontextmanager
    async def _ingesting(self) -> AsyncIterator[None]:
        """Run ingest beside the body; at its end commit the waiting batches, or refuse them."""
        task = self.supervisor.start("ingest", self.numbers.ingest.run, vital=True, ends=True)
        try:
            yield
        finally:
            self.numbers.ingest.close()
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
        await self.numbers.ingest.check()
        return self._degraded()

    async def health(self) -> HealthReport:
        """Return the state of the engines and services, and the source of numbers now."""
        try:
            source = (await self.numbers.metrics.read()).source.value
        except Unavailable:
            source = "none"
        failing = self.numbers.live.failing or self.numbers.ingest.failing
        files = self.engines.store.condition
        missing = self.engines.redis.parts if self.engines.redis is not None else []

        def shared(part: str, why: object) -> EngineStatus:
            return "failing" if why or part in missing else "ok"

        components = Components(
            database="corrupt" if files.error else "failing" if failing else "ok",
            cache=shared("cache", self.numbers.loader.cache_failing),
            bus=shared("bus", self.engines.bus.failing),
            census=shared("census", self.streams.presence.failing),
        )
        degraded = self._degraded()
        if source == "none":
            degraded.append("there are no numbers to serve")
        return HealthReport(
            status="degraded" if degraded else "ok",
            active_connections=self.streams.presence.total,
            version=VERSION,
            position=self.numbers.live.position,
            components=components,
            source=source,
            full_names=self.numbers.names.full,
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
            "database": files.error
            or self.numbers.live.failing
            or self.numbers.ingest.failing
            or files.warning,
            "redis": redis.problem if redis is not None else None,
            "cache": "it cannot be used" if self.numbers.loader.cache_failing else None,
            "bus": engines.bus.failing,
            "census": self.streams.presence.failing,
            **self.authentication.failing,
        }
        texts = [f"{part}: {why}" for part, why in failing.items() if why]
        for name, state in self.supervisor.failing.items():
            texts.append(f"service {name}: {state.status}: {state.last_error}")
        return texts


def _end_process(_: str) -> None:
    """Have any ASGI server stop properly, with an exit code that shows the signal."""
    signal.raise_signal(signal.SIGTERM)
