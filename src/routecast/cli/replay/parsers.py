"""Parsers of cells: each returns the values that a cell can mean, one per reading.

A cell is text (CSV) or a JSON value with its numbers exact: `int`, or `Decimal` from the digits
as written. A parser returns one value per reading that fits the cell: `1,234` is 1234 if commas
group digits (reading `point`) and 1.234 if they are decimal (reading `comma`). Only the column as a
whole shows which is right (`column_reading.py`). If no reading fits, a parser raises ValueError
with the rule that the cell breaks; NoSuchValue if the form was right.
"""

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from routecast.cli.replay.time_formats import UNITS, by_pattern, moments, written_as_time
from routecast.core.numbers import product, read_number, whole_number
from routecast.core.times import unix_time
from routecast.protocol import MAX_COST, MAX_LATENCY_MS, MAX_TOKENS

Cell = Any
Values = Mapping[str, Any]
Kind = Callable[[Cell], Values]

POINT, COMMA = "point", "comma"
SUCCESS, FAILED = "success", "failed"

# How databases, languages and data frames write a missing value. A name may be `none` or `na`: in
# columns of names only spellings count that programs write and people do not choose.
_NO_NAME: Final = frozenset({"", r"\N", "NULL", "null", "None", "NaN", "nan", "<NA>", "undefined"})
_NO_VALUE: Final = frozenset({*map(str.lower, _NO_NAME), "n/a", "na", "#n/a", "-", "--"})

_TRUE: Final = frozenset(
    ("true", "t", "yes", "y", "on", "1", "1.0", "wahr", "ja", "vrai", "oui", "verdadero", "sí")
)
_FALSE: Final = frozenset(
    ("false", "f", "no", "n", "off", "0", "0.0", "falsch", "nein", "faux", "non", "falso")
)
_STATUS_WORDS: Final = {
    **dict.fromkeys(("success", "succeeded", "successful", "ok", "completed"), SUCCESS),
    **dict.fromkeys(("error", "failure", "failed", "fail", "exception", "timeout"), "error"),
}
_HTTP_STATUS: Final = re.compile(r"(?:http(?:/[0-9.]+)?\s+)?([1-5][0-9]{2})(?:\.0+)?(?:\s.*)?")

_AMOUNT: Final = re.compile(
    r"([-+]?)\s*([a-z$€£¥]*)\s*([-+]?(?:[0-9]|[.,][0-9])[0-9.,'’\s]*(?:e[-+]?[0-9]+)?)\s*([a-zµμ%$€£¥]*)",
    re.IGNORECASE,
)
_GROUPED: Final = re.compile(
    r"[-+]?[1-9][0-9]{0,2}(?:([,'’\s])[0-9]{3})(?:\1[0-9]{3})*(?:\.[0-9]*)?"
)
# Days or seconds with a decimal comma: a group of digits has at most three digits before it.
_COMMA_SERIAL: Final = re.compile(r"[0-9]{4,},[0-9]+")
_ONE: Final = Decimal(1)
_SWAPPED: Final = str.maketrans(",.", ".,")


class NoSuchValue(ValueError):
    """A cell in the right form for a value that does not exist: 30 February, or 25:00."""


def no_name(cell: Cell) -> bool:
    """Whether a cell holds no name: it is empty, or a program's spelling of a missing value."""
    return cell is None or (isinstance(cell, str) and cell.strip() in _NO_NAME)


def no_value(cell: Cell) -> bool:
    """Whether a cell of any other column is empty or a usual word for that, such as n/a."""
    return cell is None or (isinstance(cell, str) and cell.strip().lower() in _NO_VALUE)


def blank(cell: Cell) -> bool:
    """Whether a cell is completely empty."""
    return cell is None or (isinstance(cell, str) and not cell.strip())


def text(cell: Cell) -> str:
    """Return the cell as a name."""
    if isinstance(cell, bool):
        return str(cell).lower()
    if isinstance(cell, str | int | Decimal):
        return str(cell).strip()
    raise ValueError(f"{shown(cell)} is not text")


