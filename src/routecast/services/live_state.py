"""Live state: a snapshot in memory that the deltas on the bus keep up to date.

`core/sequencer.py` decides which delta is applied, when one must be fetched, and when the snapshot
must be loaded again; this module does it. `position_poller.py` reads the database's position
regularly, so that a lost delta is noticed even if no other delta follows it.
"""

import asyncio
import logging
from collections.abc import Awaitable, Iterable
from contextlib import suppress
from itertools import islice
from math import inf
from typing import Final, Protocol

from routecast.core.cardinality import FoldedNames
from routecast.core.decision import MINUTE
from routecast.core.delta import Delta
from routecast.core.dirty_minutes import DirtyMinutes
from routecast.core.rollup import Key
from routecast.core.sequencer import Action, DeltaSequencer, Gap
from routecast.core.snapshot import BOUNDED, COVERAGE, LIFETIME, Snapshot
from routecast.core.topology import Topology
from routecast.errors import MissingDeltas, Unavailable
from routecast.instruments import Instruments
from routecast.ports import Bus, Clock, Reading, Store, Timers
from routecast.protocol import Position, Source
from routecast.services.position_poller import PositionPoller
from routecast.services.snapshot_loader import SnapshotLoader
from routecast.wake_timer import WakeTimer

log = logging.getLogger(__name__)

# An announced commit may still be on its way over the bus for this time, in seconds.
DELTA_GRACE_SECONDS: Final = 0.5
# Without a bus only a commit of this node itself can be on its way.
OWN_GRACE_SECONDS: Final = 0.1
# A commit of more cells is applied in pieces; other tasks get a turn between them.
LARGE_CELLS: Final = 1_000
# A step that begins this much later than it should, in seconds, shows that the process did not run.
STOPPED_SECONDS: Final = 1.0
# A snapshot that dropped windows is loaded again after this time, in seconds, or after this many
# times the duration of the last load, if that is longer.
RELOAD_SECONDS: Final = 60.0
RELOAD_REST: Final = 20


class NameLearner(Protocol):
    """Learns the names that are in use (`core.cardinality.CardinalityLimiter`)."""

    def learn(self, keys: Iterable[Key]) -> None:
        """Count the names of keys as committed."""
        ...

    def renew(self, keys: Iterable[Key], folded: FoldedNames) -> None:
        """Forget all names but those of these keys; from now on count `folded` names as `other`."""
        ...


class Follower(Protocol):
    """Is called when live state has a new position (`streaming.channels.Channels`)."""

    def push(self) -> None:
        """`LiveState.current` has a new position. Must not block or raise."""
        ...


