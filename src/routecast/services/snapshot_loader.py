"""Sources: where a snapshot can be had, the cache first and then the database.

A cached snapshot is some seconds old; the deltas on the bus since then make it the newest. Where
they do not reach, it is as good as none: numbers are never guessed at.
"""

import asyncio
import logging
from contextlib import suppress
from typing import Final

from routecast.core.snapshot import LIFETIME, Snapshot
from routecast.errors import MissingDeltas, Unavailable
from routecast.instruments import Instruments
from routecast.ports import Bus, Cache, Clock, Cluster, Store
from routecast.protocol import Position

log = logging.getLogger(__name__)

# A node that reads the database for all has this time, in seconds, to put the result into the
# cache.
LOAD_SECONDS: Final = 5.0
# Between two looks whether it did.
LOAD_POLL: Final = 0.05


class _OtherClock(Exception):
    """The cached snapshot holds the minutes that another clock's windows need."""


class SnapshotLoader:
    """The cache, the database, and the bus between them.

    A snapshot may take `room` bytes, None for any number. Without `reads`, the store is none to
    load from: others do, and this node waits for them.
    """

    def __init__(
        self,
        store: Store,
        cache: Cache,
        bus: Bus,
        cluster: Cluster,
        clock: Clock,
        instruments: Instruments,
        *,
        reads: bool = True,
        room: int | None = None,
    ) -> None:
        self._store = store
        self._cache = cache
        self._bus = bus
        self._cluster = cluster
        self._clock = clock
        self._instruments = instruments
        self._reads = reads
        self.room = room
        self.cache_failing = False
        self.epoch: str | None = None  # that the database said it is in, last

    async def newest(self, known: Position | None) -> Snapshot:
        """Return a snapshot to follow the bus from. Raises Unavailable.

        However many nodes ask at once, one of them reads the database. `known` is where the
        database is known to stand: what is of another history is dropped from the cache.
        """
        if known is not None:
            with suppress(Unavailable):
                await self._cache.invalidate(Position(known.epoch, 0))  # of whatever seq
        deadline = asyncio.get_running_loop().time() + LOAD_SECONDS
        while True:
            try:
                snapshot = await self._look_up()
            except _OtherClock:
                break  # what others will cache is no better
            if snapshot is not None and (found := await self._ahead_of(snapshot)) is not None:
                known = found
                break
            if snapshot is not None and _reaches(snapshot.position, known):
                self._tell("hit")
                return snapshot
            late = asyncio.get_running_loop().time() > deadline
            if late or self.cache_failing or await self._acquire_load_lock(known):
                break
            await asyncio.sleep(LOAD_POLL)
        self._tell("error" if self.cache_failing else "miss")
        return await self.stored()

    async def _ahead_of(self, snapshot: Snapshot) -> Position | None:
        """Return a new position of the database where it is behind a snapshot of its epoch.

        Commits are cached once they are made: so the database went back after that.
        """
        if not self._reads:
            return None
        try:
            there = await self._store.position()
        except Unavailable:
            return None  # the cache is the best there is
        if not is_behind(there, snapshot.position):
            return None
        there = await self.begin_epoch(snapshot.position, there)
        with suppress(Unavailable):
            await self._cache.invalidate(Position(there.epoch, 0))
        return there

    async def begin_epoch(self, seen: Position, there: Position) -> Position:
        """Begin an epoch, as the database is behind what was seen of it; return its position.

        A restore by other tools, or a failover that lost commits, leaves the epoch as it was, and
        will give the numbers after `there` to other commits. Nobody is to take those for the ones
        that were `seen`. Raises Unavailable.
        """
        log.warning(
            "The database went back from seq %d to %d, as after a restore: a new epoch begins",
            *(seen.seq, there.seq),
        )
        begun = await self._store.fold_names("model", (), remember=False)  # of none: an epoch alone
        self.epoch = begun.epoch
        return begun

    async def cached(self) -> Snapshot | None:
        """Return the cached snapshot, brought up to date; None when there is none to be had."""
        snapshot = None
        with suppress(_OtherClock):
            snapshot = await self._look_up()
        self._tell("hit" if snapshot else "error" if self.cache_failing else "miss")
        return snapshot

    async def recheck(self) -> None:
        """See whether a cache that failed can be used again."""
        if self.cache_failing:
            with suppress(_OtherClock):
                await self._look_up()

    def _tell(self, result: str) -> None:
        self._instruments.cache.labels(result).inc()
        log.info("Metrics cache %s", "HIT" if result == "hit" else "MISS")

    async def _look_up(self) -> Snapshot | None:
        """Return what the cache can give. Raises _OtherClock when what it holds is of no use."""
        try:
            held = await self._cache.get()
            found = None if held is None else await self._catch_up(held)
        except (Unavailable, ValueError) as error:
            if not self.cache_failing:  # said once, not at each look
                log.warning("Metrics cache cannot be used: %s", error)
            self.cache_failing = True
            return None
        self.cache_failing = False
        if found is None and held is not None and not self._is_of_our_time(held):
            raise _OtherClock
        if found is not None and self.epoch not in (None, found.position.epoch):
            return None  # the database has the last word
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
        if not self._reads:
            return False
        work = f"load {known.epoch}:{known.seq}" if known else "load"
        try:
            return await self._cluster.claim(work, LOAD_SECONDS)
        except Unavailable:
            return True

    async def stored(self) -> Snapshot:
        """Return what the database holds, and cache it. Raises Unavailable."""
        snapshot = await self._store.load(self._clock.now(), self.room)
        await self.cache(snapshot)
        return snapshot

    async def cache(self, snapshot: Snapshot) -> None:
        """Put a snapshot into the cache, for others and for later."""
        with suppress(Unavailable):
            await self._cache.put(snapshot)


def is_behind(position: Position, than: Position | None) -> bool:
    """Whether a position is an older one of the same epoch."""
    return than is not None and position.epoch == than.epoch and position.seq < than.seq


def _reaches(position: Position, known: Position | None) -> bool:
    return known is None or (position.epoch == known.epoch and position.seq >= known.seq)