def name(cell: Cell) -> Values:
    """Read a name or an id."""
    return {"text": text(cell)}


def flag(cell: Cell) -> Values:
    """Read a yes or no."""
    word = text(cell).lower()
    if word in _TRUE or word in _FALSE:
        return {"flag": word in _TRUE}
    raise ValueError(f"{shown(cell)} is not true or false")


def status(cell: Cell) -> Values:
    """Read a status: a word, an HTTP status, or a yes or no to success.

    0 is an error in the reading `success`, and none in `failed`, as with exit codes.
    """
    word = text(cell).lower()
    if word in _STATUS_WORDS:
        return dict.fromkeys((SUCCESS, FAILED), _STATUS_WORDS[word])
    if found := _HTTP_STATUS.fullmatch(word):
        return dict.fromkeys((SUCCESS, FAILED), SUCCESS if found[1] < "4" else "error")
    with suppress(ValueError):
        good = flag(cell)["flag"]
        other = good if word.isalpha() else not good
        return {SUCCESS: _outcome(good), FAILED: _outcome(other)}
    raise ValueError(f'{shown(cell)} is neither "success" nor "error"')


def succeeded(cell: Cell) -> Values:
    """Read a cell of a column whose name says that a yes is a success."""
    return {SUCCESS: status(cell)[SUCCESS]}


def failure(cell: Cell) -> Values:
    """Read a cell of a column of errors: a yes, or any message, is an error."""
    with suppress(ValueError):
        return {FAILED: _outcome(not flag(cell)["flag"])}
    with suppress(ValueError):
        return {FAILED: status(cell)[FAILED]}
    text(cell)
    return {FAILED: "error"}


def _outcome(good: bool) -> str:
    return SUCCESS if good else "error"


# -- numbers ------------------------------------------------------------------------------------


def number(cell: Cell) -> Decimal | int | None:
    """Return a cell without units or grouped digits as a number, with all its digits."""
    if isinstance(cell, Decimal) or (isinstance(cell, int) and not isinstance(cell, bool)):
        return cell
    if isinstance(cell, str):
        with suppress(ValueError):
            return read_number(cell.strip(), lenient=True)
    return None


@dataclass(frozen=True, slots=True)
class Quantity:
    """A numeric field: the factor of each unit, its limit, and whether only whole numbers fit.

    A column has units in all its cells or in none, unless they make no difference (`bare`).
    `factor` is the factor of --map for all its values; units are then ignored.
    """

    units: Mapping[str, Decimal]
    limit: float
    bare: bool = False
    whole: bool = False
    factor: Decimal | None = None

    def __call__(self, cell: Cell) -> Values:
        """Read a number with or without grouped digits and a unit."""
        plain = number(cell)
        if plain is not None and not _may_be_grouped(cell):
            value = self._value(plain, _ONE, cell)
            whole = not isinstance(cell, str) or "." not in cell
            return {POINT: value, COMMA: value} if whole else {POINT: value}
        found = _AMOUNT.fullmatch(cell.strip()) if isinstance(cell, str) else None
        if found is None or (found[2] and found[4]):
            raise ValueError(f"{shown(cell)} is not a number")
        unit = (found[2] + found[4]).lower()
        if unit and unit not in self.units and self.factor is None:
            raise ValueError(f"{shown(cell)} is in {found[2] + found[4]!r}")
        times = self.units[unit] if unit and self.factor is None else _ONE
        values: dict[str, Any] = {}
        why = f"{shown(cell)} is not a number"
        for style in (POINT, COMMA):
            reading = style if self.bare or not unit else f"{style} with unit"
            try:
                values[reading] = self._value(_digits(found[1] + found[3], style), times, cell)
            except ValueError as error:
                why = str(error) if style == POINT and str(error) else why
        if not values:
            raise ValueError(why)
        return values

    def _value(self, value: Decimal | int, times: Decimal, cell: Cell) -> Decimal | int:
        if self.whole:
            try:
                return whole_number(value)
            except ValueError:
                raise ValueError(f"{shown(cell)} is not a whole number") from None
        value = value if times == 1 else product(value, times)
        return value if self.factor is None else product(value, self.factor)

    def checked(self, value: Decimal | int) -> Decimal | int:
        """Return a value that is within the limits of its field. Raises ValueError."""
        if value < 0:
            raise ValueError("must be 0 or more")
        if value > self.limit:
            raise ValueError(f"must be at most {self.limit:,.0f}")
        return value


