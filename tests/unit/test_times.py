"""Times: RFC 3339 and Unix time become microseconds, cut off and never rounded."""

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from math import floor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routecast.core.times import NO_OFFSET, RULE, read_time, unix_time

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MINUTE = 60 * 10**6

moments = st.integers(-(10**15), 2 * 10**17).map(
    lambda micros: EPOCH + timedelta(microseconds=micros)
)
offsets = st.integers(-23 * 60, 23 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))


@given(moments, offsets, st.sampled_from("Tt "), st.text("0123456789", max_size=20))
def test_a_time_equals_that_of_datetime(
    moment: datetime, offset: timezone, between: str, finer: str
) -> None:
    """The offset may be any; digits after the sixth change nothing."""
    local = moment.astimezone(offset).isoformat(timespec="microseconds")
    text = f"{local[:10]}{between}{local[11:26]}{finer}{local[26:]}"
    expected = (moment - EPOCH) // timedelta(microseconds=1)
    assert read_time(text) == expected
    assert read_time(text.replace("t", "T"), lenient=True) == expected


@given(moments, offsets, st.text("0123456789", max_size=9))
def test_a_leap_second_is_in_its_minute(moment: datetime, offset: timezone, fraction: str) -> None:
    """It is the last microsecond of the minute."""
    minute = moment.replace(second=0, microsecond=0)
    local = minute.astimezone(offset).isoformat()
    text = f"{local[:17]}60{'.' + fraction if fraction else ''}{local[19:]}"
    started = (minute - EPOCH) // timedelta(microseconds=1)
    assert read_time(text) == started + MINUTE - 1


@given(st.integers(-(10**12), 10**12), st.text("0123456789", max_size=30))
def test_unix_time_is_cut_off(seconds: int, fraction: str) -> None:
    """The digits are exact, and cut off to microseconds."""
    text = f"{seconds}.{fraction}" if fraction else f"{seconds}"
    assert unix_time(Decimal(text)) == floor(Fraction(text) * 10**6)
    assert unix_time(Decimal(text), 1000) == floor(Fraction(text) * 1000)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("2026-01-31T12:34:56", NO_OFFSET),
        ("2026-02-30T00:00:00Z", RULE),
        ("2026-01-31T24:00:00Z", RULE),
        ("2026-01-31T12:60:00Z", RULE),
        ("2026-01-31T12:34:61Z", RULE),
        ("2026-01-31T12:34:56+24:00", RULE),
        ("2026-01-31T12:34:56+12:60", RULE),
        ("2026-01-31T12:34:56+00", RULE),
        ("2026-01-31T12:34:56,5Z", RULE),
        ("2026-01-31T12:34:56.Z", RULE),
        ("2026-01-31_12:34:56Z", RULE),
        ("2026-01-31T12:34Z", RULE),
        ("2026-01-31", RULE),
        ("0000-01-01T00:00:00Z", RULE),
        ("٢٠٢٦-01-31T12:34:56Z", RULE),
        ("1769862896", RULE),
    ],
)
def test_text_that_is_no_time_is_refused(text: str, error: str) -> None:
    """The error says the rule."""
    with pytest.raises(ValueError, match="must") as refused:
        read_time(text)
    assert str(refused.value) == error
