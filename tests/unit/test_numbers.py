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
    """Draw a JSON number of usual or unusual size."""
    whole = draw(st.integers(0, 10**30))
    fraction = draw(st.just("") | DIGITS.map(lambda digits: f".{digits}"))
    power = draw(st.just("") | st.integers(-60, 60).map(lambda power: f"e{power}"))
    return f"{draw(st.sampled_from(['', '-']))}{whole}{fraction}{power}"


@given(written())
def test_a_number_has_the_exact_value_of_its_digits(text: str) -> None:
    """It is exact also where a float would round."""
    assert Fraction(read_number(text)) == Fraction(text)
    assert Fraction(read_number(text, lenient=True)) == Fraction(text)


@given(written(), st.sampled_from([1000, 10**6, 10**9]))
def test_scaled_is_exact_on_any_digits(text: str, scale: int) -> None:
    """It is rounded half to even from all digits."""
    assert scaled(read_number(text), scale) == round(Fraction(text) * scale)


@given(written())
def test_whole_numbers_are_distinguished_from_others(text: str) -> None:
    """Any notation of a whole number is accepted."""
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
def test_extreme_numbers_are_on_the_right_side(text: str, least: str, most: str) -> None:
    """They are on the right side of any limit and never equal to it, and cheap to read."""
    assert Decimal(least) < read_number(text) < Decimal(most)


@pytest.mark.parametrize("text", ["", "+1", ".5", "5.", "01", "1e", "NaN", "Infinity", "1_0", "١"])
def test_text_that_is_no_json_number_is_refused(text: str) -> None:
    """Python itself would read some of them."""
    with pytest.raises(ValueError, match="is not a number"):
        read_number(text)


def test_products_are_exact() -> None:
    """Imports convert units with them."""
    long = Decimal("0.1234567890123456789012345678901234567890")
    assert Fraction(product(long, Decimal(1000))) == Fraction(long) * 1000
