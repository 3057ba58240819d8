"""Connections that wait for their client: how long each may, and how many and how much in all.

Whatever is over a bound, the connection that has waited longest makes room. An honest request
comes within moments, so those that wait longest are those that hold something back.
"""

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

C = TypeVar("C")


class Waiting(Generic[C]):
    """Connections that wait for one kind of event, in the order in which their time ends.

    All have equally long, so one timer looks after them, be they thousands. `late` is called for a
    connection whose time is over, and `crowded` for one that makes room; it is taken out before.
    """

    def __init__(
        self,
        seconds: float,
        late: Callable[[C], object],
        crowded: Callable[[C], object],
        *,
        most: int,
        most_of_address: int | None = None,
    ) -> None:
        self._seconds = seconds
        self._late = late
        self._crowded = crowded
        self._most = most
        self._most_of_address = most_of_address
        self._due: dict[C, tuple[float, str | None]] = {}
        self._groups: dict[str, dict[C, None]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._due)

    def add(self, connection: C, address: str | None = None) -> None:
        """Start a connection's time. `address` is what limits count it by; None for no limit."""
        if len(self._due) >= self._most:
            self._make_room(next(iter(self._due)))
        if address is not None:
            group = self._groups.setdefault(address, {})
            if self._most_of_address is not None and len(group) >= self._most_of_address:
                self._make_room(next(iter(group)))
                group = self._groups.setdefault(address, group)
            group[connection] = None
        loop = asyncio.get_running_loop()
        self._due[connection] = (loop.time() + self._seconds, address)
        if self._timer is None:
            self._timer = loop.call_later(self._seconds, self._look, loop)

    def discard(self, connection: C) -> None:
        """Stop a connection's time, where it runs."""
        _, address = self._due.pop(connection, (0.0, None))
        if address is not None:
            group = self._groups[address]
            del group[connection]
            if not group:
                del self._groups[address]

    def take_oldest(self) -> C | None:
        """Take out the connection that has waited longest and return it; None without one."""
        oldest = next(iter(self._due), None)
        if oldest is not None:
            self.discard(oldest)
        return oldest

    def _make_room(self, connection: C) -> None:
        self.discard(connection)
        self._crowded(connection)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        now = loop.time()
        while self._due:
            connection, (due, _) = next(iter(self._due.items()))
            if due > now:
                self._timer = loop.call_later(due - now, self._look, loop)
                return
            self.discard(connection)
            self._late(connection)


class Bodies(Waiting[C]):
    """Connections whose request body is not whole yet, and the bytes of it that have come."""

    def __init__(
        self,
        seconds: float,
        late: Callable[[C], object],
        crowded: Callable[[C], object],
        *,
        most: int,
        most_of_address: int | None = None,
        most_bytes: int,
        most_bytes_of_address: int,
    ) -> None:
        super().__init__(seconds, late, crowded, most=most, most_of_address=most_of_address)
        self._most_bytes = most_bytes
        self._most_bytes_of_address = most_bytes_of_address
        self._bytes: dict[C, int] = {}
        self._bytes_of: dict[str, int] = {}
        self.held = 0  # bytes, of all

    def hold(self, connection: C, size: int) -> None:
        """Note how many bytes a connection holds now; others may have to make room, or itself."""
        _, address = self._due[connection]
        more = size - self._bytes.get(connection, 0)
        self._bytes[connection] = size
        self.held += more
        if address is not None:
            self._bytes_of[address] = self._bytes_of.get(address, 0) + more
            while self._bytes_of.get(address, 0) > self._most_bytes_of_address:
                self._make_room(next(each for each in self._groups[address] if each in self._bytes))
        while self.held > self._most_bytes:
            self._make_room(next(iter(self._bytes)))

    def discard(self, connection: C) -> None:
        _, address = self._due.get(connection, (0.0, None))
        size = self._bytes.pop(connection, 0)
        self.held -= size
        if address is not None and size:
            self._bytes_of[address] -= size
            if not self._bytes_of[address]:
                del self._bytes_of[address]
        super().discard(connection)
