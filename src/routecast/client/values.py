"""Converts values to JSON types: numbers of numpy, torch or pandas, enums, times.

No library is imported: a value is recognised by its methods.
"""

import operator
from collections.abc import Callable
from contextlib import suppress
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from math import isfinite, isnan
from typing import Any, Final
from uuid import UUID

_PLAIN_TYPES: Final = frozenset({str, int, bool})
_MAX_REASON: Final = 4_000  # characters; a server keeps 500, and answers with a warning
_MILLISECOND: Final = timedelta(milliseconds=1)


def is_missing(value: Any) -> bool:
    """Whether a value is None, or pandas' NA or NaT."""
    return value is None or type(value).__name__ in ("NAType", "NaTType")


def to_text(value: Any) -> Any:
    """Return a text of any type as a `str`, and any other value as it is.

    NaN becomes None, because pandas fills gaps in a column of texts with it.
    """
    if type(value) is str:
        return value
    if isinstance(value, Enum):
        value = value.value
    # Not `str(value)`: for an enum whose members are texts, that is the member's name.
    if isinstance(value, str):
        return str.__str__(value)
    return None if isinstance(value, float) and isnan(value) else value


def to_id(value: Any) -> Any:
    """Return a text, a whole number or a UUID as a `str`.

    Raises TypeError for any other value: without an id, the server would make a new one each time
    the decision is sent.
    """
    if isinstance(value, UUID):
        return str(value)
    value = to_text(value)
    if type(value) is str and value:
        return value
    number = None if isinstance(value, str | bool) else to_number(value)
    if type(number) is not int:
        raise TypeError("must be a text that is not empty, or a whole number")
    return str(number)


def to_reason(value: Any) -> Any:
    """Return a text as a `str`, cut to the length that a server reads."""
    text = to_text(value)
    return text[:_MAX_REASON] if type(text) is str else text


def to_number(value: Any) -> Any:
    """Return an object with `__index__` or `__float__` as a number, and any other value as it is.

    A Decimal keeps its digits. Raises ValueError for NaN and infinities, which JSON does not have.
    """
    kind = type(value)
    if kind in _PLAIN_TYPES:
        return value
    if isinstance(value, Enum):
        return to_number(value.value)
    if kind is not float:
        if isinstance(value, str):
            return str.__str__(value)
        value = _native(value)
    if isinstance(value, float | Decimal) and not isfinite(value):
        raise ValueError(f"{value} is not a number in JSON")
    return value


def to_milliseconds(value: Any) -> Any:
    """Return a duration in milliseconds, and any other value as `to_number` does."""
    value = _of_numpy(value)
    return value / _MILLISECOND if isinstance(value, timedelta) else to_number(value)


def to_time(value: Any) -> Any:
    """Return a date or time as ISO 8601 text, and any other value as `to_number` does.

    Times of numpy have no time zone; by its convention they are UTC.
    """
    if isinstance(moment := _of_numpy(value), datetime):
        return moment.isoformat() + ("" if moment is value else "Z")
    return value.isoformat() if isinstance(value, date) else to_number(value)


def to_bool(value: Any) -> Any:
    """Return a truth value of another library as a `bool`, and any other value as it is."""
    return value if type(value) is bool else _item(to_text(value), bool)


def _native(value: Any) -> Any:
    """Return a number as an `int`, a `float` or a `Decimal`."""
    if isinstance(value, Decimal):
        return Decimal(value)
    if isinstance(value, float):
        return float(value)
    if type(truth := _item(value, bool)) is bool:  # numpy's has `__index__`, too
        return truth
    if isinstance(_of_numpy(value), date | timedelta):  # `__index__` would lose their unit
        return value
    with suppress(TypeError):  # a tensor of floats has `__index__`, but it raises
        return int(operator.index(value))
    return float(value) if hasattr(type(value), "__float__") else value


def _item(value: Any, kind: type) -> Any:
    """Return the value of a scalar of numpy, torch or similar, if it has the type `kind`."""
    item: Callable[[], Any] | None = getattr(value, "item", None)
    if item is None:
        return value
    with suppress(Exception):  # more than one element, or `item` is something else
        held = item()
        return held if type(held) is kind else value
    return value


def _of_numpy(value: Any) -> Any:
    """Return numpy's time or duration as Python's, to the microsecond."""
    name = type(value).__name__
    if name in ("datetime64", "timedelta64") and hasattr(value, "astype"):
        return value.astype(f"{name}[us]").item()
    return value
