"""Caution: how much may be deleted by a clock that may be wrong.

What is too old is found by the clock, and a clock can be wrong by years: a virtual machine that was
restored, a battery that is empty, a date typed by hand. What was deleted by it does not come back
when the clock is set right. So the clock is compared with two witnesses: the time that has passed
since the last look, and when the last decision was received before this process began. No witness
tells whether a clock was wrong then already. So little is deleted in the first day in any case.
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
# Until then, each time one part in DROP_SHARES may be dropped. In a day of looks every ten minutes,
# that is a quarter of all decisions.
DROP_SHARES: Final = 500


class KeptSpan(NamedTuple):
    """What a database keeps, in microseconds; None where nothing is kept."""

    first: int | None  # when its first decision was received
    last: int | None  # when its last decision was received
    minute: int | None  # when its first minute with a rollup began


class Caution:
    """Compares a clock with its witnesses, and says what may be dropped.

    `now` is what the clock says and `elapsed` the time that has passed since some moment, both in
    microseconds. `look` comes before all else.
    """

    def __init__(self) -> None:
        self._offset: int | None = None  # of the clock from the time that has passed
        # Both of the time that has passed.
        self._careful_until = self._doubted_until = 0
        self._step = MINUTE  # of time of receipt, that may be dropped at once

    @property
    def has_looked(self) -> bool:
        """Whether the clock was compared once."""
        return self._offset is not None

    def look(self, now: int, elapsed: int, span: KeptSpan) -> str | None:
        """Compare; return what is wrong with the clock, None where nothing is.

        After a jump of the clock drop nothing before the next look.
        """
        offset, before = now - elapsed, self._offset
        self._offset = offset
        if before is None:
            return self._look_first(now, elapsed, span)
        jump = offset - before
        if abs(jump) <= LARGEST_SKEW:
            return None
        self._doubt(elapsed)
        return f"it was set {'forward' if jump > 0 else 'back'} by {abs(jump) / MINUTE:.0f} minutes"

    def _look_first(self, now: int, elapsed: int, span: KeptSpan) -> str | None:
        self._careful_until = elapsed + PROBATION
        if span.first is None or span.last is None:
            self._doubt(elapsed)  # nothing speaks for it
            return None
        self._step = max(MINUTE, (span.last - span.first) // DROP_SHARES)
        silence = now - span.last
        if silence <= LONGEST_SILENCE:
            return None
        self._doubt(elapsed)
        return f"it is {silence / DAY:.1f} days after the last decision was received"

    def _doubt(self, elapsed: int) -> None:
        self._careful_until = self._doubted_until = elapsed + PROBATION

    def limit_decisions(self, before: int, elapsed: int, span: KeptSpan) -> int:
        """Return before which moment of receipt decisions may be dropped, of those before one."""
        if elapsed >= self._careful_until or span.first is None:
            return before
        return min(before, span.first + self._step)

    def limit_minutes(self, before: int, elapsed: int, span: KeptSpan, kept: int) -> int:
        """Return before which moment minutes may be dropped, of those before one.

        `kept` is for how long they are to be kept. In doubt, none may be dropped.
        """
        if elapsed < self._doubted_until:
            return 0
        if elapsed >= self._careful_until or span.minute is None:
            return before
        return min(before, span.minute + max(60 * MINUTE, kept // DROP_SHARES))
