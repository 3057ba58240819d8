"""What is read from a SQLite database, beside its writer: each as of one position."""

from collections.abc import Iterator
from itertools import groupby, islice
from operator import itemgetter
from typing import Any, Final

import apsw

from routecast.core.delta import Delta, following
from routecast.core.rollup import Bucket, Sums
from routecast.core.snapshot import Snapshot, needed
from routecast.errors import Gap
from routecast.protocol import Position
from routecast.store.past import SummaryRows, summary_rows
from routecast.store.sqlite.connection import (
    START_OF,
    deltas_after,
    query,
    select,
    series_names,
    transaction,
)

# A load looks at each page and each row once. To keep more of them than these for a while only
# takes memory, which the kernel has to clear first: in a process that starts, a good part of it.
LOAD_PAGES: Final = 64
LOAD_ROWS: Final = 256


def position(db: apsw.Connection) -> Position:
    """Return the position of the last commit."""
    epoch, seq, *_ = query(db, "history")[0]
    return Position(epoch, seq)


def load(db: apsw.Connection, now: int) -> Snapshot:
    """Return the rollups, with all that a snapshot taken at `now` needs."""
    wanted = needed(now)
    db.execute(f"PRAGMA cache_size = {LOAD_PAGES}")
    with transaction(db, "BEGIN"):
        epoch, _, _, folded, parts = query(db, "history")[0]
        names = series_names(db)

        def buckets(period: str, first: int, end: int) -> dict[int, Bucket]:
            unit = START_OF[period] or 1
            rows = _rows(db, "rollups", period, first * unit, end * unit)  # by start
            return {
                start // unit: {names[row[1]]: Sums.from_row(row[2:]) for row in group}
                for start, group in groupby(rows, itemgetter(0))
            }

        total = buckets("total", 0, 1).get(0, {})
        hours = buckets("hour", *wanted.hours)
        minutes: dict[int, Bucket] = {}
        for span in wanted.minutes:
            minutes.update(buckets("minute", *span))
        snapshot = Snapshot(Position(epoch, folded), now, total, hours, minutes)
        for delta in deltas_after(db, snapshot.position, parts):
            snapshot.apply(delta)
    return snapshot


def _rows(db: apsw.Connection, name: str, *values: Any) -> Iterator[Any]:
    """Yield the rows of a named query, which is asked for some of them at a time."""
    rest = select(db, name, *values)
    while rows := list(islice(rest, LOAD_ROWS)):
        yield from rows


def summarise(db: apsw.Connection, start: int) -> tuple[int, SummaryRows]:
    """Return the summaries of an hour, and how often it had changed by then."""
    with transaction(db, "BEGIN"):
        changes = next((row[0] for row in select(db, "changes_of_hour", start)), 0)
        names = series_names(db)
        rows = _rows(db, "rollups", "hour", start, start + 1)
        bucket = {names[row[1]]: Sums.from_row(row[2:]) for row in rows}
        return changes, summary_rows({start: bucket})


def deltas(db: apsw.Connection, after: Position) -> list[Delta]:
    """Return the deltas after a position. Raises Gap when they are not kept any more."""
    with transaction(db, "BEGIN"):
        last = position(db)
        if last.epoch != after.epoch or last.seq < after.seq:
            raise Gap(f"{last} after {after}")
        found = following(deltas_after(db, after), after)
    if len(found) != last.seq - after.seq:
        raise Gap(f"the deltas after seq {after.seq} are not kept any more")
    return found


def unsummed(db: apsw.Connection, before: int) -> list[int]:
    """Return the hours over before a moment that are not summed up (`ports.Store.unsummed`)."""
    last = before // 10**6 - START_OF["hour"]
    return [row[0] for row in query(db, "unsummed_hours", last, -1)]
