"""The columns of the tables, as SQLite's SQL lists them."""

from typing import Final

from routecast.adapters.store.columns import LISTS, STORED, listed
from routecast.core.overflow import SUMS
from routecast.core.rollup import Key

# Text columns; all other columns of a stored decision are integers.
_TEXTS: Final = ("id", "project", "reason")

# The lists of columns for these names in braces in `queries.sql`.
SQLITE_LISTS: Final = {
    **LISTS,
    "key_of_json": listed(f"value ->> {place}" for place in range(len(Key._fields))),
    "is_key_of_json": " AND ".join(
        f"{name} = sent.value ->> {place}" for place, name in enumerate(Key._fields)
    ),
    "stored_with_types": listed(
        f"{name} {'TEXT' if name in _TEXTS else 'INTEGER'}" for name in STORED
    ),
    "points_high": listed(f"{name}_high" for name in SUMS),  # see `wide_sums.py`
}
