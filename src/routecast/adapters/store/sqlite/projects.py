"""Deleting a project from a SQLite database."""

import secrets
from typing import Any

import apsw
import msgspec

from routecast.adapters.store.loading import START_OF
from routecast.adapters.store.projects import SUBTRACTED_AT_ONCE, periods_of, series_of
from routecast.adapters.store.sqlite import access
from routecast.adapters.store.sqlite.connection import query
from routecast.adapters.store.sqlite.series import series_names
from routecast.adapters.store.sqlite.writer import Writer, WriterTransaction
from routecast.core.decision import DecisionRecord
from routecast.core.keys import without_project
from routecast.core.rollup import Cells
from routecast.ports import DeletedProject


def has_decisions(db: apsw.Connection, project: str) -> bool:
    """Whether decisions of a project are kept."""
    return bool(query(db, "has_decisions_of", project)[0][0])


def delete_project(writer: Writer, project: str, now: int) -> DeletedProject:
    """Delete all that a project has (`ports.Database.delete_project`)."""
    with writer.transaction() as current:
        db = current.db
        keys = access.apply_change(db, lambda records: without_project(records, project, now))
        current.folding.fold_all()
        own = series_of(series_names(db), project)
        hours = {row[0] for row in query(db, "starts_of_series", "hour", _json(own))}
        hours |= _subtract(current, project)
        query(db, "delete_decisions_of", project)
        decisions = db.changes()
        query(db, "forget_name", "project", project)
        folded = db.changes()
        if not (own or decisions or keys.put_keys or folded):
            return DeletedProject()
        query(db, "delete_rollups_of", _json(own))
        query(db, "delete_series", _json(own))
        starts = _json(sorted(hours))
        query(db, "note_unsummed_hours", starts)
        query(db, "delete_summaries_of_hours", starts)
        query(db, "delete_latency_summaries_of_hours", starts)
        query(db, "drop_deltas", current.position.seq)  # no other epoch can use them
        query(db, "begin_epoch", secrets.token_hex(8))
        current.commit()
    writer.forget()  # the remembered series and rollups may be gone
    return DeletedProject(decisions, tuple(keys.put_keys))


def _subtract(current: WriterTransaction, project: str) -> set[int]:
    """Subtract what a project's decisions add to the sums of `other`; return the changed hours."""
    last, hours = 0, set[int]()
    while rows := query(current.db, "decisions_as_other", project, last, SUBTRACTED_AT_ONCE):
        cells = Cells()
        cells.add(DecisionRecord(*record) for _n, *record in rows)
        current.series.learn(cells.keys())
        for period, periods in periods_of(cells):
            current.rollups.subtract(period, periods)
        hours |= {number * START_OF["hour"] for number in cells.hours()}
        last = rows[-1][0]
    return hours


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
