"""Loading snapshots: from a good cache, otherwise from the database, which one node reads."""

import asyncio

import pytest

from routecast.adapters.bus.memory import MemoryBus
from routecast.adapters.cache.memory import MemoryCache
from routecast.adapters.cluster.memory import MemoryCluster
from routecast.adapters.store.sqlite import SqliteStore
from routecast.core.snapshot import Snapshot
from routecast.core.topology import Topology
from routecast.errors import Unavailable
from routecast.instruments import Instruments
from routecast.protocol import Position
from routecast.services.snapshot_loader import LOAD_POLL, LOAD_SECONDS, SnapshotLoader
from tests.support.clock import HeldClock, HeldTimers
from tests.support.decisions import HOUR, NOW, assert_sums, kept


class BrittleCache(MemoryCache):
    """A cache that fails while `failing` is set."""

    failing = False

    async def get(self) -> Snapshot | None:
        if self.failing:
            raise Unavailable("gone")
        return await super().get()


@pytest.fixture
def cache(clock: HeldClock) -> BrittleCache:
    """An empty cache that keeps snapshots for 30 seconds of the clock."""
    return BrittleCache(clock, 30)


@pytest.fixture
def timers() -> HeldTimers:
    """Timers that run when a test moves the clock."""
    return HeldTimers()


@pytest.fixture
def cluster(timers: HeldTimers) -> MemoryCluster:
    """A cluster without claims, on the held clock."""
    return MemoryCluster(timers.now)


@pytest.fixture
def loader(
    store: SqliteStore,
    cache: BrittleCache,
    bus: MemoryBus,
    cluster: MemoryCluster,
    clock: HeldClock,
    timers: HeldTimers,
    instruments: Instruments,
) -> SnapshotLoader:
    """A loader on an empty database."""
    return SnapshotLoader(store, cache, bus, cluster, clock, timers, instruments, Topology())


async def test_snapshot_of_a_clock_ahead_is_not_used(
    loader: SnapshotLoader, store: SqliteStore, cache: BrittleCache, cluster: MemoryCluster
) -> None:
    """It has the minutes of another hour, and so may have the one that another node loads."""
    done = await store.commit([[kept(1)]], NOW)
    await cache.put(Snapshot(done.position, NOW + HOUR))
    await cluster.claim("load", LOAD_SECONDS)  # as another node
    snapshot = await loader.load(None)
    assert snapshot.taken == NOW
    assert_sums(snapshot.total, [kept(1)])


async def test_loader_waits_for_another_node_that_loads(
    loader: SnapshotLoader, cache: BrittleCache, cluster: MemoryCluster, timers: HeldTimers
) -> None:
    """The other node reads the database, and its cached snapshot is used."""
    await cluster.claim("load", LOAD_SECONDS)
    load = asyncio.create_task(loader.load(None))
    await timers.pass_time(LOAD_SECONDS / 2)
    await cache.put(Snapshot(Position("e", 4711), NOW))
    timers.go_to(timers.moment + LOAD_POLL)
    assert (await load).position == Position("e", 4711)


async def test_loader_waits_at_most_as_long_as_the_claim(
    loader: SnapshotLoader, store: SqliteStore, cluster: MemoryCluster, timers: HeldTimers
) -> None:
    """The other node may have been killed; then this node reads the database."""
    done = await store.commit([[kept(1)]], NOW)
    await cluster.claim("load", LOAD_SECONDS)
    load = asyncio.create_task(loader.load(None))
    await timers.pass_time(LOAD_SECONDS - LOAD_POLL)
    assert not load.done()
    timers.go_to(timers.moment + 2 * LOAD_POLL)
    assert (await load).position == done.position


async def test_cache_that_failed_is_tried_again(
    loader: SnapshotLoader, cache: BrittleCache
) -> None:
    """A failing cache is asked again although nothing else uses it."""
    cache.failing = True
    assert await loader.from_cache() is None
    await loader.recheck()
    assert loader.cache_failing
    cache.failing = False
    await loader.recheck()
    assert not loader.cache_failing


async def test_snapshot_ahead_of_the_database_is_not_used(
    loader: SnapshotLoader, store: SqliteStore, cache: BrittleCache
) -> None:
    """A database restored with its epoch gives used positions to other commits."""
    done = await store.commit([[kept(1)]], NOW)
    await cache.put(Snapshot(Position(done.position.epoch, 8000), NOW))
    snapshot = await loader.load(done.position)
    assert_sums(snapshot.total, [kept(1)])
    assert snapshot.position.epoch != done.position.epoch
    assert snapshot.position == await store.position()
    held = await cache.get()
    assert held is not None
    assert held.position == snapshot.position


async def test_snapshot_ahead_is_used_without_a_database(
    loader: SnapshotLoader, store: SqliteStore, cache: BrittleCache
) -> None:
    """Without the database nothing shows that it is wrong."""
    done = await store.commit([[kept(1)]], NOW)
    await store.close()
    await cache.put(Snapshot(Position(done.position.epoch, 8000), NOW))
    assert (await loader.load(None)).position.seq == 8000


async def test_cached_snapshot_of_another_epoch_is_not_used(
    loader: SnapshotLoader, cache: BrittleCache
) -> None:
    """The epoch of the database decides."""
    await cache.put(Snapshot(Position("before", 5), NOW))
    assert await loader.from_cache() is not None
    loader.epoch = "now"
    assert await loader.from_cache() is None
