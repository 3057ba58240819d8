"""The rendering time that each client may use, so that no client takes it from the others."""

from collections import OrderedDict
from collections.abc import Iterable
from heapq import heapify, heappop, heappush
from typing import Final

# As shares of one core: for one client, and for all clients together.
CLIENT_SHARE: Final = 0.2
TOTAL_SHARE: Final = 0.3
# A quiet client saves up at most this much rendering time, in seconds.
BURST_SECONDS: Final = 0.25
# Clients remembered; over it, the one that used time least recently is forgotten.
MAX_CLIENTS: Final = 10_000
# Outdated entries that the heap may have, beside one entry for each client.
SPARE_ENTRIES: Final = 64


class RenderBudget:
    """The rendering time that clients have used (the generic cell rate algorithm, ITU-T I.371).

    Each client has a key, such as its address. `now` is in seconds on a monotonic clock.
    """

    def __init__(self) -> None:
        # The moment at which each client will have paid for all the time that it used. The client
        # that used time last comes last.
        self._paid: OrderedDict[str, float] = OrderedDict()
        # The same as a heap, soonest first, with outdated entries.
        self._soonest: list[tuple[float, str]] = []

    def wait(self, client: str, now: float) -> float:
        """Return for how many seconds a client must wait; 0 if it may use time now."""
        paid = self._paid.get(client)
        if paid is None:
            return 0.0
        return max(0.0, paid - now - BURST_SECONDS / CLIENT_SHARE)

    def first(self, clients: Iterable[str], now: float) -> tuple[str, float]:
        """Return the first client that may use time now, or the one that must wait least.

        The second value is its `wait`. Without clients, the result is "" and 0.
        """
        soonest, least = "", float("inf")
        seen = set()
        for client in clients:
            if client in seen:
                continue
            seen.add(client)
            wait = self.wait(client, now)
            if not wait:
                return client, 0.0
            if wait < least:
                soonest, least = client, wait
        return (soonest, least) if seen else ("", 0.0)

    def charge(self, client: str, seconds: float, now: float) -> None:
        """Record that a client has used rendering time, in seconds."""
        self._forget_paid(now)
        begins = max(now, self._paid.pop(client, now))
        while len(self._paid) >= MAX_CLIENTS:
            self._paid.popitem(last=False)
        share = min(CLIENT_SHARE, TOTAL_SHARE / (len(self._paid) + 1))
        paid = self._paid[client] = begins + seconds / share
        heappush(self._soonest, (paid, client))
        if len(self._soonest) > 2 * len(self._paid) + SPARE_ENTRIES:
            self._soonest = [(paid, client) for client, paid in self._paid.items()]
            heapify(self._soonest)

    def _forget_paid(self, now: float) -> None:
        """Forget the clients that have paid: the others share the time."""
        while self._soonest and self._soonest[0][0] <= now:
            paid, client = heappop(self._soonest)
            if self._paid.get(client) == paid:
                del self._paid[client]
