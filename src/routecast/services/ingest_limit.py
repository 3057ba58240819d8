"""The limit of decisions that each client may send in a minute, on all nodes together.

No request waits for Redis. A node takes from what it knows to be left, and tells the others soon
after, through the cluster, which answers with what is left of everyone's. So nodes may together
take more than the quota for a moment; what was too much is missing afterwards. While the cluster
cannot answer, each node counts by itself.
"""

import asyncio
import time
from collections.abc import Callable
from itertools import islice
from typing import Final

from routecast.core.client_limits import ClientLimit, LimitModes, over_quota
from routecast.core.token_bucket import Allowances, Quota
from routecast.errors import Unavailable
from routecast.ports import Cluster

# Time between two reports of what was spent, in seconds; the first one after a rest is sent at
# once. After a failed one, the next is sent later.
SPENT_REPORT_SECONDS: Final = 0.1
SPENT_RETRY_SECONDS: Final = 1.0
# Clients of one report.
MAX_SETTLED: Final = 100


class IngestLimit:
    """Limits the decisions of each client to `a_minute`; 0 is no limit.

    With a `cluster`, whose nodes share the limit, run `run` as a task.
    """

    def __init__(
        self,
        a_minute: int = 0,
        modes: LimitModes | None = None,
        cluster: Cluster | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._quota = Quota.a_minute(a_minute)
        self.is_on = a_minute > 0
        self._modes = modes or LimitModes()
        self._cluster = cluster
        self._now = now
        self._allowances = Allowances(self._quota)
        self._spent: dict[str, int] = {}  # what other nodes do not know yet, by client
        self._arrived = asyncio.Event()

    def require(self, client: str) -> None:
        """Raise OverLimit if a client has nothing left, before its decisions are decoded."""
        known = self._allowances.known(client) if self.is_on else None
        if known is None:
            return
        wait = known.wait_for(1, self._now())
        if wait and self._modes.enforces(ClientLimit.INGEST):  # in dry run, `take` counts the hit
            self._modes.hit(ClientLimit.INGEST)
            raise self._error(wait)

    def take(self, client: str, decisions: int) -> bool:
        """Count decisions that a client sent; return whether they were counted. Raises OverLimit.

        In dry run those that are too many are not counted, so that the hits are about as many as
        refusals would be.
        """
        if not self.is_on:
            return False
        now = self._now()
        allowance = self._allowances.of(client, now)
        if wait := allowance.wait_for(decisions, now):
            if self._modes.hit(ClientLimit.INGEST):
                raise self._error(wait)
            return False
        self._spend(client, decisions)
        return True

    def give_back(self, client: str, decisions: int) -> None:
        """Undo `take`, for decisions that were counted and then not stored."""
        self._spend(client, -decisions)

    def _spend(self, client: str, decisions: int) -> None:
        now = self._now()
        self._allowances.of(client, now).spend(decisions, now)
        if self._cluster is not None:
            self._spent[client] = self._spent.get(client, 0) + decisions
            self._arrived.set()

    def _error(self, wait: float) -> Exception:
        most = f"{self._quota.amount:,}"
        why = f"more than {most} decisions in a minute; none of these was stored"
        return over_quota(ClientLimit.INGEST, self._quota, wait, why)

    async def run(self) -> None:
        """Tell other nodes what was spent here, and learn what is left. Never ends."""
        while True:
            await self._arrived.wait()
            await asyncio.sleep(
                SPENT_REPORT_SECONDS if await self._settle() else SPENT_RETRY_SECONDS
            )

    async def _settle(self) -> bool:
        """Settle some clients; return whether the cluster answered."""
        assert self._cluster is not None
        spent = {client: self._spent[client] for client in islice(self._spent, MAX_SETTLED)}
        for client in spent:
            del self._spent[client]
        if not self._spent:
            self._arrived.clear()
        try:
            left = await self._cluster.spend(ClientLimit.INGEST, self._quota, spent)
        except Unavailable:
            # Each node counts by itself now. What accumulates meanwhile would be told too late.
            self._spent.clear()
            self._arrived.clear()
            return False
        now = self._now()
        for client, amount in left.items():
            self._allowances.of(client, now).set_left(amount - self._spent.get(client, 0), now)
        return True
