"""The operator's view: its counts are those of what clients were sent, and its pages are whole."""

import random
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from routecast.adapters.cache.memory import MemoryCache
from routecast.adapters.store.sqlite import SqliteStore
from routecast.core.connection_ids import write_id
from routecast.core.connections_query import ConnectionsQuery, Place, parse_connections_query
from routecast.core.message import AddressedMessage
from routecast.core.view import View
from routecast.protocol import CloseCode, ClosedConnection, OpenConnection, OpenConnections
from routecast.slices import Slices
from routecast.streaming import connections, operator_view
from routecast.streaming.operator_view import OperatorView
from tests.support.clock import HeldClock
from tests.support.fanout import FakeConnection, FanoutHarness
from tests.support.v1 import merged


class CountedSlices(Slices):
    """Counts the slices."""

    turns = 0

    async def turn(self) -> None:
        self.turns += 1
        await super().turn()


@pytest.fixture
def fanout(store: SqliteStore, cache: MemoryCache, clock: HeldClock) -> FanoutHarness:
    """A harness without clients, whose cohorts are small."""
    return FanoutHarness(store, cache, clock, batch_size=3)


@pytest.fixture
def slices() -> CountedSlices:
    return CountedSlices()


@pytest.fixture
def view(fanout: FanoutHarness, slices: CountedSlices) -> OperatorView:
    return OperatorView(fanout.manager, slices, "node")


def identity_of(fanout: FanoutHarness, connection: FakeConnection) -> str:
    return write_id(dict(fanout.manager.open_connections())[connection])


async def row(
    fanout: FanoutHarness, view: OperatorView, connection: FakeConnection
) -> OpenConnection:
    """Return what is listed of a connection."""
    identity = identity_of(fanout, connection)
    page = await view.opened(ConnectionsQuery(limit=1_000))
    (found,) = (each for each in page.connections if each.id == identity)
    return found


def assert_counts(found: OpenConnection | ClosedConnection, connection: FakeConnection) -> None:
    """Assert that the counts are those of what a connection was given."""
    size = sum(len(payload.body) for payload in connection.sent)
    assert (found.messages, found.bytes) == (len(connection.sent), size)
    assert found.conflated == connection.skipped
    assert found.saved_by_patches == saved_by_patches(connection)
    assert found.saved_by_compression == connection.saved_by_compression


def saved_by_patches(connection: FakeConnection) -> int:
    """Return the bytes that the documents, of which a client was sent patches, have more."""
    saved = 0
    documents: dict[str, dict[str, Any]] = {}
    for payload in connection.sent:
        if isinstance(payload, AddressedMessage):
            message = msgspec.json.decode(payload.body)
            is_delta, data = message["type"] == "delta", message.get("data", {})
            before = documents.get(payload.identity, {}) if is_delta else {}
            document = documents[payload.identity] = merged(before, data)
            if is_delta:
                saved += len(msgspec.json.encode(document)) - len(msgspec.json.encode(data))
    return saved


async def test_a_connection_is_described(fanout: FanoutHarness, view: OperatorView) -> None:
    """The default stream has one view; routecast.v1 has any number, with their ids."""
    plain = fanout.connect(interval=5, view=View(("cost",), project=frozenset({"b", "a"})))
    other = fanout.connect_v1(client="192.0.2.2")
    other.subscribe("one", window="1h", filter={"model": ["m"]}, interval=2)
    other.subscribe("two")
    found = await row(fanout, view, plain)
    assert (found.protocol, found.address, found.client) == ("default", "192.0.2.1", "test")
    assert (found.subject, found.credential, found.expires) == ("", None, None)
    (followed,) = found.subscriptions
    assert (followed.id, followed.fields, followed.interval) == ("", ["cost"], 5)
    assert followed.filter == {"project": ["a", "b"]}
    found = await row(fanout, view, other)
    assert (found.protocol, found.address) == ("routecast.v1.json", "192.0.2.2")
    assert [each.id for each in found.subscriptions] == ["one", "two"]
    assert found.subscriptions[0].window == "1h"
    assert "m" in found.subscriptions[0].filter["model"]
    assert other.replies[0]["connection"] == found.id
    assert found.started.endswith("+00:00")


async def test_messages_count_for_those_that_were_sent_them(
    fanout: FanoutHarness, view: OperatorView
) -> None:
    """Those with a full socket count them as conflated, until they catch up."""
    async with fanout.running():
        stays, slow = [fanout.connect() for _ in range(2)]
        other = fanout.connect_v1()
        other.subscribe()
        await fanout.go(1)
        slow.is_open = other.is_open = False
        for _ in range(5):
            fanout.commit()
            await fanout.go(0.2)
        for connection in (stays, slow, other):
            assert_counts(await row(fanout, view, connection), connection)
        assert slow.skipped > 1
        assert other.skipped > 0
        slow.drain()
        other.drain()
        await fanout.go(1)
        for connection in (stays, slow, other):
            assert_counts(await row(fanout, view, connection), connection)


