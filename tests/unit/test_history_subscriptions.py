"""History subscriptions: answers come one at a time, and then updates follow."""

import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any

import pytest

from routecast.adapters.cache.memory import MemoryCache
from routecast.adapters.store.sqlite import SqliteStore
from routecast.core.decision import DAY
from routecast.core.delta import Delta
from routecast.core.dirty_minutes import DirtyMinutes
from routecast.core.payload import Payload
from routecast.protocol import Position, rfc3339
from routecast.services.history import HistoryService
from routecast.streaming import history_subscriptions as module
from routecast.streaming.history_subscriptions import HistorySubscriptions
from routecast.streaming.peers import V1Peer
from tests.support.clock import HeldClock
from tests.support.decisions import MINUTE, NOW, cells_of, kept
from tests.support.fanout import FakeConnection, FanoutHarness
from tests.support.running_services import running, until


class HistoryConnection(FakeConnection):
    """A connection of routecast.v1 whose client asks for histories."""

    def history_ids(self) -> list[str]:
        """Return the ids of the histories that were received."""
        return [message["id"] for message in self.received() if message["type"] == "history"]

    def received(self) -> list[dict[str, Any]]:
        """Return all received messages except replies."""
        return [json.loads(payload.body) for payload in self.sent]

    @property
    def waits(self) -> bool:
        """Whether a history waits for room in the socket."""
        assert isinstance(self.peer, V1Peer)
        return self.peer.has_pending


class HistoryHarness:
    """The live state of a fanout harness, the store's history, and commits to both."""

    def __init__(self, fanout: FanoutHarness, store: SqliteStore, clock: HeldClock) -> None:
        self.fanout = fanout
        self.clock = clock
        self.changes = DirtyMinutes()
        self.history = HistoryService(store, fanout.reading, self.changes, clock)
        self.subscriptions = HistorySubscriptions(self.history)
        fanout.serve_history(self.subscriptions)

    def connect(self, connection: HistoryConnection | None = None) -> HistoryConnection:
        """Return a new connection."""
        connection = connection or HistoryConnection()
        self.fanout.connect_v1(connection=connection)
        return connection

    def commit(self, decided: int) -> None:
        """Commit a decision to live state alone."""
        position = self.fanout.snapshot.position
        after = Position(position.epoch, position.seq + 1)
        delta = Delta(after, cells_of([kept(after.seq, decided=decided)]), NOW)
        self.fanout.snapshot.apply(delta)
        self.changes.note(delta)


@pytest.fixture
async def harness(
    store: SqliteStore, cache: MemoryCache, clock: HeldClock, monkeypatch: pytest.MonkeyPatch
) -> HistoryHarness:
    """A harness without queries, whose live state is that of the store."""
    monkeypatch.setattr(module, "BUCKET_POLL_SECONDS", 0.01)
    fanout = FanoutHarness(store, cache, clock)
    fanout.snapshot = await store.load(NOW)
    return HistoryHarness(fanout, store, clock)


@pytest.fixture
def connection(harness: HistoryHarness) -> HistoryConnection:
    """A connection of routecast.v1."""
    return harness.connect()


async def settled(reached: Callable[[], bool]) -> None:
    """Return when a condition holds, and has held for a while."""
    await until(reached)
    for _ in range(20):
        await asyncio.sleep(0.005)
        assert reached()


async def test_histories_are_sent_one_after_the_other(connection: HistoryConnection) -> None:
    """They come in the order of their requests; after that their ids are free again."""
    for identity in "abcd":
        connection.request(id=identity, type="history")
    await until(lambda: connection.history_ids() == list("abcd"))
    connection.request(id="a", type="history")
    await until(lambda: connection.history_ids() == list("abcda"))


async def test_a_large_answer_is_prepared_in_a_thread(harness: HistoryHarness) -> None:
    """The thread compresses it; a small answer is not prepared."""
    threads = []

    class Noting(HistoryConnection):
        def prepare(self, payload: Payload) -> None:
            threads.append(threading.current_thread())
            super().prepare(payload)

    connection = harness.connect(Noting())
    fields = ["count", "cost", "errors", "fallbacks"]
    start = rfc3339(NOW - 2 * DAY + 60 * MINUTE)
    connection.request(id="small", type="history", fields=fields)
    connection.request(id="large", type="history", fields=fields, points=2_000, **{"from": start})
    await until(lambda: connection.history_ids() == ["small", "large"])
    assert connection.prepared == connection.sent[1:]
    assert threading.main_thread() not in threads


async def test_a_history_without_room_waits(connection: HistoryConnection) -> None:
    """No other history is read meanwhile, and one that was unsubscribed is not sent."""
    connection.is_open = False
    for identity in "abc":
        connection.request(id=identity, type="history")
    await settled(lambda: connection.waits and not connection.history_ids())
    connection.request(id="b", type="unsubscribe")
    connection.drain()
    await settled(lambda: connection.history_ids() == ["a", "c"])


async def test_a_history_that_is_left_while_it_waits_is_not_sent(
    connection: HistoryConnection,
) -> None:
    """It is not sent under its id either if another request has the id by then."""
    connection.is_open = False
    connection.request(id="a", type="history", points=30)
    await until(lambda: connection.waits)
    connection.request(id="a", type="unsubscribe")
    connection.request(id="a", type="history", points=1)
    connection.drain()
    await settled(lambda: connection.history_ids() == ["a"])
    assert connection.received()[-1]["points"] == 1


