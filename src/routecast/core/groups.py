"""Groups: who is served together, and what need not be done for each of them.

A group is all who share a subscription and a tick. It is served block by block, and others get a
turn on the event loop between two blocks.
"""

from collections.abc import Iterator
from enum import IntEnum
from itertools import chain, islice
from typing import Any, Final, Protocol

from routecast.core.frame import Frame
from routecast.core.view import Subscription
from routecast.protocol import CloseCode

# At most this number of connections gets its frame before others get a turn on the event loop.
BLOCK: Final = 500

# What those of a group have in common: their kind, subscription and quantum.
Key = tuple[type, Subscription, int]


class Question(IntEnum):
    """Whether connections are to be asked for a sign of life."""

    NONE = 0
    DUE = 1  # with the next frame
    # For its turn. Where only some of a block were asked, all are once more: so this is the most.
    WAITS = 2


class Connection(Protocol):
    """One subscriber, on whatever edge."""

    block: "Block | None"  # the manager's own: where it holds the connection

    @property
    def kind(self) -> str:
        """What it speaks, as the log names it."""
        ...

    @property
    def subscription(self) -> Subscription:
        """What it asked for."""
        ...

    @property
    def client(self) -> str:
        """The address of its client, by which rendering time is counted."""
        ...

    def offer(self, frame: Frame) -> bool:
        """Send a frame, or keep it as the newest to send once the last one is read.

        Returns False when the socket is full: the frame is conflated with the ones to come, and
        the connection asks for the newest (`catch_up`) when it drains. Never blocks or raises.
        """
        ...

    @staticmethod
    def offer_all(frame: Frame, block: "Block") -> int:
        """Offer a frame to a block of connections of this kind; return how many sockets were full.

        It is `offer` for each of them, with what is the same for all done once.
        """
        ...

    @staticmethod
    def ask_all(block: "Block") -> None:
        """Note that the question of a block of this kind is due.

        It goes with their next frame, and who gives a sign of life is put into `heard`.
        """
        ...

    @staticmethod
    def flush_all(block: "Block") -> None:
        """Ask those of a block whom no frame has come for, if there is a question still."""
        ...

    def give_up(self) -> None:
        """End the connection, of which nothing was heard since it was asked."""
        ...

    def stop(self, code: CloseCode, return_ms: int | None = None) -> None:
        """Close with a code, and say when to come back where that is given.

        `ConnectionManager.disconnect` follows when it is done.
        """
        ...


class Block:
    """Connections of a group that get a frame without a break. Nobody comes while they do.

    To serve a block, or to ask it for a sign of life, not even to look at its connections is
    needed, which are far from the processor's caches:

    - `known` is what their kind knows of all of them together, until one of them changes. Whoever
      changes in a way that matters to it resets it to None.
    - `question` says whether they are to be asked for a sign of life.
    - `heard` has those that need not be given up: they gave one since the last question, or came
      since then.

    Who moves to another block takes along what is known of it, and the question that waits.
    """

    __slots__ = ("connections", "group", "heard", "known", "question")

    def __init__(self, group: "Group") -> None:
        self.group = group
        # A dict keeps the order in which they came, and forgets one of them in no time.
        self.connections: dict[Connection, None] = {}
        self.known: Any = None
        self.question = Question.NONE
        self.heard: set[Connection] = set()

    def add(self, connection: Connection) -> None:
        """Take a connection in, be it out of another block."""
        before = connection.block
        if before is None or connection in before.heard:
            self.heard.add(connection)
        if before is not None:
            self.question = max(self.question, before.question)
            before.remove(connection)
        self.connections[connection] = None
        connection.block = self
        self.known = None

    def remove(self, connection: Connection) -> None:
        """Let a connection go."""
        del self.connections[connection]
        self.heard.discard(connection)
        connection.block = None
        self.known = None

    def silent(self) -> list[Connection]:
        """Return those of whom nothing was heard."""
        if len(self.heard) == len(self.connections):
            return []
        return [each for each in self.connections if each not in self.heard]


class Group:
    """Connections of one kind that share a subscription and a tick.

    The tick is the quantum of the interval that it falls on.
    """

    __slots__ = ("arrivals", "blocks", "due", "kind", "newest", "quantum", "subscription")

    def __init__(self, kind: Any, subscription: Subscription, quantum: int, due: float) -> None:
        self.kind = kind
        self.subscription = subscription
        self.quantum = quantum
        self.due = due
        self.newest: Frame | None = None
        self.blocks: list[Block] = []
        # Who comes during a tick has a frame that may be newer than the tick's.
        self.arrivals = Block(self)

    @property
    def key(self) -> "Key":
        """What they have in common."""
        return self.kind, self.subscription, self.quantum

    def __len__(self) -> int:
        return sum(len(block.connections) for block in self.blocks) + len(self.arrivals.connections)

    def __iter__(self) -> Iterator[Connection]:
        return chain.from_iterable(block.connections for block in (*self.blocks, self.arrivals))

    def settle(self) -> None:
        """Have those who came since the last tick served by the next."""
        blocks = [block for block in self.blocks if block.connections]
        sparse = 2 * len(self) < (len(blocks) - 1) * BLOCK
        moving = list(self if sparse else self.arrivals.connections)
        waiting = iter(moving)
        if sparse:
            blocks = []
        for block in blocks:
            for connection in islice(waiting, BLOCK - len(block.connections)):
                block.add(connection)
        while some := list(islice(waiting, BLOCK)):
            blocks.append(Block(self))
            for connection in some:
                blocks[-1].add(connection)
        self.blocks = blocks
        if moving:
            self.arrivals = Block(self)

    def join(self, other: "Group") -> None:
        """Take in all of another group."""
        other.settle()
        for block in other.blocks:
            block.group = self
        self.blocks += other.blocks
