"""Times in the forms of databases, programs and spreadsheets."""

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routecast.cli.replay import parsers
from routecast.cli.replay.time_formats import ORDERS, moments, names_offset

SECOND = 10**6
MOMENT = 1_769_862_890 * SECOND  # 2026-01-31T12:34:50Z
MINUTE = MOMENT - 50 * SECOND


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("2026-01-31T12:34:50Z", MOMENT),
        ("2026-01-31 12:34:50.789123+00", MOMENT + 789_123),
        ("2026-01-31 18:04:50.789+05:30", MOMENT + 789_000),
        ("2026-01-31T12:34:50.9999999Z", MOMENT + 999_999),
        ("2026-01-31T12:34:50,5+0000", MOMENT + 500_000),
        ("2026-01-31T12:34:60Z", MINUTE + 60 * SECOND - 1),
        ("2026-01-31 12:34:50.789123999 +0000 UTC", MOMENT + 789_123),
        ("2026-01-31 13:34:50.789 +0100 CET m=+0.000123", MOMENT + 789_000),
        ("2026-01-31 09:04:50 -0330 -0330", MOMENT),
        ("2026-01-31 12:34:50.789000 UTC", MOMENT + 789_000),
        ("2026-01-31T13:34:50.789+01:00[Europe/Berlin]", MOMENT + 789_000),
        ("2026-01-31T12:34:50.789Z[UTC]", MOMENT + 789_000),
        ("20260131T123450Z", MOMENT),
        ("20260131123450", MOMENT),
        ("20260131", MINUTE - (12 * 60 + 34) * 60 * SECOND),
        ("2026/01/31 12:34:50", MOMENT),
        ("Sat, 31 Jan 2026 12:34:50 +0000", MOMENT),
        ("31 Jan 2026 12:34:50 GMT", MOMENT),
        ("31/Jan/2026:13:34:50 +0100", MOMENT),
        ("31-JAN-26 12.34.50.789000 PM +00:00", MOMENT + 789_000),
        ("31-JAN-26 12.34.50.789000 AM", MOMENT + 789_000 - 12 * 3600 * SECOND),
        ("Jan 31, 2026 12:34 PM", MINUTE),
        ("Sat Jan 31 2026 13:34:50 GMT+0100 (Central European Standard Time)", MOMENT),
        ("1/31/2026 12:34:50 PM", MOMENT),
        ("1/31/2026, 12:34:50\u202fPM", MOMENT),
        ("1/31/26 12:34", MINUTE),
        ("31/01/2026 12:34:50", MOMENT),
        ("31.01.2026 12:34", MINUTE),
        ("5.1.2026 12:34", MINUTE - 26 * 86_400 * SECOND),
        ("1769862890", MOMENT),
        ("1769862890.5", MOMENT + 500_000),
        (1_769_862_890_123, MOMENT + 123_000),
        (1_769_862_890_123_456, MOMENT + 123_456),
        (1_769_862_890_123_456_500, MOMENT + 123_456),
        (Decimal("1769862890.7891239"), MOMENT + 789_123),
    ],
)
def test_times_are_read_in_every_form(written: object, expected: int) -> None:
    """Each has one meaning, exact to the microsecond; finer digits are cut off."""
    assert set(parsers.moment(written).values()) == {expected}


def test_the_order_of_day_and_month_may_have_two_readings() -> None:
    """If both may be months, there are two readings; with dots, the day is first."""
    days = {"dmy": "2026-02-01", "mdy": "2026-01-02"}
    expected = {k: parsers.moment(f"{day}T12:34Z")["dmy"] for k, day in days.items()}
    assert parsers.moment("01/02/2026 12:34") == expected
    assert set(parsers.moment("01-02-2026 12:34")) == {"dmy", "mdy"}
    assert parsers.moment("01.02.2026 12:34") == {"dmy": expected["dmy"]}
    assert set(parsers.moment("03/02/01")) == {"dmy", "mdy", "ymd"}


def test_small_numbers_are_serials_or_offsets() -> None:
    """A serial of Excel is rounded to a millisecond, so that it is in the right minute."""
    noon = (MINUTE - 34 * 60 * SECOND) // SECOND
    assert parsers.moment("46053.5") == {"excel": noon * SECOND, "start": 46_053_500_000}
    assert parsers.moment("46053.500694444")["excel"] == (noon + 60) * SECOND
    assert parsers.moment("46053,5") == parsers.moment("46053.5")
    assert parsers.moment(Decimal("0.451")) == {"start": 451_000}


@given(st.integers(0, 4_000_000_000 * SECOND), st.integers(-12, 14))
def test_every_rfc3339_time_is_read_exactly(micros: int, hours: int) -> None:
    """No microsecond is lost with any offset, and all readings are equal."""
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=micros)
    written = moment.astimezone(timezone(timedelta(hours=hours))).isoformat()
    assert moments(written, None) == dict.fromkeys(ORDERS, micros)


@pytest.mark.parametrize(
    "written",
    [
        *("yesterday", "May", "10:30", "2026-13-01", "2026-02-30", "31/31/2026", "1e30x"),
        *("2026-11-16T25:00:00Z", "31/01/2026 13:34 PM", "2026-01-31 12:34:50 CET", "-5", ""),
        *("gpt-4", "1.2.3", "46,053", "99999999", True, [], {}, "2026-01-31 123", "30.02.2026"),
    ],
)
def test_text_that_is_no_time_is_refused(written: object) -> None:
    """An unreadable time is an error of its row, and never another time."""
    with pytest.raises(ValueError, match="is not a time"):
        parsers.moment(written)


def test_other_forms_are_read_by_a_pattern_or_a_unit() -> None:
    """`--map` has the pattern or the unit after the column."""
    pattern = "%a %b %d %H:%M:%S %Y"
    assert parsers.moment_as(pattern)("Sat Jan 31 12:34:50 2026") == {pattern: MOMENT}
    assert parsers.moment_as("%H:%M %d.%m.%Y %z")("13:34 31.01.2026 +0100")[
        "%H:%M %d.%m.%Y %z"
    ] == (MINUTE)
    assert parsers.moment_as("ms")("1769862890789") == {"ms": MOMENT + 789_000}
    for form in ("ms", "%d"):
        with pytest.raises(ValueError, match="is not a time of the form"):
            parsers.moment_as(form)("soon")


@pytest.mark.parametrize(
    ("written", "named"),
    [("2026-01-31 12:34:50 +01", True), ("31.01.2026 12:34", False), ("31 Jan 2026 GMT", True)],
)
def test_an_offset_in_a_time_is_noticed(written: str, named: bool) -> None:
    """Times without an offset are read as UTC, with a note to the user."""
    assert names_offset(written) is named
