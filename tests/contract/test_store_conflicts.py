"""The contract of every store for known ids with the same or another decision."""

import asyncio
from typing import Any

import pytest

from routecast.core.decision import DecisionRecord
from routecast.core.overflow import LARGEST_SUM
from routecast.ports import MAX_GROUP, Store
from tests.contract.conftest import Connect
from tests.support.decisions import HOUR, NOW, assert_sums, kept


def paid(number: int, cost: int | None = 5, **values: Any) -> DecisionRecord:
    """Return a decision with a sent cost."""
    given: dict[str, Any] = {
        "id": f"d{number}",
        "model": "m",
        "status": "success",
        "cost": cost,
        **values,
    }
    return kept(**given)._replace(cost_sent=True)


@pytest.mark.parametrize("size", [4, MAX_GROUP + 4], ids=["small", "large"])
async def test_conflicts_are_distinguished_from_retries(store: Store, size: int) -> None:
    """Conflicts are counted apart from duplicates, in groups and in large batches."""
    sent = [paid(n) for n in range(size)]
    first = await store.commit([sent], NOW)
    assert (first.inserted, sum(first.conflicts)) == ([size], 0)
    again = await store.commit([sent], NOW)
    assert (again.inserted, sum(again.conflicts), again.delta) == ([0], 0, None)
    others = [
        paid(0, cost=6),
        paid(1, cost=None),
        paid(2, status="error"),
        paid(3, model="n"),
        *(paid(n) for n in range(4, size)),
    ]
    conflicts = await store.commit([others], NOW)
    assert (conflicts.inserted, conflicts.conflicts) == ([0], [4])
    mixed = await store.commit([[*others, paid(size)]], NOW)
    assert (mixed.inserted, mixed.conflicts) == ([1], [4])
    assert_sums((await store.load(NOW)).total, [*sent, paid(size)])


@pytest.mark.parametrize("size", [2, MAX_GROUP], ids=["small", "large"])
async def test_conflicts_within_one_call(store: Store, size: int) -> None:
    """The first decision with an id is kept, and each batch has its own count."""
    filling = [paid(100 + n) for n in range(size)]
    one = [paid(1), paid(1), paid(1, cost=7), *filling]
    two = [paid(2), paid(1, status="error"), paid(2), filling[0]]
    done = await store.commit([one, two], NOW)
    assert (done.inserted, done.conflicts) == ([1 + size, 1], [1, 1])
    assert_sums((await store.load(NOW)).total, [paid(1), *filling, paid(2)])


async def test_a_price_of_ones_own_is_no_conflict(store: Store) -> None:
    """A decision that the server priced may be priced otherwise when it is sent again."""
    priced = paid(1)._replace(cost_sent=False)
    await store.commit([[priced]], NOW)
    for cost in (5, 6, None):
        again = await store.commit([[priced._replace(cost=cost)]], NOW)
        assert (again.inserted, sum(again.conflicts)) == ([0], 0)


async def test_a_folded_model_is_no_conflict(store: Store) -> None:
    """The stored model is `other` by now, and the repeated decision still has the name."""
    await store.commit([[paid(1), paid(2, model="n")]], NOW)
    await store.fold_names("model", ["m"], remember=False)
    again = await store.commit([[paid(1), paid(2, model="n")]], NOW)
    assert (again.inserted, sum(again.conflicts)) == ([0], 0)
    await store.fold_names("model", ["m"], remember=True)
    again = await store.commit([[paid(1), paid(2), paid(2, model="x")]], NOW)
    assert (again.inserted, again.conflicts) == ([0], [1])


async def test_ids_of_projects_are_their_own(store: Store) -> None:
    """The same id of another project is neither a duplicate nor a conflict."""
    here, there = paid(1), paid(1, cost=9, project="p2", owner="p2")
    done = await store.commit([[here, there], [there, here]], NOW)
    assert (done.inserted, sum(done.conflicts)) == ([2, 0], 0)


async def test_a_decision_without_room_is_no_conflict(store: Store) -> None:
    """It is rejected, with all others that have its id."""
    huge = paid(1, cost=LARGEST_SUM)
    await store.commit([[huge]], NOW)
    done = await store.commit([[paid(2, cost=1), paid(2, cost=2), paid(1, cost=3)]], NOW)
    assert done.full.keys() == {("d2", "default")}
    assert (done.inserted, done.conflicts) == ([0], [1])


async def test_conflicts_with_what_is_old(store: Store) -> None:
    """A known id conflicts however long ago its decision was received."""
    await store.commit([[paid(1, decided=NOW - 30 * HOUR)]], NOW - 30 * HOUR)
    await store.commit([[paid(2)]], NOW)
    found = await store.commit([[paid(1, cost=6), paid(2, cost=6)]], NOW)
    assert (found.inserted, found.conflicts) == ([0], [2])


async def test_two_nodes_commit_the_same_id(connect: Connect) -> None:
    """The second node is told, wherever the first decision is."""
    here, there = connect(), connect()
    await here.open()
    await there.open()
    for number in range(10):
        done = await asyncio.gather(
            here.commit([[paid(number, cost=1)]], NOW), there.commit([[paid(number, cost=2)]], NOW)
        )
        assert sorted(commit.inserted for commit in done) == [[0], [1]]
        assert sum(sum(commit.conflicts) for commit in done) == 1
    await here.close()
    await there.close()
