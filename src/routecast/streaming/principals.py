"""Stream principals: whose the open streams are, so that no stream outlives its credential.

Streams whose credential expires in the same half second are one group, and one timer serves all
groups. While authentication is off, nothing is kept, and no timer runs.
"""

import heapq
import math
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from routecast.core.access import ANYONE, Principal
from routecast.core.decision import SECOND
from routecast.ports import Clock, Connection, Timer, Timers
from routecast.protocol import CloseCode

# A client is told that its credential expires this number of seconds ahead.
WARNING_SECONDS: Final = 30.0
# Streams are closed at most this number of seconds after their credential expired.
GROUP_SECONDS: Final = 0.5
# The clock is read at least this often, in seconds: it may have been set, or the machine suspended.
CLOCK_READ_SECONDS: Final = 1.0
# At most this number of streams is served before other tasks get a turn.
SERVED_BATCH: Final = 50


class CredentialVerifier(Protocol):
    """Tells whose a credential is (`edge.access.Access`)."""

    @property
    def required(self) -> bool:
        """Whether authentication is on, or not known to be off."""
        ...

    def recognise(self, credential: str) -> Principal | None:
        """Return the principal at once; None if `authenticate` must be awaited. Raises as that."""
        ...

    async def authenticate(self, credential: str, address: str) -> Principal:
        """Return the principal within seconds; `address` is its client's. Cancelling it is safe.

        Raises BadCredential, Unavailable.
        """
        ...


class ExpiringPeer(Protocol):
    """The peer of a stream (`peers.Peer`)."""

    def warn_of_expiry(self, expires_in_ms: int) -> None:
        """Tell the client that its credential expires."""
        ...


class _Stream:
    """An open stream; `due` is the number of its group, None if nothing is due."""

    __slots__ = ("due", "peer", "principal")

    def __init__(self, peer: ExpiringPeer, principal: Principal) -> None:
        self.peer = peer
        self.principal = principal
        self.due: int | None = None


class StreamPrincipals:
    """Knows the principals of open streams, and closes these when a credential ends."""

    def __init__(self, clock: Clock, timers: Timers) -> None:
        self._clock = clock
        self._timers = timers
        self._streams: dict[Connection, _Stream] = {}
        # By the number of half seconds since 1970; a heap of these numbers, with some old ones.
        self._groups: dict[int, dict[Connection, None]] = {}
        self._numbers: list[int] = []
        self._timer: Timer | None = None

    def __contains__(self, connection: Connection) -> bool:
        return connection in self._streams

    def of(self, connection: Connection) -> Principal:
        """Return the principal of a stream; ANYONE if it has no credential."""
        stream = self._streams.get(connection)
        return ANYONE if stream is None else stream.principal

    def add(self, connection: Connection, peer: ExpiringPeer, principal: Principal) -> None:
        """Close a stream when the credential of its principal ends."""
        self._streams[connection] = stream = _Stream(peer, principal)
        if principal.expires is not None:
            self._put(connection, stream, principal.expires - WARNING_SECONDS)

    def renew(self, connection: Connection, principal: Principal) -> None:
        """Put another credential in the place of the one of a stream, unless that has closed."""
        stream = self._streams.get(connection)
        if stream is not None:
            self._take(connection, stream)
            self.add(connection, stream.peer, principal)

    def remove(self, connection: Connection) -> None:
        """Forget a stream that has closed; does nothing if it is unknown."""
        stream = self._streams.pop(connection, None)
        if stream is not None:
            self._take(connection, stream)

    def revoke(self, is_revoked: Callable[[Principal], bool]) -> None:
        """Close the streams of all principals for which this is true."""
        known: dict[int, bool] = {}  # streams with one credential have the same object
        revoked = []
        for connection, stream in self._streams.items():
            identity = id(stream.principal)
            if identity not in known:
                known[identity] = is_revoked(stream.principal)
            if known[identity]:
                revoked.append(connection)
        self.close(revoked)

    def close(self, connections: Sequence[Connection]) -> None:
        """Close streams without a valid credential."""
        for connection in connections[:SERVED_BATCH]:
            connection.stop(CloseCode.UNAUTHENTICATED)
        if rest := connections[SERVED_BATCH:]:
            self._timers.call_at(self._timers.now(), self.close, rest)

    # -- groups ---------------------------------------------------------------------------------

    def _put(self, connection: Connection, stream: _Stream, moment: float) -> None:
        """Have a stream served soon after a moment, in seconds since 1970."""
        number = max(math.ceil(moment / GROUP_SECONDS), 0)
        stream.due = number
        group = self._groups.get(number)
        if group is None:
            group = self._groups[number] = {}
            if len(self._numbers) > 2 * len(self._groups) + SERVED_BATCH:
                self._numbers = list(self._groups)
                heapq.heapify(self._numbers)
            else:
                heapq.heappush(self._numbers, number)
            if self._numbers[0] == number:
                self._set_timer()
        group[connection] = None

    def _take(self, connection: Connection, stream: _Stream) -> None:
        """Take a stream out of its group."""
        number, stream.due = stream.due, None
        if number is not None and (group := self._groups.get(number)) is not None:
            group.pop(connection, None)
            if not group:
                del self._groups[number]

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._groups:
            wait = self._numbers[0] * GROUP_SECONDS - self._clock.now() / SECOND
            wait = min(max(wait, 0.0), CLOCK_READ_SECONDS)
            self._timer = self._timers.call_at(self._timers.now() + wait, self._tick)

    def _tick(self) -> None:
        now = self._clock.now() / SECOND
        while self._numbers and self._numbers[0] * GROUP_SECONDS <= now:
            group = self._groups.pop(heapq.heappop(self._numbers), None)
            if group:
                self._serve(list(group))
        self._set_timer()

    def _serve(self, connections: Sequence[Connection]) -> None:
        """Warn the clients of a group that was due, or close their streams."""
        now = self._clock.now() / SECOND
        for connection in connections[:SERVED_BATCH]:
            stream = self._streams.get(connection)
            if stream is None or stream.due is None or stream.due * GROUP_SECONDS > now:
                continue  # it has closed or been renewed
            expires = stream.principal.expires
            assert expires is not None
            if expires <= now:
                connection.stop(CloseCode.UNAUTHENTICATED)
            else:
                stream.peer.warn_of_expiry(round(1000 * (expires - now)))
                self._put(connection, stream, expires)
        if rest := connections[SERVED_BATCH:]:
            self._timers.call_at(self._timers.now(), self._serve, rest)
