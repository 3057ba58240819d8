"""`ConnectionManager`: the registry of open connections, through which payloads are sent.

It knows nothing about views: `channels.py` decides when to send, and what.
"""

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Callable, ItemsView, Iterator, Sequence
from contextlib import suppress
from typing import Final, Protocol

import msgspec

from routecast import audit
from routecast.core.access import Principal
from routecast.core.connection_ids import new_id, write_id
from routecast.core.payload import Payload
from routecast.core.view import ViewSubscription
from routecast.errors import Unavailable
from routecast.instruments import Instruments
from routecast.ports import Batch, Connection
from routecast.protocol import CloseCode
from routecast.streaming.sent_counts import SentCounts

log = logging.getLogger(__name__)

# The code for a connection that ended without a close frame (RFC 6455, 7.4.1).
ABNORMAL_CLOSURE: Final = 1006
_NO_STATUS: Final = 1005
_NORMAL: Final = frozenset({CloseCode.DONE, CloseCode.GOING_AWAY, _NO_STATUS})
# The codes that have a metric of their own: those of the contract and of WebSocket itself. A client
# may close with two thousand others.
_COUNTED: Final = frozenset({*CloseCode, _NO_STATUS, ABNORMAL_CLOSURE})
# At most this number of connections is closed before other tasks get a turn: closing costs more
# than sending.
CLOSE_BATCH: Final = 50
# At a stop, each client gets a random time to reconnect. The times are spread so that at most this
# number of clients reconnect per second, over at least SHORTEST_SPREAD and at most LONGEST_SPREAD
# seconds.
RETURNS_PER_SECOND: Final = 1_000
SHORTEST_SPREAD: Final = 2.0
LONGEST_SPREAD: Final = 60.0
# This number of closed connections is remembered, of about 400 bytes each.
MAX_CLOSED: Final = 10_000


class ClosedRecord(msgspec.Struct, frozen=True, gc=False):
    """What is remembered of a closed connection; `ended` is in microseconds since 1970."""

    identity: int
    ended: int
    code: int
    is_expelled: bool  # by an operator
    subject: str
    credential: str
    address: str
    agent: str
    protocol: str
    sent: SentCounts
    saved_by_compression: int | None
    conflated: int


class InspectedPeer(Protocol):
    """What a peer (`peers.py`) tells about its client."""

    @property
    def principal(self) -> Principal:
        """Whose stream it is; ANYONE without a credential."""
        ...

    @property
    def protocol(self) -> str:
        """One of STREAM_PROTOCOLS."""
        ...

    @property
    def sent(self) -> SentCounts:
        """What it was sent."""
        ...

    @property
    def lag(self) -> int | None:
        """The largest number of positions that a subscription is behind, if it is known."""
        ...

    @property
    def histories(self) -> int:
        """The number of histories that wait for an answer or are followed."""
        ...

    def followed(self) -> Iterator[tuple[str, ViewSubscription, int | None]]:
        """Yield the id, the view and the lag of each subscription."""
        ...


