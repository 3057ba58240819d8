"""A subscriber's session: what it asked for when it came, and what its messages mean.

The same session runs under every edge; it never touches a socket.
"""

from dataclasses import dataclass
from functools import lru_cache

from routecast.core.view import ViewSubscription, parse_query
from routecast.protocol import DEFAULT_INTERVAL


@dataclass(frozen=True, slots=True)
class DefaultSession:
    """The default stream: whole documents, one each interval, until the client goes.

    It remembers nothing, so connections that ask for the same share one.
    """

    subscription: ViewSubscription

    def receive(self, message: str | bytes) -> None:
        """Take a message of the client. On the default stream, whatever it is, it is ignored."""


@lru_cache(maxsize=256)  # a view with all the names a query has room for takes some 40 KB
def open_session(query: bytes, *, interval: float = DEFAULT_INTERVAL) -> DefaultSession:
    """Return the session a request asks for. Raises BadParameter, to be answered with 400."""
    return DefaultSession(parse_query(query, interval=interval))