def happen(fanout: FanoutHarness, opened: list[FakeConnection], chance: random.Random) -> None:
    """Let one connection open, ask for something, or become slow or fast."""
    connection = chance.choice(opened) if opened else fanout.connect_v1()
    if connection not in opened:
        opened.append(connection)
    new = f"s{len(opened)}-{chance.random()}"
    match chance.randrange(7):
        case 0:
            opened.append(fanout.connect(chance.choice([0.1, 0.2, 1.0])))
        case 1:
            opened.append(fanout.connect_v1())
            opened[-1].subscribe(new, interval=0.1)
        case 2 | 3 if connection.replies:  # it speaks routecast.v1
            connection.subscribe(new, interval=0.1)
        case 4 if connection.sent and isinstance(connection.sent[-1], AddressedMessage):
            connection.request(type="unsubscribe", id=connection.sent[-1].identity)
        case 5:
            connection.is_open = False
        case 6:
            connection.drain()


@pytest.mark.parametrize("seed", range(5))
async def test_counts_are_exact_whatever_happens(
    fanout: FanoutHarness, view: OperatorView, seed: int
) -> None:
    """Connections come and go, subscribe, are slow, and move between cohorts and channels."""
    chance = random.Random(seed)
    opened: list[FakeConnection] = []
    closed: dict[str, FakeConnection] = {}
    async with fanout.running():
        for _ in range(100):
            for _ in range(chance.randrange(3)):
                happen(fanout, opened, chance)
            fanout.commit(strategy=f"s{chance.randrange(5)}")
            await fanout.go(chance.choice([0.01, 0.1, 0.35]))
            if opened and not chance.randrange(4):
                connection = opened.pop(chance.randrange(len(opened)))
                closed[identity_of(fanout, connection)] = connection
                connection.close()
        for connection in opened:
            assert_counts(await row(fanout, view, connection), connection)
    everyone = (*opened, *closed.values())
    assert sum(connection.skipped for connection in everyone) > 50
    assert sum(map(saved_by_patches, everyone)) > 1_000
    page = await view.closed(ConnectionsQuery(limit=1_000, closed=True))
    assert {each.id for each in page.connections} == set(closed)
    for each in page.connections:
        assert_counts(each, closed[each.id])


async def test_lag_is_known_of_clients_that_acknowledge(
    fanout: FanoutHarness, view: OperatorView
) -> None:
    """It is that of the subscription that is furthest behind what was meant for it."""
    async with fanout.running():
        connection, quiet = fanout.connect_v1(), fanout.connect_v1()
        connection.subscribe("all")
        connection.subscribe("none", filter={"strategy": ["never"]})
        quiet.subscribe()
        await fanout.go(0.5)
        for _ in range(3):
            fanout.commit()
            await fanout.go(0.5)
        assert (await row(fanout, view, connection)).lag is None
        connection.request(type="ack", id="none", seq=0)
        assert (await row(fanout, view, connection)).lag == 0  # nothing new was meant for it
        connection.request(type="ack", id="all", seq=1)
        found = await row(fanout, view, connection)
        assert found.lag == 2
        assert {each.id: each.lag for each in found.subscriptions} == {"all": 2, "none": 0}
        connection.request(type="ack", id="all", seq=3)
        assert (await row(fanout, view, connection)).lag == 0
        connection.is_open = False
        fanout.commit()
        await fanout.go(0.5)
        assert (await row(fanout, view, connection)).lag == 1
        connection.request(type="ack", id="all", seq=10**9)
        assert (await row(fanout, view, connection)).lag == 0
        connection.request(type="unsubscribe", id="all")
        connection.request(type="ack", id="all", seq=1)
        assert connection.replies[-1]["code"] == "unknown_id"
        assert (await row(fanout, view, quiet)).lag is None


async def every_page(view: OperatorView, query: ConnectionsQuery) -> list[OpenConnections]:
    """Return all pages."""
    pages = [await view.opened(query)]
    while pages[-1].next is not None:
        after = parse_connections_query(f"after={pages[-1].next}").after
        pages.append(await view.opened(replace(query, after=after)))
    return pages


@pytest.mark.parametrize("sort", ["start", "bytes", "lag"])
async def test_pages_have_every_connection_once(
    fanout: FanoutHarness, view: OperatorView, sort: str
) -> None:
    """In the order that was asked for; equal ones are by start."""
    async with fanout.running():
        for number in range(12):
            fanout.connect(interval=1)
            one = fanout.connect_v1()
            one.subscribe()
            fanout.commit()
            await fanout.go(0.2)
            if number % 3:
                one.request(type="ack", id="main", seq=number)
    for limit in (1, 5, 24, 100):
        query = replace(parse_connections_query(f"sort={sort}"), limit=limit)
        pages = await every_page(view, query)
        listed = [each for page in pages for each in page.connections]
        assert {page.total for page in pages} == {24}
        assert [len(page.connections) for page in pages[:-1]] == [limit] * (len(pages) - 1)
        assert len({each.id for each in listed}) == len(listed) == 24
        keys = {
            "start": [(0, each.id) for each in listed],
            "bytes": [(-each.bytes, each.id) for each in listed],
            "lag": [(1 if each.lag is None else -each.lag, each.id) for each in listed],
        }
        assert keys[sort] == sorted(keys[sort])


