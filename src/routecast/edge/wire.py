"""Frames as WebSocket bytes (RFC 6455, RFC 7692): made once, written to every socket."""

import zlib
from dataclasses import replace
from typing import Final

from websockets.extensions import Extension
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Frame as WireFrame
from websockets.frames import Opcode
from websockets.typing import ExtensionName

from routecast.core.frame import Frame
from routecast.core.message import Message

PING: Final = WireFrame(Opcode.PING, b"").serialize(mask=False)
# What answers it: a pong, masked, with nothing in it, is these two bytes and a mask of four.
PONG_HEAD: Final = b"\x8a\x80"
PONG_SIZE: Final = 6

# Below this, in bytes, deflating costs a reader more than it saves.
DEFLATE_FROM: Final = 860
WINDOW_BITS: Final = 15


class _Marked(Extension):
    """Marks a frame as compressed that is so already."""

    name = ExtensionName("permessage-deflate")

    def encode(self, frame: WireFrame) -> WireFrame:
        return replace(frame, rsv1=True)


_MARK: Final = _Marked()
# A message is kept for so many ids its clients call it by; most call it the same.
MAX_IDS: Final = 64
# What a stored block takes beside what it holds, in bytes.
STORED: Final = 5
# It begins anew with each message, so all connections can share it.
_DEFLATE: Final = PerMessageDeflate(True, True, WINDOW_BITS, WINDOW_BITS)


def plain(frame: Frame) -> bytes:
    """Return a frame as one text message."""
    if frame.plain is None:
        frame.plain = text_message(frame.body)
    return frame.plain


def deflated(frame: Frame) -> bytes:
    """Return a frame as one compressed text message, or a plain one where that is no gain.

    With no context taken over, in either direction, the same bytes serve every connection, and
    no connection keeps a window (RFC 7692, 7.1.1).
    """
    if frame.deflated is None:
        small = len(frame.body) < DEFLATE_FROM
        frame.deflated = plain(frame) if small else deflated_message(Opcode.TEXT, frame.body)
    return frame.deflated


def spliced(message: Message, identity: str) -> bytes:
    """Return a message for a client that calls it by this id, in one frame."""
    if len(message.plain) > MAX_IDS:
        message.plain.clear()
    data = message.plain[identity] = WireFrame(_opcode(message), message.body(identity)).serialize(
        mask=False
    )
    return data


def spliced_deflated(message: Message, identity: str) -> bytes:
    """Return the same compressed, or plain where that is no gain.

    Only what comes after the id is, once for all clients: a deflated message is made of blocks,
    and the first one, with the id in it, is stored as it is (RFC 1951, 3.2.4).
    """
    if message.squeezed is None:
        message.squeezed = _squeeze(message.tail)
    if len(message.squeezed) + STORED > len(message.tail):
        return message.plain.get(identity) or spliced(message, identity)
    if len(message.deflated) > MAX_IDS:
        message.deflated.clear()
    opening = message.opening(identity)
    size = len(opening)
    stored = b"\0" + size.to_bytes(2, "little") + (size ^ 0xFFFF).to_bytes(2, "little") + opening
    data = message.deflated[identity] = WireFrame(
        _opcode(message), stored + message.squeezed
    ).serialize(mask=False, extensions=[_MARK])
    return data


def _opcode(message: Message) -> Opcode:
    return Opcode.BINARY if message.encoding.binary else Opcode.TEXT


def _squeeze(data: bytes) -> bytes:
    """Return data as deflated blocks, their end left off (RFC 7692, 7.2.1)."""
    squeeze = zlib.compressobj(wbits=-WINDOW_BITS)
    return (squeeze.compress(data) + squeeze.flush(zlib.Z_SYNC_FLUSH))[:-4]


def text_message(body: bytes) -> bytes:
    """Return UTF-8 bytes as a text message in one frame."""
    return WireFrame(Opcode.TEXT, body).serialize(mask=False)


def deflated_message(opcode: Opcode, body: bytes) -> bytes:
    """Return bytes as a compressed message in one frame."""
    return WireFrame(opcode, body).serialize(mask=False, extensions=[_DEFLATE])
