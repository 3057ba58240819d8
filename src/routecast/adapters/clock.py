"""The system's clock (`ports.Clock`), and its timers (`ports.Timers`)."""

import asyncio
import time
from collections.abc import Callable
from math import ceil


class SystemClock:
    """Microseconds since 1970 by the clock of this machine."""

    def now(self) -> int:
        return time.time_ns() // 1000


class SystemTimers:
    """Timers of the running event loop, on the system's monotonic clock.

    The loop's own clock is not used: that of uvloop has milliseconds, and does not advance during a
    turn of the loop.
    """

    def now(self) -> float:
        return time.monotonic()

    def call_at(
        self, moment: float, call: Callable[..., object], *args: object
    ) -> asyncio.TimerHandle:
        # Loops count in whole milliseconds, from the beginning of the present one. One is added,
        # because a timer must not be early.
        seconds = ceil(1000 * (moment - self.now()) + 1) / 1000
        return asyncio.get_running_loop().call_later(seconds, call, *args)
