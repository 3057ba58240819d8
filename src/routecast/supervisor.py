"""The supervisor: background services go on after a failure, and each failure is told.

A service that crashes is started again, after pauses that grow. A service that fails on one piece
of work says so, and goes on with the next. Either is in `/health` until it works again, in
`/metrics` for good, and in the log once for each cause.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final

from routecast.errors import RoutecastError
from routecast.instruments import Instruments
from routecast.protocol import ServiceFailure

log = logging.getLogger(__name__)

# Pauses before a service that crashed is started again, in seconds: each is twice the one before.
FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 60.0
# A service that was started again counts as working after this time, in seconds.
STEADY_SECONDS: Final = 60.0
# Causes remembered as logged, of one service; when there are more, all are logged again.
MAX_CAUSES: Final = 32


@dataclass(slots=True)
class _Failing:
    """A service that failed and has not worked since."""

    failures: int = 0
    last_error: str = ""
    logged: set[str] = field(default_factory=set)


class Supervisor:
    """Runs the background services of one application, and knows which of them fail."""

    def __init__(self, instruments: Instruments) -> None:
        self._instruments = instruments
        self._failing: dict[str, _Failing] = {}

    @property
    def failing(self) -> dict[str, ServiceFailure]:
        """The services that failed and have not worked since."""
        return {
            name: ServiceFailure(one.failures, one.last_error)
            for name, one in self._failing.items()
        }

    def failed(self, service: str, error: BaseException, work: str = "") -> None:
        """Take note that a service failed; `work` says at what, for the log."""
        self._instruments.service_failures.labels(service).inc()
        failing = self._failing.setdefault(service, _Failing())
        failing.failures += 1
        # The text of other errors may hold anything; it is for the log alone.
        shown = isinstance(error, RoutecastError)
        failing.last_error = (
            str(error) if shown else f"{type(error).__name__}; see the server's log"
        )
        cause = f"{type(error).__name__}: {error}"[:500]
        if cause in failing.logged:
            return
        if len(failing.logged) >= MAX_CAUSES:
            failing.logged.clear()
        failing.logged.add(cause)
        at = f" at {work}" if work else ""
        if shown:
            log.error("The service %s failed%s, and will try again: %s", service, at, error)
        else:
            log.error("The service %s failed%s, and will try again", service, at, exc_info=error)

    def works(self, service: str) -> None:
        """Take note that a service works."""
        if self._failing.pop(service, None) is not None:
            log.warning("The service %s works again", service)

    async def keep(self, service: str, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a service until it ends by itself or this is cancelled; after a crash, again."""
        loop = asyncio.get_running_loop()
        pause, steady = FIRST_PAUSE, None
        while True:
            started = loop.time()
            try:
                await run()
            except asyncio.CancelledError as error:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                self.failed(service, error)  # something that it waited for was cancelled
            except Exception as error:
                self.failed(service, error)
            else:
                return
            finally:
                if steady is not None:
                    steady.cancel()
            if loop.time() - started >= STEADY_SECONDS:
                pause = FIRST_PAUSE
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
            steady = loop.call_later(STEADY_SECONDS, self.works, service)

    @asynccontextmanager
    async def running(
        self, service: str, run: Callable[[], Coroutine[Any, Any, None]]
    ) -> AsyncIterator[None]:
        """Run a service beside the body; at its end cancel it."""
        task = asyncio.create_task(self.keep(service, run), name=service)
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
