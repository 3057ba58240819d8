"""The cost of writing to SQLite: it depends on what is written, not on what is stored already."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import apsw
import pytest
from hypothesis import given
from hypothesis import strategies as st

from routecast.adapters.store.sqlite import SqliteStore, deltas, folding, rollups, summaries
from routecast.adapters.store.sqlite import store as module
from routecast.adapters.store.sqlite.commit import commit
from routecast.adapters.store.sqlite.names import fold_names
from routecast.adapters.store.sqlite.writer import Writer
from routecast.core.decision import DecisionRecord, identity_of
from routecast.core.history import history_query, plan
from routecast.core.overflow import LARGEST_SUM
from routecast.core.rollup import Cells, Sums
from routecast.ports import MAX_GROUP, Difference
from tests.support.decisions import HOUR, MINUTE, NOW, assert_sums, kept, kept_decisions


def series(number: int, **given: Any) -> DecisionRecord:
    """Return a decision of series `number`."""
    return kept(strategy=f"s{number % 500}", model=f"m{number // 500}", **given)


def filled(path: Path, count: int, minutes: int) -> Writer:
    """Return a writer on a database with `count` series, and decisions in late minutes."""
    writer = Writer(path, create=True)
    writer.open()
    for first in range(0, count, 2_000):
        numbers = range(first, min(count, first + 2_000))
        commit(writer, [[series(n, id=f"series-{n}") for n in numbers]], NOW)
    late = [series(n % count, id=f"late-{n}", decided=before(n)) for n in range(minutes)]
    commit(writer, [late], NOW)
    fold(writer)
    return writer


def reopened(writer: Writer, path: Path) -> Writer:
    writer.close()
    writer = Writer(path, create=False)
    writer.open()
    return writer


def before(minutes: int) -> int:
    return NOW - (minutes + 1) * MINUTE


def fold(writer: Writer) -> None:
    while writer.fold():
        pass


@contextmanager
def counted_steps(writer: Writer) -> Iterator[Callable[[], int]]:
    """Count the steps of SQLite's engine, which include all rows that it reads.

    Open the writer directly before, because a statement counts from its creation.
    """
    db, steps = writer._db, 0
    assert db is not None
    counted: dict[int, int] = {}

    def profile(statement: dict[str, Any]) -> None:
        nonlocal steps
        now = statement["stmt_status"]["SQLITE_STMTSTATUS_VM_STEP"]
        before = counted.get(statement["id"], 0)
        steps += now - before if now >= before else now
        counted[statement["id"]] = now

    db.trace_v2(apsw.SQLITE_TRACE_PROFILE, profile)
    try:
        yield lambda: steps
    finally:
        db.trace_v2(0)


def cost_of_late_decisions(path: Path, count: int, minutes: int) -> int:
    """Return the steps that decisions in this number of old minutes take, to commit and to fold."""
    writer = filled(path, count, minutes)
    again = [series(n % count, id=f"again-{n}", decided=before(n)) for n in range(minutes)]
    writer = reopened(writer, path)
    with counted_steps(writer) as steps:
        commit(writer, [again], NOW)
        fold(writer)
        total = steps()
    writer.close()
    return total


def test_late_decisions_cost_as_much_with_many_series_as_with_few(tmp_path: Path) -> None:
    """Folding a cell reads no other cell of its minute, hour or total."""
    few = cost_of_late_decisions(tmp_path / "few.db", 100, 600)
    many = cost_of_late_decisions(tmp_path / "many.db", 10_000, 600)
    assert many < 1.5 * few


def test_late_decisions_cost_little_more_in_many_minutes_than_in_one(tmp_path: Path) -> None:
    """A decision alone in its minute costs only its own rows more."""
    path = tmp_path / "old.db"
    writer = filled(path, 100, 1_000)
    costs = []
    for name, step in (("one", 0), ("spread", 1)):
        writer = reopened(writer, path)
        late = [series(n % 100, id=f"{name}-{n}", decided=before(step * n)) for n in range(1_000)]
        with counted_steps(writer) as steps:
            commit(writer, [late], NOW)
            fold(writer)
            costs.append(steps() / 1_000)
    writer.close()
    # A new cell is a row to read and write in each of three periods.
    assert costs[1] < costs[0] + 1_000


def test_one_step_of_folding_is_limited(tmp_path: Path) -> None:
    """A large delta is folded in many steps, each with a small part of the work."""
    writer = filled(tmp_path / "large.db", 100, 1)
    commit(writer, [[series(n % 100, id=f"x{n}", decided=before(n)) for n in range(4_000)]], NOW)
    left = []
    while writer.unfolded:
        left.append(writer.unfolded)
        writer.fold()
    assert all(a - b <= folding.STEP_CELLS for a, b in pairwise(left))
    assert len(left) >= (4_000 - 2 * folding.STEP_CELLS) // folding.STEP_CELLS
    writer.close()


def test_memory_of_the_writer_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is in bytes, and a period may have any number of cells."""
    monkeypatch.setattr(rollups, "REMEMBERED_BYTES", 100 * rollups.ROLLUP_BYTES)
    writer = filled(tmp_path / "cells.db", 2_000, 500)
    assert writer._memory.rollups.size <= rollups.REMEMBERED_BYTES
    assert 10 < len(writer._memory.rollups._held) <= 100
    assert writer._memory.folding._remembered == 0
    writer.close()


