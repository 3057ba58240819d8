"""Deadlines of connections that wait for their client, and bounds on their number and bytes.

Over a bound, the connection that has waited longest is closed. An honest request arrives within
moments, so the longest wait most likely belongs to a client that holds something back.
"""

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

C = TypeVar("C")


class ConnectionDeadlines(Generic[C]):
    """Connections that wait for one kind of event, in the order of their deadlines.

    All may wait equally long, so one timer serves all of them. `on_late` is called for a connection
    after its deadline, and `on_crowded` for one that makes room; it is taken out before.
    """

    def __init__(
        self,
        seconds: float,
        on_late: Callable[[C], object],
        on_crowded: Callable[[C], object],
        *,
        max_count: int,
        max_of_address: int | None = None,
    ) -> None:
        self._seconds = seconds
        self._on_late = on_late
        self._on_crowded = on_crowded
        self._max_count = max_count
        self._max_of_address = max_of_address
        self._deadlines: dict[C, tuple[float, str | None]] = {}
        self._by_address: dict[str, dict[C, None]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._deadlines)

    def add(self, connection: C, address: str | None = None) -> None:
        """Start a connection's deadline. `address` is that of its client; None for no limit."""
        if len(self._deadlines) >= self._max_count:
            self._make_room(next(iter(self._deadlines)))
        if address is not None:
            group = self._by_address.setdefault(address, {})
            if self._max_of_address is not None and len(group) >= self._max_of_address:
                self._make_room(next(iter(group)))
                group = self._by_address.setdefault(address, group)
            group[connection] = None
        loop = asyncio.get_running_loop()
        self._deadlines[connection] = (loop.time() + self._seconds, address)
        if self._timer is None:
            self._timer = loop.call_later(self._seconds, self._check, loop)

    def discard(self, connection: C) -> None:
        """Stop a connection's deadline, if it has one."""
        _, address = self._deadlines.pop(connection, (0.0, None))
        if address is not None:
            group = self._by_address[address]
            del group[connection]
            if not group:
                del self._by_address[address]

    def take_oldest(self) -> C | None:
        """Take out the connection that has waited longest and return it; None without one."""
        oldest = next(iter(self._deadlines), None)
        if oldest is not None:
            self.discard(oldest)
        return oldest

    def _make_room(self, connection: C) -> None:
        self.discard(connection)
        self._on_crowded(connection)

    def _check(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        now = loop.time()
        while self._deadlines:
            connection, (due, _) = next(iter(self._deadlines.items()))
            if due > now:
                self._timer = loop.call_later(due - now, self._check, loop)
                return
            self.discard(connection)
            self._on_late(connection)


class BodyDeadlines(ConnectionDeadlines[C]):
    """Connections whose request body is incomplete, with the bytes that have arrived."""

    def __init__(
        self,
        seconds: float,
        on_late: Callable[[C], object],
        on_crowded: Callable[[C], object],
        *,
        max_count: int,
        max_of_address: int | None = None,
        max_bytes: int,
        max_bytes_of_address: int,
    ) -> None:
        super().__init__(
            seconds, on_late, on_crowded, max_count=max_count, max_of_address=max_of_address
        )
        self._max_bytes = max_bytes
        self._max_bytes_of_address = max_bytes_of_address
        self._bytes: dict[C, int] = {}
        self._bytes_of: dict[str, int] = {}
        self.held = 0  # bytes of all connections

    def hold(self, connection: C, size: int) -> None:
        """Record the bytes that a connection holds now; it or others may have to make room."""
        _, address = self._deadlines[connection]
        more = size - self._bytes.get(connection, 0)
        self._bytes[connection] = size
        self.held += more
        if address is not None:
            self._bytes_of[address] = self._bytes_of.get(address, 0) + more
            while self._bytes_of.get(address, 0) > self._max_bytes_of_address:
                self._make_room(
                    next(each for each in self._by_address[address] if each in self._bytes)
                )
        while self.held > self._max_bytes:
            self._make_room(next(iter(self._bytes)))

    def discard(self, connection: C) -> None:
        _, address = self._deadlines.get(connection, (0.0, None))
        size = self._bytes.pop(connection, 0)
        self.held -= size
        if address is not None and size:
            self._bytes_of[address] -= size
            if not self._bytes_of[address]:
                del self._bytes_of[address]
        super().discard(connection)
