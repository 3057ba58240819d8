"""`RateHistory`: decisions per second and dollars per minute over time, for charts."""

import time
from collections import deque
from collections.abc import Callable
from typing import Final

from routecast.client import Metrics
from routecast.protocol import WINDOWS

# Samples closer than this, in seconds, are mostly noise.
SHORTEST: Final = 0.5
_KEPT: Final = 1000  # more columns than a terminal has
_PATIENCE: Final = 1.6

Samples = deque[float | None]


class RateHistory:
    """Samples of one view, one for each period; None is a gap without data.

    With the window `all`, a sample is the growth since the sample before. Totals of other windows
    also fall as decisions leave, so a sample is the server's rate of the last minute, and the
    window's average cost.
    """

    def __init__(
        self, window: str, interval: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.period = max(interval, SHORTEST)
        self.rates: Samples = deque(maxlen=_KEPT)
        self.costs: Samples = deque(maxlen=_KEPT)
        self._minutes = WINDOWS[window]
        # The time that one sample covers, in words.
        self.rates_of = f"each {self.period:g} s" if window == "all" else "last min"
        self.costs_of = f"each {self.period:g} s" if window == "all" else f"average of {window}"
        self._clock = clock
        self._last: tuple[float, int, float] | None = None
        self._sampled = clock()

    def arrived(self, metrics: Metrics) -> None:
        """Take a sample of new numbers."""
        now = self._clock()
        total = metrics.total_decisions or 0
        cost = metrics.cost.total if metrics.cost else 0.0
        if self._minutes is not None:
            if now - self._sampled >= SHORTEST or not self.rates:
                self._add(now, metrics.rate, cost / self._minutes)
            return
        if self._last is not None:
            then, before, spent = self._last
            step = now - then
            if total < before:
                self._add(now, None, None)  # another epoch
            elif step < 0.9 * SHORTEST:
                return
            else:
                self._add(now, (total - before) / step, 60 * (cost - spent) / step)
        self._last = now, total, cost
        self._sampled = now

    def passed(self, *, fresh: bool) -> None:
        """Take the due samples without new numbers: a gap, unless the connection is `fresh`."""
        now = self._clock()
        while now - self._sampled >= _PATIENCE * self.period:
            self._sampled += self.period
            if not fresh:
                self._last = None
                self._add(self._sampled, None, None)
            elif self._minutes is not None and self.rates:
                self._add(self._sampled, self.rates[-1], self.costs[-1])
            elif self._last is not None:
                self._last = self._sampled, *self._last[1:]
                self._add(self._sampled, 0.0, 0.0)

    def _add(self, at: float, rate: float | None, cost: float | None) -> None:
        self._sampled = at
        self.rates.append(rate)
        self.costs.append(cost)
