"""The cluster of a single node."""

import time
from collections.abc import Callable, Mapping

from routecast.core.keys import AccessRecords
from routecast.core.token_bucket import Allowances, Quota


class MemoryCluster:
    """The only node, which gets all work and has all streams (`ports.Cluster`).

    `monotonic` returns seconds of a clock that is never set.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._claimed: dict[str, float] = {}  # the end of each claim, by work
        self._connections = 0
        self._access: AccessRecords | None = None
        self._summary = b""
        self._allowances: dict[str, Allowances] = {}

    async def claim(self, work: str, seconds: float) -> bool:
        now = self._monotonic()
        if self._claimed.get(work, now) > now:
            return False
        self._claimed[work] = now + seconds
        return True

    async def report_connections(self, connections: int, summary: bytes = b"") -> None:
        self._connections, self._summary = connections, summary

    async def total_connections(self) -> int:
        return self._connections

    async def share_access(self, records: AccessRecords) -> None:
        self._access = records

    async def shared_version(self) -> str | None:
        return None if self._access is None else self._access.version

    async def shared_access(self) -> AccessRecords | None:
        return self._access

    async def summaries(self) -> list[bytes]:
        return [self._summary] if self._summary else []

    async def ask(self, question: bytes, nodes: int, seconds: float) -> list[bytes]:
        return []  # there is no other node

    async def questions(self) -> list[tuple[str, bytes]]:
        return []

    async def answer(self, identity: str, answer: bytes) -> None:
        """Do nothing."""

    async def spend(self, limit: str, quota: Quota, spent: Mapping[str, int]) -> dict[str, float]:
        now = self._monotonic()
        allowances = self._allowances.setdefault(limit, Allowances(quota))
        for client, amount in spent.items():
            allowances.of(client, now).spend(amount, now)
        return {client: allowances.of(client, now).left(now) for client in spent}

    async def close(self) -> None:
        self._connections, self._summary = 0, b""
