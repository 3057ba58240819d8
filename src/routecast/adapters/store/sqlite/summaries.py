"""Summaries in a SQLite file: hours that are over, summed up along each part of the key."""

import apsw
import msgspec

from routecast.adapters.store.history import SummaryRows, summary_rows
from routecast.adapters.store.loading import START_OF
from routecast.adapters.store.sqlite.connection import insert_rows, query, select, transaction
from routecast.adapters.store.sqlite.rollups import rollups_between
from routecast.adapters.store.sqlite.series import names_of_series
from routecast.adapters.store.sqlite.wide_sums import split
from routecast.adapters.store.sqlite.writer import Writer
from routecast.core.history import PARTS
from routecast.core.rollup import PeriodCells, Sums


def summarise(db: apsw.Connection, start: int) -> tuple[int, SummaryRows]:
    """Return the number of changes of an hour so far, and its summaries."""
    with transaction(db, "BEGIN"):
        changes = next((row[0] for row in select(db, "changes_of_hour", start)), 0)
        cells: PeriodCells = {}
        for rows in rollups_between(db, "hour", start, start + 1):
            names = names_of_series(db, {row[1] for row in rows})
            cells |= {names[row[1]]: Sums.from_row(row[2:]) for row in rows}
        return changes, summary_rows({start: cells})


def unsummed(db: apsw.Connection, before: int) -> list[int]:
    """Return the hours that ended before a moment and are not summed up."""
    last = before // 10**6 - START_OF["hour"]
    return [row[0] for row in query(db, "unsummed_hours", last, -1)]


def put(writer: Writer, start: int, changes: int, rows: SummaryRows) -> None:
    """Write the summaries of an hour, unless it has changed since they were made.

    `changes` is the number that `summarise` returned. A changed hour is summed up later.
    """
    parts = msgspec.json.encode(PARTS).decode()
    with writer.transaction() as current:
        db = current.db
        query(db, "hour_is_summed", start, changes)
        if db.changes():
            for table in ("summaries", "latency_summaries"):
                query(db, f"drop_{table}", parts, start)
            sums = [(*row[:3], *split(row[3:])) for row in rows.sums]
            insert_rows(db, "put_summaries", sums)
            insert_rows(db, "put_latency_summaries", rows.latencies)
            current.commit()
