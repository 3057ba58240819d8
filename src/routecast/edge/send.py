"""send(2) as it is: how a frame goes to a socket, past the transport that holds it.

A transport has its own buffer to see to, and touches more memory for each write than the frame
takes; that is a twentieth of the time of a broadcast. `socket.send` and `os.write` are no way round
it: they let go of Python's lock each time, and beside a thread that computes each call would then
wait for a switch interval to have it back.
"""

import asyncio
import ctypes
import socket
import sys
from typing import Any, Final

# A descriptor that nothing can be sent to.
NOWHERE: Final = -1
FLAGS: Final = getattr(socket, "MSG_DONTWAIT", 0) | getattr(socket, "MSG_NOSIGNAL", 0)


def _nothing(*_: object) -> int:
    """Send nothing: what is to be sent is left to the transport."""
    return -1


# send(descriptor, data, len(data), FLAGS) returns how many bytes were sent, -1 for none; it raises
# nothing.
# Types of its arguments are not declared: ctypes would take as long to check them as for the rest.
send: Final[Any] = _nothing if sys.platform == "win32" else ctypes.PyDLL(None).send


def descriptor(transport: asyncio.BaseTransport) -> int:
    """Return what `send` can be given in place of a transport, or NOWHERE.

    For as long as the transport is open, and only while nothing is in its own buffer.
    """
    line: socket.socket | None = transport.get_extra_info("socket")
    if line is None or transport.get_extra_info("sslcontext") is not None:
        return NOWHERE
    return line.fileno()
