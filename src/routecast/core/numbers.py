"""Numbers as they are written: exact digits in, integers out, for all entry points.

In bodies of `POST /v1/decisions`, msgspec reads numbers of at most 15 digits, with the same result.
Longer numbers, and all cells of files, are read here.
"""

import re
from decimal import ROUND_HALF_EVEN, Context, Decimal
from typing import Final

_JSON_NUMBER: Final = re.compile(r"(-?)(0|[1-9]\d*)(?:\.(\d+))?(?:[eE]([-+]?\d+))?", re.ASCII)
# Forms that people and programs write into files: a leading plus or zeros, a bare point.
_LENIENT_NUMBER: Final = re.compile(
    r"([-+]?)(\d+(?=\.)|\d+|(?=\.\d))\.?(\d*)(?:[eE]([-+]?\d+))?", re.ASCII
)

# Beyond these powers of ten a number is above every limit, or below every unit.
_LARGEST: Final = 400
# Digits that are read exactly: no float, limit or band has as many. Later digits only show that the
# number is a little larger.
_DIGITS: Final = 800
# Products of such numbers are exact.
_EXACT: Final = Context(prec=2 * _DIGITS)
# Below _SMALL the product of two floats is off by less than 0.01. So if it is within _CLEAR of an
# integer, further digits of the number do not change the rounded result.
_SMALL: Final = 2**45
_CLEAR: Final = 0.49


def read_number(text: str, *, lenient: bool = False) -> Decimal:
    """Return the exact number that `text` is.

    Numbers from 1e400 on are read as 1e400, and those below 1e-400 as 1e-400, with either sign.
    After 800 digits, the rest is read as one digit. Neither moves a number across a limit.
    `lenient` also accepts a leading plus or zeros, `.5` and `5.`. Raises ValueError.
    """
    found = (_LENIENT_NUMBER if lenient else _JSON_NUMBER).fullmatch(text)
    if found is None:
        raise ValueError("is not a number")
    if len(text) <= 300 and found[4] is None:
        return Decimal(text)
    sign, whole, fraction, power = found.groups(default="")
    digits = (whole + fraction).lstrip("0")
    exponent = _power(power) - len(fraction)
    if not digits:
        return Decimal(0)
    size = exponent + len(digits)
    if abs(size) > _LARGEST:
        return Decimal(f"{sign}1e{_LARGEST if size > 0 else -_LARGEST}")
    if len(digits) > _DIGITS:
        exponent += len(digits) - _DIGITS - 1
        digits = digits[:_DIGITS] + ("1" if digits[_DIGITS:].strip("0") else "0")
    return Decimal(f"{sign}{digits}e{exponent}")


def _power(text: str) -> int:
    """Return an exponent; one that is too large for any body to compensate is cut to 19 digits."""
    sign = -1 if text.startswith("-") else 1
    return sign * int(text.lstrip("+-").lstrip("0")[:19] or 0)


def whole_number(value: float | Decimal) -> int:
    """Return a count. `374.0` and `1e3` are whole; raises ValueError for half a token."""
    if isinstance(value, int):
        return value
    exact = Decimal(value)
    if not exact.is_finite() or exact != exact.to_integral_value():
        raise ValueError("must be a whole number")
    return int(exact)


def scaled(value: float | Decimal, scale: int) -> int:
    """Return value times scale as an integer, rounded half to even from the exact digits.

    The digits of a float are the shortest that give the same float: those that were sent, up to 15.
    A Decimal has all of them.
    """
    if isinstance(value, Decimal):
        exact = _EXACT.multiply(value, Decimal(scale))
        return int(exact.to_integral_value(ROUND_HALF_EVEN))
    product = value * scale
    whole = round(product)
    if product < _SMALL and abs(product - whole) < _CLEAR:
        return whole
    return scaled(Decimal(repr(value)), scale)


def has_enough_digits(value: float, scale: int) -> bool:
    """Whether `scaled` gives the same for every number whose nearest float is this one."""
    product = value * scale
    return product < _SMALL and abs(product - round(product)) < _CLEAR


def product(value: float | Decimal, factor: Decimal) -> Decimal:
    """Return the exact product."""
    return _EXACT.multiply(Decimal(value), factor)
