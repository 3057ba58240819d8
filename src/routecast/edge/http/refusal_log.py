"""The log of refused requests: at most one line for each cause in ten seconds, with a count."""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from prometheus_client import Counter

from routecast import audit

LOG_SECONDS: Final = 10.0


def _call_later(seconds: float, action: Callable[[str], None], cause: str) -> object:
    return asyncio.get_running_loop().call_later(seconds, action, cause)


class RefusalLog:
    """Counts refused requests by cause, and logs them at a bounded rate.

    The first refusal of a cause is logged at once. Those of the next ten seconds are logged as one
    line. A cause must never contain text of a client, because each cause has a count of its own.
    """

    def __init__(
        self,
        log: logging.Logger,
        counter: Counter,
        call_later: Callable[[float, Callable[[str], None], str], object] = _call_later,
    ) -> None:
        self._log = log
        self._counter = counter
        self._call_later = call_later
        self._counts: dict[str, int] = {}  # not logged yet; has the causes of the last ten seconds

    def add(self, cause: str) -> None:
        """Count one more request that was refused for this cause."""
        self._counter.labels(cause).inc()
        if cause in self._counts:
            self._counts[cause] += 1
        else:
            self._log.warning(
                "Refused a request: %s", cause, extra=audit.marked("refuse", why=cause)
            )
            self._wait(cause)

    def _wait(self, cause: str) -> None:
        self._counts[cause] = 0
        self._call_later(LOG_SECONDS, self._flush, cause)

    def _flush(self, cause: str) -> None:
        count = self._counts.pop(cause)
        if count:
            plural = "s" if count > 1 else ""
            self._log.warning(
                "Refused %s request%s in %.0f s: %s",
                f"{count:,}",
                plural,
                LOG_SECONDS,
                cause,
                extra=audit.marked("refuse", why=cause, left_out=count),
            )
            self._wait(cause)