async def test_filters_choose_connections(fanout: FanoutHarness, view: OperatorView) -> None:
    """`total` counts those that match."""
    fanout.connect(client="192.0.2.7")
    fanout.connect_v1(client="192.0.2.7")
    fanout.connect_v1(client="192.0.2.8")
    for query, count in (
        ("address=192.0.2.7", 2),
        ("protocol=routecast.v1.json", 2),
        ("protocol=routecast.v1.json&address=192.0.2.7", 1),
        ("protocol=sse", 0),
        ("subject=ann", 0),
        ("subject=", 3),
    ):
        page = await view.opened(parse_connections_query(query))
        assert (page.total, len(page.connections), page.next) == (count, count, None)


async def test_a_page_with_many_names_ends_early(
    fanout: FanoutHarness, view: OperatorView, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one goes on after it; none is lost."""
    monkeypatch.setattr(operator_view, "STEPS_PER_PAGE", 40)
    names = [f"name{number}" for number in range(100)]
    for _ in range(9):
        fanout.connect_v1().subscribe(filter={"strategy": names})
    pages = await every_page(view, ConnectionsQuery())
    assert len(pages) > 2
    assert sum(len(page.connections) for page in pages) == 9


async def test_a_long_list_is_made_in_slices(
    fanout: FanoutHarness, view: OperatorView, slices: CountedSlices
) -> None:
    """One slice looks at 500 connections, or describes 100 with one view at most."""
    for _ in range(1_000):
        fanout.connect(interval=60)
    page = await view.opened(ConnectionsQuery(limit=1_000))
    assert len(page.connections) == 1_000
    assert slices.turns >= 1_000 / operator_view.LOOKED_AT_ONCE + 1_000 * 2 / 100


async def test_closed_connections_are_kept_with_code_and_reason(
    fanout: FanoutHarness, view: OperatorView, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest first; pages go on where they ended, though more are closed meanwhile."""
    codes = [CloseCode.DONE, 1006, CloseCode.SILENT, CloseCode.TOO_SLOW, 4999]
    for code in codes:
        fanout.connect().close(code)
    query = ConnectionsQuery(limit=2, closed=True)
    first = await view.closed(query)
    assert [each.code for each in first.connections] == [4999, 4409]
    assert [each.reason for each in first.connections] == [
        "another code",
        "it could not keep up",
    ]
    assert first.total == 5
    fanout.connect_v1(client="192.0.2.9").close(1001)
    assert first.next is not None
    after = parse_connections_query(f"after={first.next}").after
    second = await view.closed(replace(query, after=after))
    assert [each.code for each in second.connections] == [4408, 1006]
    third = await view.closed(replace(query, limit=10))
    assert [each.code for each in third.connections] == [1001, *reversed(codes)]
    assert third.next is None
    (found,) = (await view.closed(replace(query, address="192.0.2.9"))).connections
    assert (found.protocol, found.reason) == ("routecast.v1.json", "the client left")
    assert found.ended >= found.started


async def test_a_limited_number_of_closed_connections_is_kept(
    fanout: FanoutHarness, view: OperatorView
) -> None:
    """The oldest are forgotten; places stay right."""
    for _ in range(connections.MAX_CLOSED + 3):
        fanout.connect(interval=60).close()
    page = await view.closed(ConnectionsQuery(limit=1, closed=True))
    assert page.total == connections.MAX_CLOSED
    places = sorted(Place(-each.ended, each.identity) for each in fanout.manager.closed)
    page = await view.closed(ConnectionsQuery(limit=10, closed=True, after=places[-2]))
    assert len(page.connections) == 1


async def test_an_operator_disconnects_one(fanout: FanoutHarness, view: OperatorView) -> None:
    """Its client is told to stay away, or when to come back."""
    gone, returns, stays = [fanout.connect() for _ in range(3)]
    assert view.expel(identity_of(fanout, gone), may_return=False)
    assert (gone.stopped, gone.return_ms) == (CloseCode.FORBIDDEN, None)
    assert view.expel(identity_of(fanout, returns), may_return=True)
    assert returns.stopped is CloseCode.RESTART
    assert returns.return_ms is not None
    assert stays.stopped is None
    assert not view.expel("0" * 15, may_return=False)
    assert not view.expel("nonsense", may_return=False)
    gone.close(CloseCode.FORBIDDEN)
    returns.close(CloseCode.RESTART)
    stays.close(CloseCode.FORBIDDEN)
    page = await view.closed(ConnectionsQuery(closed=True))
    assert [each.reason for each in page.connections] == [
        "not allowed",
        *["an operator closed it"] * 2,
    ]
