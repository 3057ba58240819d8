"""What a node shares with others: a bus with other nodes, a database with other processes."""

from dataclasses import dataclass
from typing import Final

# How often the nodes together read the database's position, in seconds. If a node is killed after
# its commit and before its delta is sent, numbers are late by at most this time, one step of the
# schedule (`poll_schedule.STEP_SECONDS`) and the wait for the delta.
POLL_SECONDS: Final = 5.0
# A node without a bus should make all commits itself. It polls to notice that the database is lost,
# or that another program has written to it.
ALONE_POLL_SECONDS: Final = 10.0
# If other nodes may use the database and there is no bus, only polls show their commits.
NO_BUS_POLL_SECONDS: Final = 0.5


@dataclass(frozen=True, slots=True)
class Topology:
    """What a node shares with others.

    `has_bus`: a bus brings the commits of other nodes. `has_store`: it can read the
    database; otherwise it depends on the bus. `shares_store`: other processes may commit to the
    database.
    """

    has_bus: bool = False
    has_store: bool = True
    shares_store: bool = False

    @property
    def poll_seconds(self) -> float:
        """How often the nodes, together, read the database's position, in seconds."""
        if self.has_bus:
            return POLL_SECONDS
        return NO_BUS_POLL_SECONDS if self.shares_store else ALONE_POLL_SECONDS
