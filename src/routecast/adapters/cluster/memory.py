"""The cluster of a single node."""

import time
from collections.abc import Callable


class MemoryCluster:
    """All work is this node's, and all streams are (`ports.Cluster`).

    `monotonic` tells seconds on a clock that is never set.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._claimed: dict[str, float] = {}  # until when, by work
        self._connections = 0

    async def claim(self, work: str, seconds: float) -> bool:
        now = self._monotonic()
        if self._claimed.get(work, now) > now:
            return False
        self._claimed[work] = now + seconds
        return True

    async def tell(self, connections: int) -> None:
        self._connections = connections

    async def connections(self) -> int:
        return self._connections

    async def close(self) -> None:
        self._connections = 0
