"""The contract of every store for history (`ports.Store.history`, `summarise`)."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from routecast.core.decision import DecisionRecord, identity_of
from routecast.core.history import GROUPS, history_query, plan
from routecast.core.time_series import render
from routecast.core.view import View
from routecast.errors import NotHeld
from routecast.ports import Store
from tests.contract.conftest import Databases
from tests.support.buckets import FIELDS, assert_history
from tests.support.decisions import (
    DAY,
    HOUR,
    MINUTE,
    MODELS,
    NOW,
    PROJECTS,
    PROVIDERS,
    STRATEGIES,
    kept,
    kept_decisions,
)
from tests.support.summaries import sum_up


async def told(
    store: Store,
    *,
    now: int = NOW,
    filters: Mapping[str, frozenset[str]] | None = None,
    least_step: int = 0,
    **asked: Any,
) -> dict[str, Any]:
    """Return a store's answer to a query in its wire form."""
    query = history_query(fields=FIELDS, filters=View(**(filters or {})), **asked)
    wanted = plan(query, now, least_step=least_step)
    return render(await store.history(wanted), wanted).document()


async def test_empty_database_has_empty_buckets(store: Store) -> None:
    """Without a grouping there is one series, at the position before any commit."""
    document = await told(store, start=NOW - HOUR, end=NOW)
    assert document["position"] == await store.position()
    assert_history(document, [])
    assert [series["key"] for series in document["series"]] == ["all"]
    assert (await told(store, group_by="strategy"))["series"] == []


@pytest.mark.parametrize("group_by", [None, *GROUPS])
@pytest.mark.parametrize("summed", [False, True], ids=["rollups", "summaries"])
async def test_buckets_of_hours(store: Store, group_by: str | None, summed: bool) -> None:
    """Buckets are right for any grouping, with and without summaries."""
    decisions = [
        kept(
            n,
            strategy=STRATEGIES[n % 3],
            model=MODELS[n % 4],
            status="error" if n % 5 == 0 else "success",
            decided=NOW - n * 37 * MINUTE,
            latency=n * n * 1000,
            fallback=n % 3 == 0,
        )
        for n in range(200)
    ]
    for some in range(0, 200, 20):
        await store.commit([decisions[some : some + 20]], NOW)
    if summed:
        await sum_up(store, NOW)
    document = await told(store, start=NOW - 5 * DAY, end=NOW, points=50, group_by=group_by)
    assert document["step"] == 3 * 3600
    assert_history(document, decisions, group_by=group_by)


async def test_late_decisions_count_in_hours_summed_up_before(store: Store) -> None:
    """They count at once, and after the hour was summed again."""
    early = [kept(n, decided=NOW - n * HOUR) for n in range(1, 30)]
    await store.commit([early], NOW)
    await sum_up(store, NOW)
    late = [kept(100 + n, decided=NOW - n * HOUR, strategy="late") for n in (3, 3, 17)]
    for number, one in enumerate(late):
        await store.commit([[one._replace(id=f"late{number}")]], NOW)
    for _ in range(2):
        document = await told(store, start=NOW - 2 * DAY, end=NOW, points=60, group_by="strategy")
        assert document["step"] == 3600
        assert_history(document, early + late, group_by="strategy")
        await sum_up(store, NOW)


async def test_only_hours_that_are_over_are_summed_up(store: Store) -> None:
    """Each finished hour is summed once, and again after a change."""
    await store.commit([[kept(n, decided=NOW - n * HOUR) for n in range(10)]], NOW)
    await store.prune(decisions_before=0, minutes_before=0, limit=1)  # which folds all there is
    assert [await sum_up(store, NOW, 4) for _ in range(4)] == [4, 4, 1, 0]
    await store.commit([[kept(99, decided=NOW - 5 * HOUR)]], NOW)
    await store.prune(decisions_before=0, minutes_before=0, limit=1)
    assert [await sum_up(store, NOW) for _ in range(2)] == [1, 0]


async def test_minutes_that_are_gone_are_said_to_be(store: Store) -> None:
    """The answer says that minutes are dropped, and hours cover the same time."""
    decisions = [kept(n, decided=NOW - n * HOUR) for n in range(40)]
    await store.commit([decisions], NOW)
    for _ in range(40):  # a store may fold in steps, and prune what is folded
        await store.prune(decisions_before=0, minutes_before=NOW - 20 * HOUR, limit=100)
    recent = await told(store, start=NOW - 10 * HOUR, end=NOW)
    assert recent["step"] < 3600
    assert_history(recent, decisions)
    with pytest.raises(NotHeld):
        await told(store, start=NOW - 30 * HOUR, end=NOW)
    assert_history(await told(store, start=NOW - 30 * HOUR, end=NOW, least_step=3600), decisions)


