"""Loading snapshots: from the cache, or from the database if the cache has none.

A cached snapshot is some seconds old; the later deltas on the bus make it the newest. If some of
them are missing, the cached snapshot is not used.
"""

import logging
from contextlib import suppress
from typing import Final

from routecast.core.snapshot import LIFETIME, Snapshot
from routecast.core.topology import Topology
from routecast.errors import MissingDeltas, Unavailable
from routecast.instruments import Instruments
from routecast.ports import Bus, Cache, Clock, Cluster, Store, Timers
from routecast.protocol import Position
from routecast.wake_timer import WakeTimer

log = logging.getLogger(__name__)

# The node that reads the database for all nodes must cache the result within this time, in seconds.
LOAD_SECONDS: Final = 5.0
# Other nodes look for it in the cache this often, in seconds.
LOAD_POLL: Final = 0.05
# If there are several nodes, one of them caches a snapshot every SHARE_SECONDS. It is for nodes
# that start, and for nodes without a database that missed deltas and must not be 5 s behind.
SHARE_SECONDS: Final = 3.0
# An unchanged snapshot is cached again this many times less often, because it expires, and nodes
# without a database can start from nothing else.
SHARE_REPEAT: Final = 3


class _OtherClock(Exception):
    """The minutes in the cached snapshot are those of a clock that differs from this node's."""


