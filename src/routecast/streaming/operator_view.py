"""The operator's view: lists of a node's connections, and the end of one of them.

Nothing is kept up to date for it. A list is computed when someone asks, in slices, because 10,000
connections take longer than other tasks may wait. So a list is not of one moment: a connection that
opens or closes meanwhile may be in it or not.
"""

import asyncio
from collections.abc import Iterable
from itertools import islice
from typing import Final, Protocol, cast

from routecast.core.connection_ids import began, read_id, write_id
from routecast.core.connection_pages import NodePage
from routecast.core.connections_query import ConnectionsQuery, Place
from routecast.core.times import SECOND
from routecast.core.view import FILTERS, View, ViewSubscription
from routecast.ports import Connection
from routecast.protocol import (
    CloseCode,
    ClosedConnection,
    FollowedView,
    OpenConnection,
    rfc3339,
)
from routecast.slices import Slices
from routecast.streaming.connections import (
    ABNORMAL_CLOSURE,
    CLOSE_BATCH,
    ClosedRecord,
    ConnectionManager,
    InspectedPeer,
)

# What one slice does: connections that are looked at, and steps of describing them. A connection
# is one step, each of its subscriptions another one, and so are ten names of its filters.
LOOKED_AT_ONCE: Final = 500
STEPS_PER_SLICE: Final = 100
# A page ends after this number of steps, because filters may have many names.
STEPS_PER_PAGE: Final = 20_000

_EXPELLED: Final = "an operator closed it"
_REASONS: Final = {
    CloseCode.DONE: "done",
    CloseCode.GOING_AWAY: "the client left",
    CloseCode.PROTOCOL_ERROR: "not WebSocket",
    CloseCode.UNSUPPORTED_DATA: "binary in a protocol of text, or text in one of binary",
    CloseCode.NOT_UTF8: "not UTF-8",
    CloseCode.TOO_BIG: "a message was too large",
    CloseCode.INTERNAL_ERROR: "a fault of the server",
    CloseCode.RESTART: "the server restarts",
    CloseCode.NOT_PROTOCOL: "messages were not part of routecast.v1",
    CloseCode.UNAUTHENTICATED: "no credential, or an expired one",
    CloseCode.FORBIDDEN: "not allowed",
    CloseCode.SILENT: "no answer to a ping",
    CloseCode.TOO_SLOW: "it could not keep up",
    CloseCode.TOO_MANY_MESSAGES: "too many messages",
    1005: "closed without a code",
    ABNORMAL_CLOSURE: "the connection was lost",
}


class InspectedConnection(Connection, Protocol):
    """A connection of any edge."""

    peer: InspectedPeer | None  # None once it is closed


_Found = tuple[int, int, InspectedConnection]  # its place, and the connection


class OperatorView:
    """Lists and closes the connections of the node with this name."""

    def __init__(self, manager: ConnectionManager, slices: Slices, node: str) -> None:
        self._manager = manager
        self._slices = slices
        self.node = node
        self._one_at_a_time = asyncio.Lock()

    def expel(self, identity: str, *, may_return: bool) -> bool:
        """Close a connection; return False if there is none with this id.

        Its client is told to reconnect after a while, or not at all.
        """
        found = read_id(identity)
        return found is not None and self._manager.expel(found, may_return=may_return)

    async def expel_all(self, subject: str, *, may_return: bool) -> int:
        """Close all connections of a subject; return their number."""
        count = 0
        everything = list(self._manager.open_connections())
        for first in range(0, len(everything), LOOKED_AT_ONCE):
            await self._slices.turn()
            for each, identity in everything[first : first + LOOKED_AT_ONCE]:
                peer = cast(InspectedConnection, each).peer
                if peer is None or peer.principal.subject != subject:
                    continue
                if self._manager.expel(identity, may_return=may_return, connection=each):
                    count += 1
                    if not count % CLOSE_BATCH:
                        await self._slices.turn()
        return count

    # -- open connections -----------------------------------------------------------------------

    async def opened(self, query: ConnectionsQuery) -> NodePage[OpenConnection]:
        """Return a page of the open connections."""
        async with self._one_at_a_time:
            total, found = await self._find(query)
            places, described = list[Place](), list[OpenConnection]()
            steps, left = STEPS_PER_SLICE, STEPS_PER_PAGE
            place = None
            for rank, identity, connection in found[: query.limit]:
                place = Place(rank, identity)
                if steps >= STEPS_PER_SLICE:
                    await self._slices.turn()
                    steps = 0
                if connection.peer is not None:  # else it was closed meanwhile
                    one = self._describe(identity, connection, connection.peer)
                    places.append(place)
                    described.append(one)
                    cost = 1 + sum(map(_steps, one.subscriptions))
                    steps, left = steps + cost, left - cost
                    if left < 0:
                        break
            is_last = place is None or place == found[-1][:2]
        return NodePage(self.node, total, None if is_last else place, places, described)

    async def _find(self, query: ConnectionsQuery) -> tuple[int, list[_Found]]:
        """Return how many connections match, and those of the page in order, and one more."""
        total, found = 0, list[_Found]()
        everything = list(self._manager.open_connections())
        if query.identity is not None:
            everything = [each for each in everything if each[1] == query.identity]
        if query.sort == "newest":  # so that those of the page are found first
            everything.reverse()
        for first in range(0, len(everything), LOOKED_AT_ONCE):
            await self._slices.turn()
            total += _collect(query, everything[first : first + LOOKED_AT_ONCE], found)
        return total, found

    def _describe(
        self, identity: int, connection: InspectedConnection, peer: InspectedPeer
    ) -> OpenConnection:
        principal, pong = peer.principal, connection.pong()
        sent, expires = peer.sent, principal.expires
        return OpenConnection(
            id=write_id(identity),
            node=self.node,
            subject=principal.subject,
            credential=principal.credential or None,
            expires=None if expires is None else rfc3339(round(expires * SECOND)),
            address=connection.client,
            client=connection.agent,
            protocol=peer.protocol,
            started=rfc3339(began(identity)),
            subscriptions=[_follow(*each) for each in peer.followed()],
            histories=peer.histories,
            messages=sent.messages,
            bytes=sent.bytes,
            saved_by_patches=sent.saved,
            saved_by_compression=connection.saved_by_compression,
            conflated=self._manager.conflated(connection),
            lag=peer.lag,
            pong_age=None if pong is None else round(pong.age, 3),
            round_trip_ms=None if pong is None else pong.round_trip_ms,
            unsent=connection.unsent,
        )

    # -- closed connections ---------------------------------------------------------------------

    async def closed(self, query: ConnectionsQuery) -> NodePage[ClosedConnection]:
        """Return a page of the closed connections, the newest first."""
        async with self._one_at_a_time:
            await self._slices.turn()
            records = list(self._manager.closed)
            records.reverse()
            total, found = 0, list[tuple[Place, ClosedRecord]]()
            for first in range(0, len(records), LOOKED_AT_ONCE):
                if first:
                    await self._slices.turn()
                for record in islice(records, first, first + LOOKED_AT_ONCE):
                    if not _matches_closed(query, record):
                        continue
                    total += 1
                    place = Place(-record.ended, record.identity)
                    if query.after is None or place > query.after:
                        found.append((place, record))
                found.sort(key=_place_of)  # the clock may have been set back
                del found[query.limit + 1 :]
            page = found[: query.limit]
            described = list[ClosedConnection]()
            for first in range(0, len(page), LOOKED_AT_ONCE):
                await self._slices.turn()
                described += [
                    _describe_closed(self.node, each)
                    for _, each in page[first : first + LOOKED_AT_ONCE]
                ]
        following = page[-1][0] if len(found) > len(page) else None
        return NodePage(self.node, total, following, [place for place, _ in page], described)


