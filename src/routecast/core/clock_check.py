"""The clock check: how much may be deleted by a clock that may be wrong.

The clock decides which data are too old, and a clock can be wrong by years: after a virtual machine
was restored, with an empty battery, or because of a mistyped date. Deleted data do not come back
when the clock is corrected. So the clock is compared with two witnesses: the time that has passed
since the last check, and the receipt of the last decision before this process began. No witness
shows whether the clock was already wrong at that receipt. So only little is deleted in the first
day.
"""

from typing import Final, NamedTuple

from routecast.core.decision import DAY, MINUTE

# Between two checks, the clock may advance by this much more or less than the time that passed.
LARGEST_SKEW: Final = MINUTE
# A clock that is further ahead of the last receipt is not trusted: either no producer has sent
# anything since, or the clock is wrong.
LONGEST_SILENCE: Final = DAY
# It is trusted after this time, if it advances as it should.
PROBATION: Final = DAY
# Until then, one part in DROP_SHARES may be deleted after each check. In a day with a check every
# ten minutes, that is a quarter of all decisions.
DROP_SHARES: Final = 500


class KeptSpan(NamedTuple):
    """The range of the kept data, in microseconds; None if there are none."""

    first: int | None  # the receipt of its first decision
    last: int | None  # the receipt of its last decision
    minute: int | None  # the beginning of its first minute with a rollup


class ClockCheck:
    """Compares a clock with its witnesses, and limits what may be deleted.

    `now` is the clock's time and `elapsed` the time that has passed since some moment, both in
    microseconds. Call `check` first.
    """

    def __init__(self) -> None:
        self._offset: int | None = None  # between the clock and the time that has passed
        # Both as values of `elapsed`.
        self._careful_until = self._untrusted_until = 0
        self._step = MINUTE  # how much of the range of receipts may be deleted after one check

    @property
    def has_checked(self) -> bool:
        """Whether the clock was compared already."""
        return self._offset is not None

    def check(self, now: int, elapsed: int, span: KeptSpan) -> str | None:
        """Check the clock; return what is wrong with it, None if nothing is.

        If something is wrong, delete nothing before the next check.
        """
        offset, before = now - elapsed, self._offset
        self._offset = offset
        if before is None:
            return self._check_first(now, elapsed, span)
        jump = offset - before
        if abs(jump) <= LARGEST_SKEW:
            return None
        self._distrust(elapsed)
        return f"it was set {'forward' if jump > 0 else 'back'} by {abs(jump) / MINUTE:.0f} minutes"

    def _check_first(self, now: int, elapsed: int, span: KeptSpan) -> str | None:
        self._careful_until = elapsed + PROBATION
        if span.first is None or span.last is None:
            self._distrust(elapsed)  # no witness supports it
            return None
        self._step = max(MINUTE, (span.last - span.first) // DROP_SHARES)
        silence = now - span.last
        if silence <= LONGEST_SILENCE:
            return None
        self._distrust(elapsed)
        return f"it is {silence / DAY:.1f} days after the last decision was received"

    def _distrust(self, elapsed: int) -> None:
        self._careful_until = self._untrusted_until = elapsed + PROBATION

    def limit_decisions(self, before: int, elapsed: int, span: KeptSpan) -> int:
        """Return the moment of receipt before which decisions may be deleted, at most `before`."""
        if elapsed >= self._careful_until or span.first is None:
            return before
        return min(before, span.first + self._step)

    def limit_minutes(self, before: int, elapsed: int, span: KeptSpan, kept: int) -> int:
        """Return the moment before which minutes may be deleted, at most `before`.

        `kept` is how long they must be kept, in microseconds. While the clock is not trusted, none
        may be deleted.
        """
        if elapsed < self._untrusted_until:
            return 0
        if elapsed >= self._careful_until or span.minute is None:
            return before
        return min(before, span.minute + max(60 * MINUTE, kept // DROP_SHARES))
