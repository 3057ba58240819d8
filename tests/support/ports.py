"""TCP ports that belong to one test process, however many run at the same time."""

import fcntl
import os
import secrets
import socket
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import BinaryIO

# Below the ports that Linux gives to clients and to servers that ask for any port (32768 and up),
# so that none of them takes a port while its server is not started yet, or is started again.
# The 10,000 ports above stay free as well: Redis Cluster adds 10,000 for the port of its bus.
PORTS = range(11_000, 21_000)

_own: set[int] = set()


@cache
def _locks() -> BinaryIO:
    """Return the file whose byte N is locked by the process that has port N.

    The system releases a lock when its process ends, in whatever way.
    """
    return Path(tempfile.gettempdir(), f"routecast-test-ports-{os.getuid()}").open("ab")


def free_port() -> int:
    """Return a port of 127.0.0.1 that is free now, and reserved for this process until it ends."""
    while True:
        port = secrets.choice(PORTS)
        # A process may lock a byte again that it has locked, so its own ports are in `_own`.
        with suppress(BlockingIOError):
            if port not in _own:
                fcntl.lockf(_locks(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
                if _is_free(port):
                    _own.add(port)
                    return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe, suppress(OSError):
        probe.bind(("127.0.0.1", port))
        return True
    return False
