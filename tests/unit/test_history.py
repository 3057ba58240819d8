"""The history service: one read for equal queries, and no answer that is out of date."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from routecast.adapters.store.sqlite import SqliteStore
from routecast.core.dirty_minutes import DirtyMinutes
from routecast.core.history import HISTORY_FIELDS, HistoryQuery, Plan, history_query
from routecast.core.snapshot import Snapshot
from routecast.core.time_series import MANY_VALUES, HistoryResponse, TimeSeries
from routecast.errors import BadParameter, Unavailable
from routecast.ports import Reading
from routecast.protocol import Source
from routecast.services import history as module
from routecast.services.history import HistoryService
from tests.support.clock import HeldClock
from tests.support.decisions import DAY, HOUR, MINUTE, NOW, kept
from tests.support.running_services import broken, until

HOURLY = history_query(start=NOW - DAY, end=NOW, points=30)


class GatedStore(SqliteStore):
    """A SQLite store that counts its reads of history, each of which waits for the gate."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.reads = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def history(self, plan: Plan) -> TimeSeries:
        self.reads += 1
        await self.gate.wait()
        return await super().history(plan)


class Node:
    """A store, live state that follows at once, and the service over them."""

    def __init__(self, path: Path, clock: HeldClock) -> None:
        self.store = GatedStore(path)
        self.clock = clock
        self.snapshot: Snapshot | None = None
        self.history = HistoryService(self.store, self.live, DirtyMinutes(), clock)

    def live(self) -> Reading | None:
        if self.snapshot is None:
            return None
        return Reading(self.snapshot, Source.LIVE, self.clock.now())

    async def commit(self, *numbers: int) -> None:
        await self.store.commit([[kept(number) for number in numbers]], NOW)
        self.snapshot = await self.store.load(NOW)

    async def count(self, query: HistoryQuery = HOURLY) -> int:
        return counted(await self.history.answer(query))


def counted(answer: HistoryResponse) -> int:
    (series,) = answer.series
    return sum(series["count"])


@pytest.fixture
async def node(path: Path, clock: HeldClock) -> AsyncIterator[Node]:
    """A node whose database has one decision."""
    made = Node(path, clock)
    await made.store.open()
    await made.commit(1)
    yield made
    made.store.gate.set()
    await made.store.close()


async def test_a_crowd_costs_one_read(node: Node) -> None:
    """Those who come while it is waited for, and those who come later."""
    node.store.gate.clear()
    crowd = [asyncio.create_task(node.count()) for _ in range(100)]
    await until(lambda: node.store.reads == 1)
    node.store.gate.set()
    assert await asyncio.gather(*crowd) == [1] * 100
    assert await node.count() == 1
    # Equal buckets are an equal wish.
    node.clock.moment += MINUTE
    assert await node.count(history_query(start=NOW - DAY + 1, end=NOW - 1, points=30)) == 1
    assert node.store.reads == 1


async def test_what_was_acknowledged_is_in_the_answer(node: Node) -> None:
    """For whoever asks after it, be it while an older read is under way."""
    assert await node.count() == 1
    await node.commit(2)
    node.store.gate.clear()
    early = asyncio.create_task(node.count())
    await until(lambda: node.store.reads == 2)
    await node.commit(3)
    late = [asyncio.create_task(node.count()) for _ in range(10)]
    await until(lambda: node.store.reads == 3)
    node.store.gate.set()
    assert await early in (2, 3)
    assert await asyncio.gather(*late) == [3] * 10
    assert node.store.reads == 3


async def test_large_answers_are_not_kept(node: Node) -> None:
    """They take megabytes each; those who wait for one still share it."""
    large = history_query(start=NOW - 40 * DAY, end=NOW, points=2_000, fields=HISTORY_FIELDS)
    answer = await node.history.answer(large)
    assert answer.values > MANY_VALUES
    assert await node.history.answer(large) == answer
    assert node.store.reads == 2
    crowd = await asyncio.gather(*(node.history.answer(large) for _ in range(50)))
    assert crowd == [answer] * 50
    assert node.store.reads == 3


