"""Slices of long work on the event loop: at most one of them in each turn of the loop.

Long work is done in slices of about 1 ms, with turns of other tasks in between. If several long
tasks did a slice in the same turn of the loop, the turn would take the sum of them. So they do
their slices in different turns, and other tasks wait for at most one slice.

A short request needs about ten turns of the loop, because it waits for the database several times.
While such requests arrive, there is a pause after each slice, in which only they run.
"""

import asyncio
import time
from collections import deque
from typing import Final

# After a short request, there are pauses between slices for this time, in seconds.
COURTESY_SECONDS: Final = 1.0
# The pause after each slice, in seconds: as long as a slice.
ROOM_SECONDS: Final = 0.001


class Slices:
    """Gives turns to tasks with long work, in the order in which they ask."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._next: asyncio.Handle | None = None
        self._courteous_until = 0.0  # on the monotonic clock

    def leave_room(self) -> None:
        """Record that a short request came: for a while there are pauses between slices."""
        self._courteous_until = time.monotonic() + COURTESY_SECONDS

    async def turn(self) -> None:
        """Return in a later turn of the event loop, in which the caller may do one slice.

        The slice is the code up to the caller's next await: about 1 ms, a few at most.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._waiting.append(future)
        if self._next is None:
            self._plan(loop)
        await future

    def _plan(self, loop: asyncio.AbstractEventLoop) -> None:
        if time.monotonic() < self._courteous_until:
            self._next = loop.call_later(ROOM_SECONDS, self._give)
        else:
            self._next = loop.call_soon(self._give)

    def _give(self) -> None:
        """Give the next task its turn."""
        self._next = None
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():  # else it was cancelled
                future.set_result(None)
                break
        if self._waiting:
            self._plan(asyncio.get_running_loop())