class SnapshotLoader:
    """Loads snapshots from the cache and the database, and caches them.

    A snapshot may take `room` bytes, None for any number. A node without a database
    (`Topology.has_store`) waits until another node has cached a snapshot.
    """

    def __init__(
        self,
        store: Store,
        cache: Cache,
        bus: Bus,
        cluster: Cluster,
        clock: Clock,
        timers: Timers,
        instruments: Instruments,
        topology: Topology,
        *,
        room: int | None = None,
    ) -> None:
        self._store = store
        self._cache = cache
        self._bus = bus
        self._cluster = cluster
        self._clock = clock
        self._timers = timers
        self._instruments = instruments
        self._topology = topology
        self._shared: Position | None = None  # of the snapshot that `share` cached last
        self.room = room
        self.cache_failing = False
        self.epoch: str | None = None  # of the database, when it was last read

    async def load(self, known: Position | None) -> Snapshot:
        """Return a snapshot from which to follow the bus. Raises Unavailable.

        If several nodes load at the same time, one of them reads the database. `known` is a known
        position of the database: a cached snapshot of another epoch is dropped.
        """
        if known is not None:
            with suppress(Unavailable):
                await self._cache.invalidate(Position(known.epoch, 0))  # of any seq
        deadline = self._timers.now() + LOAD_SECONDS
        while True:
            try:
                snapshot = await self._look_up()
            except _OtherClock:
                break  # other nodes have no better one
            if snapshot is not None and (found := await self._ahead_of(snapshot)) is not None:
                known = found
                break
            if snapshot is not None and _reaches(snapshot.position, known):
                self._count_lookup("hit")
                return snapshot
            late = self._timers.now() > deadline
            if late or self.cache_failing or await self._acquire_load_lock(known):
                break
            await WakeTimer(self._timers).wait_until(self._timers.now() + LOAD_POLL)
        self._count_lookup("error" if self.cache_failing else "miss")
        return await self.from_store()

    async def _ahead_of(self, snapshot: Snapshot) -> Position | None:
        """If the database is behind a cached snapshot, begin an epoch, and return its position.

        Only commits that were made are cached, so a database that is behind has lost commits.
        Returns None if it is not behind.
        """
        if not self._topology.has_store:
            return None
        try:
            there = await self._store.position()
        except Unavailable:
            return None  # the cache is the only source
        if not is_behind(there, snapshot.position):
            return None
        there = await self.begin_epoch(snapshot.position, there)
        with suppress(Unavailable):
            await self._cache.invalidate(Position(there.epoch, 0))
        return there

    async def begin_epoch(self, seen: Position, there: Position) -> Position:
        """Begin an epoch, because the database was at `seen` and is at `there` now.

        A restore by other tools, or a failover that lost commits, keeps the epoch. Later commits
        then get the same numbers as the lost ones; the new epoch tells them apart. Returns the new
        position. Raises Unavailable.
        """
        log.warning(
            "The database went back from seq %d to %d, as after a restore: a new epoch begins",
            *(seen.seq, there.seq),
        )
        # It folds no name, and only begins an epoch.
        begun = await self._store.fold_names("model", (), remember=False)
        self.epoch = begun.epoch
        return begun

    async def from_cache(self) -> Snapshot | None:
        """Return the cached snapshot with all later deltas; None if there is no usable one."""
        snapshot = None
        with suppress(_OtherClock):
            snapshot = await self._look_up()
        self._count_lookup("hit" if snapshot else "error" if self.cache_failing else "miss")
        return snapshot

    async def recheck(self) -> None:
        """Check whether a cache that failed works again."""
        if self.cache_failing:
            with suppress(_OtherClock):
                await self._look_up()

    def _count_lookup(self, result: str) -> None:
        self._instruments.cache.labels(result).inc()
        log.info("Metrics cache %s", "HIT" if result == "hit" else "MISS")

    async def _look_up(self) -> Snapshot | None:
        """Return the cached snapshot, caught up. Raises _OtherClock if it is of another clock."""
        try:
            held = await self._cache.get()
            found = None if held is None else await self._catch_up(held)
        except (Unavailable, ValueError) as error:
            if not self.cache_failing:  # logged once
                log.warning("Metrics cache cannot be used: %s", error)
            self.cache_failing = True
            return None
        self.cache_failing = False
        if found is None and held is not None and not self._is_of_our_time(held):
            raise _OtherClock
        if found is not None and self.epoch not in (None, found.position.epoch):
            return None  # the database's epoch is the right one
        return found

    def _is_of_our_time(self, snapshot: Snapshot) -> bool:
        return 0 <= self._clock.now() - snapshot.taken < LIFETIME

    async def _catch_up(self, snapshot: Snapshot) -> Snapshot | None:
        if not self._is_of_our_time(snapshot):
            return None
        snapshot.room = self.room  # another node may have more
        snapshot.fit()
        try:
            for delta in await self._bus.deltas(snapshot.position):
                snapshot.apply(delta)
        except MissingDeltas:
            return None
        return snapshot

    async def _acquire_load_lock(self, known: Position | None) -> bool:
        if not self._topology.has_store:
            return False
        work = f"load {known.epoch}:{known.seq}" if known else "load"
        try:
            return await self._cluster.claim(work, LOAD_SECONDS)
        except Unavailable:
            return True

    async def from_store(self) -> Snapshot:
        """Read a snapshot from the database, and cache it. Raises Unavailable."""
        snapshot = await self._store.load(self._clock.now(), self.room)
        await self.cache(snapshot)
        return snapshot

    async def is_ours_to_share(self, position: Position) -> bool:
        """Return whether this node must `share` a snapshot now. Raises Unavailable."""
        if position == self._shared:
            return await self._cluster.claim("cache again", SHARE_REPEAT * SHARE_SECONDS)
        return await self._cluster.claim("cache", SHARE_SECONDS)

    async def share(self, snapshot: Snapshot) -> None:
        """Cache a snapshot for nodes that start, or that missed deltas."""
        self._shared = snapshot.position
        await self.cache(snapshot)

    async def cache(self, snapshot: Snapshot) -> None:
        """Put a snapshot into the cache."""
        with suppress(Unavailable):
            await self._cache.put(snapshot)


def is_behind(position: Position, than: Position | None) -> bool:
    """Whether a position is an older one of the same epoch."""
    return than is not None and position.epoch == than.epoch and position.seq < than.seq


def _reaches(position: Position, known: Position | None) -> bool:
    return known is None or (position.epoch == known.epoch and position.seq >= known.seq)
