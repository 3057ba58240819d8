"""A subscriber's session: what it asked for when it came, and what its messages mean.

The same session runs under every edge; it never touches a socket.
"""

from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address
from urllib.parse import urlsplit

from routecast.core.view import Subscription, parse_query
from routecast.errors import Forbidden
from routecast.protocol import DEFAULT_INTERVAL

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True)
class Session:
    """The default stream: whole documents, one each interval, until the client goes.

    It remembers nothing, so connections that ask for the same share one.
    """

    subscription: Subscription

    def receive(self, message: str | bytes) -> None:
        """Take a message of the client. On the default stream, whatever it is, it is ignored."""


@lru_cache(maxsize=256)  # a view with all the names a query has room for takes some 40 KB
def open_session(query: bytes, *, interval: float = DEFAULT_INTERVAL) -> Session:
    """Return the session a request asks for. Raises BadParameter, to be answered with 400."""
    return Session(parse_query(query, interval=interval))


def check_origin(origin: str | None, host: str | None, allowed: frozenset[str]) -> None:
    """Raise Forbidden, naming the setting, when a browser's page may not come in."""
    if not may_enter(origin, host, allowed):
        shown = (origin or "")[:200]
        raise Forbidden(
            f"Origin {shown!r} may not connect; to let its pages in, start the server with "
            "it in ROUTECAST_ALLOWED_ORIGINS"
        )


def may_enter(origin: str | None, host: str | None, allowed: frozenset[str]) -> bool:
    """Whether a page is from this very machine, from our own address, or from `allowed`.

    Without this, any page a person looks at could read or write at their local Routecast
    (RFC 6455, 10.2). A page that came from here under a name must be allowed, too: a name can be
    made to point here by whoever owns it (DNS rebinding). Clients that are no browser send no
    origin.
    """
    if origin is None or "*" in allowed or origin in allowed:
        return True
    with suppress(ValueError):  # neither header needs to hold an address
        site = urlsplit(origin)
        if site.netloc and site.netloc == host and _is_address(site.hostname):
            return True
        return site.hostname in _LOOPBACK and urlsplit(f"//{host or ''}").hostname in _LOOPBACK
    return False


def _is_address(name: str | None) -> bool:
    try:
        ip_address(name or "")
    except ValueError:
        return False
    return True
