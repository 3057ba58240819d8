"""Failed sign-ins: after how much time one more is answered.

They are counted by the client's address and by a digest of the credential. A credential that is
accepted is never delayed.
"""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

# The first delay, in seconds. Each further failure doubles it, up to the longest one.
FIRST_DELAY: Final = 0.25
LONGEST_DELAY: Final = 4.0
# Failures are forgotten after this time without another one, in seconds.
FORGET_FAILURES_SECONDS: Final = 600.0
# Addresses and digests that are remembered; the one that failed longest ago is forgotten.
MAX_REMEMBERED_FAILURES: Final = 10_000


class FailedSignIns:
    """Counts failures. The first `free` ones of an address or a credential are not delayed."""

    def __init__(self, free: int, most: int = MAX_REMEMBERED_FAILURES) -> None:
        self._free = free
        self._most = most
        # The number of failures and the time of the last one, in the order of that time.
        self._failures: OrderedDict[str | bytes, tuple[int, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._failures)

    def add(self, about: Iterable[str | bytes], now: float) -> float:
        """Count a failure; return the delay before its answer, in seconds.

        `about` are the address and the digest. `now` is in seconds on any clock.
        """
        return max((self._add(each, now) for each in about), default=0.0)

    def _add(self, key: str | bytes, now: float) -> float:
        count, last = self._failures.pop(key, (0, now))
        count = 1 if now - last > FORGET_FAILURES_SECONDS else count + 1
        self._failures[key] = count, now
        if len(self._failures) > self._most:
            self._failures.popitem(last=False)
        if count <= self._free:
            return 0.0
        # The exponent is bounded: a float overflows after a thousand failures.
        return min(FIRST_DELAY * 2.0 ** min(count - self._free - 1, 32), LONGEST_DELAY)
