"""The supervisor: it restarts background services after a crash, and reports each failure.

A service that crashes is started again, after growing pauses. A service that fails at one piece of
work reports it, and continues with the next. Both show in `/health` and `/metrics`, which list
every service, and in the log once for each cause. If starting again cannot help, the application is
given up: the program that runs it ends the process.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from routecast.errors import BadSettings, RoutecastError
from routecast.instruments import Instruments
from routecast.protocol import ServiceState, ServiceStatus
from routecast.retry import Backoff, no_jitter

log = logging.getLogger(__name__)

# Pauses before a crashed service is started again, in seconds: each is twice the one before.
FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 60.0
# A restarted service counts as working after this time, in seconds.
STEADY_SECONDS: Final = 60.0
# A vital service is given up after this number of crashes in a row: about two minutes.
MAX_CRASHES: Final = 8
# Causes that are remembered as logged, for one service; if there are more, all are logged again.
MAX_CAUSES: Final = 32
# A service that does not end when it is told to is abandoned after this time, in seconds.
SERVICE_END_SECONDS: Final = 5.0

Run = Callable[[], Coroutine[Any, Any, None]]


@dataclass(slots=True)
class _Service:
    """The state of a service."""

    vital: bool = False  # without it no decision is acknowledged
    runs: bool = True  # False between a crash and the next start
    failures: int = 0  # since it last worked
    restarts: int = 0
    last_error: str = ""
    logged: set[str] = field(default_factory=set)

    @property
    def status(self) -> ServiceStatus:
        return "down" if not self.runs else "failing" if self.failures else "ok"


class Supervisor:
    """Runs the background services of one application, and knows their states.

    `give_up` is called with the reason if a service cannot be started again: end the process then,
    with a code other than 0.
    """

    def __init__(
        self, instruments: Instruments, give_up: Callable[[str], object] = lambda _: None
    ) -> None:
        self._instruments = instruments
        self._services: dict[str, _Service] = {}
        self.give_up = give_up

    @property
    def services(self) -> dict[str, ServiceState]:
        """Every service by name, including those that have finished."""
        return {
            name: ServiceState(one.status, one.failures, one.restarts, one.last_error)
            for name, one in self._services.items()
        }

    @property
    def failing(self) -> dict[str, ServiceState]:
        """The services that failed and have not worked since."""
        return {name: state for name, state in self.services.items() if state.status != "ok"}

    @property
    def down(self) -> str | None:
        """Why no decision can be acknowledged: a vital service is not running. None if all are."""
        for name, one in self._services.items():
            if one.vital and not one.runs:
                return f"the service {name} crashed and will be started again: {one.last_error}"
        return None

    def failed(self, service: str, error: BaseException, work: str = "") -> None:
        """Record that a service failed; `work` says at what, for the log."""
        one = self._service(service)
        one.failures += 1
        # The texts of other errors may contain anything; they are for the log alone.
        shown = isinstance(error, RoutecastError)
        one.last_error = str(error) if shown else f"{type(error).__name__}; see the server's log"
        self._instruments.service_failures.labels(service).inc()
        self._instruments.service_up.labels(service).set(0)
        self._instruments.service_failed.labels(service).set(time.time())
        cause = f"{type(error).__name__}: {error}"[:500]
        if cause in one.logged:
            return
        if len(one.logged) >= MAX_CAUSES:
            one.logged.clear()
        one.logged.add(cause)
        at = f" at {work}" if work else ""
        if shown:
            log.error("The service %s failed%s and will be tried again: %s", service, at, error)
        else:
            log.error(
                "The service %s failed%s and will be tried again", service, at, exc_info=error
            )

    def works(self, service: str) -> None:
        """Record that a service works."""
        one = self._service(service)
        if one.failures:
            one.failures = 0
            one.logged.clear()
            self._instruments.service_up.labels(service).set(1)
            log.warning("The service %s works again", service)

    def _service(self, name: str, *, vital: bool = False) -> _Service:
        one = self._services.get(name)
        if one is None:
            one = self._services[name] = _Service(vital)
            self._instruments.service_up.labels(name).set(1)
            self._instruments.service_failures.labels(name)
            self._instruments.service_restarts.labels(name)
            self._instruments.service_failed.labels(name).set(0)
        return one

    async def keep(
        self, service: str, run: Run, *, vital: bool = False, ends: bool = False
    ) -> None:
        """Run a service until this is cancelled; start it again after a crash.

        A service that `ends` may end by itself; for others that is a crash, too. Without a `vital`
        service no decision is acknowledged.
        """
        loop = asyncio.get_running_loop()
        one = self._service(service, vital=vital)
        backoff, crashes = Backoff(FIRST_PAUSE, LONGEST_PAUSE, draw=no_jitter), 0
        steady: asyncio.TimerHandle | None = None
        while True:
            one.runs, started = True, loop.time()
            try:
                if await self._run(service, run, ends=ends):
                    return
            finally:
                if steady is not None:
                    steady.cancel()
            if loop.time() - started >= STEADY_SECONDS:
                backoff.reset()
                crashes = 0
            crashes += 1
            if vital and crashes >= MAX_CRASHES:
                self._give_up(service, f"it crashed {crashes} times in a row: {one.last_error}")
            await asyncio.sleep(backoff.next())
            one.restarts += 1
            self._instruments.service_restarts.labels(service).inc()
            steady = loop.call_later(STEADY_SECONDS, self._is_steady, service, one.failures)

    def _is_steady(self, service: str, failures: int) -> None:
        """Count a restarted service as working, unless it has failed at some work."""
        if self._service(service).failures == failures:
            self.works(service)

    async def _run(self, service: str, run: Run, *, ends: bool) -> bool:
        """Run a service once; return whether it has finished, so that it is not started again."""
        # It runs in its own task. If that task is cancelled by anything but this one, it crashed.
        once = asyncio.create_task(run(), name=service)
        try:
            await asyncio.wait([once])
        except asyncio.CancelledError:
            once.cancel()
            await asyncio.wait([once])
            raise
        error = asyncio.CancelledError() if once.cancelled() else once.exception()
        if error is None and ends:
            return True
        self._crashed(service, error or RoutecastError("it ended by itself"))
        if isinstance(error, BadSettings):  # a restart does not help
            self._give_up(service, str(error))
        return False

    def _crashed(self, service: str, error: BaseException) -> None:
        self._service(service).runs = False
        self.failed(service, error)

    def _give_up(self, service: str, why: str) -> None:
        log.critical("The service %s cannot go on, and the process ends: %s", service, why)
        self.give_up(f"{service}: {why}")

    def start(
        self, service: str, run: Run, *, vital: bool = False, ends: bool = False
    ) -> asyncio.Task[None]:
        """Return a task that keeps a service running. Cancel it to stop the service."""

        def ended(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (error := task.exception()) is not None:
                self._give_up(service, f"{type(error).__name__}; it could not be started again")

        task = asyncio.create_task(self.keep(service, run, vital=vital, ends=ends), name=service)
        task.add_done_callback(ended)
        return task

    @asynccontextmanager
    async def running(self, service: str, run: Run, *, ends: bool = False) -> AsyncIterator[None]:
        """Run a service beside the body; cancel it at the end."""
        task = self.start(service, run, ends=ends)
        try:
            yield
        finally:
            task.cancel()
            _, left = await asyncio.wait([task], timeout=SERVICE_END_SECONDS)
            if left:
                log.error("The service %s does not stop; it is abandoned", service)
