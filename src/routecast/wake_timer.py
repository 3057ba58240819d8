"""An alarm: it wakes one task at a moment or earlier."""

import asyncio
from math import inf

from routecast.ports import Timer, Timers


class Alarm:
    """Wakes the task that waits for it."""

    def __init__(self, timers: Timers) -> None:
        self._timers = timers
        self._rung = asyncio.Event()
        self._due = -inf  # when it rings; -inf while no task waits
        self._timer: Timer | None = None

    def ring(self) -> None:
        """Wake the task now; where none waits, the next one at once."""
        self._rung.set()

    def ring_by(self, moment: float) -> None:
        """Wake the task that waits, if any, at this moment of the timers or earlier."""
        if moment < self._due:
            self._set(moment)

    async def wait_until(self, moment: float) -> float:
        """Return at this moment of the timers, or earlier if it rings.

        The result is by how many seconds it is late; negative if it is early.
        """
        self._set(moment)
        try:
            await self._rung.wait()
        finally:
            due, self._due = self._due, -inf
            self._cancel()
            self._rung.clear()
        return self._timers.now() - due

    def _set(self, moment: float) -> None:
        self._cancel()
        self._due = moment
        self._timer = self._timers.call_at(moment, self._rung.set)

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