def _may_be_grouped(cell: Cell) -> bool:
    """Whether a point in a number may separate groups of digits: three digits follow it."""
    return isinstance(cell, str) and cell.rstrip()[-4:-3] == "."


def _digits(written: str, style: str) -> Decimal:
    """Return digits as a number in a style. Raises ValueError without a message."""
    written = written.strip()
    if style == COMMA:
        written = written.translate(_SWAPPED)
    if found := _GROUPED.fullmatch(written):
        written = written.replace(found[1], "")
    try:
        return read_number(written, lenient=True)
    except ValueError:
        raise ValueError from None


COST: Final = Quantity(dict.fromkeys(("$", "us$", "usd"), _ONE), MAX_COST, bare=True)
LATENCY: Final = Quantity(
    {
        **dict.fromkeys(("ns", "nanoseconds"), Decimal("1e-6")),
        **dict.fromkeys(("us", "µs", "μs", "microseconds"), Decimal("1e-3")),
        **dict.fromkeys(("ms", "msec", "millis", "milliseconds"), _ONE),
        **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), Decimal(1000)),
        **dict.fromkeys(("m", "min", "mins", "minutes"), Decimal(60_000)),
    },
    MAX_LATENCY_MS,
)
TOKENS: Final = Quantity({"tokens": _ONE}, MAX_TOKENS, bare=True, whole=True)
SHARE: Final = Quantity({"%": Decimal("0.01")}, 1)
# A value slightly above 1 is a rounding error of floats; a larger one has another unit.
_NOISE: Final = Decimal("1.001")


def confidence(share: Quantity) -> Kind:
    """Return a kind for a share from 0 to 1, or a band's word."""

    def read(cell: Cell) -> Values:
        if isinstance(cell, str) and (word := cell.strip().lower()) in ("high", "medium", "low"):
            readings = (POINT, COMMA, f"{POINT} with unit", f"{COMMA} with unit")
            return dict.fromkeys(readings, word)
        values = {style: value for style, value in share(cell).items() if value <= _NOISE}
        if not values:
            raise ValueError(f"{shown(cell)} is not 0 to 1, or high, medium, low")
        return values

    return read


# -- times --------------------------------------------------------------------------------------


def moment(cell: Cell) -> Values:
    """Read a time into microseconds since 1970; for the reading `start`, since the start."""
    plain = cell
    if isinstance(cell, str) and _COMMA_SERIAL.fullmatch(cell.strip()):
        plain = cell.replace(",", ".")
    found = moments(str(cell).strip(), number(plain)) if not isinstance(cell, bool) else {}
    if not found and written_as_time(str(cell).strip()):
        raise NoSuchValue(f"{shown(cell)} is not a time that exists")
    if not found:
        raise ValueError(f"{shown(cell)} is not a time")
    return found


def moment_as(form: str) -> Kind:
    """Return a kind for times of one form: a unit of Unix time, or a pattern of `strptime`."""

    def read(cell: Cell) -> Values:
        value = number(cell)
        try:
            if form not in UNITS:
                return {form: by_pattern(text(cell), form)}
            if value is not None:
                return {form: unix_time(value, UNITS[form])}
        except (ValueError, OverflowError):
            pass
        raise ValueError(f"{shown(cell)} is not a time of the form {form}")

    return read


def shown(cell: Cell) -> str:
    """Return a cell as a message quotes it."""
    written = str(cell)
    return repr(written if len(written) <= 40 else f"{written[:39]}…")
