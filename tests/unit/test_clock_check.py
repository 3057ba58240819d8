"""Tests of `ClockCheck`: it reasons a wrong clock, and limits how much retention then drops."""

from hypothesis import given
from hypothesis import strategies as st

from routecast.core.clock_check import DROP_SHARES, LARGEST_SKEW, PROBATION, ClockCheck, KeptSpan
from tests.support.decisions import DAY, HOUR, MINUTE, NOW

MONTH = KeptSpan(NOW - 30 * DAY, NOW, NOW - 90 * DAY)
NOTHING = KeptSpan(None, None, None)
KEPT = 90 * DAY


def test_clock_that_agrees_with_the_last_receipt_may_drop_little_in_the_first_day() -> None:
    """The clock may have been wrong before; after a day without a jump it is trusted."""
    clock_check = ClockCheck()
    for hours in range(48):
        passed = hours * HOUR
        assert clock_check.check(NOW + passed, passed, MONTH) is None
        decisions = clock_check.limit_decisions(NOW, passed, MONTH)
        minutes = clock_check.limit_minutes(NOW, passed, MONTH, KEPT)
        if passed < PROBATION:
            assert decisions == MONTH[0] + 30 * DAY // DROP_SHARES
            assert minutes == MONTH[2] + KEPT // DROP_SHARES
        else:
            assert decisions == minutes == NOW


def test_clock_far_ahead_of_the_last_receipt_is_reasoned_for_a_day() -> None:
    """In that time each check drops few decisions, also with newer receipts, and no minute."""
    clock_check, ahead = ClockCheck(), 100 * DAY
    reason = clock_check.check(NOW + ahead, 0, MONTH)
    assert reason == "it is 100.0 days after the last decision was received"
    later, before = MONTH._replace(last=NOW + ahead), NOW + 70 * DAY
    assert clock_check.limit_decisions(before, 0, later) == MONTH[0] + 30 * DAY // DROP_SHARES
    assert clock_check.limit_minutes(before, 0, later, KEPT) == 0
    assert clock_check.check(NOW + ahead + PROBATION, PROBATION, later) is None
    assert clock_check.limit_decisions(before, PROBATION, later) == before
    assert clock_check.limit_minutes(before, PROBATION, later, KEPT) == before


def test_day_of_a_wrong_clock_drops_at_most_a_third() -> None:
    """Retention checks every ten minutes."""
    clock_check, ahead, first = ClockCheck(), 100 * DAY, NOW - 30 * DAY
    for number in range(6 * 24):
        passed = number * 10 * MINUTE
        span = KeptSpan(first, NOW + ahead + passed, NOW)
        clock_check.check(NOW + ahead + passed, passed, MONTH if not number else span)
        first = clock_check.limit_decisions(NOW + 70 * DAY, passed, span)
    assert first < NOW - 20 * DAY


@given(st.integers(-(10**17), 10**17), st.integers(0, DAY - 1))
def test_jump_is_noticed_in_either_direction(jump: int, elapsed: int) -> None:
    """A difference over `LARGEST_SKEW` between the clock and the elapsed time is a jump."""
    clock_check = ClockCheck()
    assert not clock_check.has_checked
    assert clock_check.check(NOW, 0, MONTH) is None
    assert clock_check.has_checked
    reason = clock_check.check(NOW + elapsed + jump, elapsed, MONTH)
    assert (reason is not None) == (abs(jump) > LARGEST_SKEW)
    assert (clock_check.limit_minutes(NOW, elapsed, MONTH, KEPT) == 0) == (reason is not None)


def test_text_of_a_jump() -> None:
    """The text has minutes and a direction."""
    clock_check = ClockCheck()
    clock_check.check(NOW, 0, NOTHING)
    assert clock_check.check(NOW + HOUR, 0, NOTHING) == "it was set forward by 60 minutes"
    assert clock_check.check(NOW, 0, NOTHING) == "it was set back by 60 minutes"


def test_clock_drops_no_minutes_for_a_day_without_any_receipt() -> None:
    """There is no reason, because most databases without decisions are new."""
    clock_check = ClockCheck()
    assert clock_check.check(NOW, 0, NOTHING) is None
    assert clock_check.limit_minutes(NOW, 0, MONTH, KEPT) == 0
    assert clock_check.limit_minutes(NOW, PROBATION, MONTH, KEPT) == NOW


def test_short_history_is_dropped_by_at_least_a_minute() -> None:
    """A share of 1 / `DROP_SHARES` of a short history would be no progress."""
    clock_check, short = ClockCheck(), KeptSpan(NOW - MINUTE, NOW, NOW - MINUTE)
    clock_check.check(NOW + 40 * DAY, 0, short)
    assert clock_check.limit_decisions(NOW + 10 * DAY, 0, short) == NOW
