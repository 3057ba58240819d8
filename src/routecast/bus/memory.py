"""The bus of a single process."""

from collections.abc import Callable

from routecast.core.rollup import Delta
from routecast.ports import Listener


class MemoryBus:
    """Calls every listener at once (`ports.Bus`)."""

    def __init__(self) -> None:
        self._listeners: list[Listener] = []

    def publish(self, delta: Delta) -> None:
        for listener in tuple(self._listeners):
            listener(delta)

    def listen(self, listener: Listener) -> Callable[[], None]:
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    async def close(self) -> None:
        self._listeners.clear()
