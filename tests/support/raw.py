"""A WebSocket client that sends exactly the bytes that a test wants, right or wrong."""

import base64
import os
import select
import socket
import struct
import zlib
from typing import NamedTuple, Self

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
CONTINUATION = 0

WAIT_SECONDS = 30.0


class Answer(NamedTuple):
    """An HTTP answer; its headers have lower-case names."""

    status: int
    headers: dict[str, str]
    body: bytes


def frame(
    opcode: int, payload: bytes = b"", *, fin: bool = True, reserved: int = 0, masked: bool = True
) -> bytes:
    """Return one frame. `reserved` are its three reserved bits as a number."""
    first = fin << 7 | reserved << 4 | opcode
    bit = masked << 7
    if len(payload) < 126:
        head = struct.pack("!BB", first, bit | len(payload))
    elif len(payload) < 65_536:
        head = struct.pack("!BBH", first, bit | 126, len(payload))
    else:
        head = struct.pack("!BBQ", first, bit | 127, len(payload))
    # A mask of zeros leaves the payload unchanged.
    return head + b"\0\0\0\0" * masked + payload


def deflate(payload: bytes) -> bytes:
    """Return a payload as `permessage-deflate` has it (RFC 7692, 7.2.1)."""
    squeeze = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    packed = squeeze.compress(payload) + squeeze.flush(zlib.Z_SYNC_FLUSH)
    return packed.removesuffix(b"\0\0\xff\xff")


def upgrade_request(target: str = "/ws/metrics", **replaced: str | None) -> bytes:
    """Return the head of an upgrade; `replaced` are headers by name, None to leave one out."""
    headers: dict[str, str | None] = {
        "host": "localhost",
        "upgrade": "websocket",
        "connection": "Upgrade",
        "sec_websocket_key": base64.b64encode(os.urandom(16)).decode(),
        "sec_websocket_version": "13",
        **replaced,
    }
    lines = [f"GET {target} HTTP/1.1"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items() if value]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


class RawConnection:
    """A TCP connection to a server, with a buffer of what was read."""

    def __init__(self, port: int, *, receive_buffer: int | None = None) -> None:
        self.socket = socket.socket()
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(WAIT_SECONDS)
        self.socket.connect(("127.0.0.1", port))
        self._read = b""

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answer(self) -> Answer:
        """Read one HTTP answer, with a body of its Content-Length."""
        head = self.head()
        return head._replace(body=self._take(int(head.headers.get("content-length", "0"))))

    def head(self) -> Answer:
        """Read the head of an HTTP answer."""
        while b"\r\n\r\n" not in self._read:
            assert self._more(), f"the line ended in {self._read!r}"
        head, _, self._read = self._read.partition(b"\r\n\r\n")
        first, *rest = head.decode("latin-1").split("\r\n")
        headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)
        }
        return Answer(int(first.split(" ")[1]), headers, b"")

    def frame(self) -> tuple[int, bytes] | None:
        """Read one frame: its opcode and payload; None at the end of the connection."""
        if not self._read and not self._more():
            return None
        first, length = self._take(2)
        if length == 126:
            (length,) = struct.unpack("!H", self._take(2))
        elif length == 127:
            (length,) = struct.unpack("!Q", self._take(8))
        return first & 15, self._take(length)

    def close_code(self) -> int | None:
        """Read to the end of the connection; return the server's close code, if any."""
        return self.closing()[0]

    def closing(self, *, answered: bool = False) -> tuple[int | None, str]:
        """Read to the end of the connection; return the server's close code and reason.

        With `answered`, the close frame is answered, as it should be.
        """
        code, reason = None, ""
        while (read := self.frame()) is not None:
            if read[0] == CLOSE and read[1]:
                code, reason = struct.unpack("!H", read[1][:2])[0], read[1][2:].decode()
                if answered:
                    self.send(frame(CLOSE, read[1]))
        return code, reason

    def peek(self) -> bytes:
        """Read once; return the buffer."""
        assert self._more(), f"the line ended in {self._read!r}"
        return self._read

    def rest(self) -> bytes:
        """Read to the end of the connection, which may be a reset."""
        while self._more():
            pass
        rest, self._read = self._read, b""
        return rest

    @property
    def ended(self) -> bool:
        """Whether the server is known to have ended the connection."""
        poll = select.poll()
        poll.register(self.socket, select.POLLRDHUP)
        return bool(poll.poll(0))

    def wait_for_end(self, seconds: float) -> None:
        """Wait until the server ends the connection, without reading."""
        poll = select.poll()
        poll.register(self.socket, select.POLLRDHUP)
        assert poll.poll(seconds * 1000), f"the line is still open after {seconds} s"

    def reset(self) -> None:
        """End the connection silently, like a machine that restarts."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def _take(self, count: int) -> bytes:
        while len(self._read) < count:
            assert self._more(), f"the line ended in {self._read!r}"
        taken, self._read = self._read[:count], self._read[count:]
        return taken

    def _more(self) -> bool:
        try:
            read = self.socket.recv(65_536)
        except ConnectionResetError:
            return False
        self._read += read
        return bool(read)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


def open_stream(
    port: int,
    query: str = "",
    *,
    receive_buffer: int | None = None,
    extensions: str | None = None,
    subprotocol: str | None = None,
) -> RawConnection:
    """Return a connection that is upgraded to a stream, with nothing read after that."""
    connection = RawConnection(port, receive_buffer=receive_buffer)
    connection.send(
        upgrade_request(
            f"/ws/metrics{query}",
            sec_websocket_extensions=extensions,
            sec_websocket_protocol=subprotocol,
        )
    )
    answer = connection.answer()
    assert answer.status == 101, answer
    return connection
