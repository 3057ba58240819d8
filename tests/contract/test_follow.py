"""Following a history on a real store: the updated chart equals a chart that is read again."""

import asyncio
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from routecast.core.decision import DecisionRecord
from routecast.core.delta import Delta
from routecast.core.dirty_minutes import DirtyMinutes
from routecast.core.history import GROUPS, history_query
from routecast.core.snapshot import Snapshot
from routecast.core.view import View
from routecast.ports import Reading
from routecast.protocol import Source
from routecast.services.history import HistoryService
from tests.contract.conftest import Databases
from tests.support.buckets import assert_history
from tests.support.chart import Chart
from tests.support.clock import HeldClock
from tests.support.decisions import HOUR, MINUTE, NOW, STRATEGIES, kept, kept_decisions

FIELDS = ("count", "cost", "avg_confidence", "errors", "p95_latency_ms")


class Node:
    """A store, and live state that receives its commits when the test lets it."""

    def __init__(self, databases: Databases) -> None:
        self.clock = HeldClock()
        self.store = databases.create()()
        self.changes = DirtyMinutes()
        self.snapshot: Snapshot
        self.unheard: list[Delta] = []
        self.history = HistoryService(self.store, self.live, self.changes, self.clock)
        self.committed: list[list[DecisionRecord]] = [[]]  # by seq

    def live(self) -> Reading | None:
        return Reading(self.snapshot, Source.LIVE, self.clock.now())

    async def open(self) -> None:
        await self.store.open()
        self.snapshot = await self.store.load(self.clock.now())

    async def commit(self, decisions: list[DecisionRecord]) -> None:
        done = await self.store.commit([decisions], self.clock.now())
        if done.delta is not None:
            self.unheard.append(done.delta)
            self.committed.append(decisions)

    def hear(self) -> None:
        for delta in self.unheard:
            if self.snapshot.apply(delta):
                self.changes.note(delta)
        self.unheard.clear()

    async def load(self) -> None:
        """Load live state again, so that it does not know what the skipped commits changed."""
        self.unheard.clear()
        self.snapshot = await self.store.load(self.clock.now())

    def upto(self, seq: int) -> list[DecisionRecord]:
        return [one for commit in self.committed[: seq + 1] for one in commit]


class Life(RuleBasedStateMachine):
    """A node with a client whose chart follows a history."""

    databases: Databases
    advanced = 0

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.node = Node(self.databases)
        self.run(self.node.open())
        self.number = 0

    def run(self, work: Any) -> Any:
        return self.runner.run(work)

    def teardown(self) -> None:
        self.run(self.node.store.close())
        self.runner.close()

    @initialize(
        length=st.sampled_from([5 * MINUTE, HOUR, 5 * HOUR, 40 * HOUR, 200 * HOUR]),
        points=st.integers(3, 90),
        group_by=st.sampled_from([None, *GROUPS]),
        strategies=st.one_of(
            st.none(), st.frozensets(st.sampled_from(STRATEGIES), min_size=1, max_size=3)
        ),
        ends=st.booleans(),
    )
    def begin(
        self,
        length: int,
        points: int,
        group_by: str | None,
        strategies: frozenset[str] | None,
        ends: bool,
    ) -> None:
        self.points, self.group_by = points, group_by
        self.filters = {} if strategies is None else {"strategy": strategies}
        query = history_query(
            start=NOW - length,
            end=NOW + length // 3 if ends else None,
            points=points,
            group_by=group_by,
            fields=FIELDS,
            filters=View(**self.filters),
            follow=True,
        )
        self.chart = Chart(points, FIELDS)
        answer, self.follow = self.run(self.node.history.follow(query))
        self.chart.take(answer.document())
        self.step = answer.buckets.step

    @rule(
        sent=st.lists(
            kept_decisions(
                st.just("x"),
                st.one_of(
                    st.integers(-10, 3),  # in steps of a bucket
                    st.sampled_from([-1000, 0]),
                ),
            ),
            min_size=1,
            max_size=5,
        ),
        exact=st.integers(0, 59),
    )
    def commit(self, sent: list[DecisionRecord], exact: int) -> None:
        """Commit present, late and future decisions."""
        now = self.node.clock.now()
        batch = []
        for one in sent:
            self.number += 1
            decided = max(0, now + one.decided * self.step * 10**6 - exact * 10**6)
            batch.append(one._replace(id=f"d{self.number}", decided=decided))
        self.run(self.node.commit(batch))

    @rule()
    def hear(self) -> None:
        """Let live state catch up."""
        self.node.hear()

    @rule()
    def load(self) -> None:
        """Load live state again."""
        self.run(self.node.load())

    @rule(steps=st.sampled_from([0.1, 0.5, 1, 1.7, 4]))
    def wait(self, steps: float) -> None:
        """Let time pass."""
        self.node.clock.moment += int(steps * self.step * 10**6)
        if self.node.clock.now() - self.node.snapshot.taken >= HOUR:
            self.load()

    @rule()
    def advance(self) -> None:
        """Advance the chart; it must equal a new answer at that position."""
        told = self.run(self.node.history.advance(self.follow))
        if told is not None:
            type(self).advanced += 1
            self.chart.take(told.document())
            self.compare(self.chart.position.seq, self.chart.points)
            assert self.chart.points <= self.points

    @rule()
    def agree(self) -> None:
        """If no answer is due, the closed buckets must be as of the live position."""
        self.node.hear()
        self.advance()
        assert self.run(self.node.history.advance(self.follow)) is None
        now = self.node.clock.now() // 10**6
        closed = (now - self.follow.buckets.first) // self.step
        position = self.follow.position
        assert position == self.node.snapshot.position
        self.compare(position.seq, min(closed, self.chart.points))

    @invariant()
    def has_no_hole(self) -> None:
        for columns in self.chart.series.values():
            assert {len(values) for values in columns.values()} == {self.chart.points}

    def compare(self, seq: int, points: int) -> None:
        assert_history(
            self.chart.document(points),
            self.node.upto(seq),
            group_by=self.group_by,
            fields=FIELDS,
            filters=self.filters,
        )


