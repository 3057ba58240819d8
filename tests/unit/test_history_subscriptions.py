"""History subscriptions: answers come in turn, when there is room, and go on while followed."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from routecast.adapters.cache.memory import MemoryCache
from routecast.adapters.store.sqlite import SqliteStore
from routecast.core.delta import Delta
from routecast.core.dirty_minutes import DirtyMinutes
from routecast.protocol import Position
from routecast.services.history import HistoryService
from routecast.streaming import history_subscriptions as module
from routecast.streaming.history_subscriptions import HistorySubscriptions
from routecast.streaming.peers import V1Peer
from tests.support.clock import HeldClock
from tests.support.decisions import MINUTE, NOW, cells_of, kept
from tests.support.fanout import FakeConnection, FanoutHarness
from tests.support.running_services import running, until


class AskingConnection(FakeConnection):
    """A connection of routecast.v1 whose client asks for histories."""

    def told(self) -> list[str]:
        """Return the ids of the histories that came."""
        return [message["id"] for message in self.received() if message["type"] == "history"]

    def received(self) -> list[dict[str, Any]]:
        """Return all that came but answers."""
        return [json.loads(payload.body) for payload in self.sent]

    @property
    def waits(self) -> bool:
        """Whether a history waits for room."""
        assert isinstance(self.peer, V1Peer)
        return self.peer.has_pending


class Past:
    """A hall's live state, the store's history, and commits to both."""

    def __init__(self, hall: FanoutHarness, store: SqliteStore, clock: HeldClock) -> None:
        self.hall = hall
        self.clock = clock
        self.changes = DirtyMinutes()
        self.history = HistoryService(store, hall.reading, self.changes, clock)
        self.subscriptions = HistorySubscriptions(self.history)
        hall.serve_history(self.subscriptions)

    def connect(self) -> AskingConnection:
        """Return a new connection."""
        connection = AskingConnection()
        self.hall.connect_v1(connection=connection)
        return connection

    def commit(self, decided: int) -> None:
        """Commit a decision to live state alone."""
        position = self.hall.snapshot.position
        after = Position(position.epoch, position.seq + 1)
        delta = Delta(after, cells_of([kept(after.seq, decided=decided)]), NOW)
        self.hall.snapshot.apply(delta)
        self.changes.note(delta)


@pytest.fixture
async def past(
    store: SqliteStore, cache: MemoryCache, clock: HeldClock, monkeypatch: pytest.MonkeyPatch
) -> Past:
    """Nobody has asked yet; the live state is the store's."""
    monkeypatch.setattr(module, "BUCKET_POLL_SECONDS", 0.01)
    hall = FanoutHarness(store, cache, clock)
    hall.snapshot = await store.load(NOW)
    return Past(hall, store, clock)


@pytest.fixture
def line(past: Past) -> AskingConnection:
    """A connection."""
    return past.connect()


async def settled(reached: Callable[[], bool]) -> None:
    """Return when something is so, and has stayed so for a while."""
    await until(reached)
    for _ in range(20):
        await asyncio.sleep(0.005)
        assert reached()


async def test_one_is_told_after_the_other(line: AskingConnection) -> None:
    """In the order they were asked for; then their ids are free again."""
    for identity in "abcd":
        line.ask(id=identity, type="history")
    await until(lambda: line.told() == list("abcd"))
    line.ask(id="a", type="history")
    await until(lambda: line.told() == list("abcda"))


async def test_what_finds_no_room_waits_for_it(line: AskingConnection) -> None:
    """And nothing else is read meanwhile; who unsubscribes is not told at all."""
    line.is_open = False
    for identity in "abc":
        line.ask(id=identity, type="history")
    await settled(lambda: line.waits and not line.told())
    line.ask(id="b", type="unsubscribe")
    line.drain()
    await settled(lambda: line.told() == ["a", "c"])


async def test_what_is_left_while_it_waits_is_not_told(line: AskingConnection) -> None:
    """Not even when its id is another's by then."""
    line.is_open = False
    line.ask(id="a", type="history", points=30)
    await until(lambda: line.waits)
    line.ask(id="a", type="unsubscribe")
    line.ask(id="a", type="history", points=1)
    line.drain()
    await settled(lambda: line.told() == ["a"])
    assert line.received()[-1]["points"] == 1


