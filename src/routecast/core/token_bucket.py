"""Token buckets: how much a client may do in a time, and what it has left of that.

A *quota* is an amount in a time. A client's *allowance* begins with the whole amount, grows back at
the same rate, and never holds more than that. So a client may do the amount at once, and then as
much as grows back.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, Self

# Allowances that are kept for each limit. The one that was used longest ago is forgotten, and its
# client then has all of its quota again.
MAX_ALLOWANCES: Final = 10_000
# What a float may be off after many additions.
_ROUNDING: Final = 1e-6


@dataclass(frozen=True, slots=True)
class Quota:
    """An amount in a time, in seconds."""

    amount: int
    seconds: float

    @classmethod
    def a_minute(cls, amount: int) -> Self:
        """Return the quota of an amount in a minute; at least 1."""
        return cls(max(amount, 1), 60.0)

    @property
    def rate(self) -> float:
        """What grows back in a second."""
        return self.amount / self.seconds


class Allowance:
    """What one client has left of a quota. `now` is in seconds on any clock.

    A clock that goes back adds nothing.
    """

    __slots__ = ("_at", "_left", "_quota")

    def __init__(self, quota: Quota, now: float) -> None:
        self._quota = quota
        self._left = float(quota.amount)
        self._at = now

    def left(self, now: float) -> float:
        """Return what is left now; below zero while more was spent than there was."""
        if now > self._at:
            grown = self._left + (now - self._at) * self._quota.rate
            self._left = min(grown, float(self._quota.amount))
        self._at = now
        return self._left

    def wait_for(self, amount: int, now: float) -> float:
        """Return the seconds until this amount may be spent; 0 for at once.

        More than the quota may be spent while all of it is left: no wait would ever be enough.
        """
        lacking = min(amount, self._quota.amount) - self.left(now)
        return 0.0 if lacking <= _ROUNDING else lacking / self._quota.rate

    def spend(self, amount: int, now: float) -> None:
        """Take an amount, also if that is more than is left."""
        self._left = self.left(now) - amount

    def set_left(self, left: float, now: float) -> None:
        """Replace what is left."""
        self._left, self._at = min(left, float(self._quota.amount)), now


class Allowances:
    """The allowances of many clients, by what tells them apart."""

    def __init__(self, quota: Quota, most: int = MAX_ALLOWANCES) -> None:
        self.quota = quota
        self._most = most
        self._by_client: OrderedDict[str, Allowance] = OrderedDict()

    def __len__(self) -> int:
        return len(self._by_client)

    def of(self, client: str, now: float) -> Allowance:
        """Return the allowance of a client, a whole one for a new client."""
        allowance = self._by_client.get(client)
        if allowance is not None:
            self._by_client.move_to_end(client)
            return allowance
        allowance = self._by_client[client] = Allowance(self.quota, now)
        if len(self._by_client) > self._most:
            self._by_client.popitem(last=False)
        return allowance

    def known(self, client: str) -> Allowance | None:
        """Return the allowance of a client; None for one that is new."""
        return self._by_client.get(client)
