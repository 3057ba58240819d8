"""The bus of a single process."""

from collections.abc import Callable

from routecast.core.rollup import Delta
from routecast.ports import Listener


class MemoryBus:
    """Calls every listener at once (`ports.Bus`)."""

    def __init__(self) -> None:
        self._listeners: dict[object, Listener] = {}  # each under a token of its own

    def publish(self, delta: Delta) -> None:
        for listener in tuple(self._listeners.values()):
            listener(delta)

    def listen(self, listener: Listener) -> Callable[[], None]:
        token = object()
        self._listeners[token] = listener

        def stop() -> None:
            self._listeners.pop(token, None)

        return stop

    async def close(self) -> None:
        self._listeners.clear()