def test_unfolded_cells_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over the limit, a commit folds as many cells as it adds."""
    monkeypatch.setattr(folding, "MOST_UNFOLDED_CELLS", 3_000)
    writer = Writer(tmp_path / "backlog.db", create=True)
    writer.open()
    for number in range(12):
        ids = range(1_000 * number, 1_000 * number + 1_000)
        commit(writer, [[kept(n, decided=NOW - n * MINUTE) for n in ids]], NOW)
        assert writer.unfolded <= 3_000
    writer.close()


# -- exactness ----------------------------------------------------------------------------------


@pytest.fixture
def _small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deltas, "PART_CELLS", 2)
    monkeypatch.setattr(folding, "STEP_CELLS", 3)
    monkeypatch.setattr(folding, "SQLITE_FOLD_CELLS", 10**9)
    monkeypatch.setattr(folding, "SQLITE_FOLD_COMMITS", 10**9)
    monkeypatch.setattr(folding, "REMEMBERED_CELLS", 5)
    monkeypatch.setattr(rollups, "REMEMBERED_BYTES", 4 * rollups.ROLLUP_BYTES)


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(path)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


moments = st.integers(NOW - 2 * HOUR, NOW)
some_decisions = st.lists(
    kept_decisions(st.integers(0, 30).map(str), moments), min_size=1, max_size=8
)
actions = st.lists(
    some_decisions | st.sampled_from(["fold", "restart", "other process"]), max_size=10
)


@pytest.mark.usefixtures("_small_steps")
@given(actions)
def test_sums_are_exact_at_any_moment(
    tmp_path_factory: pytest.TempPathFactory, actions: list[Any]
) -> None:
    """Totals, history, deltas and `verify` are right with any part of any delta folded."""
    path = tmp_path_factory.mktemp("life") / "routecast.db"
    asyncio.run(live(path, actions))


async def live(path: Path, actions: list[Any]) -> None:
    held: dict[tuple[str, str], DecisionRecord] = {}
    store = SqliteStore(path)
    await store.open()
    start = await store.load(NOW)
    for action in actions:
        if action == "fold":
            store._writer.fold()
        elif action == "restart":
            await store.close()
            store = SqliteStore(path)
            await store.open()
        elif action == "other process":
            async with opened(path) as other:
                other._writer.fold()
        else:
            await store.commit([action], NOW)
            for decision in action:
                held.setdefault(identity_of(decision), decision)
        await assert_exact(store, list(held.values()))
    for delta in await store.deltas(start.position):
        start.apply(delta)
    assert_sums(start.total, held.values())
    await store.close()


async def assert_exact(store: SqliteStore, decisions: list[DecisionRecord]) -> None:
    assert_sums((await store.load(NOW)).total, decisions)
    wanted = plan(history_query(start=NOW - 3 * HOUR, end=NOW + MINUTE), NOW)
    past = await store.history(wanted)
    assert sum(point.count for point in past.points.get("all", {}).values()) == len(decisions)
    assert [one async for one in store.verify() if isinstance(one, Difference)] == []


# -- large batches ------------------------------------------------------------------------------


async def test_large_batch_is_one_commit(store: SqliteStore) -> None:
    """Each of its batches gets its count, and known or repeated ids count once."""
    await store.commit([[kept(0), kept(1)]], NOW)
    first = [kept(n) for n in range(MAX_GROUP)]
    second = [kept(n, model="") for n in (5, MAX_GROUP, MAX_GROUP, MAX_GROUP + 1)]
    committed = await store.commit([first, second], NOW)
    assert committed.inserted == [MAX_GROUP - 2, 2]
    assert committed.position.seq == 2
    decisions = [*first, *second[1:2], *second[3:]]
    assert committed.delta is not None
    assert_sums(committed.delta.cells.total(), decisions[2:])
    assert_sums((await store.load(NOW)).total, decisions)
    assert [one async for one in store.verify() if isinstance(one, Difference)] == []
    again = await store.commit([first, second], NOW)
    assert (again.inserted, again.position, again.delta) == ([0, 0], committed.position, None)


async def test_small_batches_are_committed_while_a_large_one_is_prepared(
    store: SqliteStore,
) -> None:
    """Small batches go first, and their ids count once."""
    large = [kept(n) for n in range(2 * MAX_GROUP)]
    task = asyncio.create_task(store.commit([large], NOW))
    small = 0
    while not task.done():
        await store.commit([[kept(small)]], NOW)
        small += 1
    assert small > 1
    assert (await task).position.seq > 1
    assert_sums((await store.load(NOW)).total, large)
    assert [one async for one in store.verify() if isinstance(one, Difference)] == []


async def test_large_batch_is_prepared_again_when_a_series_is_filled_meanwhile(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it is filled before the writer's turn, decisions that no longer fit are left out."""
    prepared: list[int] = []
    stage = module.stage

    def fill_late(path: Path, *args: Any) -> Any:
        staged = stage(path, *args)
        if not prepared:
            writer = Writer(path, create=False)
            writer.open()
            commit(writer, [[kept(-1, cost=LARGEST_SUM - 5)]], NOW)
            writer.close()
        prepared.append(staged.size)
        return staged

    monkeypatch.setattr(module, "stage", fill_late)
    large = [kept(n, cost=1) for n in range(MAX_GROUP + 1)]
    done = await store.commit([large], NOW)
    assert (done.inserted, prepared) == ([5], [MAX_GROUP + 1, 5])
    assert len(done.full) == MAX_GROUP - 4
    assert_sums((await store.load(NOW)).total, [kept(-1, cost=LARGEST_SUM - 5), *large[:5]])
    assert [one async for one in store.verify() if isinstance(one, Difference)] == []


