"""Polling: reads the database's position regularly, and knows whether the database works.

`core/poll_schedule.py` decides when to read it.
"""

import logging

from routecast.core.poll_schedule import Poll, PollSchedule
from routecast.core.topology import Topology
from routecast.errors import Unavailable
from routecast.ports import Bus, Cluster, Store, Timers
from routecast.protocol import Position
from routecast.services.snapshot_loader import SnapshotLoader, is_behind

log = logging.getLogger(__name__)


class PositionPoller:
    """Reads the database's position in turn with the other nodes, and announces it to them."""

    def __init__(
        self,
        loader: SnapshotLoader,
        store: Store,
        bus: Bus,
        cluster: Cluster,
        timers: Timers,
        topology: Topology,
    ) -> None:
        self._loader = loader
        self._store = store
        self._bus = bus
        self._cluster = cluster
        self._timers = timers
        self._has_store = topology.has_store
        self._schedule = PollSchedule(topology)
        # Where the database was before it lost commits, and where it was afterwards.
        self._lost: tuple[Position, Position] | None = None
        self.failing: str | None = None  # why the database cannot be read

    @property
    def is_bus_healthy(self) -> bool:
        """Whether commits of other nodes arrive; also True if there are no other nodes."""
        return self._schedule.is_bus_healthy(self._bus, self._timers.now())

    def record_position(self) -> None:
        """Record that a position was received from another node, or read from the database."""
        self._schedule.record_position(self._timers.now())

    def suspect(self) -> None:
        """Have the next `poll` read at once: this process did not run for a while."""
        self._schedule.suspect()

    def went_back(self, seen: Position, there: Position) -> None:
        """Have the next `poll` begin a new epoch, even if the database commits before that."""
        self._lost = seen, there

    def next_poll(self) -> float:
        """Return the moment of the timers at which to call `poll` again."""
        return self._schedule.next_step(self._timers.now(), failing=self.failing is not None)

    async def poll(self, ours: Position | None) -> Position | None:
        """Return the database's position if it is this node's turn to read it, otherwise None.

        The position is announced. `ours` is that of this node's snapshot: if the database is behind
        it, a new epoch begins. Raises Unavailable, also if this node has no database and the bus is
        down.
        """
        if not self._has_store:
            if not self.is_bus_healthy:
                raise Unavailable("no node announces the position of the database")
            self._mark_healthy()
            return None
        if self._lost is None and not await self._is_our_turn():
            return None
        position = await self.read()
        if self._lost is not None and position.epoch == self._lost[0].epoch:
            position = await self._loader.begin_epoch(*self._lost)
        elif ours is not None and is_behind(position, ours):
            position = await self._loader.begin_epoch(ours, position)
        self._lost = None
        self._mark_healthy()
        self.record_position()
        self._bus.announce(position)
        return position

    async def read(self) -> Position:
        """Read the database's position and epoch. Raises Unavailable."""
        position = await self._store.position()
        self._loader.epoch = position.epoch
        return position

    async def _is_our_turn(self) -> bool:
        now, failing = self._timers.now(), self.failing is not None
        poll = self._schedule.decide(self._bus, now, failing=failing)
        if poll is Poll.IN_TURN:
            try:
                return await self._cluster.claim("look", self._schedule.turn_seconds)
            except Unavailable:
                poll = self._schedule.by_itself(now)
        if poll is Poll.NOW:
            self._schedule.begin(self._bus, now)
        return poll is Poll.NOW

    def mark_failing(self, error: Unavailable) -> None:
        """Record, and log once, that the database cannot be read."""
        if self.failing is None:
            log.error("The database cannot be read: %s", error)
        self.failing = str(error)
        self._schedule.failed(self._timers.now())

    def _mark_healthy(self) -> None:
        if self.failing is not None:
            log.warning("The database can be read again")
        self.failing = None
