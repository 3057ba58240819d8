"""Clocks that stand still until a test sets them."""

import asyncio
from collections.abc import Callable

from tests.support.decisions import NOW


class HeldClock:
    """A clock that returns the time it was set to, in microseconds (`ports.Clock`)."""

    def __init__(self, moment: int = NOW) -> None:
        self.moment = moment

    def now(self) -> int:
        return self.moment


class HeldTimer:
    """A call that is made when its moment is reached (`ports.Timer`)."""

    def __init__(
        self, moment: float, call: Callable[..., object], args: tuple[object, ...]
    ) -> None:
        self.moment = moment
        self.call = call
        self.args = args
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class HeldTimers:
    """Timers of a clock that stands still until a test moves it (`ports.Timers`)."""

    def __init__(self, moment: float = 1_000.0) -> None:
        self.moment = moment
        self.timers: list[HeldTimer] = []
        self._armed = asyncio.Event()

    def now(self) -> float:
        return self.moment

    def call_at(self, moment: float, call: Callable[..., object], *args: object) -> HeldTimer:
        timer = HeldTimer(moment, call, args)
        self.timers.append(timer)
        self._armed.set()
        return timer

    def go_to(self, moment: float) -> None:
        """Move the clock, and make the calls that are then due, in one turn of the loop."""
        self.moment = moment
        due = [timer for timer in self.timers if timer.moment <= moment]
        self.timers = [timer for timer in self.timers if timer.moment > moment]
        for timer in sorted(due, key=lambda timer: timer.moment):
            if not timer.cancelled:
                timer.call(*timer.args)

    def pending(self) -> list[float]:
        """Return the moments of all pending calls."""
        return sorted(timer.moment for timer in self.timers if not timer.cancelled)

    async def armed(self) -> None:
        """Return when a call is pending: the code that uses these timers has then done its work."""
        while not self.pending():
            self._armed.clear()
            await self._armed.wait()

    async def pass_time(self, seconds: float) -> None:
        """Move the clock, and stop at each pending call until its work is done."""
        end = self.moment + seconds
        await self.armed()
        while (due := self.pending()[0]) <= end:
            self.go_to(due)
            await self.armed()
        self.go_to(end)