class ConnectionManager:
    """Keeps all open connections, counts what they are sent, and closes them at a stop.

    `now` returns microseconds since 1970.
    """

    def __init__(
        self,
        instruments: Instruments,
        limit: int,
        now: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self._instruments = instruments
        self._limit = limit
        self._now = now
        # The id of each, in the order in which they began. A dict takes a third of the memory of a
        # set.
        self._connections: dict[Connection, int] = {}
        self._last_id = 0
        self._expelled: set[Connection] = set()  # those that an operator closes
        # The messages that were skipped because the socket was full, of those that have any.
        self._conflated: dict[Connection, int] = {}
        # The last ones that were closed, the newest at the end; and how many were closed in all.
        self.closed: deque[ClosedRecord] = deque(maxlen=MAX_CLOSED)
        self.closed_count = 0
        self._closing = False
        self._gone = asyncio.Event()
        instruments.connections.set_function(lambda: self.active)

    @property
    def active(self) -> int:
        """The number of open connections."""
        return len(self._connections)

    def __iter__(self) -> Iterator[Connection]:
        return iter(self._connections)

    def admit(self) -> None:
        """Raise Unavailable if there is no room for one more connection."""
        if self._closing:
            raise Unavailable("restarting", retry_after=round(self._spread()) + 1)
        if self.active >= self._limit:
            raise Unavailable("too many connections", retry_after=random.randint(5, 15))

    def new_id(self) -> int:
        """Return an id for a connection (`connection_ids.py`)."""
        self._last_id = new_id(self._now(), self._last_id)
        return self._last_id

    def open_connections(self) -> ItemsView[Connection, int]:
        """Return all open connections with their ids, in the order in which they began."""
        return self._connections.items()

    def connect(
        self,
        connection: Connection,
        identity: int | None = None,
        peer: InspectedPeer | None = None,
    ) -> bool:
        """Register a connection; return False, and close it, if the server is stopping.

        `identity` is its id, if its client was told one. Call `disconnect` once it is closed, in
        both cases.
        """
        identity = self.new_id() if identity is None else identity
        self._connections[connection] = identity
        self._instruments.opened.inc()
        if audit.listens() and peer is not None:
            audit.record(
                "connect",
                f"{connection.kind} connected",
                client=connection.agent,
                **audit.trace_fields() | _audited(identity, connection, peer),
            )
        else:
            log.info("%s connected. Total connections: %d", connection.kind, self.active)
        if self._closing:
            connection.stop(CloseCode.RESTART, self._return_ms())
        return not self._closing

    def expel(
        self, identity: int, *, may_return: bool, connection: Connection | None = None
    ) -> bool:
        """Close the connection with an id, for an operator; return False if there is none.

        `may_return` tells the client to reconnect after a while; else it must not. Without
        `connection` it is looked for, which takes a while if there are many.
        """
        if connection is None:
            held = self._connections.items()
            connection = next((one for one, known in held if known == identity), None)
        if connection is None or self._connections.get(connection) != identity:
            return False
        self._expelled.add(connection)
        if may_return:
            connection.stop(CloseCode.RESTART, self._return_ms())
        else:
            connection.stop(CloseCode.FORBIDDEN)
        return True

    def disconnect(
        self,
        connection: Connection,
        code: int,
        peer: InspectedPeer | None = None,
    ) -> None:
        """Remove a closed connection; does nothing if it is not registered.

        What its peer tells is remembered.
        """
        identity = self._connections.pop(connection, None)
        if identity is None:
            return
        is_expelled = connection in self._expelled
        self._expelled.discard(connection)
        conflated = self._conflated.pop(connection, 0)
        if peer is not None:
            principal = peer.principal
            self.closed_count += 1
            self.closed.append(
                ClosedRecord(
                    identity=identity,
                    ended=self._now(),
                    code=int(code),
                    is_expelled=is_expelled,
                    subject=principal.subject,
                    credential=principal.credential,
                    address=connection.client,
                    agent=connection.agent,
                    protocol=peer.protocol,
                    sent=peer.sent,
                    saved_by_compression=connection.saved_by_compression,
                    conflated=conflated,
                )
            )
        self._instruments.closed.labels(str(int(code)) if code in _COUNTED else "other").inc()
        if audit.listens() and peer is not None:
            audit.record(
                "disconnect",
                f"{connection.kind} disconnected",
                **_audited(identity, connection, peer),
                code=int(code),
                by_operator=is_expelled,
            )
        else:
            if code in _NORMAL:
                log.info("Client disconnected normally")
            log.info("%s disconnected. Total connections: %d", connection.kind, self.active)
        if self._closing and not self.active:
            self._gone.set()

    def send_personal(self, payload: Payload, connection: Connection) -> bool:
        """Send a payload to one connection; return False if its socket is full or it has left."""
        if connection not in self._connections:
            return False
        is_sent = connection.send(payload)
        self._count(payload, int(is_sent), () if is_sent else (connection,))
        return is_sent

    def broadcast(self, payload: Payload, batch: Batch) -> Sequence[Connection]:
        """Send a payload to all connections of a batch; return those whose socket was full."""
        skipped = batch.send(payload)
        self._count(payload, len(batch) - len(skipped), skipped)
        return skipped

    def conflated(self, connection: Connection) -> int:
        """Return how many messages an open connection was not sent: its socket was full."""
        return self._conflated.get(connection, 0)

    def _count(self, payload: Payload, sent: int, skipped: Sequence[Connection]) -> None:
        self._instruments.frames_sent.inc(sent)
        self._instruments.bytes_sent.inc(sent * len(payload.body))
        if skipped:
            self._instruments.conflated.inc(len(skipped))
            for connection in skipped:
                if connection in self._connections:
                    self._conflated[connection] = self.conflated(connection) + 1

    async def close(self, seconds: float) -> None:
        """Refuse new connections, close all with 1012 and a time to reconnect, and wait.

        Returns after at most `seconds`; connections that are left then do not read.
        """
        self._closing = True
        for number, connection in enumerate(list(self._connections), 1):
            connection.stop(CloseCode.RESTART, self._return_ms())
            if not number % CLOSE_BATCH:
                await asyncio.sleep(0)
        if self.active:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._gone.wait()

    def _spread(self) -> float:
        """Return a random delay, from 0 to a time in which all clients can reconnect."""
        spread = min(max(self.active / RETURNS_PER_SECOND, SHORTEST_SPREAD), LONGEST_SPREAD)
        return random.random() * spread

    def _return_ms(self) -> int:
        return round(self._spread() * 1000)


def _audited(identity: int, connection: Connection, peer: InspectedPeer) -> dict[str, str]:
    """Return the fields that name a connection in the audit log."""
    return {
        "connection": write_id(identity),
        **audit.holder(peer.principal),
        "address": connection.client,
        "protocol": peer.protocol,
    }
