"""Tests of the history service: one read for equal queries, and no outdated answers."""

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
    """A store, live state that follows at once, and a history service on both."""

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


async def test_many_equal_queries_cost_one_read(node: Node) -> None:
    """They share it while it runs and afterwards."""
    node.store.gate.clear()
    crowd = [asyncio.create_task(node.count()) for _ in range(100)]
    await until(lambda: node.store.reads == 1)
    node.store.gate.set()
    assert await asyncio.gather(*crowd) == [1] * 100
    assert await node.count() == 1
    # Queries with equal buckets are equal.
    node.clock.moment += MINUTE
    assert await node.count(history_query(start=NOW - DAY + 1, end=NOW - 1, points=30)) == 1
    assert node.store.reads == 1


async def test_an_answer_has_all_acknowledged_decisions(node: Node) -> None:
    """A query never shares a read that began before the newest acknowledged commit."""
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
    """They take megabytes each; clients that wait at the same time share one."""
    large = history_query(start=NOW - 40 * DAY, end=NOW, points=2_000, fields=HISTORY_FIELDS)
    answer = await node.history.answer(large)
    assert answer.values > MANY_VALUES
    assert await node.history.answer(large) == answer
    assert node.store.reads == 2
    crowd = await asyncio.gather(*(node.history.answer(large) for _ in range(50)))
    assert crowd == [answer] * 50
    assert node.store.reads == 3


async def test_kept_values_are_limited(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is for all answers together; the least recently used one is dropped first."""
    queries = [history_query(start=NOW - n * DAY, end=NOW, points=30) for n in (1, 2, 3)]
    sizes = [(await node.history.answer(query)).values for query in queries]
    assert node.store.reads == 3
    monkeypatch.setattr(module, "MAX_KEPT_VALUES", sum(sizes))
    await node.count(queries[0])  # the second is now the least recently used
    assert node.store.reads == 3
    await node.count(history_query(start=NOW - HOUR, end=NOW, points=2))
    await node.count(queries[2])
    await node.count(queries[0])
    assert node.store.reads == 4
    await node.count(queries[1])
    assert node.store.reads == 5


async def test_outdated_answers_are_dropped(node: Node) -> None:
    """All older answers are dropped as soon as one query is answered at a newer position."""
    queries = [history_query(start=NOW - n * DAY, end=NOW, points=30) for n in range(1, 6)]
    for query in queries:
        await node.count(query)
    assert len(node.history._kept) == 5
    await node.commit(2)
    await node.count(queries[0])
    assert len(node.history._kept) == 1


async def test_without_live_state_each_query_reads_the_database(node: Node) -> None:
    """Without live state the service does not know whether decisions were added."""
    node.snapshot = None
    assert [await node.count(), await node.count()] == [1, 1]
    assert node.store.reads == 2


async def test_reads_at_a_time_are_limited(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others wait, up to a limit; a query over it is refused, and can be sent again."""
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


async def test_reading_pauses_after_a_long_read(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many long histories leave the database to commits most of the time."""
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


async def test_a_client_that_gives_up_does_not_cancel_a_shared_read(node: Node) -> None:
    """The read goes on for the others that wait for it."""
    node.store.gate.clear()
    impatient, patient = (asyncio.create_task(node.count()) for _ in range(2))
    await until(lambda: node.store.reads == 1)
    impatient.cancel()
    node.store.gate.set()
    assert await patient == 1
    assert impatient.cancelled()


async def test_a_failed_read_is_unavailable_for_all_that_wait(node: Node) -> None:
    """The failure is not kept when the database is back."""
    node.snapshot = None
    with broken(node.store.path):
        failed = await asyncio.gather(*(node.count() for _ in range(3)), return_exceptions=True)
    assert [type(error) for error in failed] == [Unavailable] * 3
    assert await node.count() == 1


async def test_a_range_without_minutes_has_hours(node: Node) -> None:
    """The answer has as few points as hours need."""
    query = history_query(start=NOW - 2 * HOUR, end=NOW, points=300)
    assert (await node.history.answer(query)).buckets.step == 60
    while await node.store.prune(decisions_before=0, minutes_before=NOW + DAY, limit=100):
        pass
    node.snapshot = None
    answer = await node.history.answer(query)
    assert (answer.buckets.step, counted(answer)) == (3600, 1)


async def test_large_answers_are_made_in_a_thread(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They equal those made on the event loop."""
    answer = await node.history.answer(HOURLY)
    monkeypatch.setattr(module, "MANY_VALUES", 0)
    node.snapshot = None
    assert await node.history.answer(HOURLY) == answer


async def test_a_bad_range_is_refused_before_anything_is_read(node: Node) -> None:
    """The error has the parameter's name."""
    with pytest.raises(BadParameter, match="from: must be before"):
        await node.history.answer(history_query(start=NOW + HOUR))
    assert node.store.reads == 0
