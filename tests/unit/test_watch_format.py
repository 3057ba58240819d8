"""Numbers in a terminal: an unknown value is a dash, and a small one is not rounded to 0."""

import pytest

from routecast.cli.watch import format as fmt


@pytest.mark.parametrize(
    ("part", "whole", "shown"),
    [
        (1, 3, "33.3%"),
        (0, 5, "0.0%"),
        (5, 5, "100.0%"),
        (1, 10_000, "<0.1%"),
        (9_999, 10_000, ">99.9%"),
        (0, 0, "–"),
        (None, 5, "–"),
    ],
)
def test_shares_are_percentages(part: int | None, whole: int, shown: str) -> None:
    """A share that is not quite 0 or 1 is not shown as 0 % or 100 %."""
    assert fmt.share(part, whole) == shown


@pytest.mark.parametrize(
    ("amount", "shown"),
    [
        (None, "–"),
        (0, "$0.00"),
        (1234.5, "$1,234.50"),
        (0.0023, "$0.0023"),
        (0.00000012, "$0.00000012"),
        (0.999999, "$1.00"),
        (1e-12, "$0.000000000"),
    ],
)
def test_money_is_in_dollars(amount: float | None, shown: str) -> None:
    """Small amounts have three significant digits, and large ones have cents."""
    assert fmt.money(amount) == shown


def test_a_column_of_money_is_aligned() -> None:
    """All rows have the decimals that the smallest amount needs."""
    digits = fmt.money_digits([0.0023, 12.0, None, 0.000123])
    assert [fmt.money(a, digits) for a in (0.0023, 12.0)] == ["$0.002300", "$12.000000"]


@pytest.mark.parametrize(
    ("ms", "shown"),
    [(None, "–"), (0.25, "0.25 ms"), (12.34, "12.3 ms"), (835.4, "835 ms"), (4512, "4.51 s")],
)
def test_latencies_have_a_suitable_unit(ms: float | None, shown: str) -> None:
    """They have three significant digits."""
    assert fmt.latency(ms) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "–"), (0.001, "<0.01"), (0.5, "0.50"), (12.34, "12.3"), (1234, "1,234")],
)
def test_rates_have_more_digits_if_they_are_small(value: float | None, shown: str) -> None:
    """A rate that is not quite 0 is not shown as 0."""
    assert fmt.rate(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"), [(-1, "0 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h")]
)
def test_ages_have_a_suitable_unit(seconds: float, shown: str) -> None:
    """Ages are in seconds, then minutes, then hours."""
    assert fmt.age(seconds) == shown


def test_bars_have_the_length_of_their_share() -> None:
    """They are exact to an eighth of a character; a share over 0 is always visible."""
    assert fmt.bar(1, 2, 8) == "████"
    assert fmt.bar(1, 1_000_000, 8) == "▏"
    assert fmt.bar(0, 5, 8) == ""
    assert fmt.bar(0, 0, 8) == ""


def test_charts_scale_to_their_highest_value() -> None:
    """The highest value fills its column, 0 is a thin line, and a gap is empty."""
    assert fmt.chart([8, 4, 0, None], height=1) == ["█▄▁ "]
    assert fmt.chart([2, 1, None], height=2) == ["█  ", "██ "]
    assert fmt.chart([0, None], height=1) == ["▁ "]


@pytest.mark.parametrize(
    ("part", "whole", "drawn"),
    [
        (0, 5, ""),
        (1, 10**9, "▏"),
        (5, 10, "██"),
        (10, 10, "████"),
        (10**12, 3, "████"),
        (-5, 10, ""),
        (5, 0, ""),
        (5, -1, ""),
    ],
)
def test_a_bar_is_never_longer_than_its_width(part: int, whole: int, drawn: str) -> None:
    """A server may send any part and whole."""
    assert fmt.bar(part, whole, 4) == drawn
