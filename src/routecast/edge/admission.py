"""Admission control: which client may open a stream, and to what. All edges share it."""

from collections import Counter

from starlette.types import Scope as AsgiScope

from routecast.core.access import ANYONE, Principal, Scope, require_scope
from routecast.core.default_session import DefaultSession, open_session
from routecast.core.sites import Sites
from routecast.edge.access import Access, principal_of
from routecast.edge.cors import origin_of
from routecast.edge.proxies import limit_key_of
from routecast.errors import Unavailable
from routecast.services.renders import Renders
from routecast.streaming.connections import ConnectionManager


class AdmissionControl:
    """Checks each request for a stream before the server spends anything on it."""

    def __init__(
        self,
        manager: ConnectionManager,
        renders: Renders,
        *,
        interval: float,
        sites: Sites,
        max_per_address: int,
        access: Access | None = None,
    ) -> None:
        self.access = access or Access()
        self._manager = manager
        self._renders = renders
        self._interval = interval
        self._sites = sites
        self._max_per_address = max_per_address
        self._admitted: Counter[str] = Counter()

    def admit(
        self,
        query: bytes,
        *,
        origin: str | None,
        host: str | None,
        address: str,
        principal: Principal = ANYONE,
    ) -> DefaultSession:
        """Return the session that a request asks for, with the projects of its principal.

        `address` is the client's, as limits count it (`limit_key`). Raises Misdirected, Forbidden,
        BadBody or BadParameter, and Unavailable if there is no room: the edge must answer with
        the error. Otherwise the edge must call `release` when the connection ends.
        """
        require_scope(principal, Scope.READ)
        if host is not None:
            self._sites.require_known_host(host)
        self._sites.require_allowed_origin(origin, host)
        session = open_session(query, interval=self._interval, projects=principal.projects)
        self._manager.admit()
        self._renders.admit(session.subscription.view, address)
        if self._max_per_address and self._admitted[address] >= self._max_per_address:
            raise Unavailable("too many connections from this address", retry_after=10)
        self._admitted[address] += 1
        return session

    def admit_scope(self, scope: AsgiScope) -> tuple[DefaultSession, str]:
        """Return the session that an ASGI scope asks for, and the address for `release`."""
        address = limit_key_of(scope)
        origin, host = origin_of(scope)
        session = self.admit(
            scope["query_string"],
            origin=origin,
            host=host,
            address=address,
            principal=principal_of(scope),
        )
        return session, address

    def release(self, address: str) -> None:
        """Count one connection less from this address."""
        self._admitted[address] -= 1
        if not self._admitted[address]:
            del self._admitted[address]
