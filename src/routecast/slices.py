"""Slices of long work on the event loop: one of them in each turn of the loop.

Work that takes long is done in slices of a few milliseconds, so that others have turns in between.
Where several such works are under way at once, each turn would last as long as a slice of each of
them. Here they take turns: so what waits for the loop waits for one slice.

A short request needs some ten turns of the loop, because it waits for the database several times.
While such requests come, slices leave the loop to them for a moment after each slice.
"""

import asyncio
import time
from collections import deque
from typing import Final

# After a short request, slices leave room for others for this time, in seconds.
COURTESY_SECONDS: Final = 1.0
# The room after each slice, in seconds: as long as a slice.
ROOM_SECONDS: Final = 0.001


class Slices:
    """Gives turns to long works, in the order in which they ask."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._next: asyncio.Handle | None = None
        self._courteous_until = 0.0  # on the monotonic clock

    def leave_room(self) -> None:
        """Note that a short request came: slices leave the loop to others from time to time."""
        self._courteous_until = time.monotonic() + COURTESY_SECONDS

    async def turn(self) -> None:
        """Return in a later turn of the event loop, in which the caller may do one slice.

        The slice is what runs until the caller awaits again: a few milliseconds at most.
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
        """Give the next one its turn."""
        self._next = None
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():  # else it was cancelled
                future.set_result(None)
                break
        if self._waiting:
            self._plan(asyncio.get_running_loop())
