"""The Redis cache beyond its contract: sharing a snapshot, and values that cannot be read."""

from collections.abc import AsyncIterator

import pytest
from redis import Redis

from routecast.adapters.cache import redis as redis_cache
from routecast.adapters.cache.redis import RedisCache
from routecast.core.snapshot import FORM, Snapshot
from routecast.errors import Unavailable
from routecast.protocol import Position
from tests.support.decisions import NOW
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
    """What one puts the other gets, and can make all forget."""
    other = shared.cache()
    await cache.put(snapshot(5))
    found = await other.get()
    assert found is not None
    assert found.position == Position("e", 5)
    await other.invalidate(Position("e", 6))
    assert await cache.get() is None
    await other.close()


async def test_clusters_do_not_share(redis_url: str, cache: RedisCache) -> None:
    """Another prefix is another cluster."""
    stranger = SharedRedis(redis_url).cache()
    await stranger.put(snapshot())
    assert await cache.get() is None
    await stranger.close()


@pytest.mark.parametrize("junk", [b"", b"junk", b"\x28\xb5\x2f\xfd"])
async def test_unreadable_snapshot_is_none(
    redis_url: str, shared: SharedRedis, cache: RedisCache, junk: bytes
) -> None:
    """And makes room for a good one."""
    with Redis.from_url(redis_url) as client:
        fields = {"epoch": "e", "seq": 1, "snapshot": junk}
        client.hset(shared.link().key(f"snapshot:{FORM}"), mapping=fields)
    assert await cache.get() is None
    await cache.put(snapshot(1))
    assert await cache.get() is not None


async def test_too_large_a_snapshot_is_not_kept(
    cache: RedisCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could not be sent in time; the caller is told, and what was there stays."""
    await cache.put(snapshot(1))
    monkeypatch.setattr(redis_cache, "MAX_SNAPSHOT_BYTES", 1)
    with pytest.raises(Unavailable, match="too large"):
        await cache.put(snapshot(2))
    assert await cache.get() is not None
