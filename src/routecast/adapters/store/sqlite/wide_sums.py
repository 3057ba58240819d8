"""Integers of more than 63 bits, which SQLite keeps in two columns of a summary.

The part above the lowest 63 bits is in the column's `_high`; these columns come last in a row.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final

from routecast.core.history import POINT_COLUMNS
from routecast.core.overflow import SUMS

HIGH: Final = 63
_LOW: Final = (1 << HIGH) - 1
_SUM_INDEXES: Final = tuple(POINT_COLUMNS.index(name) for name in SUMS)


def split(sums: Sequence[int]) -> tuple[int, ...]:
    """Return sums, in the order of `history.POINT_COLUMNS`, as columns."""
    high = (sums[index] >> HIGH for index in _SUM_INDEXES)
    return (*(value & _LOW for value in sums), *high)


def join(columns: Sequence[Any]) -> list[Any]:
    """Return the sums that `split` gave."""
    sums = list(columns[: len(POINT_COLUMNS)])
    for index, high in zip(_SUM_INDEXES, columns[len(POINT_COLUMNS) :], strict=True):
        sums[index] += high << HIGH
    return sums


def joined(rows: Iterable[Any]) -> list[Any]:
    """Return stored rows of part, name, columns and histogram, with their sums joined."""
    return [(part, name, *join(columns), counts) for part, name, *columns, counts in rows]
