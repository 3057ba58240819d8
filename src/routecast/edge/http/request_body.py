"""Reading request bodies: receiving and decompressing them, within limits of bytes and time."""

import asyncio
import sys
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, nullcontext
from typing import Final, NamedTuple, Protocol

from starlette.types import Receive, Scope

from routecast.edge.problem import Unsupported
from routecast.errors import BadBody, TooLarge, Unavailable
from routecast.protocol import MAX_BODY_BYTES

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

# A producer on a slow network sends 16 MiB in this time; one that sends nothing is refused.
BODY_READ_SECONDS: Final = 30.0
# Bytes of bodies held at a time, over all requests: eight of the largest. Bodies that are small so
# far have room of their own.
MAX_HELD: Final = 8 * MAX_BODY_BYTES
MAX_SMALL_HELD: Final = 32 * 2**20
# A compressed body takes much more memory once it is decompressed, and decoded decisions take much
# more than their bytes. So only a few bodies are decompressed at a time, and only a few large
# batches are decoded at a time: one is committed while another is decoded. Other bodies wait as
# they were sent; if too many wait, further ones are refused.
SMALL_BODY: Final = 65_536
UNPACKED_AT_ONCE: Final = 2
LARGE_BATCHES_AT_ONCE: Final = 2
MAX_WAITING_BODIES: Final = 256
MAX_WAITING_BATCHES: Final = 64
# A body may be a compressed file that was appended to. More parts than this are an attack.
MAX_PARTS: Final = 1_000
SLICE_BYTES: Final = 65_536
# Bytes that are decompressed between two turns of other tasks: 2 ms.
STEP_BYTES: Final = 2**20


class ClientGone(Exception):
    """The client closed the connection before its body was complete."""


