"""Caution: what a clock is compared with before something is deleted by it."""

from hypothesis import given
from hypothesis import strategies as st

from routecast.core.caution import LARGEST_SKEW, PROBATION, SHARES, Caution, Receipts
from tests.support.decisions import DAY, HOUR, MINUTE, NOW

MONTH = Receipts(NOW - 30 * DAY, NOW)


def test_clock_that_agrees_with_the_last_receipt_is_believed() -> None:
    """From the start, and for as long as it goes on as it should."""
    caution = Caution()
    for hours in range(48):
        assert caution.look(NOW + hours * HOUR, hours * HOUR, MONTH) is None
        assert caution.limit(NOW, hours * HOUR, MONTH) == NOW


def test_clock_far_ahead_of_the_last_receipt_is_in_doubt_for_a_day() -> None:
    """Each time little may be dropped, though what comes in now has its times."""
    caution, ahead = Caution(), 100 * DAY
    doubt = caution.look(NOW + ahead, 0, MONTH)
    assert doubt == "it is 100.0 days after the last decision was received"
    later = Receipts(MONTH.first, NOW + ahead)
    assert caution.limit(NOW + 70 * DAY, 0, later) == MONTH.first + 30 * DAY // SHARES
    assert caution.look(NOW + ahead + PROBATION, PROBATION, later) is None
    assert caution.limit(NOW + 70 * DAY, PROBATION, later) == NOW + 70 * DAY


@given(st.integers(-(10**17), 10**17), st.integers(0, DAY))
def test_jump_is_noticed_in_either_direction(jump: int, elapsed: int) -> None:
    """Whatever the clock is off by from the time that has passed."""
    caution = Caution()
    assert caution.look(NOW, 0, MONTH) is None
    doubt = caution.look(NOW + elapsed + jump, elapsed, MONTH)
    assert (doubt is not None) == (abs(jump) > LARGEST_SKEW)
    assert caution.in_doubt(elapsed) == (doubt is not None)


def test_what_a_jump_is_told_as() -> None:
    """In minutes, with its direction."""
    caution = Caution()
    caution.look(NOW, 0, None)
    assert caution.look(NOW + HOUR, 0, None) == "it was set forward by 60 minutes"
    assert caution.look(NOW, 0, None) == "it was set back by 60 minutes"


def test_short_history_may_be_dropped_by_the_minute() -> None:
    """A hundredth of it would be no progress."""
    caution, short = Caution(), Receipts(NOW - MINUTE, NOW)
    caution.look(NOW + 40 * DAY, 0, short)
    assert caution.limit(NOW + 10 * DAY, 0, short) == NOW
