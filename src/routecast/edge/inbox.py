"""What a client sends: frames in, whole messages out. No socket here.

Clients of a stream hardly ever send anything, so an inbox is made when bytes come and dropped when
it holds no part of a message. Parsing and protocol errors are `websockets`' sans-I/O `Protocol`.
"""

import codecs
from collections.abc import Iterator, Sequence
from typing import Final

from websockets.extensions import Extension
from websockets.frames import Close, Frame, Opcode
from websockets.protocol import SEND_EOF, Protocol, Side, State
from websockets.streams import StreamReader

from routecast.protocol import CloseCode

MAX_MESSAGE_BYTES: Final = 65_536

_AT_A_FRAME: Final = StreamReader.at_eof.__code__


class Inbox:
    """The receiving half of one connection, from the first byte of a message to its last.

    Call `receive` with what was read; write what `to_send` returns, and close the transport when
    `finished`.
    """

    __slots__ = ("_decoder", "_opcode", "_parts", "_protocol", "frames")

    def __init__(self, extensions: Sequence[Extension], closed_with: int | None = None) -> None:
        self._protocol = Protocol(Side.SERVER, state=State.OPEN, max_size=MAX_MESSAGE_BYTES)
        self._protocol.extensions = list(extensions)
        if closed_with is not None:
            self._protocol.state = State.CLOSING
            self._protocol.close_sent = Close(closed_with, "")
        self._parts: list[bytes] = []
        self._opcode = Opcode.TEXT
        self._decoder: codecs.IncrementalDecoder | None = None
        self.frames = 0  # received, of any kind

    def receive(self, data: bytes) -> Iterator[str | bytes]:
        """Take bytes off the wire; yield the messages they complete."""
        self._protocol.receive_data(data)
        for event in self._protocol.events_received():
            self.frames += 1
            assert isinstance(event, Frame)  # a handshake is not parsed here
            if event.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
                try:
                    message = self._join(event)
                except UnicodeDecodeError:
                    self._protocol.fail(CloseCode.NOT_UTF8, "not UTF-8")
                    return
                if message is not None:
                    yield message

    def _join(self, frame: Frame) -> str | bytes | None:
        if frame.opcode is not Opcode.CONT:
            self._opcode, self._parts = frame.opcode, []
            if frame.opcode is Opcode.TEXT:
                self._decoder = codecs.getincrementaldecoder("utf-8")()
        data = bytes(frame.data)
        if self._opcode is Opcode.TEXT:
            # Each part as it comes: what is wrong is told at once, not at the end.
            assert self._decoder is not None
            self._decoder.decode(data, frame.fin)
        self._parts.append(data)
        if not frame.fin:
            return None
        whole = b"".join(self._parts)
        self._parts = []
        return whole.decode() if self._opcode is Opcode.TEXT else whole

    def close(self, code: int, reason: str = "") -> None:
        """Begin the closing handshake."""
        if self._protocol.state is State.OPEN:
            self._protocol.send_close(code, reason)

    def to_send(self) -> bytes:
        """Return what must be written now: pongs, and close frames."""
        return b"".join(part for part in self._protocol.data_to_send() if part != SEND_EOF)

    @property
    def finished(self) -> bool:
        """Whether the transport must be closed, once everything is written."""
        return self._protocol.eof_sent

    @property
    def idle(self) -> bool:
        """Whether it holds no part of anything, so that it can be dropped."""
        protocol = self._protocol
        if protocol.current_size is not None or protocol.state is not State.OPEN:
            return False
        # The parser stands where a frame begins, and not inside of one.
        waiting = getattr(protocol.parser, "gi_yieldfrom", None)
        return getattr(waiting, "gi_code", None) is _AT_A_FRAME

    @property
    def close_code(self) -> int:
        """The code the connection was closed with, as far as it was."""
        for close in (self._protocol.close_rcvd, self._protocol.close_sent):
            if close is not None:
                return int(close.code)
        return 1006
