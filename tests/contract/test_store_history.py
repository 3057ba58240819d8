"""A store through random operations, compared with a model that is a plain list of decisions."""

import asyncio
from itertools import islice
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from routecast.core.cardinality import NAMED
from routecast.core.decision import DecisionRecord, identity_of
from routecast.core.snapshot import needed
from routecast.ports import Difference, Store
from routecast.protocol import Position
from tests.contract.conftest import Databases
from tests.support.decisions import (
    DAY,
    HOUR,
    MINUTE,
    MODELS,
    NOW,
    PROJECTS,
    PROVIDERS,
    STRATEGIES,
    assert_sums,
    cells_of,
    kept_decisions,
)
from tests.support.summaries import sum_up

# Few ids, so that many are sent again; moments in few hours, in the past and the future.
ids = st.integers(0, 30).map(lambda number: f"d{number}")
moments = st.one_of(
    st.integers(NOW - 3 * HOUR, NOW + HOUR),
    st.sampled_from([NOW - DAY, NOW - 7 * DAY, NOW - 30 * DAY, 0]),
)


FOLDABLE = {
    "project": PROJECTS,
    "strategy": STRATEGIES,
    "provider": PROVIDERS[:2],
    "model": [name for name in MODELS[:2] if name],
}


def in_order(sent: list[list[DecisionRecord]]) -> list[list[DecisionRecord]]:
    """Sort decisions by id, because the store chooses the order of those received together."""
    ordered = iter(sorted((one for batch in sent for one in batch), key=lambda one: one.id))
    return [list(islice(ordered, len(batch))) for batch in sent]


batches = st.lists(st.lists(kept_decisions(ids, moments), max_size=6), min_size=1, max_size=3).map(
    in_order
)


names = st.sampled_from(NAMED).flatmap(
    lambda part: st.tuples(
        st.just(part), st.sets(st.sampled_from(FOLDABLE[part]), min_size=1, max_size=2)
    )
)


def renamed(decision: DecisionRecord, places: set[tuple[str, str]]) -> DecisionRecord:
    """Return a decision in which each of these names is replaced by `other`."""
    changed = {part: "other" for part, name in places if getattr(decision, part) == name}
    return decision._replace(**changed)  # type: ignore[arg-type]  # -- the names are texts


