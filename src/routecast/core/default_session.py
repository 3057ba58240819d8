"""The session of the default stream: the client's request, and the meaning of its messages.

The same session runs under every edge; it never touches a socket.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

from routecast.core.access import Projects, restrict
from routecast.core.view import ViewSubscription, parse_query
from routecast.protocol import DEFAULT_INTERVAL


@dataclass(frozen=True, slots=True)
class DefaultSession:
    """The default stream: whole documents, one for each interval, until the client leaves.

    It has no state, so connections with equal requests share one.
    """

    subscription: ViewSubscription

    def receive(self, message: str | bytes) -> None:
        """Receive a message of the client. The default stream ignores all messages."""


@lru_cache(maxsize=256)  # a view with all the names that a query has room for takes about 40 KB
def open_session(
    query: bytes, *, interval: float = DEFAULT_INTERVAL, projects: Projects = None
) -> DefaultSession:
    """Return the session of a request, with nothing but `projects` in it; None for all.

    Raises BadParameter, to be answered with 400, and Forbidden if it names another project.
    """
    asked = parse_query(query, interval=interval)
    return DefaultSession(replace(asked, view=restrict(asked.view, projects)))
