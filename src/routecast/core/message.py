"""Messages of routecast.v1 as bytes: made once, and shared around each client's own `id`."""

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


class Whole(int):
    """A whole number, which may be written as `60.0`."""


class HistoryAsked(GetHistory, frozen=True, tag="history"):
    """A `GetHistory` whose times and numbers are read as those of all entry points."""

    from_: Instant | None = msgspec.field(name="from", default=None)  # type: ignore[assignment]  # -- read by `_read`
    to: Instant | None = None  # type: ignore[assignment]  # -- as above
    points: Whole | None = None


Asked = Subscribe | Unsubscribe | HistoryAsked | Ack | Refresh | Ping


def _read(kind: type, value: object) -> object:
    if kind is Instant and isinstance(value, str):
        return Instant(read_time(value))
    if kind is Instant and isinstance(value, datetime) and value.tzinfo is not None:
        return Instant((value - EPOCH) // MICROSECOND)
    if kind is Whole and isinstance(value, int | float) and not isinstance(value, bool):
        return Whole(whole_number(value))
    raise ValueError("is of another type")


class Envelope(msgspec.Struct):
    """What tells a message of any protocol of this kind: its type, and maybe its id."""

    type: str
    id: msgspec.Raw = msgspec.Raw()  # not read: it may be a number too large for that


@dataclass(frozen=True, slots=True, eq=False)
class Encoding:
    """How messages are written. `binary` tells the kind of WebSocket message that carries them.

    `decode` and `look_into` take str or, if binary, bytes; `read_id` what `look_into` found. They
    raise ValueError (of which msgspec.ValidationError names the field) or RecursionError.
    """

    name: str
    binary: bool
    encode: Callable[[Any], bytes]
    decode: Callable[[Any], Asked]
    look_into: Callable[[Any], Envelope]
    read_id: Callable[[msgspec.Raw], str]
    # What stands before the value of a message's `id`, and the value that holds its place.
    mark: bytes
    blank: bytes


JSON: Final = Encoding(
    V1_JSON,
    binary=False,
    encode=msgspec.json.Encoder().encode,
    decode=msgspec.json.Decoder(Asked, dec_hook=_read).decode,
    look_into=msgspec.json.Decoder(Envelope).decode,
    read_id=msgspec.json.Decoder(Id).decode,
    mark=b'"id":',
    blank=b'""',
)
_pack: Final = msgspec.msgpack.Encoder().encode
_PACKED_INTEGERS: Final = range(-(2**63), 2**64)


def _pack_any(message: Any) -> bytes:
    """Return MessagePack of a message; its integers end at 64 bits, so larger ones are floats."""
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
    decode=msgspec.msgpack.Decoder(Asked, dec_hook=_read).decode,
    look_into=msgspec.msgpack.Decoder(Envelope).decode,
    read_id=msgspec.msgpack.Decoder(Id).decode,
    mark=b"\xa2id",
    blank=b"\xa0",
)
# A message is kept for at most this number of ids; most clients use the same id.
MAX_IDS: Final = 64
_numbers: Final = itertools.count(1)
ENCODINGS: Final = {encoding.name: encoding for encoding in (JSON, MSGPACK)}


class AddressedMessage(Payload):
    """A message under the id of a client's subscription."""

    __slots__ = ("identity", "message", "number")

    def __init__(self, message: "Message", identity: str) -> None:
        super().__init__(message.opening(identity) + message.tail, binary=message.encoding.binary)
        self.message = message
        self.identity = identity
        # From 1: a form compressed after this message is kept by this number.
        self.number = next(_numbers)


class Message:
    """One message for many clients: what stands before each one's id, and what comes after."""

    __slots__ = ("compressed_tail", "encoding", "head", "named", "tail")

    def __init__(self, encoding: Encoding, message: ServerMessage) -> None:
        """Take a message whose id is blank (empty)."""
        self.encoding = encoding
        # In every message, its type alone comes before its id.
        before, _, self.tail = encoding.encode(message).partition(encoding.mark + encoding.blank)
        self.head = before + encoding.mark
        self.named: dict[str, AddressedMessage] = {}
        self.compressed_tail: bytes | None = None  # the tail, compressed

    def under(self, identity: str) -> AddressedMessage:
        """Return the message for clients that call it by this id."""
        named = self.named.get(identity)
        if named is None:
            if len(self.named) >= MAX_IDS:
                self.named.clear()
            named = self.named[identity] = AddressedMessage(self, identity)
        return named

    def opening(self, identity: str) -> bytes:
        """Return the first part of the message, a client's id being its end."""
        return self.head + self.encoding.encode(identity)

    def __len__(self) -> int:
        return len(self.head) + len(self.tail)
