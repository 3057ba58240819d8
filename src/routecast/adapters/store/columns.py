"""The columns of the tables, as the SQL of every dialect lists them; the core defines them."""

from collections.abc import Iterable
from typing import Final

from routecast.core.decision import VALUE_FIELDS, DecisionRecord
from routecast.core.history import PARTS, POINT_COLUMNS
from routecast.core.rollup import Key, Sums

# The columns of a stored decision, except those by which a dialect finds its commit.
STORED: Final = ("id", "project", "series", *VALUE_FIELDS)
# A stored decision with its series, in the order of `DecisionRecord`, whose last field is not
# stored.
_RECORD: Final = DecisionRecord._fields[: DecisionRecord._fields.index("owner") + 1]
# `project` is what it counts under, `owner` the project that sent it.
_RECORD_SQL: Final = {
    "id": "decisions.id",
    "owner": "decisions.project",
    **{name: f"series.{name}" for name in Key._fields},
    **{name: f"decisions.{name}" for name in VALUE_FIELDS},
}


def listed(columns: Iterable[str]) -> str:
    """Return columns as SQL lists them."""
    return ", ".join(columns)


# The lists of columns for these names in braces in `queries.sql`.
LISTS: Final = {
    "key": listed(Key._fields),
    "stored": listed(STORED),
    "values_stored": listed(VALUE_FIELDS),
    "record": listed(_RECORD),
    "record_of_both": listed(f"{_RECORD_SQL[name]} AS {name}" for name in _RECORD),
    "sums": listed(Sums.COLUMNS),
    "scalars": listed(Sums.SCALARS),
    "scalars_added": listed(f"sum({name})" for name in Sums.SCALARS),
    "points": listed(POINT_COLUMNS),
    "parts": listed(f"'{part}'" for part in PARTS),
}
