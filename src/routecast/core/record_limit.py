"""How many tickets and sessions a client may make, so that none takes the room of all others."""

from typing import Final

from routecast.core.client_limits import ClientLimit, LimitModes, over_quota
from routecast.core.token_bucket import Allowances, Quota

# A record counts as one for each part of this size that it begins: most are smaller.
RECORD_UNIT_BYTES: Final = 1_024


class RecordLimit:
    """Limits the records that each client makes to an `amount` in `seconds`; 0 is no limit.

    `now` is in seconds on any clock.
    """

    def __init__(
        self, limit: ClientLimit, amount: int, seconds: float, modes: LimitModes | None = None
    ) -> None:
        self._limit = limit
        self._is_on = amount > 0
        self._allowances = Allowances(Quota(max(amount, 1), seconds))
        self._modes = modes or LimitModes()

    def take(self, client: str, record: bytes, now: float) -> int:
        """Count a record of a client. Raises OverLimit.

        Returns how much it counts, for `give_back`; in dry run, 0 for one that is too many.
        """
        if not self._is_on:
            return 0
        size = -(-len(record) // RECORD_UNIT_BYTES)
        allowance = self._allowances.of(client, now)
        if wait := allowance.wait_for(size, now):
            if self._modes.hit(self._limit):
                why = f"too many {self._limit} of this client"
                raise over_quota(self._limit, self._allowances.quota, wait, why)
            return 0
        allowance.spend(size, now)
        return size

    def give_back(self, client: str, counted: int, now: float) -> None:
        """Undo `take`, for a record that could not be kept."""
        if counted:
            self._allowances.of(client, now).spend(-counted, now)