def _collect(
    query: ConnectionsQuery, connections: Iterable[tuple[Connection, int]], found: list[_Found]
) -> int:
    """Add to `found` the connections that may be on a page; return how many match."""
    matching = 0
    filters = query.subject, query.address, query.protocol, query.search
    is_filtered = any(each is not None for each in filters)
    after = query.after or Place(-(2**63), 0)
    last = found[query.limit][:2] if len(found) > query.limit else None
    for each, identity in connections:
        connection = cast(InspectedConnection, each)
        peer = connection.peer
        if peer is None or (is_filtered and not _matches(query, identity, connection, peer)):
            continue
        matching += 1
        rank = _rank(query, identity, connection, peer)
        place = rank, identity
        if place > after and (last is None or place < last):
            found.append((rank, identity, connection))
    # Connections themselves are never compared, because their ids differ.
    found.sort()
    del found[query.limit + 1 :]
    return matching


def _matches(
    query: ConnectionsQuery, identity: int, connection: InspectedConnection, peer: InspectedPeer
) -> bool:
    principal, address = peer.principal, connection.client
    if not query.matches(principal.subject, address, peer.protocol):
        return False
    return query.search is None or query.finds(
        principal.subject, principal.credential, address, connection.agent, write_id(identity)
    )


def _matches_closed(query: ConnectionsQuery, record: ClosedRecord) -> bool:
    if not query.matches(record.subject, record.address, record.protocol):
        return False
    if query.code is not None and query.code != record.code:
        return False
    if query.identity is not None and query.identity != record.identity:
        return False
    return query.search is None or query.finds(
        *(record.subject, record.credential, record.address, record.agent),
        write_id(record.identity),
    )


def _place_of(found: tuple[Place, object]) -> Place:
    return found[0]


def _rank(
    query: ConnectionsQuery, identity: int, connection: InspectedConnection, peer: InspectedPeer
) -> int:
    """Return the first part of a connection's place; ids are in the order of the starts."""
    match query.sort:
        case "start":
            return 0
        case "newest":
            return -identity
        case "round_trip":
            pong = connection.pong()
            return 0 if pong is None else -1 - pong.round_trip_ms
        case "bytes":
            return -peer.sent.bytes
        case "lag":
            lag = peer.lag
            return 0 if lag is None else -1 - lag  # those without a lag come last


def _steps(view: FollowedView) -> int:
    return 1 + sum(map(len, view.filter.values())) // 10


def _follow(identity: str, subscription: ViewSubscription, lag: int | None) -> FollowedView:
    view = subscription.view
    return FollowedView(
        id=identity,
        fields=list(view.fields),
        filter=_filters(view),
        window=view.window,
        interval=subscription.interval,
        lag=lag,
    )


def _filters(view: View) -> dict[str, list[str]]:
    if not view.filtered:
        return {}
    filters = ((name, getattr(view, name)) for name in FILTERS)
    return {name: sorted(names) for name, names in filters if names is not None}


def _describe_closed(node: str, record: ClosedRecord) -> ClosedConnection:
    return ClosedConnection(
        id=write_id(record.identity),
        node=node,
        subject=record.subject,
        credential=record.credential or None,
        address=record.address,
        client=record.agent,
        protocol=record.protocol,
        started=rfc3339(began(record.identity)),
        ended=rfc3339(record.ended),
        code=record.code,
        reason=_EXPELLED if record.is_expelled else _REASONS.get(record.code, "another code"),
        messages=record.sent.messages,
        bytes=record.sent.bytes,
        saved_by_patches=record.sent.saved,
        saved_by_compression=record.saved_by_compression,
        conflated=record.conflated,
    )
