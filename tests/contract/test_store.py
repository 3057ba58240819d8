"""The contract of every store (`ports.Store`): commits, deltas, loading and positions."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from routecast.core.decision import DecisionRecord
from routecast.core.delta import Delta
from routecast.errors import MissingDeltas, Unavailable
from routecast.ports import Difference, Store
from routecast.protocol import WINDOWS, Position
from tests.contract.conftest import Connect, Databases
from tests.support.commit_history import load
from tests.support.decisions import DAY, HOUR, MINUTE, NOW, assert_sums, cells_of, kept
from tests.support.windows import cells_in


async def total(store: Store) -> dict[Any, Any]:
    return (await store.load(NOW)).total


async def differences(store: Store) -> list[Difference]:
    return [found async for found in store.verify() if isinstance(found, Difference)]


# -- opening and closing ------------------------------------------------------------------------


async def test_new_database_is_an_empty_history(store: Store) -> None:
    """It has seq 0 of a named epoch, and an empty snapshot."""
    position = await store.position()
    assert position.seq == 0
    assert position.epoch
    snapshot = await store.load(NOW)
    assert (snapshot.position, snapshot.taken) == (position, NOW)
    assert (snapshot.total, snapshot.hours, snapshot.minutes) == ({}, {}, {})
    assert await differences(store) == []


async def test_each_database_is_a_history_of_its_own(databases: Databases) -> None:
    """Two databases never have the same epoch."""
    epochs = set()
    for _ in range(2):
        store = databases.create()()
        await store.open()
        epochs.add((await store.position()).epoch)
        await store.close()
    assert len(epochs) == 2


async def test_commits_are_there_after_opening_again(connect: Connect) -> None:
    """Epoch, seq, sums and known ids are the same."""
    first = connect()
    await first.open()
    committed = await first.commit([[kept(1), kept(2)]], NOW)
    await first.close()
    again = connect()
    await again.open()
    assert await again.position() == committed.position
    assert_sums(await total(again), [kept(1), kept(2)])
    assert (await again.commit([[kept(1), kept(3)]], NOW)).inserted == [1]
    await again.close()


CALLS: dict[str, Callable[[Store], Awaitable[object]]] = {
    "commit": lambda store: store.commit([[kept(1)]], NOW),
    "check": lambda store: store.check(),
    "position": lambda store: store.position(),
    "load": lambda store: store.load(NOW),
    "prune": lambda store: store.prune(decisions_before=NOW, minutes_before=NOW, limit=10),
    "verify": lambda store: differences(store),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_closed_store_is_unavailable(
    connect: Connect, call: Callable[[Store], Awaitable[object]]
) -> None:
    """A store that was not opened is, too; `close` may be called twice."""
    store = connect()
    with pytest.raises(Unavailable):
        await call(store)
    await store.open()
    await store.close()
    await store.close()
    with pytest.raises(Unavailable):
        await call(store)


async def test_close_finishes_what_was_begun(connect: Connect) -> None:
    """A commit that runs at the close is on disk or refused, and never both."""
    store = connect()
    await store.open()
    commits = [asyncio.ensure_future(store.commit([[kept(n)]], NOW)) for n in range(5)]
    await asyncio.sleep(0)  # let them begin
    await store.close()
    done = await asyncio.gather(*commits, return_exceptions=True)
    kept_ones = [kept(n) for n, result in enumerate(done) if not isinstance(result, Unavailable)]
    again = connect()
    await again.open()
    assert_sums(await total(again), kept_ones)
    await again.close()


# -- commits ------------------------------------------------------------------------------------


async def test_commit_reports_what_it_did(store: Store) -> None:
    """It returns the new decisions of each batch, the position and the delta."""
    before = await store.position()
    batches = [[kept(1), kept(2, strategy="cost")], [kept(3, decided=NOW - 2 * HOUR)]]
    done = await store.commit(batches, NOW + 5)
    assert done.inserted == [2, 1]
    assert done.position == Position(before.epoch, 1) == await store.position()
    assert done.delta == Delta(done.position, cells_of([*batches[0], *batches[1]]), NOW + 5)


async def test_seq_rises_by_one_with_each_commit(store: Store) -> None:
    """The number of batches and decisions does not matter."""
    seqs = [
        (await store.commit([[kept(10 * n + m)] for m in range(n)], NOW)).position.seq
        for n in range(1, 6)
    ]
    assert seqs == [1, 2, 3, 4, 5]


async def test_known_id_changes_nothing(store: Store) -> None:
    """An id counts once in a batch, a call and over all calls."""
    first = await store.commit([[kept(1), kept(1, cost=9)], [kept(2), kept(1)], []], NOW)
    assert first.inserted == [1, 1, 0]
    second = await store.commit([[kept(2, strategy="other"), kept(3)], [kept(1)]], NOW)
    assert second.inserted == [1, 0]
    assert second.delta is not None
    assert second.delta.cells == cells_of([kept(3)])
    assert_sums(await total(store), [kept(1), kept(2), kept(3)])
    assert await differences(store) == []


@pytest.mark.parametrize("batches", [[[kept(1)]], [[kept(1)], [kept(1), kept(1)]], [[]], []])
async def test_nothing_new_is_no_commit(store: Store, batches: list[list[DecisionRecord]]) -> None:
    """There is no delta, and the position stays."""
    before = (await store.commit([[kept(1)]], NOW)).position
    done = await store.commit(batches, NOW)
    assert (done.position, done.inserted, done.delta) == (before, [0] * len(batches), None)
    assert await store.position() == before
    assert_sums(await total(store), [kept(1)])


async def test_ids_belong_to_projects(store: Store) -> None:
    """Two projects may use the same id."""
    decisions = [kept(1), kept(1, project="search")]
    assert (await store.commit([decisions], NOW)).inserted == [2]
    assert (await store.commit([decisions[::-1]], NOW)).inserted == [0]
    assert_sums(await total(store), decisions)


async def test_names_differ_by_every_character(store: Store) -> None:
    """Case, accents, spaces and quotes count in names and ids."""
    names = ["a", "A", "ä", "a ", " a", "á", "a\u0301", "'", '"', "\\", "a'; --", "☂" * 32, "\t\n"]
    decisions = [kept(0, id=name, strategy=name, model=name, reason=name) for name in names]
    assert (await store.commit([decisions], NOW)).inserted == [len(names)]
    assert (await store.commit([decisions], NOW)).inserted == [0]
    assert_sums(await total(store), decisions)


async def test_unknown_values_and_the_largest_are_kept(store: Store) -> None:
    """None stays None, and the largest allowed values fit."""
    least = dict.fromkeys(("confidence", "cost", "latency", "input_tokens", "output_tokens"))
    most = {
        "confidence": 10**6,
        "cost": 9000 * 10**9,
        "latency": 604_800 * 10**6,
        "input_tokens": 10**9,
        "output_tokens": 10**9,
    }
    decisions = [
        kept(1, **least, model="", band="none"),
        *(kept(n, **most) for n in range(2, 50)),
        kept(50, **dict.fromkeys(most, 0)),
        kept(51, decided=0),
        kept(52, decided=NOW + DAY),
    ]
    await store.commit([decisions], NOW)
    assert_sums(await total(store), decisions)
    assert await differences(store) == []


async def test_large_commit_is_one(store: Store) -> None:
    """It may have many keys, hours and minutes, and known ids."""
    decisions = [
        kept(n, strategy=f"s{n % 40}", provider=f"p{n % 7}", decided=NOW - n * MINUTE, cost=n)
        for n in range(3000)
    ]
    await store.commit([decisions[:10]], NOW)
    done = await store.commit([decisions[:2000], decisions[1500:]], NOW)
    assert done.inserted == [1990, 1000]
    assert done.position.seq == 2
    assert_sums(await total(store), decisions)
    assert await differences(store) == []


async def test_commits_at_the_same_time_get_a_position_each(store: Store) -> None:
    """No commit is lost, and no two have one seq."""
    commits = [store.commit([[kept(n), kept(1000)]], NOW) for n in range(20)]
    done = await asyncio.gather(*commits)
    assert sorted(one.position.seq for one in done) == list(range(1, 21))
    assert sum(sum(one.inserted) for one in done) == 21
    assert_sums(await total(store), [kept(n) for n in (*range(20), 1000)])


async def test_two_stores_on_one_database_agree(connect: Connect) -> None:
    """Each counts the commits of both, in any order."""
    stores = [connect(), connect()]
    for store in stores:
        await store.open()
    decisions = [kept(n, decided=NOW + n % 3 * MINUTE, cost=n) for n in range(40)]
    for n, decision in enumerate(decisions):
        done = await stores[n * n % 3 % 2].commit([[decision, decisions[0]]], NOW)
        assert done.position.seq == n + 1
    for store in stores:
        assert_sums(await total(store), decisions)
        assert await differences(store) == []
        await store.close()


# -- loading ------------------------------------------------------------------------------------


async def test_load_has_all_that_every_window_needs(store: Store) -> None:
    """The windows are right now and later, while the snapshot may be used."""
    ages = [0, 1, 4, 5, 6, 59, 60, 61, 62, 180, 1380, 1439, 1440, 1441, 9000, 10079, 10080, 10081]
    decisions = [
        kept(n, decided=NOW - age * MINUTE + side, cost=n)
        for n, (age, side) in enumerate((age, side) for age in ages for side in (-1, 0, 30 * 10**6))
    ]
    done = await store.commit([decisions], NOW)
    found = await store.load(NOW)
    for later in (0, 1, 59, 60, 61, 119):
        expected = load(done.position, NOW + later * MINUTE, decisions)
        for window in WINDOWS:
            moment = NOW + later * MINUTE
            assert cells_in(found, window, moment) == cells_in(expected, window, moment), window


async def test_snapshot_and_deltas_equal_a_later_snapshot(store: Store) -> None:
    """A snapshot with later deltas equals a snapshot of the store."""
    await store.commit([[kept(1)]], NOW)
    snapshot = await store.load(NOW)
    for n in range(2, 8):
        decision = kept(n, decided=NOW - n * n * HOUR, strategy=f"s{n % 2}")
        done = await store.commit([[decision]], NOW)
        assert done.delta is not None
        assert snapshot.apply(done.delta)
    later = await store.load(NOW)
    assert snapshot.position == later.position
    assert snapshot.total == later.total
    assert snapshot.hours == later.hours
    assert snapshot.minutes == later.minutes


async def test_deltas_bring_an_older_snapshot_up_to_date(store: Store) -> None:
    """`deltas` returns those after a position, as `commit` returned them."""
    committed = [await store.commit([[kept(number)]], NOW) for number in range(10)]
    for missed in (10, 4, 1, 0):
        after = Position(committed[0].position.epoch, 10 - missed)
        told = [commit.delta for commit in committed[10 - missed :]]
        assert await store.deltas(after) == told


async def test_deltas_of_another_history_are_a_gap(store: Store) -> None:
    """A position of another epoch, or of the future, is a gap."""
    position = (await store.commit([[kept(1)]], NOW)).position
    for stranger in (Position("another", 0), Position(position.epoch, 2)):
        with pytest.raises(MissingDeltas):
            await store.deltas(stranger)


async def test_load_is_as_of_one_position(store: Store) -> None:
    """While commits go on, a snapshot has exactly the commits up to its position."""

    async def write() -> None:
        for n in range(30):
            await store.commit([[kept(n)]], NOW)

    writing = asyncio.create_task(write())
    seen = set()
    while not writing.done():
        snapshot = await store.load(NOW)
        seen.add(snapshot.position.seq)
        assert_sums(snapshot.total, [kept(n) for n in range(snapshot.position.seq)])
    await writing
    assert seen