class StoreLife(RuleBasedStateMachine):
    """Two stores on one database, and a model of what was committed."""

    databases: Databases
    longest = 0  # the most commits that any life had

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.connect = self.databases.create()
        self.stores = [self.opened(), self.opened()]
        self.now = NOW
        self.seq = 0
        self.epoch = self.run(self.stores[0].position()).epoch
        self.counted: list[DecisionRecord] = []  # everything that ever counted
        self.known: list[tuple[int, DecisionRecord]] = []  # what is kept, with when it was received
        self.folded: set[tuple[str, str]] = set()  # parts and names that are remembered
        self.minutes_from = 0  # minutes before this one (in microseconds) may be dropped

    def run(self, work: Any) -> Any:
        return self.runner.run(work)

    def opened(self) -> Store:
        store = self.connect()
        self.run(store.open())
        return store

    def teardown(self) -> None:
        type(self).longest = max(self.longest, self.seq)
        for store in self.stores:
            self.run(store.close())
        self.runner.close()

    @initialize(sent=batches)
    def begin(self, sent: list[list[DecisionRecord]]) -> None:
        self.commit(0, sent, 0)

    @rule(which=st.integers(0, 1), sent=batches, later=st.integers(0, 10))
    def commit(self, which: int, sent: list[list[DecisionRecord]], later: int) -> None:
        """New decisions count once, and their sums are the delta."""
        self.now += later * MINUTE
        seen = {identity_of(d) for _, d in self.known}
        inserted: list[int] = []
        new: list[DecisionRecord] = []
        for batch in sent:
            before = len(new)
            for decision in batch:
                if identity_of(decision) not in seen:
                    seen.add(identity_of(decision))
                    new.append(renamed(decision, self.folded))
            inserted.append(len(new) - before)
        done = self.run(self.stores[which].commit(sent, self.now))
        self.seq += bool(new)
        self.counted += new
        self.known += [(self.now, decision) for decision in new]
        assert done.inserted == inserted
        assert done.position == Position(self.epoch, self.seq)
        assert (done.delta is None) == (not new)
        if done.delta is not None:
            assert done.delta.position == done.position
            assert done.delta.cells == cells_of(new)

    @precondition(lambda self: self.known)
    @rule(which=st.integers(0, 1), age=st.integers(0, 30), limit=st.integers(1, 8))
    def prune_decisions(self, which: int, age: int, limit: int) -> None:
        """The oldest decisions by receipt are dropped, and can be sent again."""
        before = self.now - age * MINUTE
        due = [pair for pair in self.known if pair[0] < before][:limit]
        dropped = self.run(
            self.stores[which].prune(decisions_before=before, minutes_before=0, limit=limit)
        )
        assert dropped == len(due)
        self.known = self.known[len(due) :]

    @rule(which=st.integers(0, 1), hours=st.integers(0, 4), limit=st.integers(1, 50))
    def prune_minutes(self, which: int, hours: int, limit: int) -> None:
        """Only minutes of finished hours are dropped."""
        before = self.now - hours * HOUR
        dropped = self.run(
            self.stores[which].prune(decisions_before=0, minutes_before=before, limit=limit)
        )
        assert dropped <= limit
        if dropped:
            self.minutes_from = max(self.minutes_from, before - before % HOUR)

    @rule(which=st.integers(0, 1), hours=st.integers(-1, 3), limit=st.integers(1, 4))
    def summarise(self, which: int, hours: int, limit: int) -> None:
        """A summary changes no number."""
        before = self.now - hours * HOUR
        self.run(sum_up(self.stores[which], before, limit))

    @rule(which=st.integers(0, 1), choice=names, remember=st.booleans())
    def fold_names(self, which: int, choice: tuple[str, set[str]], *, remember: bool) -> None:
        """Decisions with the names count as `other`, and a new epoch begins."""
        part, chosen = choice
        places = {(part, name) for name in chosen}
        done = self.run(self.stores[which].fold_names(part, chosen, remember=remember))
        assert done.seq == self.seq
        assert done.epoch != self.epoch
        self.epoch = done.epoch
        self.folded = self.folded | places if remember else self.folded - places
        self.counted = [renamed(one, places) for one in self.counted]
        self.known = [(received, renamed(one, places)) for received, one in self.known]

    @rule(which=st.integers(0, 1))
    def list_names(self, which: int) -> None:
        """Each name has its number of decisions, and its first and last hour."""
        expected = dict.fromkeys(self.folded, (0, None, None, True))
        for part in NAMED:
            for name in {getattr(one, part) for one in self.counted} - {""}:
                hours = [
                    one.decided // HOUR * 3600 for one in self.counted if getattr(one, part) == name
                ]
                is_folded = (part, name) in self.folded
                expected[part, name] = (len(hours), min(hours), max(hours), is_folded)
        found = self.run(self.stores[which].names())
        assert {
            (one.part, one.name): (one.count, one.first, one.last, one.folded) for one in found
        } == expected

    @rule(which=st.integers(0, 1))
    def reopen(self, which: int) -> None:
        """All commits are there after a store was opened again."""
        self.run(self.stores[which].close())
        self.stores[which] = self.opened()

    @rule(which=st.integers(0, 1))
    def verify(self, which: int) -> None:
        """`verify` finds no difference."""

        async def differences() -> list[Difference]:
            found = self.stores[which].verify()
            return [one async for one in found if isinstance(one, Difference)]

        assert self.run(differences()) == []

    @invariant()
    def loads_the_models_sums(self) -> None:
        """Both stores have the model's totals, hours and minutes."""
        store = self.stores[self.seq % 2]
        snapshot = self.run(store.load(self.now))
        assert snapshot.position == self.run(store.position()) == Position(self.epoch, self.seq)
        assert_sums(snapshot.total, self.counted)
        periods = needed(self.now)
        hours = {
            d.decided // HOUR for d in self.counted if d.decided // HOUR >= periods.hours.first
        }
        assert set(snapshot.hours) == hours
        for hour in hours:
            assert_sums(
                snapshot.hours[hour], [d for d in self.counted if d.decided // HOUR == hour]
            )
        minutes = {
            d.decided // MINUTE
            for d in self.counted
            if d.decided >= self.minutes_from
            and any(first <= d.decided // MINUTE < end for first, end in periods.minutes)
        }
        kept_minutes = {m for m in snapshot.minutes if m * MINUTE >= self.minutes_from}
        assert kept_minutes == minutes
        for minute in minutes:
            assert_sums(
                snapshot.minutes[minute], [d for d in self.counted if d.decided // MINUTE == minute]
            )


@pytest.mark.many_databases
def test_a_store_always_equals_the_model(databases: Databases) -> None:
    """This holds after commits, duplicates, retention and reopening in any order."""

    class Life(StoreLife):
        pass

    Life.databases = databases
    run_state_machine_as_test(
        Life, settings=settings(max_examples=25, stateful_step_count=20, deadline=None)
    )
    assert Life.longest > 1
