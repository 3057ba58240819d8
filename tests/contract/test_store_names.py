"""The contract of every store for names, folded names, and ids within projects."""

import asyncio

import pytest

from routecast.core.decision import DecisionRecord
from routecast.core.overflow import LARGEST_SUM
from routecast.errors import MissingDeltas, SumFull
from routecast.ports import MAX_GROUP, Difference, Store
from tests.contract.conftest import Connect
from tests.support.decisions import DAY, HOUR, NOW, assert_sums, kept
from tests.support.summaries import sum_up


async def differences(store: Store) -> list[Difference]:
    return [found async for found in store.verify() if isinstance(found, Difference)]


async def assert_holds(store: Store, decisions: list[DecisionRecord]) -> None:
    """Assert that exactly these decisions count, and that a recount agrees."""
    assert_sums((await store.load(NOW)).total, decisions)
    assert await differences(store) == []


def as_other(*decisions: DecisionRecord) -> list[DecisionRecord]:
    return [one._replace(model="other") for one in decisions]


async def test_id_belongs_to_the_project_that_sent_it(connect: Connect) -> None:
    """This holds on every node, whatever name the project counts under."""
    here, there = connect(), connect()
    await here.open()
    await there.open()
    over = kept(1, owner="late", project="other")
    assert (await there.commit([[over]], NOW)).inserted == [1]
    assert (await here.commit([[over._replace(project="late")]], NOW)).inserted == [0]
    others = [kept(1, project="other"), kept(1, owner="b", project="other")]
    made_up = [
        kept(id="late/d1", project="other"),
        kept(id="d1", owner="a/b", project="other"),
        kept(id="b/d1", owner="a", project="other"),
    ]
    assert (await here.commit([others, made_up], NOW)).inserted == [2, 3]
    assert (await there.commit([made_up, others], NOW)).inserted == [0, 0]
    await assert_holds(here, [over, *others, *made_up])
    await here.close()
    await there.close()


async def test_fold_moves_all_that_a_name_has(store: Store) -> None:
    """It moves totals, hours, minutes, pruned sums, summaries and decisions with their ids."""
    old = [kept(n, model=f"m{n % 3}", decided=NOW - n * HOUR) for n in range(9)]
    for decision in reversed(old):
        await store.commit([[decision]], decision.decided)
    assert await store.prune(decisions_before=NOW - 5 * HOUR, minutes_before=0, limit=2) == 2
    await sum_up(store, NOW, 100)
    new = [kept(n, model=f"m{n % 3}") for n in range(9, 15)]
    await store.commit([new], NOW)
    before = await store.position()
    moved = await store.fold_names("model", ["m0", "m1"], remember=True)
    assert (moved.seq, moved == await store.position()) == (before.seq, True)
    assert moved.epoch != before.epoch
    with pytest.raises(MissingDeltas):
        await store.deltas(before)
    assert await store.deltas(moved) == []
    expected = [one if one.model == "m2" else one._replace(model="other") for one in (*old, *new)]
    await assert_holds(store, expected)
    assert (await store.commit([new], NOW)).inserted == [0]
    while await store.prune(decisions_before=NOW + 1, minutes_before=0, limit=4):
        assert await differences(store) == []
    await sum_up(store, NOW + DAY, 100)
    await assert_holds(store, expected)


async def test_folded_name_counts_as_other_until_it_is_forgotten(connect: Connect) -> None:
    """This holds at once in every store on the database."""
    stores = [connect(), connect()]
    for store in stores:
        await store.open()
    first, second = stores
    await second.commit([[kept(1, model="a")]], NOW)
    await first.fold_names("model", {"a"}, remember=True)
    assert await second.folded_names() == {"model": {"a"}}
    await second.commit([[kept(2, model="a")]], NOW)
    await first.commit([[kept(3, model="a"), kept(2, model="a")]], NOW)
    await assert_holds(first, as_other(kept(1), kept(2), kept(3)))
    await second.fold_names("model", {"a"}, remember=False)
    assert await first.folded_names() == {}
    back = kept(4, model="a")
    await first.commit([[back]], NOW)
    await assert_holds(second, [*as_other(kept(1), kept(2), kept(3)), back])
    for store in stores:
        await store.close()


