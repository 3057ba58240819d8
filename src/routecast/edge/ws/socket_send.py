"""send(2) by ctypes: payloads go to sockets past the transports that hold them.

A write by the transport costs a twentieth of the time of a broadcast more, since it touches more
memory. `socket.send` and `os.write` are no alternative: they release Python's lock each time, and
beside a thread that computes, each call then waits for up to a switch interval to have it back.
"""

import asyncio
import ctypes
import logging
import os
import socket
import sys
import threading
from array import array
from typing import Any, Final

from routecast.edge.ws.io_uring import IoUringSender

log = logging.getLogger(__name__)

# A descriptor that nothing can be sent to.
NOWHERE: Final = -1
# Fewer sockets than this are sent to one by one: then io_uring costs as much.
FEW: Final = 16
FLAGS: Final = getattr(socket, "MSG_DONTWAIT", 0) | getattr(socket, "MSG_NOSIGNAL", 0)


def _nothing(*_: object) -> int:
    """Send nothing: what is to be sent is left to the transport."""
    return -1


# send(descriptor, data, len(data), FLAGS) returns how many bytes were sent, -1 for none; it raises
# nothing.
# Types of its arguments are not declared: ctypes would take as long to check them as for the rest.
send: Final[Any] = _nothing if sys.platform == "win32" else ctypes.PyDLL(None).send


def send_all(descriptors: "array[int]", data: bytes) -> dict[int, int]:
    """Send the same to many descriptors, in their order.

    Return how many bytes were sent, for each socket that did not take all, by its place; a negative
    value means that nothing was sent. It is `send` for each, in one system call where the kernel
    allows io_uring.
    """
    ring = _ring() if len(descriptors) >= FEW else None
    if ring is not None:
        return ring.send_all(descriptors, data)
    size = len(data)
    sent = [send(each, data, size, FLAGS) for each in descriptors]
    return {place: part for place, part in enumerate(sent) if part != size}


class _Own(threading.local):
    """The ring of a thread, once it has been tried to open one."""

    tried = False
    ring: IoUringSender | None = None


_own = _Own()


def _forget() -> None:
    """Let go of what is the parent's, in a process that was just forked."""
    global _own
    _own = _Own()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _ring() -> IoUringSender | None:
    if not _own.tried:
        _own.tried, _own.ring = True, _open_ring()
    return _own.ring


def _open_ring() -> IoUringSender | None:
    try:
        ring = IoUringSender(FLAGS)
    except OSError as error:
        log.info(
            "io_uring is not available (%s): each client is written to by a system call of its own",
            error.strerror,
        )
        return None
    log.info("io_uring is available: many clients are written to by one system call")
    return ring


def descriptor(transport: asyncio.BaseTransport) -> int:
    """Return what `send` can be given in place of a transport, or NOWHERE.

    For as long as the transport is open, and only while nothing is in its own buffer.
    """
    line: socket.socket | None = transport.get_extra_info("socket")
    if line is None or transport.get_extra_info("sslcontext") is not None:
        return NOWHERE
    return line.fileno()
