"""Slices of long work on the event loop: one of them in each turn of the loop.

Work that takes long is done in slices of a few milliseconds, so that others have turns in between.
Where several such works are under way at once, each turn would last as long as a slice of each of
them. Here they take turns: so what waits for the loop waits for one slice.
"""

import asyncio
from collections import deque


class Slices:
    """Gives turns to long works, in the order in which they ask."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._next: asyncio.Handle | None = None

    async def turn(self) -> None:
        """Return in a later turn of the event loop, in which the caller may do one slice.

        The slice is what runs until the caller awaits again: a few milliseconds at most.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._waiting.append(future)
        if self._next is None:
            self._next = loop.call_soon(self._give)
        await future

    def _give(self) -> None:
        """Give the next one its turn."""
        self._next = None
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():  # else it was cancelled
                future.set_result(None)
                break
        if self._waiting:
            self._next = asyncio.get_running_loop().call_soon(self._give)