async def test_names_of_all_parts_can_be_folded_one_after_the_other(store: Store) -> None:
    """In the end one key has all decisions."""
    decisions = [kept(n, project=f"p{n}", strategy=f"s{n}", provider=f"v{n}") for n in range(4)]
    await store.commit([decisions], NOW)
    for part, letter in (("project", "p"), ("strategy", "s"), ("provider", "v")):
        await store.fold_names(part, [f"{letter}{n}" for n in range(4)], remember=False)
        assert await differences(store) == []
    renamed = [
        one._replace(project="other", strategy="other", provider="other") for one in decisions
    ]
    await assert_holds(store, renamed)


async def test_large_batch_counts_folded_names_as_other(connect: Connect) -> None:
    """Its ids belong to the projects that sent them."""
    here, there = connect(), connect()
    await here.open()
    await there.open()
    await there.commit([[kept(0, model="a")]], NOW)
    await here.fold_names("model", {"a"}, remember=True)
    large = [
        kept(n, model="ab"[n % 2], owner=f"p{n % 3}", project="other") for n in range(MAX_GROUP + 1)
    ]
    assert (await there.commit([large], NOW)).inserted == [MAX_GROUP + 1]
    assert (await here.commit([large[:7], large], NOW)).inserted == [0, 0]
    expected = [
        one._replace(model="other") if one.model == "a" else one
        for one in (kept(0, model="a"), *large)
    ]
    await assert_holds(here, expected)
    await here.close()
    await there.close()


async def test_full_series_names_the_project_that_sent_what_does_not_fit(store: Store) -> None:
    """The series may be full by a folded name; nothing of that decision is stored."""
    await store.fold_names("model", ["a"], remember=True)
    first = kept(1, owner="late", project="other", model="a", cost=LARGEST_SUM)
    second = kept(1, owner="b", project="other", model="other", cost=1)
    third = kept(2, owner="late", project="other", model="a", cost=None)
    done = await store.commit([[first, second, third]], NOW)
    assert (done.inserted, done.full) == ([2], {("d1", "b"): "cost"})
    again = await store.commit([[second._replace(model="a")]], NOW)
    assert (again.inserted, again.full) == ([0], {("d1", "b"): "cost"})
    await assert_holds(store, as_other(first, third))
    free = second._replace(cost=None)
    assert (await store.commit([[free]], NOW)).inserted == [1]
    await assert_holds(store, as_other(first, third, free))


async def test_sum_without_room_changes_nothing(store: Store) -> None:
    """A fold that would overflow a sum is refused with the reason."""
    full = [kept(n, model=f"m{n}", cost=2**62) for n in range(2)]
    for one in full:
        await store.commit([[one]], NOW)
    before = await store.position()
    with pytest.raises(SumFull, match="cost: a sum of `other`"):
        await store.fold_names("model", ["m0", "m1"], remember=True)
    assert await store.position() == before
    assert await store.folded_names() == {}
    more = kept(3, model="m0", cost=1)
    await store.commit([[more]], NOW)
    await assert_holds(store, [*full, more])


async def test_fold_beside_commits_loses_nothing(connect: Connect) -> None:
    """Each decision counts once, under its name or as `other`."""
    stores = [connect() for _ in range(3)]
    for store in stores:
        await store.open()
    *producers, operator = stores
    sent: list[DecisionRecord] = []

    async def produce(store: Store, number: int) -> None:
        for n in range(20):
            batch = [kept(id=f"{number}-{n}-{k}", model=f"m{k}") for k in range(3)]
            assert (await store.commit([batch], NOW)).inserted == [3]
            sent.extend(batch)

    async def fold() -> None:
        for remember in (True, False, True):
            await operator.fold_names("model", ["m0", "m1"], remember=remember)

    await asyncio.gather(*(produce(store, n) for n, store in enumerate(producers)), fold())
    await operator.fold_names("model", ["m0", "m1"], remember=True)
    expected = [one if one.model == "m2" else one._replace(model="other") for one in sent]
    for store in stores:
        await assert_holds(store, expected)
        await store.close()