class LiveState:
    """The newest snapshot, in memory. Run `run` as a task; read `current`.

    Each of `followers` is called at once after each applied commit.
    """

    def __init__(
        self,
        loader: SnapshotLoader,
        store: Store,
        bus: Bus,
        poller: PositionPoller,
        clock: Clock,
        timers: Timers,
        names: NameLearner,
        instruments: Instruments,
        topology: Topology,
    ) -> None:
        self._loader = loader
        self._store = store
        self._bus = bus
        self._poller = poller
        self._clock = clock
        self._timers = timers
        self._names = names
        self._instruments = instruments
        self._topology = topology
        grace = DELTA_GRACE_SECONDS if topology.has_bus else OWN_GRACE_SECONDS
        self._sequencer = DeltaSequencer(grace)
        self._coverage = _Coverage(loader.room)
        self._wake_timer = WakeTimer(timers)
        self._snapshot: Snapshot | None = None  # at the sequencer's position
        self._applying: asyncio.Task[None] | None = None  # of a large delta, while it is applied
        self._sharing: asyncio.Task[None] | None = None  # while the snapshot is put into the cache
        self._as_of = clock.now()  # when the snapshot was last known to be the newest
        self._named: str | None = None  # the epoch whose names were learnt
        self._tried = asyncio.Event()
        self.changes = DirtyMinutes()  # the minutes that applied commits added to
        self.followers: list[Follower] = []
        instruments.live_room.set(loader.room or 0)
        instruments.live_cells.set_function(lambda: self._snapshot.cells if self._snapshot else 0)
        instruments.live_bytes.set_function(lambda: self._snapshot.size if self._snapshot else 0)
        instruments.live_windows.set_function(
            lambda: self._snapshot.uncovered if self._snapshot else 0
        )

    @property
    def failing(self) -> str | None:
        """Why the database cannot be read; None while it can."""
        return self._poller.failing

    def current(self) -> Reading | None:
        """Return the live snapshot, or None while it may not be the newest.

        It may not cover all windows (`Snapshot.covers`). It is also None while a large commit is
        being applied: wait for `settled`. Its source is the database while the bus is down.
        """
        snapshot, now = self._snapshot, self._clock.now()
        if snapshot is None or not self._sequencer.in_step or self.failing is not None:
            return None
        if self._applying is not None:
            return None
        if not -MINUTE <= now - snapshot.taken < COVERAGE:
            self._wake_timer.wake()  # the clock was set: load the minutes that windows need now
        if self._poller.is_bus_healthy:
            return Reading(snapshot, Source.LIVE, now)
        return Reading(snapshot, Source.DATABASE, self._as_of)

    def last_known(self) -> Reading | None:
        """Return the snapshot, even if it may not be the newest; None if there is none.

        Also None while a large commit is being applied.
        """
        if self._snapshot is None or self._applying is not None:
            return None
        return Reading(self._snapshot, Source.STALE, self._as_of)

    @property
    def position(self) -> Position | None:
        """The position of the snapshot, even if it may not be the newest."""
        return self._sequencer.position

    def went_back(self, seen: Position, there: Position) -> None:
        """Load again in a new epoch: the database was at `seen`, and then only at `there`.

        New commits have the numbers of those that it lost, so they cannot be told apart.
        """
        if self.position is not None and self.position.epoch == seen.epoch:
            self._poller.went_back(seen, there)
            self._sequencer.lose_step()
            self._wake_timer.wake()

    async def settled(self) -> None:
        """Return when no large commit is being applied."""
        while self._applying is not None:
            await asyncio.wait([self._applying])

    async def loaded(self) -> None:
        """Return when the first load has succeeded or failed."""
        await self._tried.wait()

    async def run(self) -> None:
        """Load a snapshot, follow the bus, and fetch what is missing. Never ends."""
        self._sequencer.lose_step()  # after a crash, the snapshot may lack anything
        stop = self._bus.listen(self._receive)
        try:
            while True:
                try:
                    await self._step()
                finally:  # also after a crash, so that `loaded` does not wait for ever
                    self._tried.set()
                late = await self._wake_timer.wait_until(self._next_step())
                if late > STOPPED_SECONDS:
                    self._poller.suspect()
        finally:
            stop()
            self._stop_sharing()
            self._sequencer.lose_step()  # no delta arrives from now on
            if self._sequencer.is_applying:
                self._forget()

    def _next_step(self) -> float:
        due, poll = self._sequencer.due, self._poller.next_poll()
        return poll if due is None or self.failing is not None else min(poll, due)

    async def _step(self) -> None:
        """Do what is due now: poll, load or fetch, and announce the position."""
        try:
            polled = await self._poll()
            # If a large delta is being applied, the position is old once that has ended.
            polled = polled and self._applying is None
            await self.settled()
            now = self._timers.now()
            action = self._sequencer.next_action(now)
            if action is Action.RELOAD or self._is_outdated():
                await self._load(self._load_newest(polled=polled))
            elif self._topology.has_store and self._coverage.may_grow(self._snapshot, now):
                await self._load(self._loader.from_store())
            elif action is Action.FETCH:
                await self._fetch()
        except MissingDeltas as error:
            log.warning("Live state is out of step (%s); it is loaded again", error)
            self._sequencer.lose_step()
            self._wake_timer.wake()
        except Unavailable as error:
            self._poller.mark_failing(error)
        else:
            self._coverage.log_changes(self._snapshot)
            self._announce()
            self._share_soon()
            await self._loader.recheck()

    # -- deltas and positions -------------------------------------------------------------------

    def _receive(self, message: Delta | Position) -> None:
        try:
            if isinstance(message, Delta):
                self._on_delta(message)
            else:
                self._on_position(message)
        except Exception:  # must not become a failure of the commit
            log.exception("A delta cannot be applied; live state is loaded again")
            self._forget()

    def _on_delta(self, delta: Delta) -> None:
        action = self._sequencer.receive(delta, self._timers.now())
        if action is Action.APPLY:
            self._apply(delta)
        else:
            self._plan(action)

    def _on_position(self, position: Position) -> None:
        self._poller.record_position()
        self._plan(self._sequencer.announce(position, self._timers.now()))
        self._note_time()

    def _plan(self, action: Action) -> None:
        """Have the timer wake `run` when the next step is due."""
        if action is Action.RELOAD:
            self._wake_timer.wake()
        elif self.failing is None and (due := self._sequencer.due) is not None:
            self._wake_timer.wake_by(due)

    def _note_time(self) -> None:
        """Record that the snapshot is the newest now, if it lacks no known commit."""
        if self._sequencer.in_step and self._sequencer.gap is None:
            self._as_of = self._clock.now()

    def _apply(self, delta: Delta | None) -> None:
        """Apply a delta and those that waited for it; a large one in its own task."""
        snapshot = self._snapshot
        assert snapshot is not None
        while delta is not None:
            if len(delta.cells) > LARGE_CELLS:
                self._applying = asyncio.create_task(self._apply_large(snapshot, delta))
                return
            snapshot.apply(delta)
            self._names.learn(delta.cells.keys())
            delta = self._applied(delta)
        self._instruments.position_seq.set(snapshot.position.seq)

    async def _apply_large(self, snapshot: Snapshot, delta: Delta) -> None:
        try:
            keys = delta.cells.keys()
            while some := list(islice(keys, LARGE_CELLS)):
                self._names.learn(some)
                await asyncio.sleep(0)
            for _ in snapshot.applying(delta):
                await asyncio.sleep(0)
            self._applying = None
            self._apply(self._applied(delta))
            self._plan(self._sequencer.next_action(self._timers.now()))
        except Exception:  # no caller gets the errors of this task
            log.exception("A commit could not be applied; live state is loaded again")
            self._forget()

    def _applied(self, delta: Delta) -> Delta | None:
        """Record an applied delta, call the followers, and return the next delta if it is here."""
        following = self._sequencer.applied()
        self.changes.note(delta)
        self._push()
        self._instruments.bus_lag_seconds.set((self._clock.now() - delta.received) / 1e6)
        return following

    def _push(self) -> None:
        for follower in self.followers:
            follower.push()

    def _forget(self) -> None:
        """Drop the snapshot: it may hold a part of a commit."""
        task, self._applying = self._applying, None
        if task is not None:
            task.cancel()
        self._snapshot = None
        self._sequencer.forget()
        self._wake_timer.wake()

    # -- positions ------------------------------------------------------------------------------

    async def _poll(self) -> bool:
        """Read the database's position if it is this node's turn; return whether it did."""
        ours = self.position
        position = await self._poller.poll(ours)
        if position is None:
            return False
        if ours is not None and position.epoch != ours.epoch:
            self._sequencer.lose_step()  # the database's epoch is the right one
        self._on_position(position)
        return True

    def _announce(self) -> None:
        """Announce the snapshot's position to the other nodes, unless they know it.

        A node that missed the last delta notices it by the announcement.
        """
        position = self._sequencer.unannounced
        if position is not None:
            self._sequencer.announce(position, self._timers.now())
            self._bus.announce(position)

    # -- fetching -------------------------------------------------------------------------------

    async def _fetch(self) -> None:
        """Fetch the missing deltas. Raises MissingDeltas if neither bus nor database has them."""
        gap = self._sequencer.gap
        if gap is None:
            return
        deltas = await self._missing(gap)
        for delta in deltas:
            self._on_delta(delta)
        await self.settled()
        now = self._timers.now()
        if not deltas:
            self._sequencer.nothing_after(gap, now)
            self._note_time()
        elif self._sequencer.fetched(gap, now) is Action.RELOAD:
            raise MissingDeltas(f"seq {gap.until} after {gap.after.seq}")

    async def _missing(self, gap: Gap) -> list[Delta]:
        """Return the deltas of a gap; [] if the database has no such commits."""
        with suppress(MissingDeltas, Unavailable):
            deltas = await self._bus.deltas(gap.after)
            if deltas and deltas[-1].position.seq >= gap.until:
                return deltas
        return await self._store.deltas(gap.after)

    # -- loading --------------------------------------------------------------------------------

    def _is_outdated(self) -> bool:
        """Whether the clock moved on, or was set, so far that windows need other minutes."""
        snapshot = self._snapshot
        return snapshot is not None and not 0 <= self._clock.now() - snapshot.taken < LIFETIME

    async def _load(self, source: Awaitable[Snapshot]) -> None:
        self._stop_sharing()  # what is loaded is cached; an older one must not replace it
        self._sequencer.begin_load()
        began, failed = self._timers.now(), True
        try:
            snapshot = await source
            folded = await self._folded_in(snapshot.position.epoch)
            await self.settled()
            failed = False
        finally:
            self._coverage.tried(began, self._timers.now())
            if failed:
                self._sequencer.load_failed()
        position = snapshot.position
        before, self._snapshot = self._snapshot, snapshot
        self._coverage.loaded(snapshot)
        self._apply(self._sequencer.loaded(position, self._timers.now()))
        if before is not None:
            snapshot.continues(before)
        self._instruments.reloads.inc()
        self._push()
        if folded is None:
            self._names.learn(snapshot.keys())
        else:
            self._names.renew(snapshot.keys(), folded)
            self._named = position.epoch

    async def _load_newest(self, *, polled: bool) -> Snapshot:
        """Return the newest snapshot, of the epoch that the database is in now.

        Announcements and caches may be of an epoch that has just ended, because another node has
        not noticed it yet. `polled`: the database's position was read a moment ago.
        """
        if self._topology.has_store and not polled:
            with suppress(Unavailable):  # then the announced position is used
                position = await self._poller.read()
                self._sequencer.announce(position, self._timers.now())
        return await self._loader.load(self._sequencer.announced)

    async def _folded_in(self, epoch: str) -> FoldedNames | None:
        """Return the names that are folded in an epoch; None if they were read before."""
        if epoch != self._named:
            with suppress(Unavailable):  # the store folds them itself
                return await self._store.folded_names()
        return None

    def _share_soon(self) -> None:
        """Share the snapshot in a task: packing it takes long, and the next step must not wait."""
        if self._sharing is not None:
            if not self._sharing.done():
                return
            sharing, self._sharing = self._sharing, None
            sharing.result()  # its crash is a crash of `run`
        self._sharing = asyncio.create_task(self._share(), name="share snapshot")

    def _stop_sharing(self) -> None:
        sharing, self._sharing = self._sharing, None
        if sharing is not None:
            sharing.cancel()

    async def _share(self) -> None:
        """Cache the snapshot if it is due, so that starting nodes need not read the database."""
        position = self.position
        if not self._topology.has_bus or position is None or not self._sequencer.in_step:
            return
        with suppress(Unavailable):
            if await self._loader.is_ours_to_share(position):
                await self.settled()
                if (reading := self.last_known()) is not None:
                    await self._loader.share(reading.snapshot)