async def test_history_is_as_of_one_position(store: Store) -> None:
    """While commits and summaries go on, an answer has exactly the commits up to its position."""

    def decision(number: int) -> DecisionRecord:
        return kept(number, decided=NOW - number % 4 * HOUR)

    async def write() -> None:
        for number in range(40):
            await store.commit([[decision(number)]], NOW)
            if number % 4 == 0:
                await sum_up(store, NOW, 2)

    writing = asyncio.create_task(write())
    seen = set()
    while not writing.done():
        document = await told(store, start=NOW - 3 * DAY, end=NOW + HOUR, group_by="band")
        seen.add(seq := document["position"].seq)
        assert_history(document, [decision(n) for n in range(seq)], group_by="band")
    await writing
    assert len(seen) > 1


# -- a random life ------------------------------------------------------------------------------

ids = st.integers(0, 10_000).map(lambda number: f"d{number}")
moments = st.one_of(
    st.integers(NOW - 3 * HOUR, NOW + HOUR),
    st.integers(NOW - 4 * DAY, NOW),
    st.sampled_from([0, NOW - 90 * DAY, NOW - 10 * 365 * DAY, NOW + DAY]),
)
batches = st.lists(kept_decisions(ids, moments), min_size=1, max_size=12)
ranges = st.one_of(
    st.tuples(st.integers(0, 6 * HOUR), st.integers(1, 5 * HOUR)),
    st.tuples(st.integers(0, 5 * DAY), st.integers(1, 5 * DAY)),
    st.just((0, 10 * 365 * DAY)),
)
filter_sets = st.fixed_dictionaries(
    {},
    optional={
        name: st.frozensets(st.sampled_from([*values, "nobody"]), min_size=1, max_size=3)
        for name, values in {
            "strategy": STRATEGIES,
            "provider": PROVIDERS,
            "model": MODELS,
            "project": PROJECTS,
        }.items()
    },
)


class Life(RuleBasedStateMachine):
    """A store, and a plain list of the decisions committed to it."""

    databases: Databases

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.store = self.databases.create()()
        self.run(self.store.open())
        self.counted: list[DecisionRecord] = []
        self.known: set[tuple[str, str]] = set()

    def run(self, work: Any) -> Any:
        return self.runner.run(work)

    def teardown(self) -> None:
        self.run(self.store.close())
        self.runner.close()

    @initialize(sent=batches)
    def begin(self, sent: list[DecisionRecord]) -> None:
        self.commit(sent)

    @rule(sent=batches)
    def commit(self, sent: list[DecisionRecord]) -> None:
        """Commit present, late and early decisions, some of them twice."""
        self.run(self.store.commit([sent], NOW))
        for one in sent:
            if (identity := identity_of(one)) not in self.known:
                self.known.add(identity)
                self.counted.append(one)

    @rule(hours=st.integers(0, 5), limit=st.integers(1, 5))
    def summarise(self, hours: int, limit: int) -> None:
        """Sum some hours."""
        self.run(sum_up(self.store, NOW - hours * HOUR, limit))

    @rule(hours=st.integers(0, 60), limit=st.integers(1, 100))
    def prune(self, hours: int, limit: int) -> None:
        """Drop minutes and decisions."""
        before = NOW - hours * HOUR
        self.run(
            self.store.prune(decisions_before=before, minutes_before=before, limit=limit),
        )

    @rule(
        asked=ranges,
        points=st.integers(1, 400),
        group_by=st.sampled_from([None, *GROUPS]),
        filters=filter_sets,
    )
    def ask(
        self,
        asked: tuple[int, int],
        points: int,
        group_by: str | None,
        filters: dict[str, frozenset[str]],
    ) -> None:
        """Each query has the answer of the plain list."""
        ago, length = asked
        end = NOW - ago
        wanted = {"start": max(0, end - length), "end": end, "points": points}
        wanted |= {"group_by": group_by, "filters": filters}
        try:
            document = self.run(told(self.store, **wanted))
        except NotHeld:
            document = self.run(told(self.store, **wanted, least_step=3600))
        assert document["points"] <= points
        assert document["position"] == self.run(self.store.position())
        assert_history(document, self.counted, group_by=group_by, filters=filters)


@pytest.mark.many_databases
def test_a_history_always_equals_a_plain_list(databases: Databases) -> None:
    """This holds after commits, summaries and retention in any order."""

    class ThisLife(Life):
        pass

    ThisLife.databases = databases
    run_state_machine_as_test(
        ThisLife, settings=settings(max_examples=25, stateful_step_count=20, deadline=None)
    )
