"""How much rendering time each client may use, so that none of them takes it from the others."""

from collections import OrderedDict
from collections.abc import Iterable
from heapq import heapify, heappop, heappush
from typing import Final

# Of one core: what one client may use, and what all of them may use together.
CLIENT_SHARE: Final = 0.2
TOTAL_SHARE: Final = 0.3
# A client that was quiet may use what it has saved up, in seconds of rendering time.
BURST_SECONDS: Final = 0.25
# Clients remembered. Of those over it, the one that used time longest ago is forgotten.
MAX_CLIENTS: Final = 10_000
# Entries of the heap that may no longer hold, beside one for each client.
SPARE_ENTRIES: Final = 64


class RenderBudget:
    """The rendering time that clients have used (the generic cell rate algorithm, ITU-T I.371).

    Clients are told apart by a key, such as their address. `now` is seconds on a monotonic clock.
    """

    def __init__(self) -> None:
        # When each client will have paid for all it used. The one that used time last comes last.
        self._paid: OrderedDict[str, float] = OrderedDict()
        # The same as a heap, soonest first, with entries that no longer hold.
        self._soonest: list[tuple[float, str]] = []

    def wait(self, client: str, now: float) -> float:
        """Return for how many seconds a client must not use any more; 0 when it may now."""
        paid = self._paid.get(client)
        if paid is None:
            return 0.0
        return max(0.0, paid - now - BURST_SECONDS / CLIENT_SHARE)

    def first(self, clients: Iterable[str], now: float) -> tuple[str, float]:
        """Return the first client that may use time now, else the one that may soonest.

        With it comes its `wait`. Of no clients at all, it is one that may.
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
        """Note that a client has used rendering time, in seconds."""
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
        """Forget the clients that have paid: those that are left share the time."""
        while self._soonest and self._soonest[0][0] <= now:
            paid, client = heappop(self._soonest)
            if self._paid.get(client) == paid:
                del self._paid[client]
