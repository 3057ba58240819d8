"""Names in a SQLite database: listed, and folded into `other`."""

import secrets
from collections.abc import Collection, Mapping
from typing import Any

import apsw
import msgspec

from routecast.adapters.store.loading import START_OF
from routecast.adapters.store.names import Uses, check_room, in_steps, moved_cells, moves
from routecast.adapters.store.names import folded_names as by_part
from routecast.adapters.store.sqlite.connection import (
    parts_after,
    query,
    select,
    series_names,
    transaction,
)
from routecast.adapters.store.sqlite.rollups import Rollups
from routecast.adapters.store.sqlite.series import SeriesNumbers
from routecast.core.cardinality import NAMED, FoldedNames
from routecast.core.rollup import Key
from routecast.ports import NameUse
from routecast.protocol import Position


def folded_names(db: apsw.Connection) -> FoldedNames:
    """Return the names that were folded, by part."""
    return by_part(query(db, "folded_names"))


def listed(db: apsw.Connection) -> list[NameUse]:
    """Return all names, as of one position."""
    uses = Uses()
    with transaction(db, "BEGIN"):
        epoch, _, _, folded, parts = query(db, "history")[0]
        series = series_names(db)
        for number, count in select(db, "series_counts"):
            uses.count(series[number], count)
        for part in NAMED:
            for name, first, last in select(db, "name_hours", part):
                uses.see(part, name, first, last)
        for number, first, last in select(db, "unsummed_series_hours"):
            for part in NAMED:
                uses.see(part, getattr(series[number], part), first, last)
        uses.add(parts_after(db, Position(epoch, folded), parts))
        return uses.sorted(folded_names(db))


class Moving:
    """Counts names as `other`, within a transaction that the writer commits.

    All deltas must be in the rollups. Afterwards the writer must forget the rollups it remembers.
    """

    def __init__(self, db: apsw.Connection, series: SeriesNumbers, rollups: Rollups) -> None:
        self._db = db
        self._series = series
        self._rollups = rollups

    def run(self, part: str, names: Collection[str], *, remember: bool) -> Position:
        """Move what these names of a part have, and begin a new epoch. Raises SumFull."""
        keys = moves(series_names(self._db), part, names)
        if keys:
            self._series.learn(keys.values())
            for period, unit in START_OF.items():
                self._move_rollups(period, unit, keys)
            self._move_decisions(keys)
        for name in sorted(names):
            query(self._db, "remember_name" if remember else "forget_name", part, name)
        query(self._db, "begin_epoch", secrets.token_hex(8))
        epoch, seq, *_ = query(self._db, "history")[0]
        return Position(epoch, seq)

    def _move_rollups(self, period: str, unit: int, keys: Mapping[int, Key]) -> None:
        db, old = self._db, _json(list(keys))
        found = query(db, "starts_of_series", period, old)
        for starts in in_steps(found):
            chosen = _json(starts)
            rows = query(db, "rollups_of_series", period, chosen, old)
            query(db, "delete_rollups_of_series", period, chosen, old)
            periods = moved_cells(rows, keys, unit)
            if period == "total":
                check_room(periods[0], self._rollups.totals(periods[0]))
            self._rollups.add(period, periods)
        if period == "hour":  # what is summed up of them is to be summed up again
            query(db, "note_unsummed_hours", _json([start for start, _ in found]))

    def _move_decisions(self, keys: Mapping[int, Key]) -> None:
        query(self._db, "make_moved")
        pairs = [(number, self._series[key]) for number, key in keys.items()]
        query(self._db, "put_moved", _json(pairs))
        query(self._db, "move_decisions")
        query(self._db, "drop_moved")


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
