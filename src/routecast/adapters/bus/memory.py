"""The bus of a single process."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

from routecast.core.delta import Delta, following
from routecast.ports import Listener
from routecast.protocol import Position

# The last deltas are kept, with at most this number of cells. Within one process deltas are hardly
# ever missed, and older ones can be read from the store.
CELLS_HELD: Final = 5_000


class MemoryBus:
    """Calls every listener directly (`ports.Bus`)."""

    failing = None
    outages = 0

    def __init__(self) -> None:
        self._listeners: dict[object, Listener] = {}  # by a token: one may listen twice
        self._sent: deque[Delta] = deque()
        self._cells = 0  # of all kept deltas

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
