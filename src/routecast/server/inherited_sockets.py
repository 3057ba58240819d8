"""`take_over`: a listening socket inherited as a file descriptor (`--fd`), e.g. from systemd."""

import os
import socket
from ipaddress import ip_address
from typing import Final

from routecast.edge.proxies import read_address
from routecast.errors import BadSettings
from routecast.server.config import Settings

_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)


def take_over(settings: Settings) -> socket.socket:
    """Return the socket that `settings.fd` names, to accept connections from.

    Raises BadSettings unless it is a TCP socket that is bound and not connected, and if other
    machines can reach it without authentication, and `insecure` is not set.
    """
    assert settings.fd is not None
    listener = _open(settings.fd)
    try:
        if problem := _problem(listener):
            raise BadSettings(
                f"fd {settings.fd} {problem}: hand over a TCP socket that is bound to an address "
                "and a port"
            )
        host = listener.getsockname()[0]
        if not _is_loopback(host):
            settings.require_safe_at(
                f"fd {settings.fd} is bound to {host}, which can", "bind it to"
            )
    except BaseException:
        listener.detach()  # it stays open for the process that passed it on
        raise
    return listener


def _open(descriptor: int) -> socket.socket:
    try:
        return socket.socket(fileno=descriptor)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise BadSettings(f"fd {descriptor} is no socket to listen on: {reason}") from None


def _problem(found: socket.socket) -> str | None:
    """Return why a socket cannot be listened on; None if it can."""
    if found.family == socket.AF_UNIX:
        return "is a Unix socket"
    if found.family not in _FAMILIES or found.type != socket.SOCK_STREAM:
        return "is no TCP socket"
    if not found.getsockname()[1]:
        return "is bound to no port"
    try:
        found.getpeername()
    except OSError:
        return None
    return "is connected already"


def _is_loopback(host: str) -> bool:
    address = read_address(host)
    return address is not None and ip_address(address).is_loopback
