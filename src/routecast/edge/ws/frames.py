"""Frames as WebSocket bytes (RFC 6455, RFC 7692): made once, written to every socket."""

import zlib
from dataclasses import replace
from typing import Final

from websockets.extensions import Extension
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Frame as WireFrame
from websockets.frames import Opcode
from websockets.typing import ExtensionName

from routecast.core.document import EncodedDocument
from routecast.core.message import AddressedMessage, Message

PING: Final = WireFrame(Opcode.PING, b"").serialize(mask=False)
# What answers it: a pong, masked, with nothing in it, is these two bytes and a mask of four.
PONG_HEAD: Final = b"\x8a\x80"
PONG_SIZE: Final = 6

# Below this, in bytes, deflating costs a reader more than it saves.
DEFLATE_FROM: Final = 860
WINDOW_BITS: Final = 15
# It begins anew with each message, so all connections can share it.
_DEFLATE: Final = PerMessageDeflate(True, True, WINDOW_BITS, WINDOW_BITS)


class _Marked(Extension):
    """Marks a frame as compressed that is so already."""

    name = ExtensionName("permessage-deflate")

    def encode(self, frame: WireFrame) -> WireFrame:
        return replace(frame, rsv1=True)


_DEFLATE_MARK: Final = _Marked()
# One message is compressed for at most this number of ids and of messages before it. Beyond that,
# it is compressed once for all, without what clients were sent before.
MAX_VARIANTS: Final = 8


def plain(frame: EncodedDocument) -> bytes:
    """Return a frame as one text message."""
    if frame.plain is None:
        frame.plain = text_message(frame.body)
    return frame.plain


def deflated(frame: EncodedDocument) -> bytes:
    """Return a frame as one compressed text message, or a plain one where that is no gain.

    With no context taken over, in either direction, the same bytes serve every connection, and
    no connection keeps a window (RFC 7692, 7.1.1).
    """
    if frame.deflated is None:
        small = len(frame.body) < DEFLATE_FROM
        frame.deflated = plain(frame) if small else deflated_message(Opcode.TEXT, frame.body)
    return frame.deflated


def named_plain(message: Message, named: AddressedMessage) -> bytes:
    """Return a message under a client's id, in one frame."""
    if named.plain is None:
        named.plain = WireFrame(_opcode(message), named.body).serialize(mask=False)
    return named.plain


def named_deflated(
    message: Message, named: AddressedMessage, before: AddressedMessage | None
) -> bytes:
    """Return the same compressed, or plain where that is no gain.

    `before` is the last compressed message that the client was sent: what is as in that one is not
    said again (RFC 7692, 7.2.3.2). Clients that were sent the same before share the bytes.
    """
    if before is None or max(len(named.after), len(message.named)) > MAX_VARIANTS:
        number = 0
    else:
        number = before.number
    data = named.after.get(number)
    if data is None:
        if before is not None and number:
            payload = _squeeze(named.body, before.body)
        else:
            payload = _independent(message, named.identity)
        if len(payload) < len(named.body):
            frame = WireFrame(_opcode(message), payload)
            data = frame.serialize(mask=False, extensions=[_DEFLATE_MARK])
        else:
            data = named_plain(message, named)
        named.after[number] = data
    return data


def _independent(message: Message, identity: str) -> bytes:
    """Return a message compressed by itself.

    Only what comes after the id is, once for all clients: a deflated message is made of blocks,
    and the first one, with the id in it, is stored as it is (RFC 1951, 3.2.4).
    """
    if message.compressed_tail is None:
        message.compressed_tail = _squeeze(message.tail)
    opening = message.opening(identity)
    size = len(opening)
    head = b"\0" + size.to_bytes(2, "little") + (size ^ 0xFFFF).to_bytes(2, "little")
    return head + opening + message.compressed_tail


def _opcode(message: Message) -> Opcode:
    return Opcode.BINARY if message.encoding.binary else Opcode.TEXT


def _squeeze(data: bytes, before: bytes = b"") -> bytes:
    """Return data as deflated blocks after others, their end left off (RFC 7692, 7.2.1)."""
    squeeze = zlib.compressobj(
        zlib.Z_BEST_COMPRESSION, zlib.DEFLATED, -WINDOW_BITS, zlib.DEF_MEM_LEVEL, zdict=before
    )
    return (squeeze.compress(data) + squeeze.flush(zlib.Z_SYNC_FLUSH))[:-4]


def text_message(body: bytes) -> bytes:
    """Return UTF-8 bytes as a text message in one frame."""
    return WireFrame(Opcode.TEXT, body).serialize(mask=False)


def deflated_message(opcode: Opcode, body: bytes) -> bytes:
    """Return bytes as a compressed message in one frame."""
    return WireFrame(opcode, body).serialize(mask=False, extensions=[_DEFLATE])
