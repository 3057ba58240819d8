"""`MessageAssembler`: a client's frames in, complete messages out, without I/O.

Clients of a stream send little, so an assembler is made when bytes arrive, and dropped when it has
no part of a message. `websockets`' sans-I/O `Protocol` parses frames and detects errors.
"""

import codecs
import logging
from collections.abc import Iterator, Sequence
from typing import Final

from websockets.extensions import Extension
from websockets.frames import Frame, Opcode
from websockets.protocol import SEND_EOF, Protocol, Side, State
from websockets.streams import StreamReader

from routecast.protocol import MAX_MESSAGE_BYTES, CloseCode

# For `websockets`: errors only. At the level debug it would log messages; `refresh` has a token.
silent_log: Final = logging.getLogger("routecast.websockets")
silent_log.setLevel(logging.ERROR)

_AT_A_FRAME: Final = StreamReader.at_eof.__code__
_new_decoder: Final = codecs.getincrementaldecoder("utf-8")


class _Frames(Protocol):
    """The parser of frames; it checks text frame by frame, not only when the message ends.

    Invalid UTF-8 fails the connection with 1007.
    """

    _decoder: codecs.IncrementalDecoder | None = None

    def recv_frame(self, frame: Frame) -> None:
        if frame.opcode is Opcode.TEXT:
            self._decoder = _new_decoder()
        elif frame.opcode is Opcode.BINARY:
            self._decoder = None
        if self._decoder is not None and frame.opcode in (Opcode.TEXT, Opcode.CONT):
            self._decoder.decode(frame.data, frame.fin)
            if frame.fin:
                self._decoder = None
        super().recv_frame(frame)


class MessageAssembler:
    """The receiving half of one connection, from the first byte of a message to its last.

    Call `receive` with received bytes, and consume all messages that it yields. Then write what
    `to_send` returns, and close the connection if it is `finished`.
    """

    __slots__ = ("_answers", "_opcode", "_parts", "_protocol", "frames")

    def __init__(
        self, extensions: Sequence[Extension], max_message_bytes: int = MAX_MESSAGE_BYTES
    ) -> None:
        self._protocol = _Frames(
            Side.SERVER, state=State.OPEN, max_size=max_message_bytes, logger=silent_log
        )
        self._protocol.extensions = list(extensions)
        self._answers: list[bytes] = []
        self._opcode = Opcode.TEXT
        self._parts: list[bytes] = []
        self.frames = 0  # received, of any kind

    def receive(self, data: bytes) -> Iterator[str | bytes]:
        """Parse received bytes; yield the messages that they complete.

        When a message is yielded, `to_send` has the answers to all frames before it.
        """
        self._protocol.receive_data(data)
        answers = iter(self._protocol.data_to_send())
        for frame in self._protocol.events_received():
            self.frames += 1
            assert isinstance(frame, Frame)  # a handshake is not parsed here
            if frame.opcode in (Opcode.PING, Opcode.CLOSE):
                self._answers.append(next(answers))
            elif frame.opcode is not Opcode.PONG:
                message = self._join(frame)
                if message is not None:
                    yield message
        self._answers += answers

    def _join(self, frame: Frame) -> str | bytes | None:
        if frame.opcode is not Opcode.CONT:
            self._opcode = frame.opcode
        if frame.data:  # a client may send any number of empty frames
            self._parts.append(bytes(frame.data))
        if not frame.fin:
            return None
        whole = b"".join(self._parts)
        self._parts = []
        return whole.decode() if self._opcode is Opcode.TEXT else whole

    def close(self, code: int, reason: str = "") -> None:
        """Begin the closing handshake."""
        if self._protocol.state is State.OPEN:
            self._protocol.send_close(code, reason)

    def fail(self, code: CloseCode) -> None:
        """Close because of a fault of the client; what it sends from now on is ignored."""
        self._protocol.fail(code)

    def to_send(self) -> bytes:
        """Return what must be written now: pongs, and close frames."""
        parts = self._answers + self._protocol.data_to_send()
        self._answers = []
        return b"".join(part for part in parts if part != SEND_EOF)

    @property
    def finished(self) -> bool:
        """Whether the connection must be closed, once everything is written."""
        return self._protocol.eof_sent

    @property
    def idle(self) -> bool:
        """Whether it has no part of a frame or message, so that it can be dropped."""
        protocol = self._protocol
        if protocol.current_size is not None or protocol.state is not State.OPEN:
            return False
        # True if the parser waits for the start of a frame.
        waiting = getattr(protocol.parser, "gi_yieldfrom", None)
        return getattr(waiting, "gi_code", None) is _AT_A_FRAME

    @property
    def close_code(self) -> int:
        """The close code that was received, else the one that was sent, else 1006."""
        for close in (self._protocol.close_rcvd, self._protocol.close_sent):
            if close is not None:
                return int(close.code)
        return 1006
