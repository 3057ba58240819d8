"""Heartbeat: a ping to each connection every PING_SECONDS; a connection that is silent is aborted.

It does not depend on what else connections are sent. Connections are pinged in slots of at most
SLOT_SIZE. The slots' pings are spread over PING_SECONDS, because pings and pongs of all connections
at once would delay messages.
"""

from collections.abc import Sequence
from typing import Final, Protocol

from routecast.ports import Timer, Timers
from routecast.protocol import CloseCode

# Seconds between two pings to a connection; the first ping comes earlier.
PING_SECONDS: Final = 20.0
# A connection that has sent nothing this number of seconds after a ping is aborted.
PONG_SECONDS: Final = 7.0
# At most this number of connections is pinged at once.
SLOT_SIZE: Final = 500
# At most this number of connections is aborted before other tasks get a turn.
ABORT_BATCH: Final = 50
# The golden ratio: the fractional parts of its multiples are spread evenly, for any number of them.
_RATIO: Final = 0.618_034


class PingedConnection(Protocol):
    """A connection whose client answers pings."""

    # Whether nothing came since the last ping. The connection resets it when anything comes.
    awaits_pong: bool

    def ping(self) -> None:
        """Send a ping and set `awaits_pong`, unless the socket is full or it is closing."""
        ...

    def abort(self, code: CloseCode) -> None:
        """End the connection at once, unless the socket is full or it is closing."""
        ...


class _Slot:
    """Connections that are pinged together."""

    __slots__ = ("connections", "due", "timer")

    def __init__(self, due: float) -> None:
        # A dict keeps the order in which they joined, and removes one in constant time.
        self.connections: dict[PingedConnection, None] = {}
        self.due = due  # its next ping, on the clock of the timers
        self.timer: Timer | None = None


class Heartbeat:
    """Pings connections from `add` to `remove`. While there are none, nothing runs."""

    def __init__(self, timers: Timers) -> None:
        self._timers = timers
        # When the last pings were sent. The connections that were pinged then share this object.
        self.pinged = timers.now()
        self._slots: list[_Slot] = []
        self._made = 0  # the number of slots made so far

    def since(self, moment: float) -> float:
        """Return the seconds since a moment, such as `pinged`."""
        return self._timers.now() - moment

    def add(self, connection: PingedConnection) -> None:
        """Ping a connection from now on, the first time within PING_SECONDS."""
        for slot in self._slots:
            if len(slot.connections) < SLOT_SIZE:
                break
        else:
            slot = self._new_slot()
        slot.connections[connection] = None

    def _new_slot(self) -> _Slot:
        now = self._timers.now()
        self._made += 1
        slot = _Slot(now + PING_SECONDS * (1 - self._made * _RATIO % 1))
        self._slots.append(slot)
        slot.timer = self._timers.call_at(slot.due, self._ping, slot)
        return slot

    def remove(self, connection: PingedConnection) -> None:
        """Stop pinging a connection; does nothing if it is not pinged."""
        for slot in self._slots:
            if connection in slot.connections:
                del slot.connections[connection]
                if not slot.connections:
                    self._drop(slot)
                return

    def _drop(self, slot: _Slot) -> None:
        self._slots.remove(slot)
        if slot.timer is not None:
            slot.timer.cancel()

    def _ping(self, slot: _Slot) -> None:
        now = self.pinged = self._timers.now()
        slot.due = now + PING_SECONDS
        # `_check` sets a second timer, so that the event loop reads what has arrived before
        # `_judge`.
        slot.timer = self._timers.call_at(now + PONG_SECONDS, self._check, slot)
        for connection in slot.connections:
            connection.ping()

    def _check(self, slot: _Slot) -> None:
        slot.timer = self._timers.call_at(self._timers.now(), self._judge, slot)

    def _judge(self, slot: _Slot) -> None:
        slot.timer = self._timers.call_at(slot.due, self._ping, slot)
        self._abort([each for each in slot.connections if each.awaits_pong])
        self._merge(slot)

    def _abort(self, silent: Sequence[PingedConnection]) -> None:
        for connection in silent[:ABORT_BATCH]:
            if connection.awaits_pong:
                connection.abort(CloseCode.SILENT)
        if rest := silent[ABORT_BATCH:]:
            self._timers.call_at(self._timers.now(), self._abort, rest)

    def _merge(self, slot: _Slot) -> None:
        """Move the connections of a slot to another one, if one has room for all of them."""
        for other in self._slots:
            size = len(slot.connections) + len(other.connections)
            if other is not slot and size <= SLOT_SIZE and other.due <= slot.due:
                other.connections.update(slot.connections)
                self._drop(slot)
                return
