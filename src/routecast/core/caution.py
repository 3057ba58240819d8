"""Caution: how much may be deleted by a clock that may be wrong.

What is too old is found by the clock, and a clock can be wrong by years: a virtual machine that was
restored, a battery that is empty, a date typed by hand. What was deleted by it does not come back
when it is set right. So the clock is compared with two witnesses: the time that has passed since
the last look, and when the last decision was received before this process began.
"""

from typing import Final, NamedTuple

from routecast.core.decision import DAY, MINUTE

# Between two looks, the clock may go on by this much more or less than the time that has passed.
LARGEST_SKEW: Final = MINUTE
# A clock that is further ahead of the last receipt is in doubt: either nobody has sent anything
# since, or the clock is wrong.
LONGEST_SILENCE: Final = DAY
# A clock in doubt is believed after this time, if it goes on as it should.
PROBATION: Final = DAY
# Until then, each time what was received in this part of the time that is kept may be dropped.
SHARES: Final = 100


class Receipts(NamedTuple):
    """When the first and the last of the decisions that are kept were received (microseconds)."""

    first: int
    last: int


class Caution:
    """Compares a clock with its witnesses, and says what may be dropped.

    `now` is what the clock says and `elapsed` the time that has passed since some moment, both in
    microseconds.
    """

    def __init__(self) -> None:
        self._offset: int | None = None  # of the clock from the time that has passed
        self._trusted_from = 0  # of the time that has passed
        self._step = MINUTE  # of time of receipt, that may be dropped at once until then

    def look(self, now: int, elapsed: int, receipts: Receipts | None) -> str | None:
        """Compare; return what is wrong with the clock, None where nothing is.

        After a jump of the clock drop nothing before the next look. `receipts` are None where no
        decision is kept.
        """
        offset, before = now - elapsed, self._offset
        self._offset = offset
        if before is None:
            if receipts is None:
                return None
            self._step = max(MINUTE, (receipts.last - receipts.first) // SHARES)
            silence = now - receipts.last
            if silence <= LONGEST_SILENCE:
                return None
            self._trusted_from = elapsed + PROBATION
            return f"it is {silence / DAY:.1f} days after the last decision was received"
        jump = offset - before
        if abs(jump) <= LARGEST_SKEW:
            return None
        self._trusted_from = elapsed + PROBATION
        return f"it was set {'forward' if jump > 0 else 'back'} by {abs(jump) / MINUTE:.0f} minutes"

    def in_doubt(self, elapsed: int) -> bool:
        """Whether the clock is not believed yet."""
        return elapsed < self._trusted_from

    def limit(self, before: int, elapsed: int, receipts: Receipts) -> int:
        """Return before which moment of receipt decisions may be dropped, of those before one."""
        if not self.in_doubt(elapsed):
            return before
        return min(before, receipts.first + self._step)