async def test_large_batch_is_prepared_again_when_names_are_folded_meanwhile(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process folds them between the preparation and the writer's turn."""
    prepared: list[int] = []
    stage = module.stage

    def fold_late(path: Path, *args: Any) -> Any:
        staged = stage(path, *args)
        if not prepared:
            writer = Writer(path, create=False)
            writer.open()
            fold_names(writer, "model", {"m0"}, True)
            writer.close()
        prepared.append(staged.size)
        return staged

    monkeypatch.setattr(module, "stage", fold_late)
    before = [kept(1, model="m0"), kept(2, model="m1")]
    await store.commit([before], NOW)
    large = [
        kept(n, model=f"m{n % 2}", owner="late", project="other") for n in range(MAX_GROUP + 1)
    ]
    committed = await store.commit([large], NOW)
    assert (committed.inserted, prepared) == ([MAX_GROUP + 1], [MAX_GROUP + 1] * 2)
    assert committed.position == await store.position()
    counted = [
        one._replace(model="other") if one.model == "m0" else one for one in (*before, *large)
    ]
    assert_sums((await store.load(NOW)).total, counted)
    assert [one async for one in store.verify() if isinstance(one, Difference)] == []
    assert (await store.commit([large], NOW)).inserted == [0]


async def test_summary_of_an_hour_that_changes_meanwhile_is_dropped(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hours are read during commits; one that changed is summed up later."""
    monkeypatch.setattr(folding, "SQLITE_FOLD_COMMITS", 1)
    await store.commit([[kept(1, decided=NOW - 5 * HOUR)]], NOW)
    (hour,) = await store.unsummed(before=NOW)
    put = summaries.put

    def late(writer: Writer, *read: Any) -> None:
        commit(writer, [[kept(2, decided=NOW - 5 * HOUR)]], NOW)
        put(writer, *read)

    with monkeypatch.context() as patched:
        patched.setattr(summaries, "put", late)
        await store.summarise(hour)
    assert await store.unsummed(before=NOW) == [hour]
    await store.summarise(hour)
    assert await store.unsummed(before=NOW) == []
    assert [one async for one in store.verify() if isinstance(one, Difference)] == []


def cost_of_a_summary(path: Path, count: int) -> int:
    """Return the steps of summing up an hour of one series, in a database of `count` series."""
    writer = filled(path, count, 1)
    commit(writer, [[kept(1, decided=NOW - 5 * HOUR)]], NOW)
    fold(writer)
    writer = reopened(writer, path)
    with counted_steps(writer) as steps:
        db = writer._db
        assert db is not None
        changes, rows = summaries.summarise(db, (NOW - 5 * HOUR) // HOUR * 3600)
        assert changes == 1
        assert rows.sums
        total = steps()
    writer.close()
    return total


def test_a_summary_reads_only_its_hour(tmp_path: Path) -> None:
    """The number of series of other hours does not matter."""
    few = cost_of_a_summary(tmp_path / "few.db", 10)
    many = cost_of_a_summary(tmp_path / "many.db", 4_000)
    assert many < 1.5 * few


def test_cells_are_split_into_parts_without_loss(tmp_path: Path) -> None:
    """Each cell is in one part, and no part is too large."""
    cells = Cells()
    cells.add(series(n, decided=NOW - n % 7 * MINUTE) for n in range(100))
    for most in (1, 3, 7, 99, 100, 1_000):
        parts = list(cells.split(most))
        assert all(0 < len(part) <= most for part in parts)
        found: dict[Any, Sums] = {}
        for part in parts:
            for minute, bucket in part.minutes.items():
                for key, sums in bucket.items():
                    assert (minute, key) not in found
                    found[minute, key] = sums
        assert len(found) == len(cells) == 100
    assert list(Cells().split(5)) == [Cells()]
