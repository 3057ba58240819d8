"""Live: a snapshot in memory, kept in step by the deltas on the bus.

A gap, a new epoch, a position ahead of ours: the snapshot is loaded again, never guessed at.
While that lasts `current` is None and others answer.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from routecast.core.decision import MINUTE
from routecast.core.delta import Delta
from routecast.core.snapshot import COVERAGE, LIFETIME, Snapshot
from routecast.errors import Gap, Unavailable
from routecast.instruments import Instruments
from routecast.ports import Bus, Cache, Clock, Reading, Store
from routecast.protocol import Position, Source

log = logging.getLogger(__name__)

# How often the database is asked for its position: what a lost last delta can cost, in seconds.
LOOK_SECONDS: Final = 2.0
# A position ahead of ours is a lost delta only if it stays so: it may still be on its way.
GRACE_SECONDS: Final = 0.5
# Deltas kept while a snapshot is loading; should more come, the load starts again.
MAX_PENDING: Final = 10_000


class Live:
    """The newest state. Run `run` as a task; read `current`."""

    def __init__(
        self,
        store: Store,
        cache: Cache,
        bus: Bus,
        clock: Clock,
        instruments: Instruments,
        on_load: Callable[[Snapshot], None] = lambda _: None,
    ) -> None:
        self._store = store
        self._cache = cache
        self._bus = bus
        self._clock = clock
        self._instruments = instruments
        self._on_load = on_load
        self._snapshot: Snapshot | None = None
        self._in_step = False
        self._reachable = True
        self._pending: deque[Delta] | None = None  # while loading
        self._stir = asyncio.Event()
        self._tried = asyncio.Event()
        self.failing: str | None = None

    def current(self) -> Reading | None:
        """Return the live snapshot, or None while it may not be the newest."""
        snapshot, now = self._snapshot, self._clock.now()
        if snapshot is None or not self._in_step or not self._reachable:
            return None
        if not -MINUTE <= now - snapshot.taken < COVERAGE:
            return None
        return Reading(snapshot, Source.LIVE, now)

    @property
    def position(self) -> Position | None:
        """The position of the snapshot held, be it the newest or not."""
        return self._snapshot.position if self._snapshot else None

    async def loaded(self) -> None:
        """Return when loading was tried for the first time, with success or not."""
        await self._tried.wait()

    async def run(self) -> None:
        """Load, follow the bus, and look at the database's position now and then. Never ends."""
        stop = self._bus.listen(self._receive)
        try:
            while True:
                if self._must_load():
                    await self._load()
                    self._tried.set()
                else:
                    await self._look()
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_SECONDS):
                        await self._stir.wait()
                self._stir.clear()
        finally:
            stop()

    def _must_load(self) -> bool:
        snapshot = self._snapshot
        if snapshot is None or not self._in_step:
            return True
        # The minutes a snapshot holds move on with the clock, whichever way it is set.
        return not 0 <= self._clock.now() - snapshot.taken < LIFETIME

    def _receive(self, delta: Delta) -> None:
        if self._pending is not None:
            if len(self._pending) >= MAX_PENDING:
                self._pending.clear()
            self._pending.append(delta)
        if self._snapshot is not None and self._in_step:
            self._follow(self._snapshot, delta)

    def _follow(self, snapshot: Snapshot, delta: Delta) -> None:
        try:
            snapshot.apply(delta)
        except Gap as gap:
            log.warning("Live state lost step (%s); loading it again", gap)
            self._in_step = False
            self._stir.set()
            return
        self._instruments.position_seq.set(snapshot.position.seq)
        self._instruments.bus_lag_seconds.set((self._clock.now() - delta.received) / 1e6)

    async def _load(self) -> None:
        self._pending = deque()
        try:
            snapshot = await self._store.load(self._clock.now())
            # What came meanwhile and is not in it yet; a gap means that even more is missing.
            for delta in self._pending:
                snapshot.apply(delta)
        except Gap:
            self._stir.set()
            return
        except Unavailable as error:
            self._lost(error)
            return
        finally:
            self._pending = None
        self._snapshot, self._in_step = snapshot, True
        self._found()
        self._instruments.reloads.inc()
        self._instruments.position_seq.set(snapshot.position.seq)
        self._on_load(snapshot)
        with suppress(Unavailable):
            await self._cache.put(snapshot)

    async def _look(self) -> None:
        try:
            position = await self._store.position()
            if self._behind(position):
                await asyncio.sleep(GRACE_SECONDS)
                if self._behind(position):
                    log.warning("Live state is behind the database; loading it again")
                    self._in_step = False
                    self._stir.set()
        except Unavailable as error:
            self._lost(error)
        else:
            self._found()

    def _behind(self, position: Position) -> bool:
        ours = self.position
        return ours is None or ours.epoch != position.epoch or ours.seq < position.seq

    def _lost(self, error: Unavailable) -> None:
        if self._reachable:  # said once, not at each look
            log.error("The database cannot be read: %s", error)
        self._reachable = False
        self.failing = str(error)

    def _found(self) -> None:
        if not self._reachable:
            log.warning("The database can be read again")
        self._reachable = True
        self.failing = None
