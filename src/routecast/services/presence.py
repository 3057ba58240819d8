"""Census: how many streams are open, on this node and on all of them together."""

import asyncio
from collections.abc import Callable
from typing import Final

from routecast.errors import Unavailable
from routecast.ports import Cluster

# Between two turns of telling and asking. A node counts as gone only after many that it missed.
TELL_SECONDS: Final = 1.0


class ClusterPresence:
    """Tells the other nodes of this one's streams, and asks for theirs. Run `run` as a task."""

    def __init__(self, cluster: Cluster, ours: Callable[[], int]) -> None:
        self._cluster = cluster
        self._ours = ours
        self._others = 0
        self.failing: str | None = None  # why other nodes' streams are not counted

    @property
    def total(self) -> int:
        """Streams of all nodes; of this one alone while the others cannot be asked.

        Ours are counted now, the others' as of a second or two ago.
        """
        return self._others + self._ours()

    async def run(self) -> None:
        """Tell and ask now and then. Never ends."""
        while True:
            told = self._ours()
            try:
                await self._cluster.tell(told)
                self._others = await self._cluster.connections() - told
                self.failing = None
            except Unavailable as error:
                self._others, self.failing = 0, str(error)
            await asyncio.sleep(TELL_SECONDS)
