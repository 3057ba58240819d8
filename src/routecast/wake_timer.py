"""A wake timer: it wakes one task at a given time or earlier."""

import asyncio
from math import inf

from routecast.ports import Timer, Timers


class WakeTimer:
    """Wakes the task that waits for it."""

    def __init__(self, timers: Timers) -> None:
        self._timers = timers
        self._woken = asyncio.Event()
        self._due = -inf  # when it wakes the task; -inf while no task waits
        self._timer: Timer | None = None

    def wake(self) -> None:
        """Wake the task that waits; if none waits, the next one wakes at once."""
        self._woken.set()

    def wake_by(self, moment: float) -> None:
        """Wake the task that waits, if any, at this moment of the timers or earlier."""
        if moment < self._due:
            self._set(moment)

    async def wait_until(self, moment: float) -> float:
        """Return at this moment of the timers, or earlier if `wake` or `wake_by` is called.

        The result is the delay in seconds; it is negative after an early return.
        """
        self._set(moment)
        try:
            await self._woken.wait()
        finally:
            due, self._due = self._due, -inf
            self._cancel()
            self._woken.clear()
        return self._timers.now() - due

    def _set(self, moment: float) -> None:
        self._cancel()
        self._due = moment
        self._timer = self._timers.call_at(moment, self._woken.set)

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
