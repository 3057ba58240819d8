"""The columns of the tables, as PostgreSQL's SQL lists them, and their types."""

from collections.abc import Iterable
from typing import Final

from routecast.adapters.store.columns import LISTS, STORED, listed
from routecast.core.history import POINT_COLUMNS
from routecast.core.overflow import SUMS
from routecast.core.rollup import Key, Sums

_TYPES: Final = {
    "generation": "integer",
    "commit": "bigint",
    "place": "integer",
    "id": "text",
    "project": "text",
    "series": "integer",
    "decided": "bigint",
    "confidence": "integer",
    "cost": "bigint",
    "latency": "bigint",
    "input_tokens": "integer",
    "output_tokens": "integer",
    "fallback": "boolean",
    "reason": "text",
}
# A decision: its partition, its commit, its place in that, and the stored columns.
DECISION_COLUMNS: Final = ("generation", "commit", "place", *STORED)


def _arrays(types: Iterable[str], first: int = 1) -> str:
    """Return parameters for arrays, one for each column, numbered from `first`."""
    return listed(f"${number}::{kind}[]" for number, kind in enumerate(types, first))


# The lists of columns for these names in braces in `queries.sql`.
POSTGRES_LISTS: Final = {
    **LISTS,
    "decision": listed(DECISION_COLUMNS),
    "decision_arrays": _arrays(_TYPES[name] for name in DECISION_COLUMNS),
    "key_arrays": _arrays("text" for _ in Key._fields),
    # After the period, and arrays of starts and series.
    "sums_arrays_from_4": _arrays((*("bigint" for _ in Sums.SCALARS), "bytea"), 4),
    "sums_excluded": listed(f"excluded.{name}" for name in Sums.COLUMNS),
    # After arrays of parts, starts and names. Sums over series may be larger than 64 bits.
    "points_arrays_from_4": _arrays(
        ("numeric" if name in SUMS else "bigint" for name in POINT_COLUMNS), 4
    ),
}
