"""Live: a snapshot in memory, kept in step by the deltas on the bus.

Deltas are applied strictly in order. One that comes early waits for those before it; one that does
not come is fetched, from the bus's own memory or from the database; and where that does not reach,
or the epoch is another, the snapshot is had anew. It is never guessed at.

A lost delta is noticed by the next one, or by the position that nodes announce: each its own
commits', and one of them, by turns, the database's. While the bus cannot be heard, each node reads
from the database what it missed.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from itertools import islice
from math import inf
from typing import Final

from routecast.core.cardinality import FoldedNames
from routecast.core.decision import MINUTE
from routecast.core.delta import Delta
from routecast.core.dirty_minutes import DirtyMinutes
from routecast.core.rollup import Key
from routecast.core.snapshot import BOUNDED, COVERAGE, LIFETIME, Snapshot
from routecast.errors import MissingDeltas, Unavailable
from routecast.instruments import Instruments
from routecast.ports import Bus, Clock, Cluster, Reading, Store
from routecast.protocol import Position, Source
from routecast.services.snapshot_loader import SnapshotLoader, is_behind

log = logging.getLogger(__name__)

# How often the nodes, together, read the database's position: what a lost last delta, of a node
# that was killed before it could tell, costs at most. In seconds.
POLL_SECONDS: Final = 5.0
# A node that is alone makes all commits itself, or should: it looks to notice that the database is
# lost, or that somebody else has written to it.
ALONE_LOOK_SECONDS: Final = 10.0
# Where other nodes may share the database and there is no bus, a look is all that tells of them.
SHARED_LOOK_SECONDS: Final = 0.5
# A step that comes at most this early, in seconds, is the one that was due: timers are not exact.
SLACK_SECONDS: Final = 0.05
# Where there are other nodes, how often each tells where it stands, in seconds.
STEP_SECONDS: Final = 1.0
# A position ahead of ours is a lost delta only if it stays so: it may still be on its way.
DELTA_GRACE_SECONDS: Final = 0.5
# Without a bus only a commit of this node itself can be on its way.
OWN_GRACE_SECONDS: Final = 0.1
# A snapshot that had to give windows up is loaded again after this time, in seconds, and this many
# times the duration of the last load.
RELOAD_SECONDS: Final = 60.0
RELOAD_REST: Final = 20
# Deltas that wait for those before them, and their cells; should more come, they are dropped, and
# fetched later.
MAX_EARLY: Final = 1_000
MAX_EARLY_CELLS: Final = 100_000
# A commit of more cells is applied in pieces, between which others get a turn on the event loop.
LARGE_CELLS: Final = 1_000
# A loop that goes on this much later than it should, in seconds, was stopped: it may have missed
# anything.
STOPPED_SECONDS: Final = 1.0
# A snapshot that nothing was added to is cached again, too, this many times less often: it expires,
# and nodes that have no database can start from nothing else.
REPEAT: Final = 3
# The database's position may fail to be heard of this many times; then the bus is as good as gone.
SILENT_LOOKS: Final = 4


class LiveState:
    """The newest state. Run `run` as a task; read `current`.

    `look_seconds` is how often the nodes, together, read the database's position, and one that is
    alone at its multiples; None for a node that has no database. Each `cache_seconds`, one of them
    caches a snapshot for nodes to start from; None where there are no others. `learn` is told the
    keys of each delta, and `renew` all keys, and the names that are folded, when an epoch begins.
    `advanced` is called, at once, when `current` has another position; it must not block or raise.
    """

    def __init__(
        self,
        sources: SnapshotLoader,
        store: Store,
        bus: Bus,
        cluster: Cluster,
        clock: Clock,
        instruments: Instruments,
        *,
        look_seconds: float | None = POLL_SECONDS,
        cache_seconds: float | None = None,
        learn: Callable[[Iterable[Key]], None] = lambda _: None,
        renew: Callable[[Iterable[Key], FoldedNames], None] = lambda *_: None,
        advanced: Callable[[], None] = lambda: None,
    ) -> None:
        self._sources = sources
        self._store = store
        self._bus = bus
        self._cluster = cluster
        self._clock = clock
        self._instruments = instruments
        self._look_seconds = look_seconds
        self._cache_seconds = cache_seconds
        self._learn = learn
        self._renew = renew
        self._advanced = advanced
        self._named: str | None = None  # the epoch whose names were learnt
        self._snapshot: Snapshot | None = None
        self._in_step = False
        self._loading = False
        self._early: dict[int, Delta] = {}  # by seq
        self._applying: asyncio.Task[None] | None = None  # a large delta, while it is applied
        self._announced: Position | None = None  # the last that was heard of
        self._heard = -inf  # when that was, on the monotonic clock
        self._next_look = -inf  # when this node may look by itself, on the same
        self._outages = 0  # of the bus, after which the database was looked at
        self._stopped = False  # this process did not run a moment ago
        self._read = clock.now()  # when the database was last known to be as our snapshot is
        self._cached: Position | None = None
        self._loaded: tuple[str, ...] = ()  # the windows that were covered once it was loaded
        self._next_reload = -inf  # when it may be loaded to cover them again, monotonic
        self._told = BOUNDED  # the windows that the log said to be in memory
        self._wakeup = asyncio.Event()
        self._tried = asyncio.Event()
        self.failing: str | None = None  # why the database cannot be read
        self.changes = DirtyMinutes()  # what the commits that were applied added to
        instruments.live_room.set(sources.room or 0)
        instruments.live_cells.set_function(lambda: self._measure("cells"))
        instruments.live_bytes.set_function(lambda: self._measure("size"))
        instruments.live_windows.set_function(lambda: self._measure("uncovered"))

    def _measure(self, what: str) -> int:
        return 0 if self._snapshot is None else getattr(self._snapshot, what)

    def current(self) -> Reading | None:
        """Return the live snapshot, or None while it may not be the newest.

        It may not cover all windows (`Snapshot.covers`). It is None, too, while a large commit is
        being applied: wait for `settled`. Its source is the database as long as the bus cannot be
        heard.
        """
        snapshot, now = self._snapshot, self._clock.now()
        if snapshot is None or not self._in_step or self.failing is not None:
            return None
        if self._applying is not None:
            return None
        if not -MINUTE <= now - snapshot.taken < COVERAGE:
            self._wakeup.set()  # the clock was set: the minutes held are those of other windows
        if self._bus_is_healthy():
            return Reading(snapshot, Source.LIVE, now)
        return Reading(snapshot, Source.DATABASE, self._read)

    def held(self) -> Reading | None:
        """Return the snapshot there is, be it the newest or not; None as `current` does."""
        if self._snapshot is None or self._applying is not None:
            return None
        return Reading(self._snapshot, Source.STALE, self._read)

    @property
    def position(self) -> Position | None:
        """The position of the snapshot held, be it the newest or not."""
        return self._snapshot.position if self._snapshot else None

    async def settled(self) -> None:
        """Return when no large commit is being applied."""
        while self._applying is not None:
            await asyncio.wait([self._applying])

    async def loaded(self) -> None:
        """Return when loading was tried for the first time, with success or not."""
        await self._tried.wait()

    async def run(self) -> None:
        """Load, follow the bus, and see to it that nothing is missed. Never ends."""
        self._in_step = False  # after a crash, what is held may be anything
        stop = self._bus.listen(self._receive)
        try:
            while True:
                try:
                    await self._step()
                finally:  # a crash is no success, and no reason to wait for ever
                    self._tried.set()
                pause = self._pause()
                due = time.monotonic() + pause
                next_step = asyncio.get_running_loop().call_later(pause, self._wakeup.set)
                await self._wakeup.wait()
                next_step.cancel()
                self._wakeup.clear()
                self._stopped = time.monotonic() > due + STOPPED_SECONDS
        finally:
            stop()
            self._in_step = False  # nothing is heard from now on
            if self._applying is not None:
                self._applying.cancel()
                self._snapshot = None  # it holds some of the commit

    @property
    def _has_others(self) -> bool:
        return self._cache_seconds is not None

    def _pause(self) -> float:
        if self._has_others or not self._look_seconds or self.failing is not None:
            return STEP_SECONDS
        # Nobody is there to tell anything. Ticks draw together at multiples of their interval
        # (`connections.py`): a process that has little to do wakes once for them and for the look.
        now = time.monotonic() + SLACK_SECONDS
        return self._look_seconds - now % self._look_seconds + SLACK_SECONDS

    async def _step(self) -> None:
        try:
            looked = await self._look()
            looked = looked and self._applying is None  # else it becomes old in the next line
            await self.settled()
            if self._must_load():
                await self._load(self._newest(looked=looked))
            elif self._has_lost_windows():
                await self._load(self._sources.stored())
            elif self._is_behind():
                await self._catch_up()
        except MissingDeltas as gap:
            log.warning("Live state is out of step (%s); it is loaded again", gap)
            self._in_step = False
            self._wakeup.set()
        except Unavailable as error:
            self._mark_failing(error)
        else:
            self._tell_windows()
            self._announce()
            await self._share()
            await self._sources.recheck()

    # -- hearing --------------------------------------------------------------------------------

    def _receive(self, news: Delta | Position) -> None:
        try:
            if isinstance(news, Delta):
                self._take(news)
            else:
                self._on_position(news)
        except Exception:  # not to become a failure of whoever told it
            log.exception("A delta cannot be applied; live state is loaded again")
            self._snapshot, self._in_step = None, False  # it may hold some of the commit
            self._wakeup.set()

    def _take(self, delta: Delta) -> None:
        """Apply a delta, or keep it until those before it are here."""
        snapshot, position = self._snapshot, delta.position
        if snapshot is not None and self._in_step:
            if position.epoch != snapshot.position.epoch:
                self._in_step = False
                self._on_position(position)
                return
            if self._applying is not None:
                if position.seq > snapshot.position.seq + 1:
                    self._keep(delta)
            elif position.seq == snapshot.position.seq + 1:
                self._apply(snapshot, delta)
            elif position.seq > snapshot.position.seq:
                self._keep(delta)
                self._wakeup.set()
        if self._loading or snapshot is None:
            self._keep(delta)

    def _apply(self, snapshot: Snapshot, delta: Delta | None) -> None:
        """Apply a delta and those kept that follow it; a large one beside everything else."""
        while delta is not None:
            if len(delta.cells) > LARGE_CELLS:
                self._applying = asyncio.create_task(self._apply_large(snapshot, delta))
                return
            snapshot.apply(delta)
            self._learn(delta.cells.keys())
            delta = self._applied(snapshot, delta)
        self._instruments.position_seq.set(snapshot.position.seq)

    async def _apply_large(self, snapshot: Snapshot, delta: Delta) -> None:
        try:
            keys = delta.cells.keys()
            while some := list(islice(keys, LARGE_CELLS)):
                self._learn(some)
                await asyncio.sleep(0)
            for _ in snapshot.applying(delta):
                await asyncio.sleep(0)
        except Exception:
            log.exception("A commit could not be applied; live state is loaded again")
            self._snapshot, self._in_step = None, False  # it holds some of the commit
            self._wakeup.set()
            return
        finally:
            self._applying = None
        self._apply(snapshot, self._applied(snapshot, delta))

    def _applied(self, snapshot: Snapshot, delta: Delta) -> Delta | None:
        """Tell of a delta that was applied; return the one that follows it, if that is here."""
        self.changes.note(delta)
        self._advanced()
        self._instruments.bus_lag_seconds.set((self._clock.now() - delta.received) / 1e6)
        return self._early.pop(snapshot.position.seq + 1, None)

    def _keep(self, delta: Delta) -> None:
        cells = sum(len(each.cells) for each in self._early.values())
        if len(self._early) >= MAX_EARLY or cells >= MAX_EARLY_CELLS:
            self._early.clear()
        self._early[delta.position.seq] = delta

    def _on_position(self, position: Position) -> None:
        """Take note of where the database stands, as somebody has seen it.

        In an epoch it never goes back: a node that is behind tells where it stands, too.
        """
        known = self._announced
        if known is None or known.epoch != position.epoch or known.seq < position.seq:
            self._announced = position
        self._heard = time.monotonic()
        if self._is_behind():
            self._wakeup.set()
        elif self._in_step:
            self._read = self._clock.now()

    def _bus_is_healthy(self) -> bool:
        """Whether what the others commit can be heard."""
        patience = SILENT_LOOKS * (self._look_seconds or POLL_SECONDS)
        return self._bus.failing is None and time.monotonic() - self._heard < patience

    def _announce(self) -> None:
        """Tell where we are, unless it is known: whoever missed the last delta learns by it."""
        ours = self.position
        if ours is not None and self._in_step and ours != self._announced:
            heard = self._heard
            self._bus.announce(ours)
            self._heard = heard  # of the database itself nothing was heard by this

    # -- looking --------------------------------------------------------------------------------

    async def _look(self) -> bool:
        """Read the database's position if it is this node's turn, and tell everybody.

        Returns whether it did.
        """
        if self._look_seconds is None:
            if not self._bus_is_healthy():
                raise Unavailable("nothing is heard of the database")
            self._mark_healthy()
        elif await self._is_our_turn(self._look_seconds):
            heard, ours = self._announced, self.position
            position = await self._ask_position()
            if ours is not None and is_behind(position, ours):
                position = await self._sources.begin_epoch(ours, position)
                self._in_step = False
            self._mark_healthy()
            if self._announced is heard:  # else it may be newer than what was read
                self._announced = position
            self._bus.announce(position)
            return True
        return False

    async def _ask_position(self) -> Position:
        """Return where the database stands, which has the last word about that."""
        position = await self._store.position()
        self._sources.epoch = position.epoch
        return position

    async def _is_our_turn(self, seconds: float) -> bool:
        missed = self._stopped or self._bus.outages != self._outages
        heals = missed and self._bus.failing is None
        if heals:
            self._outages = self._bus.outages
        if self._bus_is_healthy() and self.failing is None and not heals:
            with suppress(Unavailable):
                # Alone, a look that was late is not to cost the next one, which is on time.
                span = seconds if self._has_others else seconds / 2
                return await self._cluster.claim("look", span)
        now = time.monotonic()
        # Who committed while we were deaf may be gone, and what it had to tell with it.
        if now < self._next_look and not heals:
            return False
        # The database's return is not to go unnoticed for as long as its position may.
        self._next_look = now + (seconds if self.failing is None else STEP_SECONDS)
        return True

    def _is_behind(self) -> bool:
        snapshot, there = self._snapshot, self._announced
        if snapshot is None or not self._in_step or self._applying is not None:
            return False
        if self._early:
            return True
        ours = snapshot.position
        return there is not None and (there.epoch != ours.epoch or there.seq > ours.seq)

    async def _catch_up(self) -> None:
        """Fetch what was missed. Raises MissingDeltas when it cannot be had, Unavailable."""
        await asyncio.sleep(DELTA_GRACE_SECONDS if self._has_others else OWN_GRACE_SECONDS)
        if not self._is_behind():
            return
        assert self._snapshot is not None
        for delta in await self._missed(self._snapshot.position):
            self._take(delta)
        if self._is_behind():
            raise MissingDeltas(f"{self._announced} after {self._snapshot.position}")

    async def _missed(self, ours: Position) -> list[Delta]:
        known = max([*self._early, self._announced.seq if self._announced else 0])
        with suppress(MissingDeltas, Unavailable):
            deltas = await self._bus.deltas(ours)
            if deltas and deltas[-1].position.seq >= known:
                return deltas
        deltas = await self._store.deltas(ours)
        if not deltas:  # whoever announced something else was wrong
            self._announced = ours
            self._on_position(ours)
            self._early.clear()
        return deltas

    # -- loading --------------------------------------------------------------------------------

    def _must_load(self) -> bool:
        snapshot = self._snapshot
        if snapshot is None or not self._in_step:
            return True
        # The minutes a snapshot holds move on with the clock, whichever way it is set.
        return not 0 <= self._clock.now() - snapshot.taken < LIFETIME

    def _has_lost_windows(self) -> bool:
        """Whether windows were given up since the last load, and it may be tried again."""
        snapshot = self._snapshot
        if snapshot is None or self._look_seconds is None or snapshot.covered == self._loaded:
            return False
        return time.monotonic() >= self._next_reload

    async def _load(self, source: Awaitable[Snapshot]) -> None:
        self._loading, began = True, time.monotonic()
        try:
            snapshot = await source
            folded = await self._folded_in(snapshot.position.epoch)
            await self.settled()
        finally:
            self._loading = False
            now = time.monotonic()
            self._next_reload = now + max(RELOAD_SECONDS, RELOAD_REST * (now - began))
        self._loaded = snapshot.covered
        position = snapshot.position
        self._early = {
            seq: delta
            for seq, delta in self._early.items()
            if delta.position.epoch == position.epoch and seq > position.seq
        }
        before, self._snapshot, self._in_step = self._snapshot, snapshot, True
        self._apply(snapshot, self._early.pop(position.seq + 1, None))
        if before is not None:
            snapshot.continues(before)
        if self._announced is None or self._announced.epoch != position.epoch:
            self._announced = position
        self._instruments.reloads.inc()
        self._advanced()
        if folded is None:
            self._learn(snapshot.keys())
        else:
            self._renew(snapshot.keys(), folded)
            self._named = position.epoch
        if self._is_behind():
            self._wakeup.set()

    async def _newest(self, *, looked: bool) -> Snapshot:
        """Return the newest snapshot, of the epoch that the database is in now.

        Announcements and caches may be of an epoch that has just ended: another node that does not
        know so yet goes on telling it. `looked`: the database told its position a moment ago.
        """
        if self._look_seconds is not None and not looked:
            with suppress(Unavailable):  # then what others know is the best there is
                position = await self._ask_position()
                if self._announced is None or self._announced.epoch != position.epoch:
                    self._announced = position
        return await self._sources.newest(self._announced)

    async def _folded_in(self, epoch: str) -> FoldedNames | None:
        """Return the names that are folded in an epoch; None where names are of it already."""
        if epoch != self._named:
            with suppress(Unavailable):  # the store itself counts them as it should
                return await self._store.folded_names()
        return None

    async def _share(self) -> None:
        """Cache a snapshot now and then, so that a node that starts need not read the database."""
        if self._cache_seconds is None or self._snapshot is None or not self._in_step:
            return
        work, seconds = "cache", self._cache_seconds
        if self._snapshot.position == self._cached:
            work, seconds = "cache again", REPEAT * seconds
        with suppress(Unavailable):
            if await self._cluster.claim(work, seconds):
                await self.settled()
                if (held := self.held()) is not None:
                    self._cached = held.snapshot.position
                    await self._sources.cache(held.snapshot)

    def _tell_windows(self) -> None:
        """Log which windows memory has no room for, whenever that has changed."""
        snapshot = self._snapshot
        if snapshot is None or snapshot.covered == self._told:
            return
        self._told = snapshot.covered
        if lost := BOUNDED[len(snapshot.covered) :]:
            log.warning(
                "There is no memory for these windows, and the database answers them: %s. Live "
                "state has %d cells in %d of %d bytes; raise ROUTECAST_LIVE_MEMORY for more",
                *(", ".join(lost), snapshot.cells, snapshot.size, self._sources.room or 0),
            )
        else:
            log.info("All windows are answered from memory again")

    # -- the database ---------------------------------------------------------------------------

    def _mark_failing(self, error: Unavailable) -> None:
        if self.failing is None:  # said once, not at each look
            log.error("The database cannot be read: %s", error)
        self.failing = str(error)

    def _mark_healthy(self) -> None:
        if self.failing is not None:
            log.warning("The database can be read again")
        self.failing = None
