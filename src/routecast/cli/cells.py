"""One cell of a file to one value of the wire.

A cell is text (CSV) or a JSON value with its numbers exact: `int`, or `Decimal` from the digits
as written. Every converter raises ValueError with the rule that the cell breaks.
"""

import re
from collections.abc import Callable
from contextlib import suppress
from decimal import Decimal
from typing import Any, Final

from routecast.core.numbers import product, read_number, whole_number
from routecast.core.times import has_offset, looks_like_time, read_time, unix_time

Cell = Any
Convert = Callable[[Cell], Any]

_YEAR_1: Final = -62_135_596_800  # seconds since 1970
_YEAR_9999: Final = 253_402_300_799
_ABSENT_NUMBERS: Final = frozenset({"null", "none", "nan", "n/a", "na", "-", "\\n"})
_TRUE: Final = frozenset({"true", "t", "yes", "y", "1"})
_FALSE: Final = frozenset({"false", "f", "no", "n", "0"})
_STATUS: Final = {
    **dict.fromkeys(("success", "succeeded", "successful", "ok", "completed"), "success"),
    **dict.fromkeys(("error", "failure", "failed", "fail", "exception", "timeout"), "error"),
}


def empty(cell: Cell) -> bool:
    """Whether the cell holds nothing: absent on the wire, never zero."""
    return cell is None or (isinstance(cell, str) and not cell.strip())


def nothing_known(cell: Cell) -> bool:
    """Whether a cell for a number or time is empty or a usual word for that (null, NaN, n/a)."""
    return empty(cell) or (isinstance(cell, str) and cell.strip().lower() in _ABSENT_NUMBERS)


def text(cell: Cell) -> str:
    """Return the cell as a name."""
    if isinstance(cell, bool):
        return str(cell).lower()
    if isinstance(cell, str | int | Decimal):
        return str(cell).strip()
    raise ValueError("is not text")


def number(cell: Cell) -> Decimal | int:
    """Return the number with the digits that were written."""
    if isinstance(cell, Decimal) or (isinstance(cell, int) and not isinstance(cell, bool)):
        return cell
    if isinstance(cell, str):
        with suppress(ValueError):
            return read_number(cell.strip(), lenient=True)
    raise ValueError(f"{_shown(cell)} is not a number")


def whole(cell: Cell) -> int:
    """Return a count; `374.0`, as data frames write counts with gaps, is 374."""
    value = number(cell)
    try:
        count = whole_number(value)
    except ValueError:
        raise ValueError(f"{_shown(cell)} is not a whole number") from None
    if abs(count) >= 10**19:
        raise ValueError(f"{_shown(cell)} is not a whole number that can be a count")
    return count


def times(factor: Decimal) -> Convert:
    """Return a converter to the number times `factor`, exact."""
    return lambda cell: product(number(cell), factor)


def flag(cell: Cell) -> bool:
    """Return a yes or no, however it is written."""
    word = text(cell).lower()
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise ValueError(f"{_shown(cell)} is not true or false")


def status(cell: Cell) -> str:
    """Return `success` or `error` from a word for it, a yes or no to success, or an HTTP status."""
    word = text(cell).lower()
    if word in _STATUS:
        return _STATUS[word]
    if re.fullmatch(r"[1-5]\d\d", word):
        return "success" if int(word) < 400 else "error"
    try:
        return "success" if flag(cell) else "error"
    except ValueError:
        raise ValueError(f'{_shown(cell)} is neither "success" nor "error"') from None


def failed(cell: Cell) -> str:
    """Return `success` or `error` from a yes or no to having failed."""
    return "error" if flag(cell) else "success"


def confidence(cell: Cell) -> Decimal | int | str:
    """Return a number, whose range the server checks, or a band's word."""
    if isinstance(cell, str) and cell.strip().lower() in ("high", "medium", "low"):
        return cell.strip().lower()
    return number(cell)


def moment(unit: int) -> Convert:
    """Return a converter to microseconds since 1970 (or since the start, where times are relative).

    `unit` is how many units of a bare number make a second. Text is RFC 3339 or near it, in UTC
    where it names no offset. What is finer than a microsecond is cut off.
    """

    def convert(cell: Cell) -> int:
        if isinstance(cell, str) and looks_like_time(cell.strip()):
            return read_time(cell.strip(), lenient=True)
        try:
            value = number(cell)
        except ValueError:
            raise ValueError(f"{_shown(cell)} is not a time") from None
        if not _YEAR_1 <= value / unit <= _YEAR_9999:
            raise ValueError(f"{_shown(cell)} is not a time")
        return unix_time(value, unit)

    return convert


def names_offset(cell: Cell) -> bool:
    """Whether a time says its offset from UTC itself (a bare number does: it counts from 1970)."""
    return not isinstance(cell, str) or has_offset(cell.strip())


def _shown(cell: Cell) -> str:
    written = str(cell)
    return repr(written if len(written) <= 40 else f"{written[:39]}…")