class _Decompressor(Protocol):
    """The interface that the decompressors of zlib and zstd share."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


class ConcurrencyLimit:
    """Lets `at_once` contexts run; at most `most_waiting` others wait, and more are refused."""

    def __init__(self, at_once: int, most_waiting: int) -> None:
        self._semaphore = asyncio.Semaphore(at_once)
        self._waiting = 0
        self._most_waiting = most_waiting

    async def __aenter__(self) -> None:
        if self._waiting >= self._most_waiting:
            raise Unavailable("too many large batches are waiting")
        self._waiting += 1
        try:
            await self._semaphore.acquire()
        finally:
            self._waiting -= 1

    async def __aexit__(self, *_: object) -> None:
        self._semaphore.release()


class Body(NamedTuple):
    """A body as it was sent; `coding` is `identity`, `gzip` or `zstd`."""

    sent: bytes
    coding: str

    @property
    def is_small(self) -> bool:
        """Whether it can contain only few decisions."""
        return self.coding == "identity" and len(self.sent) <= SMALL_BODY


class BodyReader:
    """Reads the bodies of all requests of one application; refuses them while MAX_HELD is reached.

    `large_batches` limits the large batches from their decoding to their commit.
    """

    def __init__(self) -> None:
        # Bytes of received bodies whose decisions are not decoded yet.
        self.held = 0
        self.small_held = 0
        self.large_batches = ConcurrencyLimit(LARGE_BATCHES_AT_ONCE, MAX_WAITING_BATCHES)
        self._unpacked = ConcurrencyLimit(UNPACKED_AT_ONCE, MAX_WAITING_BODIES)

    @asynccontextmanager
    async def received(self, scope: Scope, receive: Receive) -> AsyncIterator[Body]:
        """Yield the body; it counts as held within the context.

        Raises TooLarge, BadBody (cut off), Unsupported, Unavailable and ClientGone.
        """
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > MAX_BODY_BYTES:
            raise _too_large()
        coding = coding_of(scope)
        body = await self._receive(receive)
        try:
            yield Body(body, coding)
        finally:
            self._hold(len(body), 0)

    @asynccontextmanager
    async def unpacked(self, body: Body) -> AsyncIterator[bytes]:
        """Yield a body's decompressed bytes; decode them within the context.

        Raises TooLarge, BadBody (not the coding that it claims) and Unavailable.
        """
        async with nullcontext() if body.is_small else self._unpacked:
            yield await _unpacked(*body)

    async def _receive(self, receive: Receive) -> bytes:
        chunks: list[bytes] = []
        try:
            async with asyncio.timeout(BODY_READ_SECONDS):
                await self._receive_all(receive, chunks)
        except BaseException as error:
            self._hold(sum(map(len, chunks)), 0)
            if isinstance(error, TimeoutError):
                raise BadBody(f"the body took longer than {BODY_READ_SECONDS:.0f} s") from None
            if isinstance(error, asyncio.CancelledError):
                # The server stops, and does not wait for the rest of the body.
                raise Unavailable("shutting down", retry_after=5) from None
            raise
        return b"".join(chunks) if len(chunks) > 1 else chunks[0]

    async def _receive_all(self, receive: Receive, chunks: list[bytes]) -> None:
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            chunk = message.get("body", b"")
            more = message.get("more_body", False)
            chunks.append(chunk)
            self._hold(size, size + len(chunk))
            size += len(chunk)
            if size > MAX_BODY_BYTES:
                raise _too_large()
            if self.small_held > MAX_SMALL_HELD if size <= SMALL_BODY else self.held > MAX_HELD:
                raise Unavailable("too many bytes are being received")

    def _hold(self, before: int, now: int) -> None:
        """Count a body as held that has grown or shrunk from `before` to `now` bytes."""
        if before <= SMALL_BODY:
            self.small_held -= before
        else:
            self.held -= before
        if now <= SMALL_BODY:
            self.small_held += now
        else:
            self.held += now


def coding_of(scope: Scope) -> str:
    """Return a body's content coding: `identity`, `gzip` or `zstd` (RFC 9110, 8.4).

    All `Content-Encoding` fields are one list; `identity` in it has no effect, and `x-gzip` is
    gzip. Raises Unsupported for another coding, and for two codings.
    """
    fields = [value for name, value in scope["headers"] if name == b"content-encoding"]
    listed = b",".join(fields).decode("latin-1").lower().split(",")
    names = [_SAME.get(name.strip(), name.strip()) for name in listed]
    codings = [name for name in names if name not in ("", "identity")]
    if not codings:
        return "identity"
    if len(codings) > 1 or codings[0] not in ("gzip", "zstd"):
        shown = ", ".join(codings)[:64]
        raise Unsupported(f"Content-Encoding {shown!r}; use one of gzip, zstd or none")
    return codings[0]


_SAME: Final = {"x-gzip": "gzip"}


async def _unpacked(body: bytes, coding: str) -> bytes:
    new = {"gzip": _Gunzip, "zstd": zstd.ZstdDecompressor}.get(coding)
    if new is None:
        return body
    parts: list[bytes] = []
    try:
        # In steps, with turns for other tasks: a few bytes may become 16 MiB.
        for part in _unpack(body, coding, new):
            parts.append(part)
            await asyncio.sleep(0)
    except (zlib.error, zstd.ZstdError):
        raise BadBody(f"the body is not {coding}, though Content-Encoding says so") from None
    return b"".join(parts)


class _Gunzip:
    """zlib's decompressor with the interface of zstd's: it keeps the input that is not read yet."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(16 + zlib.MAX_WBITS)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int, /) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max_length)


def _too_large() -> TooLarge:
    return TooLarge(f"the body is over {MAX_BODY_BYTES // 2**20} MiB; send smaller batches")


def _unpack(packed: bytes, coding: str, new: Callable[[], _Decompressor]) -> Iterator[bytes]:
    """Yield a body's decompressed bytes in pieces of at most STEP_BYTES, up to MAX_BODY_BYTES.

    The body may be a sequence of compressed parts (RFC 1952, 2.2; RFC 8878, 3), up to MAX_PARTS.
    Raises TooLarge and BadBody.
    """
    left, unpacker = MAX_BODY_BYTES, new()
    number = 1
    # In slices: after each part its remaining input is copied, which must not be the whole body.
    for start in range(0, len(packed), SLICE_BYTES):
        data = packed[start : start + SLICE_BYTES]
        while True:
            if unpacker.eof:
                if not data:
                    break
                unpacker, number = new(), number + 1
                if number > MAX_PARTS:
                    raise BadBody(f"the {coding} body has more than {MAX_PARTS} parts")
            limit = min(left + 1, STEP_BYTES)
            part = unpacker.decompress(data, limit)
            left -= len(part)
            if left < 0:
                raise _too_large()
            yield part
            if unpacker.eof:
                data = unpacker.unused_data
            elif len(part) == limit:
                data = b""  # its earlier input has more output
            else:
                break
    if packed and not unpacker.eof:
        raise BadBody(f"the {coding} body is cut off")