async def test_a_closed_connection_leaves_nothing_behind(
    connection: HistoryConnection, harness: HistoryHarness
) -> None:
    """It may have waited for answers, for updates or for room."""
    connection.is_open = False
    for identity in "abc":
        connection.request(id=identity, type="history", follow=True)
    await until(lambda: connection.waits)
    connection.close()
    await until(lambda: not harness.subscriptions._tasks)
    assert not harness.subscriptions._followed
    assert not harness.subscriptions._open


async def test_an_update_comes_with_the_live_numbers(
    connection: HistoryConnection, harness: HistoryHarness
) -> None:
    """A late decision sends the history again from its bucket on, and both have one position."""
    connection.request(id="main", type="subscribe", interval=60)
    connection.request(id="h1", type="history", follow=True, points=100)
    await until(lambda: connection.history_ids() == ["h1"])
    async with running(harness.subscriptions.run()):
        harness.commit(NOW)  # in the unfinished bucket, which is sent when it closes
        await settled(lambda: connection.history_ids() == ["h1"])
        harness.commit(NOW - 3 * MINUTE)
        await until(lambda: connection.history_ids() == ["h1", "h1"])
        await until(lambda: connection.received()[-1]["id"] == "main")
        history, delta = connection.received()[-2:]
        assert history["position"] == delta["position"]
        assert sum(history["series"][0]["count"]) == delta["data"]["total_decisions"] == 2
        harness.clock.moment += MINUTE
        await until(lambda: connection.history_ids() == ["h1"] * 3)
        connection.is_open = False
        harness.clock.moment += MINUTE
        await until(lambda: connection.waits)
        connection.drain()
        await settled(lambda: connection.history_ids() == ["h1"] * 4)
        connection.request(id="h1", type="unsubscribe")
        harness.clock.moment += MINUTE
        await settled(lambda: connection.history_ids() == ["h1"] * 4)


async def test_an_update_that_waited_for_room_comes_with_its_live_numbers(
    connection: HistoryConnection, harness: HistoryHarness
) -> None:
    """The live numbers have its position, although there were commits while it waited."""
    connection.request(id="main", type="subscribe", interval=60)
    connection.request(id="h1", type="history", follow=True, points=100)
    await until(lambda: connection.history_ids() == ["h1"])
    async with running(harness.subscriptions.run()):
        connection.is_open = False
        harness.commit(NOW - 3 * MINUTE)
        await until(lambda: connection.waits)
        harness.commit(NOW)
        connection.drain()
        history, delta = connection.received()[-2:]
        assert (history["id"], delta["id"]) == ("h1", "main")
        assert history["position"] == delta["position"]
        assert sum(history["series"][0]["count"]) == delta["data"]["total_decisions"] == 1


async def test_a_bucket_that_closes_is_sent_at_the_position_before(
    connection: HistoryConnection, harness: HistoryHarness
) -> None:
    """Time closes a bucket without a commit, so the live numbers were sent already."""
    connection.request(id="main", type="subscribe", interval=60)
    connection.request(id="h1", type="history", follow=True, points=100)
    await until(lambda: connection.history_ids() == ["h1"])
    async with running(harness.subscriptions.run()):
        harness.commit(NOW - 3 * MINUTE)
        await until(lambda: connection.history_ids() == ["h1"] * 2)
        harness.clock.moment += MINUTE
        await until(lambda: connection.history_ids() == ["h1"] * 3)
    late, live, closed = connection.received()[-3:]
    assert (late["id"], live["id"], closed["id"]) == ("h1", "main", "h1")
    assert late["position"] == live["position"] == closed["position"]
    assert (late["points"], closed["points"]) == (4, 2)


async def test_equal_histories_share_one_encoding(harness: HistoryHarness) -> None:
    """It is encoded once for all ids."""
    connections = [harness.connect() for _ in range(50)]
    for number, connection in enumerate(connections):
        connection.request(id=f"h{number}", type="history", follow=True)
    await until(lambda: all(connection.history_ids() for connection in connections))
    assert len(harness.subscriptions._encoded) == 1


async def test_an_error_is_sent_and_frees_the_id(
    connection: HistoryConnection, harness: HistoryHarness, store: SqliteStore
) -> None:
    """An unavailable database is a retryable error; a bad range is an error with its parameter."""
    connection.request(id="a", type="history", **{"from": "2100-01-01T00:00:00Z"})
    await until(lambda: len(connection.replies) == 2)
    assert (connection.replies[-1]["code"], connection.replies[-1]["message"][:5]) == (
        "bad_request",
        "from:",
    )
    harness.fanout.source = None
    await store.close()
    connection.request(id="a", type="history", follow=True)
    await until(lambda: len(connection.replies) == 3)
    assert (connection.replies[-1]["code"], connection.replies[-1]["retryable"]) == (
        "unavailable",
        True,
    )
    connection.request(id="a", type="unsubscribe")
    assert connection.replies[-1]["code"] == "unknown_id"
