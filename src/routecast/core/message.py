"""Messages of routecast.v1 as bytes: encoded once; only the `id` differs between clients."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import msgspec

from routecast.core.numbers import whole_number
from routecast.core.payload import Payload
from routecast.core.times import read_time
from routecast.protocol import (
    EPOCH,
    MICROSECOND,
    V1_JSON,
    V1_MSGPACK,
    Ack,
    GetHistory,
    Id,
    Ping,
    Refresh,
    ServerMessage,
    Subscribe,
    Unsubscribe,
)


class Instant(int):
    """Microseconds since 1970, written as RFC 3339 with an offset (or msgpack's timestamp)."""


class WholeNumber(int):
    """A whole number, which may be written as `60.0`."""


class HistoryMessage(GetHistory, frozen=True, tag="history"):
    """A `GetHistory` with the same rules for times and numbers as at all other entry points."""

    from_: Instant | None = msgspec.field(name="from", default=None)  # type: ignore[assignment]  # -- read by `_read`
    to: Instant | None = None  # type: ignore[assignment]  # -- as above
    points: WholeNumber | None = None


DecodedMessage = Subscribe | Unsubscribe | HistoryMessage | Ack | Refresh | Ping


def _read(kind: type, value: object) -> object:
    if kind is Instant and isinstance(value, str):
        return Instant(read_time(value))
    if kind is Instant and isinstance(value, datetime) and value.tzinfo is not None:
        return Instant((value - EPOCH) // MICROSECOND)
    if kind is WholeNumber and isinstance(value, int | float) and not isinstance(value, bool):
        return WholeNumber(whole_number(value))
    raise ValueError("is of another type")


class Envelope(msgspec.Struct):
    """The type of a message, and its id if it has one, even if the rest is invalid."""

    type: str
    id: msgspec.Raw = msgspec.Raw()  # not decoded: it may be too large a number


@dataclass(frozen=True, slots=True, eq=False)
class Encoding:
    """An encoding of messages. `binary` is the kind of WebSocket message that carries them.

    `decode` and `decode_envelope` take str or, if binary, bytes; `read_id` takes the id of an
    envelope. They raise ValueError (msgspec.ValidationError names the field) or RecursionError.
    """

    name: str
    binary: bool
    encode: Callable[[Any], bytes]
    decode: Callable[[Any], DecodedMessage]
    decode_envelope: Callable[[Any], Envelope]
    read_id: Callable[[msgspec.Raw], str]
    # The bytes before the value of a message's `id`, and those of an empty id.
    id_key: bytes
    empty_id: bytes


JSON: Final = Encoding(
    V1_JSON,
    binary=False,
    encode=msgspec.json.Encoder().encode,
    decode=msgspec.json.Decoder(DecodedMessage, dec_hook=_read).decode,
    decode_envelope=msgspec.json.Decoder(Envelope).decode,
    read_id=msgspec.json.Decoder(Id).decode,
    id_key=b'"id":',
    empty_id=b'""',
)
_pack: Final = msgspec.msgpack.Encoder().encode
_PACKED_INTEGERS: Final = range(-(2**63), 2**64)


def _pack_any(message: Any) -> bytes:
    """Return MessagePack of a message; integers over 64 bits become floats."""
    try:
        return _pack(message)
    except OverflowError:
        return _pack(_narrow(msgspec.to_builtins(message)))


def _narrow(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _narrow(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_narrow(one) for one in value]
    if isinstance(value, int) and value not in _PACKED_INTEGERS:
        return float(value)
    return value


MSGPACK: Final = Encoding(
    V1_MSGPACK,
    binary=True,
    encode=_pack_any,
    decode=msgspec.msgpack.Decoder(DecodedMessage, dec_hook=_read).decode,
    decode_envelope=msgspec.msgpack.Decoder(Envelope).decode,
    read_id=msgspec.msgpack.Decoder(Id).decode,
    id_key=b"\xa2id",
    empty_id=b"\xa0",
)
# A message is kept for at most this number of ids; most clients use the same id.
MAX_IDS: Final = 64
# A compressed message can refer to at most this many bytes before it (RFC 1951, 2).
WINDOW_BYTES: Final = 32_768
_numbers: Final = itertools.count(1)
ENCODINGS: Final = {encoding.name: encoding for encoding in (JSON, MSGPACK)}


class SentMessage:
    """The end of a message that clients were sent compressed.

    The next compressed message may refer to it. So it is kept as long as it is the context of a
    client; the rest of the message is not.
    """

    __slots__ = ("end", "number")

    def __init__(self, body: bytes) -> None:
        self.number = next(_numbers)  # from 1
        self.end = body[-WINDOW_BYTES:]


class Tail:
    """The part of a message after its id: the same for all clients."""

    __slots__ = ("body", "compressed", "ids")

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.compressed: bytes | None = None  # made by the edge that needs it first
        self.ids = 0  # the number of ids for which the message is kept


class AddressedMessage(Payload):
    """A message under the id of a client's subscription.

    A `Message` refers to its addressed messages, and they do not refer to it. Without a cycle, both
    are freed at once, and do not wait for the garbage collector.
    """

    __slots__ = ("identity", "sent", "tail")

    def __init__(
        self, head: bytes, tail: Tail, identity: str, *, binary: bool, saved: int = 0
    ) -> None:
        super().__init__(head + tail.body, binary=binary, saved=saved)
        self.tail = tail
        self.identity = identity
        self.sent = SentMessage(self.body)

    @property
    def head(self) -> bytes:
        """The first part of the message, up to its id."""
        return self.body[: len(self.body) - len(self.tail.body)]


class Message:
    """One message for many clients: the bytes before and after each client's id."""

    __slots__ = ("by_id", "encoding", "head", "saved", "tail")

    def __init__(self, encoding: Encoding, message: ServerMessage, saved: int = 0) -> None:
        """`message` must have an empty id; `saved` is as in `Payload`."""
        self.encoding = encoding
        self.saved = saved
        # In every message only the type comes before the id.
        before, _, tail = encoding.encode(message).partition(encoding.id_key + encoding.empty_id)
        self.head = before + encoding.id_key
        self.tail = Tail(tail)
        self.by_id: dict[str, AddressedMessage] = {}

    def for_id(self, identity: str) -> AddressedMessage:
        """Return the message for clients whose subscription has this id."""
        message = self.by_id.get(identity)
        if message is None:
            if len(self.by_id) >= MAX_IDS:
                self.by_id.clear()
            head = self.head + self.encoding.encode(identity)
            message = self.by_id[identity] = AddressedMessage(
                head, self.tail, identity, binary=self.encoding.binary, saved=self.saved
            )
            self.tail.ids = len(self.by_id)
        return message
