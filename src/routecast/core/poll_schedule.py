"""When a node reads the database's position: in turn with other nodes, or by itself.

There is no I/O here and no clock: `now` is in seconds on a monotonic clock.
"""

from enum import Enum
from math import inf
from typing import Final, Protocol

from routecast.core.topology import Topology

# A node decides this often whether to poll, in seconds, if it has a bus or the database fails.
STEP_SECONDS: Final = 1.0
# A step at most this early, in seconds, is the one that was due: timers are not exact.
SLACK_SECONDS: Final = 0.05
# After this number of missed position announcements the bus counts as down.
SILENT_POLLS: Final = 4


class BusHealth(Protocol):
    """The health of a bus (`ports.Bus`)."""

    @property
    def failing(self) -> str | None:
        """Why nodes cannot exchange messages now; None while they can."""
        ...

    @property
    def outages(self) -> int:
        """The number of outages so far, including the present one."""
        ...


class Poll(Enum):
    """Whether to read the database's position now."""

    NO = "no"
    IN_TURN = "in turn"  # if no other node has the turn
    NOW = "now"  # also if another node has the turn


class PollSchedule:
    """Decides when to poll, by the health of the bus and the known positions.

    While the bus works, the nodes take turns. While it is down, and while the database fails, each
    node polls by itself. After an outage of the bus, and after this process did not run for a
    while, it polls at once: a node that committed meanwhile may be gone, and will not announce its
    position again.
    """

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        self._last_position = -inf  # when a position was last received or read
        self._next = -inf  # when this node polls next, by itself
        self._outages = 0  # the outages of the bus when the last poll by itself began
        self._suspect = False  # whether something may have been missed

    def record_position(self, now: float) -> None:
        """Record that a position was received from another node, or read from the database."""
        self._last_position = now

    def suspect(self) -> None:
        """Record that the process did not run for a while, and may have missed anything."""
        self._suspect = True

    def is_bus_healthy(self, bus: BusHealth, now: float) -> bool:
        """Whether commits of other nodes arrive over the bus."""
        patience = SILENT_POLLS * self._topology.poll_seconds
        return bus.failing is None and now - self._last_position < patience

    def decide(self, bus: BusHealth, now: float, *, failing: bool) -> Poll:
        """Return whether to poll now. `failing`: the database could not be read the last time."""
        if bus.failing is None and (self._suspect or bus.outages != self._outages):
            return Poll.NOW
        if self.is_bus_healthy(bus, now) and not failing:
            return Poll.IN_TURN
        return self.by_itself(now)

    def by_itself(self, now: float) -> Poll:
        """Return whether to poll now if the nodes cannot take turns."""
        return Poll.NO if now < self._next else Poll.NOW

    def begin(self, bus: BusHealth, now: float) -> None:
        """Record that a poll begins that is not in turn."""
        if bus.failing is None:
            self._suspect, self._outages = False, bus.outages
        self._next = now + self._topology.poll_seconds

    def failed(self, now: float) -> None:
        """Record that the database could not be read, so that the next poll comes soon."""
        self._next = now + STEP_SECONDS

    @property
    def turn_seconds(self) -> float:
        """The duration of a turn, in which one node polls, in seconds."""
        seconds = self._topology.poll_seconds
        # A node without a bus has every turn. A late poll must not prevent the next one.
        return seconds if self._topology.has_bus else seconds / 2

    def next_step(self, now: float, *, failing: bool) -> float:
        """Return the time at which to call `decide` again."""
        if self._topology.has_bus or failing:
            return now + STEP_SECONDS
        # Multiples of the interval, so that a node with little to do wakes once for ticks and
        # polls.
        seconds = self._topology.poll_seconds
        return ((now + SLACK_SECONDS) // seconds + 1) * seconds
