"""The door: which client may subscribe, and to what. The same for every edge."""

from collections import Counter

from starlette.types import Scope

from routecast.core.default_session import DefaultSession, open_session
from routecast.core.sites import Sites
from routecast.edge.cors import origin_of
from routecast.edge.proxies import limit_key_of
from routecast.errors import Unavailable
from routecast.services.renders import Renders
from routecast.streaming.connections import ConnectionManager


class AdmissionControl:
    """Checks a request before anything is spent on it."""

    def __init__(
        self,
        manager: ConnectionManager,
        renders: Renders,
        *,
        interval: float,
        sites: Sites,
        max_per_address: int,
    ) -> None:
        self._manager = manager
        self._renders = renders
        self._interval = interval
        self._sites = sites
        self._max_per_address = max_per_address
        self._inside: Counter[str] = Counter()

    def open(
        self, query: bytes, *, origin: str | None, host: str | None, address: str
    ) -> DefaultSession:
        """Return the session a request asks for.

        `address` is what limits count the client by (`limit_key`). Raises Misdirected,
        Forbidden, BadBody, BadParameter, and Unavailable when there is no room; the edge answers
        with them. When it returns, the edge must call `leave` at the connection's end.
        """
        if host is not None:
            self._sites.check_host(host)
        self._sites.check_origin(origin, host)
        session = open_session(query, interval=self._interval)
        self._manager.admit()
        self._renders.admit(session.subscription.view, address)
        if self._max_per_address and self._inside[address] >= self._max_per_address:
            raise Unavailable("too many connections from this address", retry_after=10)
        self._inside[address] += 1
        return session

    def open_scope(self, scope: Scope) -> tuple[DefaultSession, str]:
        """Return the session an ASGI scope asks for, and the address to `leave` with."""
        address = limit_key_of(scope)
        origin, host = origin_of(scope)
        session = self.open(scope["query_string"], origin=origin, host=host, address=address)
        return session, address

    def leave(self, address: str) -> None:
        """Make room for another connection from this address."""
        self._inside[address] -= 1
        if not self._inside[address]:
            del self._inside[address]
