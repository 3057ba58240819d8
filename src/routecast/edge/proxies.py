"""Trusted proxies, and the address of the client behind them.

All edges find a client's address here.
"""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

from starlette.types import Scope

# The number of hops that are read, from the nearest on, and the characters that one may have.
MAX_HOPS: Final = 32
MAX_HOP: Final = 100
# The number of parsed addresses that are cached.
REMEMBERED_ADDRESSES: Final = 4_096

# An address in brackets, or IPv4 with a port; `_hidden` is a port that a proxy hides (RFC 7239,
# 6.3).
_PORT: Final = r"(?::(?:[0-9]{0,5}|_[\w.-]+))?"
_BRACKETED: Final = re.compile(rf"\[([^\[\]]+)\]{_PORT}", re.ASCII)
_WITH_PORT: Final = re.compile(rf"([0-9.]+){_PORT}", re.ASCII)
_MAPPED: Final = IPv6Network("::ffff:0:0/96")

_SCHEMES: Final = frozenset({"http", "https", "ws", "wss"})
SECURE_SCHEMES: Final = frozenset({"https", "wss"})

# The member of an ASGI scope that has the address of the connection, if the client has another one.
REMOTE: Final = "routecast.remote"

Network = IPv4Network | IPv6Network


def read_address(text: str) -> str | None:
    """Return the IP address of a hop in its normal form; None if it has none.

    Accepts ports, brackets, quotes and zone ids as proxies write them. An IPv4 address that is
    mapped into IPv6 becomes IPv4.
    """
    text = text.strip(" \t")
    return _read_address(text) if len(text) <= MAX_HOP else None


@lru_cache(REMEMBERED_ADDRESSES)
def _read_address(text: str) -> str | None:
    if len(text) > 1 and text[0] == text[-1] == '"':
        text = text[1:-1].strip(" \t")
    if found := _BRACKETED.fullmatch(text) or _WITH_PORT.fullmatch(text):
        text = found[1]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(address)


def is_loopback(address: str) -> bool:
    """Whether an address, in its normal form, is this machine; "" is a client without one."""
    return not address or address == "::1" or address.startswith("127.")


def limit_key(address: str) -> str:
    """Return the key of a client for limits: its IPv4 address, or the /64 of its IPv6 address.

    One customer of a provider has at least a /64 to choose addresses from (RFC 6177).
    """
    return _subnet(address) if ":" in address else address


def remote_of(scope: Scope) -> str:
    """Return the address of the connection, which may be a proxy's."""
    remote: str | None = scope.get(REMOTE)
    if remote is not None:
        return remote
    return str(scope["client"][0]) if scope.get("client") else ""


def limit_key_of(scope: Scope) -> str:
    """Return the key of a request's client for limits; "" if its address is unknown."""
    client = scope.get("client")
    return limit_key(str(client[0])) if client else ""


@lru_cache(REMEMBERED_ADDRESSES)
def _subnet(address: str) -> str:
    try:
        return str(IPv6Network((address, 64), strict=False))
    except ValueError:
        return address


def read_network(text: str) -> Network:
    """Return the network that a setting's text names: an address or a network of proxies.

    Raises ValueError with the reason and the fix.
    """
    address, slash, length = text.partition("/")
    address = address.removeprefix("[").removesuffix("]").partition("%")[0]
    try:
        network = ip_network(address + slash + length)
    except ValueError:
        raise ValueError(_network_error(text)) from None
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        mapped = network.network_address.ipv4_mapped
        return IPv4Network((str(mapped), network.prefixlen - 96))
    return network


def _network_error(text: str) -> str:
    try:
        return f"{text!r} is an address within a network: write {ip_network(text, strict=False)}"
    except ValueError:
        pass
    if address := read_address(text):
        return f"{text!r} has a port or quotes: write {address}"
    return f"{text!r} is not an IP address or network: write 10.0.0.7 or 10.0.0.0/8, not a name"


class Proxies:
    """The trusted proxies, as addresses and networks; `*` trusts every address."""

    def __init__(self, trusted: str) -> None:
        names = {name.strip() for name in trusted.split(",")} - {""}
        self._trusts_all = "*" in names
        self._networks = [read_network(name) for name in names - {"*"}]
        self._known = lru_cache(REMEMBERED_ADDRESSES)(self._look_up)

    def client_of(self, remote: str, forwarded: Iterable[str]) -> str:
        """Return a client's address, from the connection's remote address and `X-Forwarded-For`.

        Each proxy appends the address that its request came from. So the client is the last address
        that is not a trusted proxy; the client may have forged everything before it. A hop that is
        not an address counts as the hop that reported it. Returns "" if `remote` is no address, as
        over a Unix socket.
        """
        client = read_address(remote) or ""
        if not forwarded or not self._trusts(client):
            return client
        for hop in _from_the_nearest(list(forwarded)):
            address = read_address(hop)
            if address is None:
                break
            client = address
            if not self._trusts(client):
                break
        return client

    def scheme_of(self, remote: str, forwarded: Sequence[str]) -> str | None:
        """Return the scheme that a trusted proxy says its client used (`X-Forwarded-Proto`)."""
        if not forwarded or not self._trusts(read_address(remote) or ""):
            return None
        scheme = forwarded[-1].rpartition(",")[2].strip(" \t").lower()
        return scheme if scheme in _SCHEMES else None

    def is_trusted(self, remote: str) -> bool:
        """Whether a connection's remote address is that of a trusted proxy."""
        return self._trusts(read_address(remote) or "")

    def _trusts(self, address: str) -> bool:
        return self._trusts_all or self._known(address)

    def _look_up(self, address: str) -> bool:
        if not address:
            return False
        found = ip_address(address)
        return any(found in network for network in self._networks)


def _from_the_nearest(forwarded: Sequence[str]) -> Iterable[str]:
    """Yield the hops that are not empty, from the last on, and at most the nearest MAX_HOPS."""
    left = MAX_HOPS
    for header in reversed(forwarded):
        hops = header.rsplit(",", left)
        if len(hops) > left:
            del hops[0]  # all others in one piece
        left -= len(hops)
        for hop in reversed(hops):
            if hop.strip(" \t"):
                yield hop
        if not left:
            return
