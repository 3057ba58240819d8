"""The number of open streams, on this node and on all nodes together."""

import asyncio
from collections.abc import Callable
from typing import Final

from routecast.errors import Unavailable
from routecast.ports import Cluster

# Seconds between two reports. A report is valid for much longer (PRESENCE_SECONDS).
REPORT_SECONDS: Final = 1.0


class ClusterPresence:
    """Reports this node's number of streams, and reads that of all nodes. Run `run` as a task.

    `summary` returns what other nodes can read about this one.
    """

    def __init__(
        self, cluster: Cluster, ours: Callable[[], int], summary: Callable[[], bytes]
    ) -> None:
        self._cluster = cluster
        self._ours = ours
        self._summary = summary
        self._others = 0
        self.failing: str | None = None  # why other nodes' streams are not counted

    @property
    def total(self) -> int:
        """The number of streams of all nodes; of this node alone while the cluster is unavailable.

        This node's number is the present one; those of other nodes are one or two seconds old.
        """
        return self._others + self._ours()

    async def run(self) -> None:
        """Report and read once a second. Never ends."""
        while True:
            ours = self._ours()
            try:
                await self._cluster.report_connections(ours, self._summary())
                self._others = await self._cluster.total_connections() - ours
                self.failing = None
            except Unavailable as error:
                self._others, self.failing = 0, str(error)
            await asyncio.sleep(REPORT_SECONDS)
