"""How much rendering time each client may use, so that none of them takes it from the others."""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

# Of one core: what one client may use, and what all of them may use together.
CLIENT_SHARE: Final = 0.2
TOTAL_SHARE: Final = 0.3
# A client that was quiet may use what it has saved up, in seconds of rendering time.
BURST_SECONDS: Final = 0.25
# Clients remembered. Of those over it, the one that used time longest ago is forgotten.
MAX_CLIENTS: Final = 10_000


class RenderBudget:
    """The rendering time that clients have used (the generic cell rate algorithm, ITU-T I.371).

    Clients are told apart by a key, such as their address. `now` is seconds on a monotonic clock.
    """

    def __init__(self) -> None:
        # By client: when it will have paid for all it used. Whoever used time last comes last.
        self._paid: OrderedDict[str, float] = OrderedDict()

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
        """Note that a client has used so many seconds."""
        paid = self._paid
        while paid and (len(paid) >= MAX_CLIENTS or next(iter(paid.values())) <= now):
            paid.popitem(last=False)
        begins = max(now, paid.pop(client, now))
        share = min(CLIENT_SHARE, TOTAL_SHARE / (len(paid) + 1))
        paid[client] = begins + seconds / share
