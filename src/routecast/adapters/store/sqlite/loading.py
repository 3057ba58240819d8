"""What is read from a SQLite database, beside its writer: each as of one position."""

from collections.abc import Iterator
from itertools import islice
from typing import Any, Final

import apsw

from routecast.adapters.store.history import SummaryRows, summary_rows
from routecast.adapters.store.loading import START_OF, Loader
from routecast.adapters.store.sqlite.connection import (
    deltas_after,
    names_of_series,
    query,
    select,
    series_names,
    transaction,
)
from routecast.core.caution import KeptSpan
from routecast.core.delta import Delta, following
from routecast.core.rollup import PeriodCells, Sums
from routecast.core.snapshot import Snapshot
from routecast.errors import MissingDeltas
from routecast.protocol import Position

# A load looks at each page and each row once. To keep more of them than these for a while only
# takes memory, which the kernel has to clear first: in a process that starts, a good part of it.
LOAD_PAGES: Final = 64
LOAD_ROWS: Final = 256


def position(db: apsw.Connection) -> Position:
    """Return the position of the last commit."""
    epoch, seq, *_ = query(db, "history")[0]
    return Position(epoch, seq)


def load(db: apsw.Connection, now: int, room: int | None = None) -> Snapshot:
    """Return the rollups, with what a snapshot taken at `now` needs and has room for."""
    db.execute(f"PRAGMA cache_size = {LOAD_PAGES}")
    with transaction(db, "BEGIN"):
        epoch, _, _, folded, parts = query(db, "history")[0]
        loader = Loader(Position(epoch, folded), now, series_names(db), room)
        for rows in _rows(db, "total", 0, 1):
            loader.add_total(rows)
        for period, first, end in loader.spans():
            for rows in _rows(db, period, first, end):
                if not loader.add(period, rows):
                    break
        return loader.build(deltas_after(db, Position(epoch, folded), parts))


def _rows(db: apsw.Connection, period: str, first: int, end: int) -> Iterator[list[Any]]:
    """Yield rollups that start from one second to before another, some of them at a time."""
    rest = select(db, "rollups", period, first, end)
    while rows := list(islice(rest, LOAD_ROWS)):
        yield rows


def summarise(db: apsw.Connection, start: int) -> tuple[int, SummaryRows]:
    """Return the summaries of an hour, and how often it had changed by then."""
    with transaction(db, "BEGIN"):
        changes = next((row[0] for row in select(db, "changes_of_hour", start)), 0)
        cells: PeriodCells = {}
        for rows in _rows(db, "hour", start, start + 1):
            names = names_of_series(db, {row[1] for row in rows})
            cells |= {names[row[1]]: Sums.from_row(row[2:]) for row in rows}
        return changes, summary_rows({start: cells})


def deltas(db: apsw.Connection, after: Position) -> list[Delta]:
    """Return the deltas after a position. Raises MissingDeltas when they are not kept any more."""
    with transaction(db, "BEGIN"):
        last = position(db)
        if last.epoch != after.epoch or last.seq < after.seq:
            raise MissingDeltas(f"{last} after {after}")
        found = following(deltas_after(db, after), after)
    if len(found) != last.seq - after.seq:
        raise MissingDeltas(f"the deltas after seq {after.seq} are not kept any more")
    return found


def span(db: apsw.Connection) -> KeptSpan:
    """Return from when to when what is kept was received (`ports.Store.span`)."""
    return KeptSpan(*query(db, "span")[0])


def unsummed(db: apsw.Connection, before: int) -> list[int]:
    """Return the hours over before a moment that are not summed up (`ports.Store.unsummed`)."""
    last = before // 10**6 - START_OF["hour"]
    return [row[0] for row in query(db, "unsummed_hours", last, -1)]
