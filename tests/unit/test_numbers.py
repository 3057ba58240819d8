"""Reading numbers: every digit counts at any size; checked against fractions."""

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routecast.core.numbers import product, read_number, scaled, whole_number

DIGITS = st.text("0123456789", min_size=1, max_size=40)


@st.composite
def written(draw: st.DrawFn) -> str:
    """Numbers as JSON writes them, of usual and of odd sizes."""
    whole = draw(st.integers(0, 10**30))
    fraction = draw(st.just("") | DIGITS.map(lambda digits: f".{digits}"))
    power = draw(st.just("") | st.integers(-60, 60).map(lambda power: f"e{power}"))
    return f"{draw(st.sampled_from(['', '-']))}{whole}{fraction}{power}"


@given(written())
def test_a_number_is_what_its_digits_say(text: str) -> None:
    """Exactly, also where a float would round."""
    assert Fraction(read_number(text)) == Fraction(text)
    assert Fraction(read_number(text, lenient=True)) == Fraction(text)


@given(written(), st.sampled_from([1000, 10**6, 10**9]))
def test_scaled_is_exact_on_any_digits(text: str, scale: int) -> None:
    """Rounded half to even, from all digits that were sent."""
    assert scaled(read_number(text), scale) == round(Fraction(text) * scale)


@given(written())
def test_whole_numbers_are_reported_from_others(text: str) -> None:
    """However they are written."""
    exact = Fraction(text)
    if exact.denominator == 1:
        assert whole_number(read_number(text)) == exact
    else:
        with pytest.raises(ValueError, match="must be a whole number"):
            whole_number(read_number(text))


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        ("9" * 100_000, "1e399", "1e401"),
        ("1e99999999999999999999999", "1e399", "1e401"),
        ("-1e400", "-1e401", "-1e399"),
        ("1e-99999999999999999999999", "0", "1e-399"),
        ("0." + "0" * 100_000 + "1e100000", "0.09", "0.11"),
        ("0.5" + "0" * 100_000 + "1", "0.5", "0.5000001"),
        ("0e999999999999", "-1e-500", "1e-500"),
    ],
)
def test_odd_sizes_are_on_the_right_side(text: str, least: str, most: str) -> None:
    """Of any limit, and at no cost to speak of; never equal to it."""
    assert Decimal(least) < read_number(text) < Decimal(most)


@pytest.mark.parametrize("text", ["", "+1", ".5", "5.", "01", "1e", "NaN", "Infinity", "1_0", "١"])
def test_what_json_does_not_write_is_refused(text: str) -> None:
    """Though Python reads some of it."""
    with pytest.raises(ValueError, match="is not a number"):
        read_number(text)


def test_products_are_exact() -> None:
    """As units of files are turned into others."""
    long = Decimal("0.1234567890123456789012345678901234567890")
    assert Fraction(product(long, Decimal(1000))) == Fraction(long) * 1000
