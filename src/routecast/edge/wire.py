"""Frames as WebSocket bytes (RFC 6455, RFC 7692): made once, written to every socket."""

from typing import Final

from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Frame as WireFrame
from websockets.frames import Opcode

from routecast.core.frame import Frame

PING: Final = WireFrame(Opcode.PING, b"").serialize(mask=False)
# What answers it: a pong, masked, with nothing in it, is these two bytes and a mask of four.
PONG_HEAD: Final = b"\x8a\x80"
PONG_SIZE: Final = 6

# Below this, in bytes, deflating costs a reader more than it saves.
DEFLATE_FROM: Final = 860
WINDOW_BITS: Final = 15
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


def text_message(body: bytes) -> bytes:
    """Return UTF-8 bytes as a text message in one frame."""
    return WireFrame(Opcode.TEXT, body).serialize(mask=False)


def deflated_message(opcode: Opcode, body: bytes) -> bytes:
    """Return bytes as a compressed message in one frame."""
    return WireFrame(opcode, body).serialize(mask=False, extensions=[_DEFLATE])
