"""Cells of files: exact numbers, times however they are written, and clear refusals."""

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routecast.cli import cells

SECOND = 10**6
MOMENT = 1_700_158_623_979_960  # 2023-11-16T18:17:03.979960Z


@pytest.mark.parametrize(
    "written", ["0.000304", "9.6e-05", "1E3", ".5", "5.", " 0.1 ", "-2", "007"]
)
def test_numbers_keep_their_digits(written: str) -> None:
    """A decimal is what was written, to the last digit; no float is in between."""
    assert cells.number(written) == Decimal(written.strip())
    assert isinstance(cells.number(written), Decimal)


@pytest.mark.parametrize(
    "written", ["abc", "1_000", "1,5", "inf", "NaN", "0x10", "١", "$1", True, []]
)
def test_what_is_no_number_is_refused(written: object) -> None:
    """Python would take some of these; a file's author did not mean a number."""
    with pytest.raises(ValueError, match="is not a number"):
        cells.number(written)


def test_counts_may_be_written_as_data_frames_write_them() -> None:
    """374.0 is 374; half a token is not a count."""
    assert cells.whole("374.0") == 374
    assert cells.whole(Decimal("1e3")) == 1000
    for wrong in ("10.5", "1e400", "1e19"):
        with pytest.raises(ValueError, match="whole number"):
            cells.whole(wrong)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("2023-11-16 18:17:03.9799600", MOMENT),
        ("2023-11-16T18:17:03.97996Z", MOMENT),
        ("2023-11-16T19:17:03.97996+01:00", MOMENT),
        ("2023-11-16T19:17:03,97996+0100", MOMENT),
        ("2023-11-16T18:17:03.979960 UTC", MOMENT),
        ("2023-11-16 18:17", MOMENT - 3_979_960),
        ("2023-11-16", MOMENT - 3_979_960 - (18 * 60 + 17) * 60 * SECOND),
        ("2023-11-16T18:17:03.0000005Z", MOMENT - 979_960),
        ("2023-11-16T18:17:03.0000015Z", MOMENT - 979_960 + 1),
        ("2023-11-16T18:17:03.9999999Z", MOMENT - 979_960 + SECOND - 1),
        ("2023-11-16T18:17:60Z", MOMENT - 979_960 + 57 * SECOND - 1),
        ("2023-11-16 18:17:03+00", MOMENT - 979_960),
        ("2023-11-16 14:17:03-04", MOMENT - 979_960),
        ("1700158623.97996", MOMENT),
        (1700158623, MOMENT - 979_960),
        (Decimal("1700158623.9799605"), MOMENT),
    ],
)
def test_times_however_they_are_written(written: object, expected: int) -> None:
    """Any usual form, in UTC where it names no offset, cut off after microseconds."""
    assert cells.moment(1)(written) == expected


@given(st.integers(0, 4_000_000_000 * SECOND), st.integers(-12, 14))
def test_every_rfc3339_time_is_read_exactly(micros: int, hours: int) -> None:
    """No microsecond is lost on the way, whatever the offset."""
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=micros)
    written = moment.astimezone(timezone(timedelta(hours=hours))).isoformat()
    assert cells.moment(1)(written) == micros


@pytest.mark.parametrize(
    "written",
    ["yesterday", "2023-13-01", "2023-11-16T25:00:00Z", "1e30", "-1e11", "", True, "16/11/2023"],
)
def test_what_is_no_time_is_refused(written: object) -> None:
    """A time that cannot be read is an error of its row, never another time."""
    with pytest.raises(ValueError, match=r"."):
        cells.moment(1)(written)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("OK", "success"),
        (True, "success"),
        ("0", "error"),
        ("Failure", "error"),
        (503, "error"),
        ("200", "success"),
    ],
)
def test_status_words(written: object, expected: str) -> None:
    """Words, booleans and HTTP codes become the two statuses of the wire."""
    assert cells.status(written) == expected


def test_factors_are_exact() -> None:
    """Seconds become milliseconds without a float in between."""
    assert cells.times(Decimal(1000))("0.1234567890123456789") == Decimal("123.4567890123456789")


@pytest.mark.parametrize("cell", [None, "", "  ", "NaN", "null", "N/A"])
def test_nothing_is_not_zero(cell: Any) -> None:
    """Empty cells, and the words data frames write for them, are absent."""
    assert cells.nothing_known(cell)
    assert not cells.nothing_known("0")
    assert not cells.nothing_known(0)
