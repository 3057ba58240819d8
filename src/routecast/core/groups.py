"""Groups: who is served together, and what need not be done for each of them.

A group is all who share a subscription and a tick. It is served shard by shard, and others get a
turn on the event loop between two shards.
"""

from collections.abc import Iterator
from enum import IntEnum
from itertools import chain, islice
from typing import Any, Final, Protocol

from routecast.core.document import EncodedDocument
from routecast.core.view import ViewSubscription
from routecast.protocol import CloseCode

# At most this number of connections gets its frame before others get a turn on the event loop.
SHARD_SIZE: Final = 500

# What those of a group have in common: their kind, subscription and quantum.
Key = tuple[type, ViewSubscription, int]


class PingState(IntEnum):
    """Whether connections are to be asked for a sign of life."""

    NONE = 0
    DUE = 1  # with the next frame
    # For its turn. Where only some of a shard were asked, all are once more: so this is the most.
    WAITS = 2


class Connection(Protocol):
    """One subscriber, on whatever edge."""

    shard: "Shard | None"  # the manager's own: where it holds the connection

    @property
    def kind(self) -> str:
        """What it speaks, as the log names it."""
        ...

    @property
    def subscription(self) -> ViewSubscription:
        """What it asked for."""
        ...

    @property
    def client(self) -> str:
        """The address of its client, by which rendering time is counted."""
        ...

    def offer(self, frame: EncodedDocument) -> bool:
        """Send a frame, or keep it as the newest to send once the last one is read.

        Returns False when the socket is full: the frame is conflated with the ones to come, and
        the connection asks for the newest (`catch_up`) when it drains. Never blocks or raises.
        """
        ...

    @staticmethod
    def offer_all(frame: EncodedDocument, shard: "Shard") -> int:
        """Offer a frame to a shard of connections of this kind; return how many sockets were full.

        It is `offer` for each of them, with what is the same for all done once.
        """
        ...

    @staticmethod
    def queue_ping(shard: "Shard") -> None:
        """Note that the question of a shard of this kind is due.

        It goes with their next frame, and who gives a sign of life is put into `responded`.
        """
        ...

    @staticmethod
    def flush_ping(shard: "Shard") -> None:
        """Ask those of a shard whom no frame has come for, if there is a question still."""
        ...

    def give_up(self) -> None:
        """End the connection, of which nothing was heard since it was asked."""
        ...

    def stop(self, code: CloseCode, return_ms: int | None = None) -> None:
        """Close with a code, and say when to come back where that is given.

        `ConnectionManager.disconnect` follows when it is done.
        """
        ...


class Shard:
    """Connections of a group that get a frame without a break. Nobody comes while they do.

    To serve a shard, or to ask it for a sign of life, not even to look at its connections is
    needed, which are far from the processor's caches:

    - `known` is what their kind knows of all of them together, until one of them changes. Whoever
      changes in a way that matters to it resets it to None.
    - `ping_state` says whether they are to be asked for a sign of life.
    - `responded` has those that need not be given up: they gave one since the last ping, or came
      since then.

    Who moves to another shard takes along what is known of it, and the question that waits.
    """

    __slots__ = ("connections", "group", "known", "ping_state", "responded")

    def __init__(self, group: "Group") -> None:
        self.group = group
        # A dict keeps the order in which they came, and forgets one of them in no time.
        self.connections: dict[Connection, None] = {}
        self.known: Any = None
        self.ping_state = PingState.NONE
        self.responded: set[Connection] = set()

    def add(self, connection: Connection) -> None:
        """Take a connection in, be it out of another shard."""
        before = connection.shard
        if before is None or connection in before.responded:
            self.responded.add(connection)
        if before is not None:
            self.ping_state = max(self.ping_state, before.ping_state)
            before.remove(connection)
        self.connections[connection] = None
        connection.shard = self
        self.known = None

    def remove(self, connection: Connection) -> None:
        """Let a connection go."""
        del self.connections[connection]
        self.responded.discard(connection)
        connection.shard = None
        self.known = None

    def silent(self) -> list[Connection]:
        """Return those of whom nothing was heard."""
        if len(self.responded) == len(self.connections):
            return []
        return [each for each in self.connections if each not in self.responded]


class Group:
    """Connections of one kind that share a subscription and a tick.

    The tick is the quantum of the interval that it falls on.
    """

    __slots__ = ("arrivals", "due", "kind", "newest", "quantum", "shards", "subscription")

    def __init__(self, kind: Any, subscription: ViewSubscription, quantum: int, due: float) -> None:
        self.kind = kind
        self.subscription = subscription
        self.quantum = quantum
        self.due = due
        self.newest: EncodedDocument | None = None
        self.shards: list[Shard] = []
        # Who comes during a tick has a frame that may be newer than the tick's.
        self.arrivals = Shard(self)

    @property
    def key(self) -> "Key":
        """What they have in common."""
        return self.kind, self.subscription, self.quantum

    def __len__(self) -> int:
        return sum(len(shard.connections) for shard in self.shards) + len(self.arrivals.connections)

    def __iter__(self) -> Iterator[Connection]:
        return chain.from_iterable(shard.connections for shard in (*self.shards, self.arrivals))

    def settle(self) -> None:
        """Have those who came since the last tick served by the next."""
        shards = [shard for shard in self.shards if shard.connections]
        sparse = 2 * len(self) < (len(shards) - 1) * SHARD_SIZE
        moving = list(self if sparse else self.arrivals.connections)
        waiting = iter(moving)
        if sparse:
            shards = []
        for shard in shards:
            for connection in islice(waiting, SHARD_SIZE - len(shard.connections)):
                shard.add(connection)
        while some := list(islice(waiting, SHARD_SIZE)):
            shards.append(Shard(self))
            for connection in some:
                shards[-1].add(connection)
        self.shards = shards
        if moving:
            self.arrivals = Shard(self)

    def join(self, other: "Group") -> None:
        """Take in all of another group."""
        other.settle()
        for shard in other.shards:
            shard.group = self
        self.shards += other.shards
