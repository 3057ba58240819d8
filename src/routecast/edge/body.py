"""Reading a request body: within its limits, whatever it claims and however it is packed."""

import asyncio
import sys
import zlib
from typing import Final

from starlette.types import Receive, Scope

from routecast.edge.problem import Unsupported
from routecast.errors import BadBody, TooLarge, Unavailable
from routecast.protocol import MAX_BODY_BYTES

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

# A producer on a bad line sends 16 MiB in this time; one that sends nothing must not stay.
READ_SECONDS: Final = 30.0
# Bytes of bodies held at a time, over all requests: sixteen of the largest.
MAX_HELD: Final = 16 * MAX_BODY_BYTES


class ClientGone(Exception):
    """The client hung up before its body was whole; there is nobody to answer."""


class BodyReader:
    """Reads bodies for all requests of one application; the policy over MAX_HELD is to refuse."""

    def __init__(self) -> None:
        self.held = 0

    async def read(self, scope: Scope, receive: Receive) -> bytes:
        """Return the body, unpacked.

        Raises TooLarge, BadBody (cut off, or not packed as it claims), Unsupported, Unavailable
        and ClientGone.
        """
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > MAX_BODY_BYTES:
            raise _too_large()
        coding = headers.get(b"content-encoding", b"identity").decode("latin-1").strip().lower()
        if coding not in ("identity", "gzip", "zstd"):
            raise Unsupported(f"Content-Encoding {coding!r}; use gzip, zstd or none")
        body = await self._receive(receive)
        if coding == "gzip":
            return _gunzip(body)
        return _unzstd(body) if coding == "zstd" else body

    async def _receive(self, receive: Receive) -> bytes:
        chunks, size = [], 0
        try:
            async with asyncio.timeout(READ_SECONDS):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGone
                    chunk = message.get("body", b"")
                    chunks.append(chunk)
                    size += len(chunk)
                    self.held += len(chunk)
                    if size > MAX_BODY_BYTES:
                        raise _too_large()
                    if self.held > MAX_HELD:
                        raise Unavailable("too many bytes are being received")
                    if not message.get("more_body"):
                        return b"".join(chunks) if len(chunks) > 1 else chunks[0]
        except TimeoutError:
            raise BadBody(f"the body took longer than {READ_SECONDS:.0f} s") from None
        finally:
            self.held -= size


def _too_large() -> TooLarge:
    return TooLarge(f"the body is over {MAX_BODY_BYTES // 2**20} MiB; send smaller batches")


def _gunzip(packed: bytes) -> bytes:
    parts, left = [], MAX_BODY_BYTES
    try:
        while packed:  # a gzip file may have many members (RFC 1952, 2.2)
            unpack = zlib.decompressobj(16 + zlib.MAX_WBITS)
            part = unpack.decompress(packed, left + 1)
            left -= len(part)
            if left < 0:
                raise _too_large()
            if not unpack.eof:
                raise BadBody("the gzip body is cut off")
            parts.append(part)
            packed = unpack.unused_data
    except zlib.error:
        raise BadBody("the body is not gzip, though Content-Encoding says so") from None
    return b"".join(parts)


def _unzstd(packed: bytes) -> bytes:
    parts, left = [], MAX_BODY_BYTES
    try:
        while packed:  # and a zstd file many frames (RFC 8878, 3)
            unpack = zstd.ZstdDecompressor()
            part = unpack.decompress(packed, left + 1)
            left -= len(part)
            if left < 0:
                raise _too_large()
            if not unpack.eof:
                raise BadBody("the zstd body is cut off")
            parts.append(part)
            packed = unpack.unused_data
    except zstd.ZstdError:
        raise BadBody("the body is not zstd, though Content-Encoding says so") from None
    return b"".join(parts)