async def test_the_values_kept_have_a_bound(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all answers together; the least lately used goes first."""
    queries = [history_query(start=NOW - n * DAY, end=NOW, points=30) for n in (1, 2, 3)]
    sizes = [(await node.history.answer(query)).values for query in queries]
    assert node.store.reads == 3
    monkeypatch.setattr(module, "MAX_KEPT_VALUES", sum(sizes))
    await node.count(queries[0])  # the second is now the one used longest ago
    assert node.store.reads == 3
    await node.count(history_query(start=NOW - HOUR, end=NOW, points=2))
    await node.count(queries[2])
    await node.count(queries[0])
    assert node.store.reads == 4
    await node.count(queries[1])
    assert node.store.reads == 5


async def test_answers_that_a_commit_came_after_are_let_go(node: Node) -> None:
    """As soon as there is a newer one, of whatever query."""
    queries = [history_query(start=NOW - n * DAY, end=NOW, points=30) for n in range(1, 6)]
    for query in queries:
        await node.count(query)
    assert len(node.history._kept) == 5
    await node.commit(2)
    await node.count(queries[0])
    assert len(node.history._kept) == 1


async def test_without_live_state_the_database_is_asked(node: Node) -> None:
    """Each time: nobody knows whether something came."""
    node.snapshot = None
    assert [await node.count(), await node.count()] == [1, 1]
    assert node.store.reads == 2


async def test_few_read_at_a_time(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others wait for their turn, up to a number; one more is refused, and can come again."""
    monkeypatch.setattr(module, "MAX_WAITING_READS", 3)
    node.store.gate.clear()
    queries = [history_query(start=NOW - n * DAY, end=NOW) for n in range(1, 7)]
    under_way = []
    for query in queries[:5]:
        under_way.append(asyncio.create_task(node.count(query)))
        await asyncio.sleep(0)  # let it ask
    await until(lambda: node.store.reads == module.READS)
    with pytest.raises(Unavailable, match="too many different histories"):
        await node.count(queries[5])
    assert node.store.reads == module.READS
    node.store.gate.set()
    assert await asyncio.gather(*under_way) == [1] * 5
    assert await node.count(queries[5]) == 1


async def test_a_turn_rests_after_a_long_read(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has many long histories read leaves the database to commits most of the time."""
    monkeypatch.setattr(module, "LONG_SECONDS", 0.0)
    rests: list[float] = []
    loop = asyncio.get_running_loop()
    call_later = loop.call_later

    def noted(delay: float, callback: Any, *args: Any) -> asyncio.TimerHandle:
        rests.append(delay)
        return call_later(0, callback, *args)

    monkeypatch.setattr(loop, "call_later", noted)
    queries = [history_query(start=NOW - n * DAY, end=NOW, points=30) for n in (1, 2, 3)]
    began = loop.time()
    await asyncio.gather(*map(node.count, queries))
    assert len(rests) == 3
    assert all(0 < rest <= 3 * (loop.time() - began) for rest in rests)


async def test_who_gives_up_does_not_spoil_it_for_others(node: Node) -> None:
    """The read goes on for those who wait for it."""
    node.store.gate.clear()
    impatient, patient = (asyncio.create_task(node.count()) for _ in range(2))
    await until(lambda: node.store.reads == 1)
    impatient.cancel()
    node.store.gate.set()
    assert await patient == 1
    assert impatient.cancelled()


async def test_a_database_that_is_away_is_unavailable(node: Node) -> None:
    """For all who wait; nothing of it stays when it is back."""
    node.snapshot = None
    with broken(node.store.path):
        failed = await asyncio.gather(*(node.count() for _ in range(3)), return_exceptions=True)
    assert [type(error) for error in failed] == [Unavailable] * 3
    assert await node.count() == 1


async def test_minutes_that_are_gone_are_reported_by_the_hour(node: Node) -> None:
    """In as few points as that takes."""
    query = history_query(start=NOW - 2 * HOUR, end=NOW, points=300)
    assert (await node.history.answer(query)).buckets.step == 60
    while await node.store.prune(decisions_before=0, minutes_before=NOW + DAY, limit=100):
        pass
    node.snapshot = None
    answer = await node.history.answer(query)
    assert (answer.buckets.step, counted(answer)) == (3600, 1)


async def test_large_answers_are_made_beside_the_loop(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And are the same."""
    answer = await node.history.answer(HOURLY)
    monkeypatch.setattr(module, "MANY_VALUES", 0)
    node.snapshot = None
    assert await node.history.answer(HOURLY) == answer


async def test_a_bad_range_is_refused_before_anything_is_read(node: Node) -> None:
    """By name."""
    with pytest.raises(BadParameter, match="from: must be before"):
        await node.history.answer(history_query(start=NOW + HOUR))
    assert node.store.reads == 0
