"""The end of a connection whose peer does not read."""

import asyncio
import socket
import struct
from contextlib import suppress
from typing import Final

_NO_LINGERING: Final = struct.pack("ii", 1, 0)


def reset(transport: asyncio.Transport) -> None:
    """Abort a connection, with all that is unsent.

    A transport's `abort` drops what is in its own buffer. What the kernel took, it would keep and
    go on trying to send, for a peer that may never read it.
    """
    line: socket.socket | None = transport.get_extra_info("socket")
    if line is not None:
        # It is closed already, or, where uvloop closed it, says so by a descriptor below 0.
        with suppress(OSError, ValueError):
            line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGERING)
    transport.abort()
