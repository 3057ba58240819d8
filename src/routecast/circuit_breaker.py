"""A circuit breaker: it stops calls to an engine that fails, and probes it now and then."""

import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from routecast.errors import Declined, Unavailable
from routecast.retry import Backoff

log = logging.getLogger(__name__)

# One failure may be a lost connection; this number of failures in a row opens the breaker.
FAILURES: Final = 3
# The minimum and maximum time between two probes, in seconds. The random part, which keeps nodes
# from probing all at once, grows from the minimum. The maximum plus a probe's own time is less than
# the 5 s within which a node must notice that an engine is back.
SHORTEST_WAIT: Final = 0.125
LONGEST_WAIT: Final = 3.0


class CircuitBreaker:
    """Guards one engine: closed at first, open after FAILURES in a row.

    While it is open, `call` raises at once. After a wait, one call is let through as a probe: its
    success closes the breaker, its failure makes the wait longer.
    """

    def __init__(
        self,
        engine: str,
        monotonic: Callable[[], float] = time.monotonic,
        draw: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._engine = engine
        self._monotonic = monotonic
        self._backoff = Backoff(SHORTEST_WAIT, LONGEST_WAIT - SHORTEST_WAIT, draw=draw)
        self._failures = 0
        self._opened: float | None = None
        self._until = 0.0  # when the next probe may go, while open
        self._probing = False
        self.failing: str | None = None

    @property
    def wait(self) -> float:
        """Seconds until a call may pass; 0 if one may now."""
        return 0.0 if self._opened is None else max(0.0, self._until - self._monotonic())

    @contextmanager
    def call(self) -> Iterator[None]:
        """Let a call of the engine pass, and record its outcome.

        Raises Unavailable while open. Any exception of the body is a failure of the engine, except
        Declined: that is an answer, so the engine works.
        """
        probe = self._opened is not None
        if probe:
            if self._probing or self.wait > 0:
                raise Unavailable(f"{self._engine} is unavailable: {self.failing}")
            self._probing = True
        try:
            yield
        except Declined:
            self._succeeded()
            raise
        except Exception as error:
            self._failed(str(error), probe)
            raise
        else:
            self._succeeded()
        finally:  # a cancelled probe has no outcome, so another call may probe
            if probe:
                self._probing = False

    def _failed(self, why: str, probe: bool) -> None:
        self._failures += 1
        if self._opened is None and self._failures >= FAILURES:
            self._opened = self._monotonic()
            self.failing = why
            self._hold()
            log.error("%s is unavailable and will be tried again: %s", self._engine, why)
        elif self._opened is not None and probe:  # other calls began before it opened
            self.failing = why
            self._hold()

    def _hold(self) -> None:
        self._until = self._monotonic() + self._backoff.next(SHORTEST_WAIT)

    def _succeeded(self) -> None:
        if self._opened is not None:
            seconds = self._monotonic() - self._opened
            log.warning("%s is available again, after %.1f s", self._engine, seconds)
        self._failures = 0
        self._backoff.reset()
        self._opened = self.failing = None