class _Coverage:
    """Knows which windows the snapshot has memory for; decides when loading may add windows."""

    def __init__(self, room: int | None) -> None:
        self._room = room
        self._loaded: tuple[str, ...] = ()  # covered when it was loaded
        self._next_load = -inf
        self._logged = BOUNDED  # in memory, by the last log line

    def tried(self, began: float, now: float) -> None:
        """Record a load that was tried: the next one that may cover more windows comes later."""
        self._next_load = now + max(RELOAD_SECONDS, RELOAD_REST * (now - began))

    def loaded(self, snapshot: Snapshot) -> None:
        """Record the windows of a snapshot that was just loaded."""
        self._loaded = snapshot.covered

    def may_grow(self, snapshot: Snapshot | None, now: float) -> bool:
        """Whether windows were dropped since the last load, and it is time to load again."""
        if snapshot is None or snapshot.covered == self._loaded:
            return False
        return now >= self._next_load

    def log_changes(self, snapshot: Snapshot | None) -> None:
        """Log the windows that memory has no room for, whenever they have changed."""
        if snapshot is None or snapshot.covered == self._logged:
            return
        self._logged = snapshot.covered
        if lost := BOUNDED[len(snapshot.covered) :]:
            log.warning(
                "There is no memory for these windows, and the database answers them: %s. Live "
                "state has %d cells in %d of %d bytes; raise ROUTECAST_LIVE_MEMORY for more",
                *(", ".join(lost), snapshot.cells, snapshot.size, self._room or 0),
            )
        else:
            log.info("All windows are answered from memory again")
