"""Parsers of cells: exact numbers, every reading that fits, and clear errors."""

from decimal import Decimal
from typing import Any

import pytest

from routecast.cli.replay import parsers
from routecast.cli.replay.parsers import COMMA, COST, FAILED, LATENCY, POINT, SHARE, SUCCESS, TOKENS


def both(value: object) -> dict[str, object]:
    """Return the readings of a cell that has only one meaning."""
    return {POINT: value, COMMA: value}


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("0.000304", {POINT: Decimal("0.000304")}),
        ("9.6e-05", {POINT: Decimal("0.000096")}),
        ("1E3", both(1000)),
        (" .5 ", {POINT: Decimal("0.5")}),
        ("007", both(7)),
        ("-2", both(-2)),
        ("+2", both(2)),
        (Decimal("0.1234567890123456789"), both(Decimal("0.1234567890123456789"))),
        (3, both(3)),
        ("0,0023", {COMMA: Decimal("0.0023")}),
        ("1,5", {COMMA: Decimal("1.5")}),
        ("9,6e-05", {COMMA: Decimal("0.000096")}),
        ("1,234", {POINT: 1234, COMMA: Decimal("1.234")}),
        ("1.234", {POINT: Decimal("1.234"), COMMA: 1234}),
        ("1.234 ", {POINT: Decimal("1.234"), COMMA: 1234}),
        ("1,234.50", {POINT: Decimal("1234.50")}),
        ("1.234.567,8", {COMMA: Decimal("1234567.8")}),
        ("1 234,5", {COMMA: Decimal("1234.5")}),
        ("1\u202f234,5", {COMMA: Decimal("1234.5")}),
        ("1'234.5", {POINT: Decimal("1234.5")}),
        ("$0.0023", {POINT: Decimal("0.0023")}),
        ("US$ 0.0023", {POINT: Decimal("0.0023")}),
        ("-$1,234", {POINT: -1234, COMMA: Decimal("-1.234")}),
        ("0,0023 USD", {COMMA: Decimal("0.0023")}),
    ],
)
def test_money_is_read_in_every_form(written: object, expected: dict[str, object]) -> None:
    """Every digit counts; digits in groups have two readings if both are possible."""
    assert COST(written) == expected


@pytest.mark.parametrize(
    "written",
    [
        *("abc", "1_000", "inf", "NaN", "0x10", "\u0661", "1,23,456", "1,2345,678", "0.0.1", "$"),
        *("€0.50", "0.5 EUR", "50 ct", "$1 USD", "(1)", "5%", "gpt-3.5", "1.2.2026", True, [], {}),
    ],
)
def test_text_that_is_no_amount_of_dollars_is_refused(written: object) -> None:
    """Python or lenient parsers would read some of these as numbers."""
    with pytest.raises(ValueError, match=r"is not a number|is in "):
        COST(written)


@pytest.mark.parametrize(
    ("written", "milliseconds"),
    [("350 ms", 350), ("350ms", 350), ("0.35 s", 350), ("2 min", 120_000), ("1.5 µs", "0.0015")],
)
def test_durations_may_have_units(written: str, milliseconds: object) -> None:
    """A unit in the cell is used, and is a reading of its own."""
    assert LATENCY(written)["point with unit"] == Decimal(str(milliseconds))
    assert POINT not in LATENCY(written)


def test_counts_are_whole_numbers() -> None:
    """374.0 from a data frame is 374; a reading that is no whole number is left out."""
    assert TOKENS("374.0") == {POINT: 374}
    assert TOKENS("1e3") == both(1000)
    assert TOKENS("1,234") == {POINT: 1234}
    assert TOKENS("1.234") == {COMMA: 1234}
    assert TOKENS("1.000") == {POINT: 1, COMMA: 1000}
    for wrong in ("10.5", "1,5", Decimal("10.5")):
        with pytest.raises(ValueError, match=r"is not a (whole )?number"):
            TOKENS(wrong)


@pytest.mark.parametrize("quantity", [COST, LATENCY, TOKENS, SHARE])
def test_limits_are_those_of_the_server(quantity: parsers.Quantity) -> None:
    """A value that the server would refuse is never sent."""
    assert quantity.checked(Decimal(0)) == 0
    assert quantity.checked(Decimal(quantity.limit)) == quantity.limit
    with pytest.raises(ValueError, match="0 or more"):
        quantity.checked(-1)
    with pytest.raises(ValueError, match="at most"):
        quantity.checked(Decimal(quantity.limit) + Decimal("1e-9"))


def test_a_factor_is_exact_and_ignores_units() -> None:
    """Euros are multiplied by their rate in decimals."""
    euros = parsers.Quantity(COST.units, 9000, bare=True, factor=Decimal("1.1"))
    assert euros("€0.1234567890123456789") == {POINT: Decimal("0.13580246791358024679")}


def test_confidence_is_a_share_a_percentage_or_a_band() -> None:
    """A number above 1, by more than rounding, has another unit and is refused."""
    read = parsers.confidence(SHARE)
    assert read("0.87") == {POINT: Decimal("0.87")}
    assert read("87%") == dict.fromkeys(("point with unit", "comma with unit"), Decimal("0.87"))
    assert set(read(" High ").values()) == {"high"}
    assert read("1.0000001")
    for wrong in ("87", "1.5", "very"):
        with pytest.raises(ValueError, match="is not"):
            read(wrong)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        *((word, "success") for word in ("OK", "Succeeded", "true", True, "WAHR", "200", 204)),
        *((word, "error") for word in ("Failure", "timeout", "false", "FALSCH", "faux", 503)),
        *((word, "error") for word in ("429.0", Decimal("429.0"), "429 Too Many Requests")),
        ("HTTP/1.1 429 Too Many Requests", "error"),
    ],
)
def test_status_is_read_from_words_and_codes(written: object, expected: str) -> None:
    """Words, booleans and HTTP codes become the two statuses of the protocol."""
    assert parsers.status(written) == dict.fromkeys((SUCCESS, FAILED), expected)


def test_status_as_a_number_has_two_readings() -> None:
    """1 may mean success, or be an exit code."""
    assert parsers.status("1") == {SUCCESS: "success", FAILED: "error"}
    assert parsers.status(0) == {SUCCESS: "error", FAILED: "success"}
    assert parsers.succeeded("1") == {SUCCESS: "success"}
    with pytest.raises(ValueError, match="neither"):
        parsers.status("active")


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("RateLimitError: slow down", "error"),
        ("true", "error"),
        ("1", "error"),
        ("FALSCH", "success"),
        ("0", "success"),
        ("200", "success"),
        ("500", "error"),
        ("ok", "success"),
    ],
)
def test_columns_of_errors_are_read(written: str, expected: str) -> None:
    """Any message is an error."""
    assert parsers.failure(written) == {FAILED: expected}


@pytest.mark.parametrize("cell", [None, "", "  ", "NaN", "nan", "NULL", "null", r"\N", "None"])
def test_texts_for_an_absent_value_count_as_empty(cell: Any) -> None:
    """This holds also for columns of names, because no model has such a name."""
    assert parsers.no_name(cell)
    assert parsers.no_value(cell)


def test_zero_and_ordinary_names_are_not_empty() -> None:
    """A strategy may be called none; 0 is a number; with :text every word is a name."""
    for cell in ("none", "NA", "n/a", "-"):
        assert parsers.no_value(cell)
        assert not parsers.no_name(cell)
    assert not parsers.no_value("0")
    assert not parsers.no_value(0)
    assert not parsers.blank("NaN")
