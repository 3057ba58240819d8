"""Payloads as WebSocket frames (RFC 6455, RFC 7692): made once, written to every socket."""

import zlib
from dataclasses import replace
from typing import Final

from websockets.extensions import Extension
from websockets.frames import Frame, Opcode
from websockets.typing import ExtensionName

from routecast.core.message import WINDOW_BYTES, AddressedMessage, SentMessage
from routecast.core.payload import Payload

PING: Final = Frame(Opcode.PING, b"").serialize(mask=False)
# The answer to PING: an empty masked pong is these two bytes, and a mask of four.
PONG_HEAD: Final = b"\x8a\x80"
PONG_SIZE: Final = 6

# Below this size, in bytes, compression costs a client more than it saves.
DEFLATE_FROM: Final = 860
WINDOW_BITS: Final = 15  # 2 ** this is WINDOW_BYTES
_PLAIN: Final = "plain"


class _Compressed(Extension):
    """Marks a frame whose data is compressed already."""

    name = ExtensionName("permessage-deflate")

    def encode(self, frame: Frame) -> Frame:
        return replace(frame, rsv1=True)


_COMPRESSED: Final = _Compressed()
# A message is compressed in context for at most this number of contexts and of ids. For all others,
# it is compressed once, without context.
MAX_VARIANTS: Final = 8


def plain(payload: Payload) -> bytes:
    """Return a payload as one message, not compressed."""
    data = payload.forms.get(_PLAIN)
    if data is None:
        data = payload.forms[_PLAIN] = _frame(payload).serialize(mask=False)
    return data


def is_plain(payload: Payload, data: bytes) -> bool:
    """Whether bytes are what `plain` returns."""
    return payload.forms.get(_PLAIN) is data


def deflated(payload: Payload, before: SentMessage | None = None) -> bytes:
    """Return a payload as one compressed message, or as `plain` does if that is not smaller.

    `before` is the last compressed message that a client was sent, if its connection keeps the
    context: then the result refers to it, instead of repeating it (RFC 7692, 7.2.3.2). Without
    `before`, the same bytes are right for every client, and no connection keeps a window (7.1.1).
    """
    number = 0 if before is None else before.number
    data = payload.forms.get(number)
    if data is None:
        if before is not None and (is_large(payload) or _variants(payload) > MAX_VARIANTS):
            return deflated(payload)
        data = payload.forms[number] = _deflate(payload, before)
    return data


def saved_bytes(payload: Payload, data: bytes) -> int:
    """Return how many bytes less `data` has than `plain` would return; 0 if it is that."""
    size = len(payload.body)
    head = 2 if size < 126 else 4 if size < 65_536 else 10  # RFC 6455, 5.2
    return head + size - len(data)


def is_large(payload: Payload) -> bool:
    """Whether a payload is always compressed without context.

    It is larger than the window, so that most of the message before is out of its reach.
    """
    return len(payload.body) > WINDOW_BYTES


def _variants(payload: Payload) -> int:
    """Return how many forms of a message were made, for its ids or its contexts."""
    ids = payload.tail.ids if isinstance(payload, AddressedMessage) else 0
    return max(len(payload.forms), ids)


def _deflate(payload: Payload, before: SentMessage | None) -> bytes:
    if before is not None:
        body = _compress_blocks(payload.body, before.end)
    elif isinstance(payload, AddressedMessage):
        body = _independent(payload)
    elif len(payload.body) < DEFLATE_FROM:
        return plain(payload)
    else:
        body = _compress_blocks(payload.body)
    if len(body) >= len(payload.body):
        return plain(payload)
    frame = replace(_frame(payload), data=body)
    return frame.serialize(mask=False, extensions=[_COMPRESSED])


def _independent(message: AddressedMessage) -> bytes:
    """Return a message compressed without context.

    Only the part after the id is compressed, once for all clients. A deflated message consists of
    blocks: the first one, with the id in it, is stored without compression (RFC 1951, 3.2.4).
    """
    tail, stored = message.tail, message.head
    if tail.compressed is None:
        tail.compressed = _compress_blocks(tail.body)
    size = len(stored)
    block_header = b"\0" + size.to_bytes(2, "little") + (size ^ 0xFFFF).to_bytes(2, "little")
    return block_header + stored + tail.compressed


def _frame(payload: Payload) -> Frame:
    return Frame(Opcode.BINARY if payload.binary else Opcode.TEXT, payload.body)


def _compress_blocks(data: bytes, before: bytes = b"") -> bytes:
    """Return data as deflated blocks without their end (RFC 7692, 7.2.1).

    They may refer to `before`, the context.
    """
    compressor = zlib.compressobj(
        zlib.Z_BEST_COMPRESSION, zlib.DEFLATED, -WINDOW_BITS, zlib.DEF_MEM_LEVEL, zdict=before
    )
    return (compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]
