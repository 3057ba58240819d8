"""The bus of a single process."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

from routecast.core.delta import Delta, following
from routecast.ports import Listener
from routecast.protocol import Position

# The last deltas are held, with at most this number of cells. In one process a reader hardly ever
# misses a delta, and it can read older ones from the store.
CELLS_HELD: Final = 5_000


class MemoryBus:
    """Calls every listener at once (`ports.Bus`)."""

    failing = None
    outages = 0

    def __init__(self) -> None:
        self._listeners: dict[object, Listener] = {}  # each under its own token
        self._sent: deque[Delta] = deque()
        self._cells = 0  # of all held deltas

    async def run(self) -> None:
        await asyncio.Event().wait()

    def publish(self, delta: Delta) -> None:
        self._sent.append(delta)
        self._cells += len(delta.cells)
        while self._cells > CELLS_HELD:
            self._cells -= len(self._sent.popleft().cells)
        for listener in tuple(self._listeners.values()):
            listener(delta)

    def announce(self, position: Position) -> None:
        """Nothing to do: there is no other node."""

    def listen(self, listener: Listener) -> Callable[[], None]:
        token = object()
        self._listeners[token] = listener

        def stop() -> None:
            self._listeners.pop(token, None)

        return stop

    async def deltas(self, after: Position) -> list[Delta]:
        return following(self._sent, after)

    async def close(self) -> None:
        self._listeners.clear()
