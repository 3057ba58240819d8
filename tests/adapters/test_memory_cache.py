"""The cache of a single process: its lifetime, to the microsecond."""

from routecast.adapters.cache.memory import MemoryCache
from routecast.core.snapshot import Snapshot
from routecast.protocol import Position
from tests.support.clock import HeldClock
from tests.support.decisions import NOW, SECOND


async def test_snapshot_is_kept_for_its_lifetime(cache: MemoryCache, clock: HeldClock) -> None:
    """The lifetime of 30 seconds begins when it is put."""
    await cache.put(Snapshot(Position("e", 1), NOW))
    clock.moment = NOW + 30 * SECOND - 1
    assert await cache.get() is not None
    clock.moment = NOW + 30 * SECOND
    assert await cache.get() is None


async def test_put_begins_a_new_lifetime(cache: MemoryCache, clock: HeldClock) -> None:
    """The second snapshot does not end with the first one's lifetime."""
    await cache.put(Snapshot(Position("e", 1), NOW))
    clock.moment = NOW + 20 * SECOND
    await cache.put(Snapshot(Position("e", 2), NOW))
    clock.moment = NOW + 49 * SECOND
    assert await cache.get() is not None
