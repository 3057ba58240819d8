"""The Redis cache beyond its contract: sharing a snapshot, and values that cannot be read."""

from collections.abc import AsyncIterator

import pytest
from redis import Redis

from routecast.adapters.cache import redis as redis_cache
from routecast.adapters.cache.redis import RedisCache
from routecast.core.delta import Delta
from routecast.core.packing import CELLS_PER_PACK_STEP, FORM
from routecast.core.snapshot import Snapshot
from routecast.errors import Unavailable
from routecast.protocol import Position
from routecast.slices import Slices
from tests.support.decisions import NOW, cells_of, kept
from tests.support.engines import SharedRedis


@pytest.fixture
def shared(redis_url: str) -> SharedRedis:
    return SharedRedis(redis_url)


@pytest.fixture
async def cache(shared: SharedRedis) -> AsyncIterator[RedisCache]:
    made = shared.cache()
    yield made
    await made.close()


def snapshot(seq: int = 1) -> Snapshot:
    return Snapshot(Position("e", seq), NOW)


async def test_nodes_share_a_snapshot(shared: SharedRedis, cache: RedisCache) -> None:
    """One node puts a snapshot that the others get; each can make all forget it."""
    other = shared.cache()
    await cache.put(snapshot(5))
    found = await other.get()
    assert found is not None
    assert found.position == Position("e", 5)
    await other.invalidate(Position("e", 6))
    assert await cache.get() is None
    await other.close()


async def test_clusters_do_not_share_a_snapshot(redis_url: str, cache: RedisCache) -> None:
    """Each prefix is a cluster of its own."""
    stranger = SharedRedis(redis_url).cache()
    await stranger.put(snapshot())
    assert await cache.get() is None
    await stranger.close()


@pytest.mark.parametrize("junk", [b"", b"junk", b"\x28\xb5\x2f\xfd"])
async def test_unreadable_snapshot_is_none(
    redis_url: str, shared: SharedRedis, cache: RedisCache, junk: bytes
) -> None:
    """A good snapshot can replace it."""
    with Redis.from_url(redis_url) as client:
        fields = {"epoch": "e", "seq": 1, "snapshot": junk}
        client.hset(shared.link().key(f"snapshot:{FORM}"), mapping=fields)
    assert await cache.get() is None
    await cache.put(snapshot(1))
    assert await cache.get() is not None


class CountingSlices(Slices):
    turns = 0

    async def turn(self) -> None:
        self.turns += 1
        await super().turn()


async def test_large_snapshot_is_packed_in_slices(shared: SharedRedis) -> None:
    """Other tasks get turns while it is packed, with any number of cells."""
    large = Snapshot(Position("e", 0), NOW)
    cells = 8 * CELLS_PER_PACK_STEP
    many = cells_of([kept(n, model=f"m{n}") for n in range(cells)])
    large.apply(Delta(Position("e", 1), many, NOW))
    cache = RedisCache(shared.link(), slices=(slices := CountingSlices()))
    await cache.put(large)
    found = await cache.get()
    await cache.close()
    assert found is not None
    assert found.total == large.total
    assert slices.turns >= 3 * 8 / 2  # total, hour and minute; a step has less than twice the cells


async def test_snapshot_that_is_too_large_is_refused(
    cache: RedisCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could not be sent in time; the caller gets an error, and the old snapshot stays."""
    await cache.put(snapshot(1))
    monkeypatch.setattr(redis_cache, "MAX_SNAPSHOT_BYTES", 1)
    with pytest.raises(Unavailable, match="too large"):
        await cache.put(snapshot(2))
    assert await cache.get() is not None
