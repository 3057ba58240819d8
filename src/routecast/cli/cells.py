"""One cell of a file to one value of the wire.

A cell is text (CSV) or a JSON value with its numbers exact: `int`, or `Decimal` from the digits
as written. Every converter raises ValueError with the rule that the cell breaks.
"""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any, Final

from routecast.protocol import EPOCH, MICROSECOND

Cell = Any
Convert = Callable[[Cell], Any]

_NUMBER: Final = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d{1,3})?", re.ASCII)
_TIME: Final = re.compile(
    r"(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d(?::\d\d(?:[.,](\d+))?)?))? ?(Z|UTC|[-+]\d\d:?\d\d)?",
    re.ASCII | re.IGNORECASE,
)
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
    if isinstance(cell, str) and _NUMBER.fullmatch(cell.strip()):
        return Decimal(cell.strip())
    raise ValueError(f"{_shown(cell)} is not a number")


def whole(cell: Cell) -> int:
    """Return a count; `374.0`, as data frames write counts with gaps, is 374."""
    value = number(cell)
    if isinstance(value, int):
        return value
    if value.adjusted() > 18 or value != value.to_integral_value():
        raise ValueError(f"{_shown(cell)} is not a whole number")
    return int(value)


def times(factor: Decimal) -> Convert:
    """Return a converter to the number times `factor`, exact."""
    return lambda cell: factor * number(cell)


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
    where it names no offset. What is finer than a microsecond is rounded half to even.
    """

    def convert(cell: Cell) -> int:
        if isinstance(cell, str) and (found := _TIME.fullmatch(cell.strip())):
            day, clock, fraction, offset = found.groups()
            zone = "" if not offset or offset.upper() in ("Z", "UTC") else offset
            # Python reads no more than six digits of a fraction, so it is added apart.
            at = datetime.fromisoformat(f"{day}T{(clock or '00:00')[:8]}{zone}")
            since = (at if at.tzinfo else at.replace(tzinfo=UTC)) - EPOCH
            return since // MICROSECOND + _micros(Decimal(f"0.{fraction or 0}"))
        try:
            value = Decimal(number(cell)) / unit
        except ValueError:
            raise ValueError(f"{_shown(cell)} is not a time") from None
        if not _YEAR_1 <= value <= _YEAR_9999:
            raise ValueError(f"{_shown(cell)} is not a time")
        return _micros(value)

    return convert


def names_offset(cell: Cell) -> bool:
    """Whether a time says its offset from UTC itself (a bare number does: it counts from 1970)."""
    found = _TIME.fullmatch(cell.strip()) if isinstance(cell, str) else None
    return found is None or found[4] is not None


def _micros(seconds: Decimal) -> int:
    return int((seconds * 1_000_000).to_integral_value(ROUND_HALF_EVEN))


def _shown(cell: Cell) -> str:
    written = str(cell)
    return repr(written if len(written) <= 40 else f"{written[:39]}…")
