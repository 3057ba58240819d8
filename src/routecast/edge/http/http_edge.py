"""`HttpEdge`: the deadlines, limits and count of refusals that all HTTP connections share."""

import asyncio
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from operator import methodcaller
from typing import Final, Protocol

from routecast.edge.http.deadlines import BodyDeadlines, ConnectionDeadlines
from routecast.edge.http.refusal_log import RefusalLog
from routecast.edge.http.request_body import BODY_READ_SECONDS
from routecast.edge.proxies import SECURE_SCHEMES, Proxies, is_loopback, limit_key
from routecast.instruments import Instruments

# The time for a request line and its headers, in seconds. Honest clients send them at once.
REQUEST_SECONDS: Final = 10.0
# After the last answer the server closes its side, and waits this time, in seconds, for the client
# to close its own. A reset at once would make a client that still sends lose the answer (RFC 9112,
# 9.6).
LINGER_SECONDS: Final = 5.0
# A pipelined request waits at most this time, in seconds, for the answers before it.
PIPELINED_SECONDS: Final = 60.0
# The maximum number of connections with each kind of deadline: in all, and of one address. All
# clients of a full node may reconnect at once.
MAX_WAITING_CONNECTIONS: Final = 20_000
MAX_WAITING_OF_ADDRESS: Final = 1_000
# Bytes of incomplete bodies. Small bodies have room that large ones cannot take.
MAX_SMALL_BYTES: Final = 32 * 2**20
MAX_SMALL_BYTES_OF_ADDRESS: Final = 8 * 2**20
MAX_LARGE_BYTES: Final = 128 * 2**20
MAX_LARGE_BYTES_OF_ADDRESS: Final = 64 * 2**20
# The number of open files that connections leave for everything else. One read of the listening
# socket may accept hundreds of connections.
RESERVED_FILES: Final = 128
# Near that limit, each new connection closes this number of others, so that room is left again.
CLOSED_FOR_ONE: Final = 16
FILES_USED_UP: Final = (
    "nearly all files that this process may open are in use; raise its limit (ulimit -n)"
)
_ANY_CLIENT: Final = ("192.0.2.1",)  # an address for documentation (RFC 5737)

log = logging.getLogger(__name__)


class HttpConnection(Protocol):
    """What `HttpEdge` does with a connection; `http_protocol.HttpProtocol` is one."""

    def refuse_late(self) -> None:
        """Refuse its request, because its client took too long."""

    def refuse_crowded(self) -> None:
        """Refuse its request, to make room for others."""

    def close_idle(self) -> None:
        """Close it, because its client sent no further request in time."""

    def abort(self) -> None:
        """Close it at once."""


class HttpEdge:
    """The deadlines of one server. A connection has one of them while it waits for its client.

    `keep_alive` is the time for which an idle connection is kept, in seconds. `files` is the number
    of files that the process may open; near that limit, each new connection closes those that have
    waited longest.
    """

    def __init__(
        self,
        instruments: Instruments,
        proxies: Proxies,
        *,
        keep_alive: float,
        files: int = sys.maxsize,
    ) -> None:
        self.refusal_log = RefusalLog(log, instruments.refused)
        self.keep_alive_header = (b"keep-alive", b"timeout=%d" % keep_alive)
        self._proxies = proxies
        self._files = files - min(RESERVED_FILES, files // 4)
        self._is_proxy = lru_cache(1_024)(self._detect_proxy)
        late, crowded = methodcaller("refuse_late"), methodcaller("refuse_crowded")
        idle = methodcaller("close_idle")
        abort = methodcaller("abort")
        of_address = MAX_WAITING_OF_ADDRESS
        self.heads: ConnectionDeadlines[HttpConnection] = ConnectionDeadlines(
            REQUEST_SECONDS,
            late,
            crowded,
            max_count=MAX_WAITING_CONNECTIONS,
            max_of_address=of_address,
        )
        self.small_bodies: BodyDeadlines[HttpConnection] = BodyDeadlines(
            BODY_READ_SECONDS,
            late,
            crowded,
            max_count=MAX_WAITING_CONNECTIONS,
            max_of_address=of_address,
            max_bytes=MAX_SMALL_BYTES,
            max_bytes_of_address=MAX_SMALL_BYTES_OF_ADDRESS,
        )
        self.large_bodies: BodyDeadlines[HttpConnection] = BodyDeadlines(
            BODY_READ_SECONDS,
            late,
            crowded,
            max_count=MAX_WAITING_CONNECTIONS,
            max_of_address=of_address,
            max_bytes=MAX_LARGE_BYTES,
            max_bytes_of_address=MAX_LARGE_BYTES_OF_ADDRESS,
        )
        # Connections with complete requests behind the one that is being answered.
        self.pipelined: BodyDeadlines[HttpConnection] = BodyDeadlines(
            PIPELINED_SECONDS,
            crowded,
            crowded,
            max_count=MAX_WAITING_CONNECTIONS,
            max_bytes=MAX_SMALL_BYTES,
            max_bytes_of_address=MAX_SMALL_BYTES_OF_ADDRESS,
        )
        self.idle: ConnectionDeadlines[HttpConnection] = ConnectionDeadlines(
            keep_alive, idle, idle, max_count=MAX_WAITING_CONNECTIONS
        )
        self.ends: ConnectionDeadlines[HttpConnection] = ConnectionDeadlines(
            LINGER_SECONDS, abort, abort, max_count=MAX_WAITING_CONNECTIONS
        )

    def admit(self, transport: asyncio.Transport) -> bool:
        """Return whether there is room for a new connection; if not, close it."""
        sock = transport.get_extra_info("socket")
        # The kernel gives the lowest free number, so a high one means that most are in use.
        if sock is None or sock.fileno() < self._files:
            return True
        self.refusal_log.add(FILES_USED_UP)
        closed = list(islice(self._oldest(), CLOSED_FOR_ONE))
        for connection in closed:
            connection.abort()
        if not closed:
            transport.abort()
        return bool(closed)

    def _oldest(self) -> Iterator[HttpConnection]:
        """Take out the connections that can be closed, the least useful ones first."""
        for deadlines in (self.ends, self.idle, self.heads, self.small_bodies, self.large_bodies):
            while (oldest := deadlines.take_oldest()) is not None:
                yield oldest

    def key_of(
        self, client: tuple[str, int] | None, headers: Sequence[tuple[bytes, bytes]] = ()
    ) -> str | None:
        """Return the key of a client for limits; None for a proxy whose client is unknown."""
        remote = client[0] if client else ""
        forwarded = [
            value.decode("latin-1") for name, value in headers if name == b"x-forwarded-for"
        ]
        if not forwarded:
            return None if not remote or self._is_proxy(remote) else limit_key(remote)
        return limit_key(self._proxies.client_of(remote, forwarded))

    def is_private(
        self, scheme: str, client: tuple[str, int] | None, fields: Mapping[bytes, bytes]
    ) -> bool:
        """Whether a request certainly came over TLS, or from this machine."""
        if scheme in SECURE_SCHEMES:
            return True
        remote = client[0] if client else ""
        forwarded = fields.get(b"x-forwarded-proto")
        if forwarded is None:
            return b"x-forwarded-for" not in fields and is_loopback(remote)
        return self._proxies.scheme_of(remote, [forwarded.decode("latin-1")]) in SECURE_SCHEMES

    def _detect_proxy(self, remote: str) -> bool:
        return self._proxies.client_of(remote, _ANY_CLIENT) != self._proxies.client_of(remote, ())
