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
    query,
    select,
    transaction,
)
from routecast.adapters.store.sqlite.deltas import parts_after
from routecast.adapters.store.sqlite.series import series_names
from routecast.adapters.store.sqlite.writer import Writer, WriterTransaction
from routecast.core.cardinality import NAMED, FoldedNames
from routecast.core.rollup import Key
from routecast.ports import NameUse
from routecast.protocol import Position


def folded_names(db: apsw.Connection) -> FoldedNames:
    """Return the names that were folded, by part."""
    return by_part(query(db, "folded_names"))


def listed(db: apsw.Connection) -> list[NameUse]:
    """Return all names, at one position."""
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


def fold_names(writer: Writer, part: str, names: Collection[str], remember: bool) -> Position:
    """Count names of a part as `other` (`ports.Store.fold_names`). Raises SumFull."""
    with writer.transaction() as current:
        db = current.db
        current.folding.fold_all()
        keys = moves(series_names(db), part, names)
        if keys:
            current.series.learn(keys.values())
            for period, unit in START_OF.items():
                _move_rollups(current, period, unit, keys)
            _move_decisions(current, keys)
        for name in sorted(names):
            query(db, "remember_name" if remember else "forget_name", part, name)
        epoch = secrets.token_hex(8)
        query(db, "begin_epoch", epoch)
        current.commit()
        position = Position(epoch, current.position.seq)
    writer.forget()  # the remembered series and rollups have other names now
    return position


def _move_rollups(
    current: WriterTransaction, period: str, unit: int, keys: Mapping[int, Key]
) -> None:
    db, old = current.db, _json(list(keys))
    found = query(db, "starts_of_series", period, old)
    for starts in in_steps(found):
        chosen = _json(starts)
        rows = query(db, "rollups_of_series", period, chosen, old)
        query(db, "delete_rollups_of_series", period, chosen, old)
        periods = moved_cells(rows, keys, unit)
        if period == "total":
            check_room(periods[0], current.rollups.totals(periods[0]))
        current.rollups.add(period, periods)
    if period == "hour":  # their summaries must be made again
        query(db, "note_unsummed_hours", _json([start for start, _ in found]))


def _move_decisions(current: WriterTransaction, keys: Mapping[int, Key]) -> None:
    db = current.db
    query(db, "make_moved")
    query(db, "put_moved", _json([(number, current.series[key]) for number, key in keys.items()]))
    query(db, "move_decisions")
    query(db, "drop_moved")


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