async def test_a_connection_that_ends_lets_go(line: AskingConnection, past: Past) -> None:
    """Whatever it waited for."""
    line.is_open = False
    for identity in "abc":
        line.ask(id=identity, type="history", follow=True)
    await until(lambda: line.waits)
    line.close()
    await until(lambda: not past.subscriptions._tasks)
    assert not past.subscriptions._followed
    assert not past.subscriptions._open


async def test_what_follows_comes_with_the_live_numbers(line: AskingConnection, past: Past) -> None:
    """A decision of a bucket that has closed: told again from there on, at one position."""
    line.ask(id="main", type="subscribe", interval=60)
    line.ask(id="h1", type="history", follow=True, points=100)
    await until(lambda: line.told() == ["h1"])
    async with running(past.subscriptions.run()):
        past.commit(NOW)  # in the bucket that runs: it is told with the next one
        await settled(lambda: line.told() == ["h1"])
        past.commit(NOW - 3 * MINUTE)
        await until(lambda: line.told() == ["h1", "h1"])
        await until(lambda: line.received()[-1]["id"] == "main")
        history, delta = line.received()[-2:]
        assert history["position"] == delta["position"]
        assert sum(history["series"][0]["count"]) == delta["data"]["total_decisions"] == 2
        past.clock.moment += MINUTE
        await until(lambda: line.told() == ["h1"] * 3)
        line.is_open = False
        past.clock.moment += MINUTE
        await until(lambda: line.waits)
        line.drain()
        await settled(lambda: line.told() == ["h1"] * 4)
        line.ask(id="h1", type="unsubscribe")
        past.clock.moment += MINUTE
        await settled(lambda: line.told() == ["h1"] * 4)


async def test_the_live_numbers_of_what_waited_for_room_come_with_it(
    line: AskingConnection, past: Past
) -> None:
    """They are those of its position, whatever was committed while it waited."""
    line.ask(id="main", type="subscribe", interval=60)
    line.ask(id="h1", type="history", follow=True, points=100)
    await until(lambda: line.told() == ["h1"])
    async with running(past.subscriptions.run()):
        line.is_open = False
        past.commit(NOW - 3 * MINUTE)
        await until(lambda: line.waits)
        past.commit(NOW)
        line.drain()
        history, delta = line.received()[-2:]
        assert (history["id"], delta["id"]) == ("h1", "main")
        assert history["position"] == delta["position"]
        assert sum(history["series"][0]["count"]) == delta["data"]["total_decisions"] == 1


async def test_a_bucket_that_closes_is_told_at_a_position_that_was_told_before(
    line: AskingConnection, past: Past
) -> None:
    """Time closes buckets, and no commit: then the live numbers are there already."""
    line.ask(id="main", type="subscribe", interval=60)
    line.ask(id="h1", type="history", follow=True, points=100)
    await until(lambda: line.told() == ["h1"])
    async with running(past.subscriptions.run()):
        past.commit(NOW - 3 * MINUTE)
        await until(lambda: line.told() == ["h1"] * 2)
        past.clock.moment += MINUTE
        await until(lambda: line.told() == ["h1"] * 3)
    late, live, closed = line.received()[-3:]
    assert (late["id"], live["id"], closed["id"]) == ("h1", "main", "h1")
    assert late["position"] == live["position"] == closed["position"]
    assert (late["points"], closed["points"]) == (4, 2)


async def test_who_asks_the_same_shares_the_answer(past: Past) -> None:
    """It is encoded once, whatever each calls it."""
    lines = [past.connect() for _ in range(50)]
    for number, line in enumerate(lines):
        line.ask(id=f"h{number}", type="history", follow=True)
    await until(lambda: all(line.told() for line in lines))
    assert len(past.subscriptions._encoded) == 1


async def test_an_error_is_told_and_frees_the_id(
    line: AskingConnection, past: Past, store: SqliteStore
) -> None:
    """What the database cannot tell now may be asked for again; a wrong range is named."""
    line.ask(id="a", type="history", **{"from": "2100-01-01T00:00:00Z"})
    await until(lambda: len(line.replies) == 2)
    assert (line.replies[-1]["code"], line.replies[-1]["message"][:5]) == ("bad_request", "from:")
    past.hall.source = None
    await store.close()
    line.ask(id="a", type="history", follow=True)
    await until(lambda: len(line.replies) == 3)
    assert (line.replies[-1]["code"], line.replies[-1]["retryable"]) == ("unavailable", True)
    line.ask(id="a", type="unsubscribe")
    assert line.replies[-1]["code"] == "unknown_id"
