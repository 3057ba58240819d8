"""The contract of every store for deleting a project."""

import asyncio

import pytest

from routecast.core.decision import DecisionRecord
from routecast.core.keys import AccessChange
from routecast.errors import MissingDeltas
from routecast.ports import Database, DeletedProject, Difference
from tests.contract.conftest import Connect
from tests.support.decisions import DAY, HOUR, NOW, assert_sums, kept
from tests.support.keys import an_api_key
from tests.support.summaries import sum_up


async def assert_holds(store: Database, decisions: list[DecisionRecord]) -> None:
    """Assert that exactly these decisions count, and that a recount agrees."""
    assert_sums((await store.load(NOW)).total, decisions)
    assert [found async for found in store.verify() if isinstance(found, Difference)] == []


async def projects(store: Database) -> dict[str, int]:
    return {one.name: one.count for one in await store.names() if one.part == "project"}


async def test_all_that_a_project_has_is_deleted(connect: Connect) -> None:
    """Its decisions, minutes, hours, pruned sums, summaries, deltas and names; nothing else."""
    store, node = connect(), connect()
    await store.open()
    await node.open()
    old = [
        kept(n, project=f"p{n % 3}", model=f"m{n % 3}", decided=NOW - n * HOUR) for n in range(9)
    ]
    for decision in reversed(old):
        await node.commit([[decision]], decision.decided)
    assert await store.prune(decisions_before=NOW - 5 * HOUR, minutes_before=0, limit=3) == 3
    await sum_up(store, NOW, 100)
    new = [kept(n, project=f"p{n % 3}") for n in range(9, 15)]
    await node.commit([new], NOW)
    before = await store.position()
    assert await store.has_decisions("p0")
    gone = await store.delete_project("p0", NOW)
    assert (gone.decisions, len(gone.keys)) == (4, 0)
    after = await store.position()
    assert (after.seq, after.epoch != before.epoch) == (before.seq, True)
    with pytest.raises(MissingDeltas):
        await store.deltas(before)
    assert await store.deltas(after) == []
    left = [one for one in (*old, *new) if one.project != "p0"]
    await assert_holds(store, left)
    assert await projects(store) == {"p1": 5, "p2": 5}
    assert "m0" not in {one.name for one in await store.names()}
    assert not await store.has_decisions("p0")
    again = [one for one in new if one.project == "p0"]
    assert (await node.commit([new], NOW)).inserted == [len(again)]
    left += again
    await assert_holds(node, left)
    assert len(await store.deltas(after)) == 1
    await sum_up(store, NOW + DAY, 100)
    await assert_holds(store, left)
    while await store.prune(decisions_before=NOW + 1, minutes_before=0, limit=4):
        await assert_holds(store, left)
    await assert_holds(store, left)
    for one in (store, node):
        await one.close()


async def test_decisions_that_count_as_other_are_deleted_from_it(store: Database) -> None:
    """Their sums are subtracted, also if their name was folded, and where minutes are gone."""
    mine = [
        kept(n, owner="late", project="other", latency=10 * n, decided=NOW - n * HOUR)
        for n in range(6)
    ]
    others = [kept(n, owner="b", project="other", decided=NOW - n % 2 * HOUR) for n in range(4)]
    folded = [kept(n, project="late") for n in range(10, 13)]
    for decision in (*mine, *others):
        await store.commit([[decision]], NOW)
    await store.commit([folded], NOW)
    await store.fold_names("project", ["late"], remember=True)
    await store.prune(decisions_before=0, minutes_before=NOW - 3 * HOUR, limit=100)
    await sum_up(store, NOW + HOUR, 100)
    gone = await store.delete_project("late", NOW)
    assert gone.decisions == 9
    await assert_holds(store, others)
    assert await store.folded_names() == {}
    await sum_up(store, NOW + HOUR, 100)
    await assert_holds(store, others)


async def test_what_was_dropped_before_stays_in_other(store: Database) -> None:
    """Nothing tells any more whose it was."""
    old, young = (kept(n, owner="late", project="other") for n in range(2))
    await store.commit([[old]], NOW - 2 * HOUR)
    await store.commit([[young]], NOW)
    assert await store.prune(decisions_before=NOW - HOUR, minutes_before=0, limit=9) == 1
    assert (await store.delete_project("late", NOW)).decisions == 1
    await assert_holds(store, [old])


async def test_keys_lose_the_project(store: Database) -> None:
    """Those for nothing else are revoked, and running nodes notice it by the version."""
    only = an_api_key(1, projects=frozenset({"trial"}))
    several = an_api_key(2, projects=frozenset({"trial", "search"}))
    everything = an_api_key(3, projects=None)
    other = an_api_key(4, projects=frozenset({"search"}))
    ended = an_api_key(5, projects=frozenset({"trial"}), revoked=NOW - 1)
    keys = only, several, everything, other, ended
    await store.change_access(lambda _: AccessChange(put_keys=keys))
    version = await store.access_version()
    gone = await store.delete_project("trial", NOW)
    assert sorted(key.id for key in gone.keys) == sorted([only.id, several.id])
    records = await store.access()
    assert records.version not in ("", version)
    assert records.keys[only.id].revoked == NOW
    assert records.keys[several.id].projects == frozenset({"search"})
    assert records.keys[several.id].revoked is None
    for key in (everything, other, ended):
        assert records.keys[key.id] == key
    assert {key.id: key for key in gone.keys} == {
        key.id: records.keys[key.id] for key in (only, several)
    }


async def test_unknown_project_changes_nothing(store: Database) -> None:
    """No epoch begins, so no node loads its sums again."""
    await store.commit([[kept(1)]], NOW)
    before = await store.position()
    assert await store.delete_project("no such", NOW) == DeletedProject()
    assert await store.position() == before
    await assert_holds(store, [kept(1)])


async def test_empty_database_can_lose_a_project_that_only_keys_have(store: Database) -> None:
    """There is no commit yet, and none is made up."""
    await store.change_access(
        lambda _: AccessChange(put_keys=[an_api_key(1, projects=frozenset({"trial"}))])
    )
    await store.delete_project("trial", NOW)
    assert (await store.position()).seq == 0
    await store.commit([[kept(1)]], NOW)
    await assert_holds(store, [kept(1)])


async def test_deletion_beside_commits_loses_nothing_else(connect: Connect) -> None:
    """Each decision of another project counts once, and ids keep belonging to their projects."""
    stores = [connect() for _ in range(3)]
    for store in stores:
        await store.open()
    *producers, operator = stores
    sent: list[DecisionRecord] = []

    async def produce(store: Database, number: int) -> None:
        for n in range(15):
            batch = [kept(id=f"{number}-{n}-{k}", project=f"p{k}") for k in range(3)]
            assert (await store.commit([batch], NOW)).inserted == [3]
            sent.extend(batch)

    async def delete() -> None:
        for _ in range(3):
            await operator.delete_project("p0", NOW)

    await asyncio.gather(*(produce(store, n) for n, store in enumerate(producers)), delete())
    await operator.delete_project("p0", NOW)
    left = [one for one in sent if one.project != "p0"]
    for store in stores:
        await assert_holds(store, left)
        await store.close()
