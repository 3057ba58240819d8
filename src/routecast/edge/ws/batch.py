"""Batches: WebSocket connections that are sent the same, and what need not be done for each.

To send to a batch, its connections are not even looked at, which are far from the processor's
caches: their descriptors stand in an array, and the bytes are made once. This *send plan* holds
until a connection comes, leaves, or can be written to or no more.
"""

from array import array
from collections.abc import Iterable, Sequence
from typing import Final, Protocol, cast

from routecast.core.message import AddressedMessage, SentMessage
from routecast.core.payload import Payload
from routecast.core.rotation import random_start
from routecast.edge.ws.frames import deflated, is_large, is_plain, plain
from routecast.edge.ws.socket_send import send_all
from routecast.ports import Connection

# A batch that falls into more parts than this is planned anew after its next message: from that on,
# many of its connections have the same context.
MAX_PLAN_PARTS: Final = 4


class Compression:
    """How messages to a connection are compressed: not at all, each by itself, or in context.

    In context, a message is compressed after the one before it (RFC 7692, 7.2.3.2). Connections
    that were sent the same share one object, so that `before` stands in one place for all of them.
    """

    __slots__ = ("before", "in_context", "is_off", "users")

    def __init__(self, *, is_off: bool = False, in_context: bool = False) -> None:
        self.is_off = is_off
        self.in_context = in_context
        self.before: SentMessage | None = None  # the last compressed message, if in context
        self.users = 0  # connections that share it, if in context

    def form(self, payload: Payload) -> bytes:
        """Return the bytes that a payload is sent as."""
        return plain(payload) if self.is_off else deflated(payload, self.before)

    def prepare(self, payload: Payload) -> None:
        """Make the form of a payload that is the same after whatever came before it."""
        if not self.is_off and is_large(payload):
            deflated(payload)

    def is_context(self, payload: Payload, data: bytes) -> bool:
        """Whether a payload that was sent as `data` is the next message's context."""
        return self.in_context and not is_plain(payload, data)


PLAIN: Final = Compression(is_off=True)
INDEPENDENT: Final = Compression()


class BatchedConnection(Protocol):
    """What a batch needs of a connection (`connection.WebSocketConnection`)."""

    batches: "tuple[WebSocketBatch, ...]"
    compression: Compression

    @property
    def descriptor(self) -> int:
        """Its socket."""
        ...

    @property
    def can_send(self) -> bool:
        """Whether it is open, and its socket not full."""
        ...

    def send(self, payload: Payload) -> bool:
        """Send to it alone."""
        ...

    def send_rest(self, data: bytes, sent: int) -> None:
        """Send what a socket that became full did not take: all but the first `sent` bytes."""
        ...


def share(connections: Iterable[BatchedConnection], compression: Compression) -> None:
    """Give connections another context."""
    for each in connections:
        each.compression.users -= 1
        each.compression = compression
        compression.users += 1
        for batch in each.batches:
            batch.invalidate()


def keep_context(
    connections: Sequence[BatchedConnection], compression: Compression, payload: Payload
) -> Compression:
    """Note that connections with a context were sent a payload; return what they share now."""
    if compression.users != len(connections):  # others were not sent it
        compression = Compression(in_context=True)
        share(connections, compression)
    compression.before = cast(AddressedMessage, payload).sent
    return compression


class _PlanPart:
    """Connections of a batch that take the same bytes, and their descriptors."""

    __slots__ = ("_compression", "_connections", "_descriptors")

    def __init__(self, compression: Compression, connections: Sequence[BatchedConnection]) -> None:
        self._compression = compression
        self._connections = connections
        self._descriptors = array("i", [each.descriptor for each in connections])

    def send(self, payload: Payload) -> None:
        data = self._compression.form(payload)
        start = random_start(len(self._connections))
        rest = send_all(self._descriptors[start:] + self._descriptors[:start], data)
        if self._compression.is_context(payload, data):
            self._compression = keep_context(self._connections, self._compression, payload)
        for place, sent in rest.items():
            self._connections[(start + place) % len(self._connections)].send_rest(data, sent)


class WebSocketBatch:
    """Connections that are sent the same payloads (`ports.Batch`)."""

    __slots__ = ("_alone", "_connections", "_plan")

    def __init__(self) -> None:
        # A dict keeps the order in which they came, and forgets one of them in no time.
        self._connections: dict[BatchedConnection, None] = {}
        # The send plan: the parts to send to, and the connections that cannot be sent to now.
        self._plan: tuple[list[_PlanPart], list[BatchedConnection]] | None = None
        # One object for all connections that are in no other batch. It goes with the last of them,
        # or the batch would refer to itself, and be memory until the garbage collector finds it.
        self._alone: tuple[WebSocketBatch, ...] = ()

    def __len__(self) -> int:
        return len(self._connections)

    def add(self, connection: Connection) -> None:
        one = cast(BatchedConnection, connection)
        if not self._connections:
            self._alone = (self,)
        self._connections[one] = None
        one.batches = one.batches + self._alone if one.batches else self._alone
        self._plan = None

    def remove(self, connection: Connection) -> None:
        one = cast(BatchedConnection, connection)
        del self._connections[one]
        one.batches = tuple(each for each in one.batches if each is not self)
        self._plan = None
        if not self._connections:
            self._alone = ()

    def invalidate(self) -> None:
        """Forget the send plan: one of the connections is not as it was."""
        self._plan = None

    def send(self, payload: Payload) -> Sequence[Connection]:
        if self._plan is None:
            self._plan = _plan(self._connections)
        parts, full = self._plan
        for part in parts:
            part.send(payload)
        if len(parts) > MAX_PLAN_PARTS:  # many have the same context from this message on
            self._plan = None
        return [cast(Connection, each) for each in full if not each.send(payload)]


def _plan(
    connections: Iterable[BatchedConnection],
) -> tuple[list[_PlanPart], list[BatchedConnection]]:
    """Tell those apart that take the same bytes, and those that cannot be sent to now."""
    apart: dict[tuple[Compression | None, SentMessage | None], list[BatchedConnection]] = {}
    full = []
    for each in connections:
        if not each.can_send:
            full.append(each)
        elif each.compression.in_context:
            apart.setdefault((None, each.compression.before), []).append(each)
        else:
            apart.setdefault((each.compression, None), []).append(each)
    parts = []
    for (compression, before), together in apart.items():
        if compression is None:
            compression = together[0].compression
            if any(each.compression is not compression for each in together):
                compression = Compression(in_context=True)
                compression.before = before
                share(together, compression)
        parts.append(_PlanPart(compression, together))
    return parts, full
