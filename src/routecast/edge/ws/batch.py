"""Batches of WebSocket connections that are sent the same payloads, and their send plans.

Sending to a batch does not touch its connection objects, which are usually out of the processor's
caches: their descriptors are in an array, and the bytes are made once. This *send plan* is valid
until a connection joins, leaves, or changes its state.
"""

from array import array
from collections.abc import Iterable, Sequence
from typing import Final, Protocol, cast

from routecast.core.message import AddressedMessage, SentMessage
from routecast.core.payload import Payload
from routecast.core.rotation import random_start
from routecast.edge.ws.frames import deflated, is_large, is_plain, plain, saved_bytes
from routecast.edge.ws.socket_send import send_all
from routecast.ports import Connection

# A plan with more parts than this is made again after the next message: many of its connections
# have the same context from then on.
MAX_PLAN_PARTS: Final = 4


class Compression:
    """How messages to a connection are compressed: not at all, each by itself, or in context.

    In context, a message refers to the message before it (RFC 7692, 7.2.3.2). Connections that were
    sent the same messages share one object, so that `before` is set once for all of them.
    """

    __slots__ = ("before", "in_context", "is_off", "users")

    def __init__(self, *, is_off: bool = False, in_context: bool = False) -> None:
        self.is_off = is_off
        self.in_context = in_context
        self.before: SentMessage | None = None  # the last compressed message, if in context
        self.users = 0  # connections that share it, if in context

    def form(self, payload: Payload) -> bytes:
        """Return a payload as the bytes to write."""
        return plain(payload) if self.is_off else deflated(payload, self.before)

    def prepare(self, payload: Payload) -> None:
        """Make the compressed form of a large payload, which does not depend on its context."""
        if not self.is_off and is_large(payload):
            deflated(payload)

    def is_context(self, payload: Payload, data: bytes) -> bool:
        """Whether a payload that was sent as `data` becomes the context of the next message."""
        return self.in_context and not is_plain(payload, data)


PLAIN: Final = Compression(is_off=True)
INDEPENDENT: Final = Compression()


class BatchedConnection(Protocol):
    """The parts of a connection that a batch uses (`connection.WebSocketConnection`)."""

    batches: "tuple[WebSocketBatch, ...]"
    compression: Compression
    saved: int  # bytes that compression saved, less those that its batches still count for it

    @property
    def descriptor(self) -> int:
        """The descriptor of its socket."""
        ...

    @property
    def can_send(self) -> bool:
        """Whether it is open, and its socket not full."""
        ...

    def send(self, payload: Payload) -> bool:
        """Send to this connection alone; return whether it was sent."""
        ...

    def send_rest(self, data: bytes, sent: int) -> None:
        """Send the bytes after the first `sent`, which the socket did not take."""
        ...


def share(connections: Iterable[BatchedConnection], compression: Compression) -> None:
    """Make connections share another `Compression`."""
    for each in connections:
        each.compression.users -= 1
        each.compression = compression
        compression.users += 1
        for batch in each.batches:
            batch.invalidate()


def keep_context(
    connections: Sequence[BatchedConnection], compression: Compression, payload: Payload
) -> Compression:
    """Record that connections with a context were sent a payload; return what they share now."""
    if compression.users != len(connections):  # other connections that share it were not sent it
        compression = Compression(in_context=True)
        share(connections, compression)
    compression.before = cast(AddressedMessage, payload).sent
    return compression


class _PlanPart:
    """Connections of a batch that are sent the same bytes, and their descriptors."""

    __slots__ = ("_compression", "_connections", "_descriptors", "_saved")

    def __init__(self, compression: Compression, connections: Sequence[BatchedConnection]) -> None:
        self._compression = compression
        self._connections = connections
        self._descriptors = array("i", [each.descriptor for each in connections])
        self._saved = 0  # bytes that compression saved for each, since the last `settle`

    def send(self, payload: Payload) -> None:
        data = self._compression.form(payload)
        self._saved += saved_bytes(payload, data)
        start = random_start(len(self._connections))
        rest = send_all(self._descriptors[start:] + self._descriptors[:start], data)
        if self._compression.is_context(payload, data):
            self._compression = keep_context(self._connections, self._compression, payload)
        for index, sent in rest.items():
            self._connections[(start + index) % len(self._connections)].send_rest(data, sent)

    def settle(self) -> None:
        """Move the count of saved bytes to each connection."""
        if self._saved:
            for each in self._connections:
                each.saved += self._saved
            self._saved = 0


class WebSocketBatch:
    """Connections that are sent the same payloads (`ports.Batch`)."""

    __slots__ = ("_alone", "_connections", "_plan")

    def __init__(self) -> None:
        # A dict keeps the order in which they joined, and removes one in constant time.
        self._connections: dict[BatchedConnection, None] = {}
        # The send plan: the parts to send to, and the connections that cannot be sent to now.
        self._plan: tuple[list[_PlanPart], list[BatchedConnection]] | None = None
        # A tuple of this batch, shared by all connections that are in no other batch. It is dropped
        # with the last connection: otherwise the batch would refer to itself, and wait for the
        # garbage collector.
        self._alone: tuple[WebSocketBatch, ...] = ()

    def __len__(self) -> int:
        return len(self._connections)

    def add(self, connection: Connection) -> None:
        one = cast(BatchedConnection, connection)
        if not self._connections:
            self._alone = (self,)
        self._connections[one] = None
        one.batches = one.batches + self._alone if one.batches else self._alone
        self.invalidate()

    def remove(self, connection: Connection) -> None:
        one = cast(BatchedConnection, connection)
        del self._connections[one]
        one.batches = tuple(each for each in one.batches if each is not self)
        self.invalidate()
        if not self._connections:
            self._alone = ()

    def invalidate(self) -> None:
        """Drop the send plan, because a connection has changed."""
        if self._plan is not None:
            self.settle()
            self._plan = None

    def settle(self) -> None:
        """Move what the plan counts for its connections to each of them."""
        if self._plan is not None:
            for part in self._plan[0]:
                part.settle()

    def send(self, payload: Payload) -> Sequence[Connection]:
        plan = self._plan
        if plan is None:
            plan = self._plan = _plan(self._connections)
        parts, full = plan
        for part in parts:
            part.send(payload)
        if self._plan is not plan:  # it was dropped meanwhile, and its parts went on counting
            for part in parts:
                part.settle()
        elif len(parts) > MAX_PLAN_PARTS:  # from this message on, many have the same context
            self.invalidate()
        return [cast(Connection, each) for each in full if not each.send(payload)]


def _plan(
    connections: Iterable[BatchedConnection],
) -> tuple[list[_PlanPart], list[BatchedConnection]]:
    """Return the send plan: parts that are sent the same bytes, and connections that are full."""
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
