"""The contract of every cache (`ports.Cache`)."""

import asyncio

from routecast.core.delta import Delta
from routecast.core.snapshot import Snapshot
from routecast.ports import Cache
from routecast.protocol import Position
from tests.support.decisions import NOW, assert_sums, cells_of, kept
from tests.support.engines import PATIENCE, Shared
from tests.support.windows import cells_in


def snapshot(seq: int = 1, epoch: str = "e") -> Snapshot:
    """Return a snapshot of `seq` commits of one decision each."""
    made = Snapshot(Position(epoch, 0), NOW)
    for number in range(1, seq + 1):
        made.apply(Delta(Position(epoch, number), cells_of([kept(number)]), NOW))
    return made


async def held(cache: Cache) -> Position | None:
    found = await cache.get()
    return found.position if found else None


async def test_empty_cache_has_nothing(cache: Cache) -> None:
    """An empty cache returns None, and not an empty snapshot."""
    assert await cache.get() is None


async def test_a_cached_snapshot_is_returned_whole(cache: Cache) -> None:
    """A snapshot comes back with all its sums, for every window."""
    await cache.put(snapshot(3))
    found = await cache.get()
    assert found is not None
    assert (found.position, found.taken) == (Position("e", 3), NOW)
    assert_sums(found.total, [kept(n) for n in range(3)])
    assert_sums(cells_in(found, "5m", NOW), [kept(n) for n in range(3)])


async def test_newest_put_holds(cache: Cache) -> None:
    """The cache keeps one snapshot, and an older one never replaces it."""
    await cache.put(snapshot(1))
    await cache.put(snapshot(2))
    await cache.put(snapshot(1))
    assert await held(cache) == Position("e", 2)
    await cache.put(snapshot(10))
    await cache.put(snapshot(9))
    assert await held(cache) == Position("e", 10)


async def test_another_epoch_replaces_any_seq(cache: Cache) -> None:
    """Of two epochs, the snapshot that was put last is kept."""
    await cache.put(snapshot(3, epoch="old"))
    await cache.put(snapshot(1, epoch="new"))
    assert await held(cache) == Position("new", 1)


async def test_changes_do_not_reach_the_cache(cache: Cache) -> None:
    """Changing a snapshot after `put` or `get` does not change the cached one."""
    mine = snapshot(1)
    await cache.put(mine)
    mine.apply(Delta(Position("e", 2), cells_of([kept(2)]), NOW))
    got = await cache.get()
    assert got is not None
    assert_sums(got.total, [kept(1)])
    got.apply(Delta(Position("e", 2), cells_of([kept(2)]), NOW))
    assert await held(cache) == Position("e", 1)


async def test_commits_during_a_put_do_not_reach_the_cache(cache: Cache) -> None:
    """A large snapshot takes many turns of the event loop to pack; commits come in between."""
    many = [kept(n, model=f"m{n}") for n in range(3_000)]
    mine = Snapshot(Position("e", 0), NOW)
    mine.apply(Delta(Position("e", 1), cells_of(many), NOW))
    putting = asyncio.create_task(cache.put(mine))
    while not putting.done():
        await asyncio.sleep(0)
        following = Position("e", mine.position.seq + 1)
        mine.apply(Delta(following, cells_of(many[following.seq % 3_000 :: 300]), NOW))
    await putting
    got = await cache.get()
    assert got is not None
    assert got.position == Position("e", 1)
    assert_sums(got.total, many)
    assert_sums(cells_in(got, "5m", NOW), many)
    await cache.put(snapshot(2))  # newer than what is cached, older than what was not
    assert await held(cache) == Position("e", 2)


async def test_invalidate_forgets_what_is_older(cache: Cache) -> None:
    """A snapshot of an earlier commit is removed."""
    await cache.put(snapshot(3))
    await cache.invalidate(Position("e", 4))
    assert await cache.get() is None


async def test_invalidate_keeps_what_is_as_new_or_newer(cache: Cache) -> None:
    """A snapshot that another node put meanwhile is kept."""
    await cache.put(snapshot(3))
    await cache.invalidate(Position("e", 3))
    await cache.invalidate(Position("e", 2))
    assert await held(cache) == Position("e", 3)


async def test_invalidate_forgets_another_epoch(cache: Cache) -> None:
    """A snapshot of another epoch is removed, whatever its seq."""
    await cache.put(snapshot(3, epoch="old"))
    await cache.invalidate(Position("new", 1))
    assert await cache.get() is None


async def test_an_empty_cache_can_be_invalidated(cache: Cache) -> None:
    """`invalidate` of an empty cache does nothing."""
    await cache.invalidate(Position("e", 1))
    assert await cache.get() is None


async def test_snapshot_expires(shared: Shared) -> None:
    """A snapshot is kept for the cache's lifetime."""
    cache = shared.cache(1.0)
    await cache.put(snapshot(2))
    while await cache.get() is None:  # a machine so busy that the second is over already
        await cache.put(snapshot(2))
    async with asyncio.timeout(PATIENCE):
        while await cache.get() is not None:  # noqa: ASYNC110  # -- it tells nobody when it forgets
            await asyncio.sleep(0.05)
    await cache.put(snapshot(1))
    assert await held(cache) == Position("e", 1)
    await cache.close()


async def test_close_may_be_called_twice(shared: Shared) -> None:
    """A second `close` does nothing."""
    cache = shared.cache(60)
    await cache.put(snapshot())
    await cache.close()
    await cache.close()
