"""Names in a SQLite database: listed, and folded into `other`."""

import secrets
from collections.abc import Callable, Collection, Mapping
from typing import Any

import apsw
import msgspec

from routecast.core.names import NAMED, FoldedNames
from routecast.core.rollup import Bucket, Key
from routecast.ports import NameUse
from routecast.protocol import Position
from routecast.store.names import Uses, in_steps, moved_buckets, moves
from routecast.store.names import folded_names as by_part
from routecast.store.sqlite.connection import (
    START_OF,
    deltas_after,
    query,
    select,
    series_names,
    transaction,
)

# Adds buckets to the rollups of a period.
Merge = Callable[[str, dict[int, Bucket]], None]


def folded_names(db: apsw.Connection) -> FoldedNames:
    """Return the names that were folded, by part."""
    return by_part(query(db, "folded_names"))


def listed(db: apsw.Connection) -> list[NameUse]:
    """Return all names, as of one position."""
    uses = Uses()
    with transaction(db, "BEGIN"):
        epoch, _, _, folded = query(db, "history")[0]
        series = series_names(db)
        for number, count in select(db, "series_counts"):
            uses.count(series[number], count)
        for part in NAMED:
            for name, first, last in select(db, "name_hours", part):
                uses.see(part, name, first, last)
        for number, first, last in select(db, "unsummed_series_hours"):
            for part in NAMED:
                uses.see(part, getattr(series[number], part), first, last)
        uses.add(deltas_after(db, Position(epoch, folded)))
        return uses.sorted(folded_names(db))


def fold(
    db: apsw.Connection, part: str, names: Collection[str], merge: Merge, *, remember: bool
) -> Position:
    """Count these names of a part as `other`, and begin a new epoch.

    Within a transaction, in which all deltas were folded into the rollups.
    """
    keys = moves(series_names(db), part, names)
    if keys:
        for period, unit in START_OF.items():
            _move_rollups(db, period, unit, keys, merge)
        _move_decisions(db, keys)
    for name in sorted(names):
        query(db, "remember_name" if remember else "forget_name", part, name)
    query(db, "begin_epoch", secrets.token_hex(8))
    epoch, seq, *_ = query(db, "history")[0]
    return Position(epoch, seq)


def _move_rollups(
    db: apsw.Connection, period: str, unit: int, keys: Mapping[int, Key], merge: Merge
) -> None:
    old = _json(list(keys))
    found = query(db, "starts_of_series", period, old)
    for starts in in_steps(found):
        chosen = _json(starts)
        rows = query(db, "rollups_of_series", period, chosen, old)
        query(db, "delete_rollups_of_series", period, chosen, old)
        merge(period, moved_buckets(rows, keys, unit))
    if period == "hour":  # what is summed up of them is to be summed up again
        query(db, "note_unsummed_hours", _json([start for start, _ in found]))


def _move_decisions(db: apsw.Connection, keys: Mapping[int, Key]) -> None:
    pairs = []
    for number, key in keys.items():
        query(db, "add_series", *key)
        pairs.append((number, query(db, "one_series", *key)[0][0]))
    query(db, "make_moved")
    query(db, "put_moved", _json(pairs))
    query(db, "move_decisions")
    query(db, "drop_moved")


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
