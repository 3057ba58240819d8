"""The cluster of a single node."""

import time


class MemoryCluster:
    """All work is this node's, and all streams are (`ports.Cluster`)."""

    def __init__(self) -> None:
        self._claimed: dict[str, float] = {}  # until when, by work
        self._connections = 0

    async def claim(self, work: str, seconds: float) -> bool:
        now = time.monotonic()
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
