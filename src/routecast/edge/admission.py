"""Admission control: which client may open a stream, and to what. All edges share it."""

import time
from collections import Counter
from collections.abc import Callable
from typing import Final

from starlette.types import Scope as AsgiScope

from routecast.core.access import ANYONE, Principal, Scope, require_scope
from routecast.core.client_limits import ClientLimit, LimitModes, client_name, over_quota
from routecast.core.default_session import DefaultSession, open_session
from routecast.core.sites import Sites
from routecast.core.token_bucket import Allowances, Quota
from routecast.edge.access import Access, principal_of
from routecast.edge.cors import origin_of
from routecast.edge.proxies import limit_key_of
from routecast.errors import OverLimit
from routecast.services.renders import Renders
from routecast.streaming.connections import ConnectionManager
from routecast.streaming.frame_limit import FrameLimit

# When a client may try again because another of its streams may have ended, in seconds.
ROOM_RETRY_SECONDS: Final = 10


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
        max_per_subject: int = 0,
        max_a_minute: int = 0,
        frames: FrameLimit | None = None,
        modes: LimitModes | None = None,
        access: Access | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.access = access or Access()
        self._manager = manager
        self._renders = renders
        self._interval = interval
        self._sites = sites
        self._max_per_address = max_per_address
        self._max_per_subject = max_per_subject
        self._max_a_minute = max_a_minute
        self._frames = frames or FrameLimit()
        self._modes = modes or LimitModes()
        self._now = now
        self._admitted: Counter[str] = Counter()
        self._of_subject: Counter[str] = Counter()
        self._opened = Allowances(Quota.a_minute(max_a_minute))

    def admit(
        self,
        query: bytes,
        *,
        origin: str | None,
        host: str | None,
        scheme: str = "http",
        address: str,
        principal: Principal = ANYONE,
        is_default: bool = True,
        probe: bool = False,
    ) -> DefaultSession:
        """Return the session that a request asks for, with the projects of its principal.

        `scheme` is the one that the client uses, http or https. `address` is the client's, as
        limits count it (`limit_key`). `is_default` says whether it is the default stream, and
        `probe` that the client only asks whether it would be admitted.

        Raises Misdirected, Forbidden, BadBody or BadParameter, OverLimit, and Unavailable if there
        is no room: the edge must answer with the error. Otherwise the edge must call `release` when
        the connection ends.
        """
        require_scope(principal, Scope.READ)
        if host is not None:
            self._sites.require_known_host(host)
        self._sites.require_allowed_origin(origin, host, scheme)
        session = open_session(query, interval=self._interval, projects=principal.projects)
        self._manager.admit()
        self._require_room(address, principal, probe=probe)
        if is_default:
            self._frames.require(principal, session.subscription.interval, probe=probe)
        self._renders.admit(session.subscription.view, address)
        if self._max_a_minute:
            self._require_rate(address, probe=probe)
        self._admitted[address] += 1
        if self._max_per_subject and principal is not ANYONE:
            self._of_subject[client_name(principal)] += 1
        return session

    def admit_scope(
        self, scope: AsgiScope, *, is_default: bool = True, probe: bool = False
    ) -> tuple[DefaultSession, str]:
        """Return the session that an ASGI scope asks for, and the address for `release`."""
        address = limit_key_of(scope)
        asked = origin_of(scope)
        session = self.admit(
            scope["query_string"],
            origin=asked.origin,
            host=asked.host,
            scheme=asked.scheme,
            address=address,
            principal=principal_of(scope),
            is_default=is_default,
            probe=probe,
        )
        return session, address

    def _require_room(self, address: str, principal: Principal, *, probe: bool) -> None:
        most = self._max_per_address
        if most and self._admitted[address] >= most:
            limit = ClientLimit.STREAMS_PER_ADDRESS
            self._refuse_over(limit, most, "too many connections from this address", probe=probe)
        most = self._max_per_subject
        if most and principal is not ANYONE and self._of_subject[client_name(principal)] >= most:
            limit = ClientLimit.STREAMS_PER_SUBJECT
            self._refuse_over(limit, most, "too many connections of this subject", probe=probe)

    def _refuse_over(self, limit: ClientLimit, most: int, why: str, *, probe: bool) -> None:
        if self._is_refused(limit, probe=probe):
            raise OverLimit(
                why, limit=limit, amount=most, seconds=None, retry_after=ROOM_RETRY_SECONDS
            )

    def _require_rate(self, address: str, *, probe: bool) -> None:
        now = self._now()
        opened = self._opened.of(address, now)
        wait = opened.wait_for(1, now)
        if wait and self._is_refused(ClientLimit.CONNECTION_RATE, probe=probe):
            why = "too many connections a minute from this address"
            raise over_quota(ClientLimit.CONNECTION_RATE, self._opened.quota, wait, why)
        if not wait and not probe:
            opened.spend(1, now)

    def _is_refused(self, limit: ClientLimit, *, probe: bool) -> bool:
        """Whether a client over a limit is refused. A probe is not counted as a hit."""
        return self._modes.enforces(limit) if probe else self._modes.hit(limit)

    def release(self, address: str, principal: Principal = ANYONE) -> None:
        """Count one connection less from this address, and of this principal."""
        self._admitted[address] -= 1
        if not self._admitted[address]:
            del self._admitted[address]
        if self._max_per_subject and principal is not ANYONE:
            name = client_name(principal)
            self._of_subject[name] -= 1
            if not self._of_subject[name]:
                del self._of_subject[name]