@pytest.mark.many_databases
def test_a_chart_always_equals_the_decisions(databases: Databases) -> None:
    """This holds at each position, whatever comes late, is lost or closes."""

    class ThisLife(Life):
        pass

    ThisLife.databases = databases
    run_state_machine_as_test(
        ThisLife, settings=settings(max_examples=25, stateful_step_count=20, deadline=None)
    )
    assert ThisLife.advanced > 1


@pytest.fixture
async def node(databases: Databases) -> Any:
    """A node with an empty database."""
    made = Node(databases)
    await made.open()
    yield made
    await made.store.close()


async def test_a_bucket_that_closes_is_sent_with_the_unfinished_one(node: Node) -> None:
    """Two points are sent when a bucket closes, and otherwise nothing."""
    query = history_query(points=30, follow=True)
    await node.commit([kept(1)])
    node.hear()
    answer, follow = await node.history.follow(query)
    assert answer.buckets.step == 120
    await node.commit([kept(2)])
    node.hear()
    assert await node.history.advance(follow) is None
    node.clock.moment += 2 * MINUTE
    told = await node.history.advance(follow)
    assert told is not None
    assert told.series == [{"key": "all", "count": [2, 0], "cost": [0.0046, None]}]
    assert told.position == node.snapshot.position
    assert await node.history.advance(follow) is None


@pytest.mark.parametrize("points", [5, 60])
async def test_a_clock_that_was_ahead_for_a_moment(node: Node, points: int) -> None:
    """Once it is right again, the whole history is sent, and the chart continues."""
    query = history_query(points=points, fields=FIELDS, follow=True)
    await node.commit([kept(1)])
    node.hear()
    answer, follow = await node.history.follow(query)
    chart = Chart(points, FIELDS)
    chart.take(answer.document())
    node.clock.moment += HOUR
    await node.commit([kept(2, decided=node.clock.now())])
    node.hear()
    told = await node.history.advance(follow)
    assert told is not None
    chart.take(told.document())
    node.clock.moment = NOW + MINUTE
    told = await node.history.advance(follow)
    assert told is not None
    chart.take(told.document())
    for number in range(3, 6):
        await node.commit([kept(number, decided=node.clock.now())])
        node.hear()
        node.clock.moment += HOUR // points
        told = await node.history.advance(follow)
        if told is not None:
            chart.take(told.document())
    shown = [one for one in node.upto(chart.position.seq) if one.id != "d2"]
    assert_history(chart.document(chart.points), shown, fields=FIELDS)
    assert chart.points <= points + 1


async def test_a_late_decision_sends_the_buckets_from_its_own_on(node: Node) -> None:
    """All buckets from that one on are sent, with a new series."""
    answer, follow = await node.history.follow(
        history_query(points=30, group_by="strategy", fields=["count"], follow=True)
    )
    assert answer.series == []
    await node.commit([kept(1, strategy="late", decided=NOW - 9 * MINUTE), kept(2)])
    node.hear()
    told = await node.history.advance(follow)
    assert told is not None
    assert told.document()["from"] == "2026-01-31T12:24:00.000000+00:00"
    assert told.series == [
        {"key": "hybrid", "count": [0, 0, 0, 0, 0, 1]},
        {"key": "late", "count": [1, 0, 0, 0, 0, 0]},
    ]


async def test_many_that_hold_the_same_cost_one(node: Node) -> None:
    """Clients that hold the same history get the same answer object."""
    query = history_query(points=30, follow=True)
    follows = [(await node.history.follow(query))[1] for _ in range(5)]
    node.clock.moment += 2 * MINUTE
    told = [await node.history.advance(follow) for follow in follows]
    assert told[0] is not None
    assert all(one is told[0] for one in told)


async def test_live_state_that_is_behind_is_waited_for(node: Node) -> None:
    """A client never gets an older position than it has."""
    await node.commit([kept(1)])
    answer, follow = await node.history.follow(history_query(points=30, follow=True))
    assert answer.position.seq == 1  # the database knows what live state has not heard of yet
    node.clock.moment += 2 * MINUTE
    assert await node.history.advance(follow) is None
    node.hear()
    told = await node.history.advance(follow)
    assert told is not None
    assert told.series == [{"key": "all", "count": [1, 0], "cost": [0.0023, None]}]


@pytest.mark.parametrize("heard", [False, True], ids=["unheard", "heard meanwhile"])
async def test_buckets_ahead_of_live_state_are_sent_too(node: Node, heard: bool) -> None:
    """Buckets of the database may be ahead of live state; their position is sent with them."""
    query = history_query(start=NOW - 10 * HOUR, points=150, fields=FIELDS, follow=True)
    answer, follow = await node.history.follow(query)
    chart = Chart(150, FIELDS)
    chart.take(answer.document())
    await node.commit([kept(1, decided=NOW - 5 * HOUR)])  # of a minute that no snapshot holds
    node.hear()
    await node.commit([kept(2, decided=NOW - 9 * HOUR)])
    advancing = asyncio.create_task(node.history.advance(follow))
    await asyncio.sleep(0)  # it asks the database
    if heard:
        node.hear()
    told = await advancing
    assert told is not None
    assert told.position.seq == 2
    chart.take(told.document())
    assert_history(chart.document(), node.upto(2), fields=FIELDS)
