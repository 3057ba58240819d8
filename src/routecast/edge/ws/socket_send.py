"""send(2) by ctypes: payloads are written directly to sockets, not through transports.

Writing through transports makes a broadcast about 5 % slower, because it touches more memory.
`socket.send` and `os.write` release Python's lock at each call: while another thread computes, each
call then waits up to a switch interval to get it back.
"""

import asyncio
import ctypes
import logging
import os
import socket
import struct
import sys
import threading
from array import array
from typing import Any, Final

from routecast.edge.ws.io_uring import IoUringSender

if sys.platform == "linux":
    import fcntl
    import termios

log = logging.getLogger(__name__)

# An invalid descriptor: sending to it fails.
NO_DESCRIPTOR: Final = -1
# For fewer sockets than this, io_uring is not faster than one system call for each.
IO_URING_FROM: Final = 16
FLAGS: Final = getattr(socket, "MSG_DONTWAIT", 0) | getattr(socket, "MSG_NOSIGNAL", 0)


def _nothing(*_: object) -> int:
    """Send nothing, so that the caller uses the transport."""
    return -1


# send(descriptor, data, len(data), FLAGS) returns the number of sent bytes, or -1; it never raises.
# The types of its arguments are not declared: ctypes would take as long to check them as for the
# call.

send: Final[Any] = _nothing if sys.platform == "win32" else ctypes.PyDLL(None).send


def send_all(descriptors: "array[int]", data: bytes) -> dict[int, int]:
    """Send the same bytes to many sockets, in their order.

    Return the number of sent bytes for each socket that did not take all, by its index; a negative
    number means that nothing was sent. This is one system call if io_uring is available, else
    `send` for each socket.
    """
    ring = _ring() if len(descriptors) >= IO_URING_FROM else None
    if ring is not None:
        return ring.send_all(descriptors, data)
    size = len(data)
    sent = [send(each, data, size, FLAGS) for each in descriptors]
    return {index: part for index, part in enumerate(sent) if part != size}


class _ThreadRing(threading.local):
    """A thread's io_uring; None if it is not opened yet or not available."""

    tried = False
    ring: IoUringSender | None = None


_thread_ring = _ThreadRing()


def _drop_rings() -> None:
    """Drop the parent's rings in a forked process."""
    global _thread_ring
    _thread_ring = _ThreadRing()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_drop_rings)


def _ring() -> IoUringSender | None:
    if not _thread_ring.tried:
        _thread_ring.tried, _thread_ring.ring = True, _open_ring()
    return _thread_ring.ring


def _open_ring() -> IoUringSender | None:
    try:
        ring = IoUringSender(FLAGS)
    except OSError as error:
        log.info(
            "io_uring is not available (%s): every send to a client is a system call of its own",
            error.strerror,
        )
        return None
    log.info("io_uring is available: one system call sends to many clients")
    return ring


def descriptor(transport: asyncio.BaseTransport) -> int:
    """Return the descriptor of a transport's socket for `send`; NO_DESCRIPTOR if there is none.

    Use it only while the transport is open and its own buffer is empty.
    """
    sock: socket.socket | None = transport.get_extra_info("socket")
    if sock is None or transport.get_extra_info("sslcontext") is not None:
        return NO_DESCRIPTOR
    return sock.fileno()


def queued(descriptor: int) -> int:
    """Return the bytes in a socket that the other side has not received; 0 if it is not known."""
    if sys.platform != "linux":
        return 0
    try:
        return int(struct.unpack("i", fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4)))[0])
    except (OSError, ValueError):  # the latter for NO_DESCRIPTOR
        return 0
