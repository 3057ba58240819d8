"""`reset`: aborts a connection whose client does not read."""

import asyncio
import socket
import struct
from contextlib import suppress
from typing import Final

_NO_LINGERING: Final = struct.pack("ii", 1, 0)


def reset(transport: asyncio.Transport) -> None:
    """Abort a connection, and drop all unsent bytes.

    A transport's `abort` drops only its own buffer. The kernel would keep what it has taken, and go
    on trying to send it to a client that may never read it.
    """
    sock: socket.socket | None = transport.get_extra_info("socket")
    if sock is not None:
        # The socket may be closed already; uvloop then reports a negative descriptor.
        with suppress(OSError, ValueError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGERING)
    transport.abort()
