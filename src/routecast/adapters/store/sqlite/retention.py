"""Retention in a SQLite file: decisions and minutes that are too old are deleted in steps."""

from itertools import takewhile
from typing import Any, Final

import apsw
import msgspec

from routecast.adapters.store.sqlite.connection import query
from routecast.adapters.store.sqlite.writer import Writer, WriterTransaction
from routecast.core.clock_check import KeptSpan
from routecast.core.decision import DecisionRecord
from routecast.core.rollup import Cells

_decode: Final = msgspec.json.Decoder(list[list[Any]]).decode


def span(db: apsw.Connection) -> KeptSpan:
    """Return the range of the kept data (`ports.Store.span`)."""
    return KeptSpan(*query(db, "span")[0])


def prune(writer: Writer, decisions_before: int, minutes_before: int, limit: int) -> int:
    """Delete what is too old (`ports.Store.prune`)."""
    with writer.transaction() as current:
        current.folding.step()
        dropped = _prune_decisions(current, decisions_before, limit)
        dropped += _prune_minutes(current.db, minutes_before // 10**6, limit - dropped)
        current.commit()
        if dropped:  # deleted rollups may be remembered
            current.rollups.forget()
    return dropped


def _prune_decisions(current: WriterTransaction, before: int, limit: int) -> int:
    oldest = _decode(query(current.db, "oldest_decisions", limit)[0][0])
    # In the order of receipt: the first decision that is young enough and all later ones are kept.
    rows = list(takewhile(lambda row: row[1] < before, oldest))
    if rows:
        cells = Cells()
        cells.add(DecisionRecord(*record) for _n, _received, *record in rows)
        current.series.learn(cells.keys())
        current.rollups.add("pruned", cells.hours())
        last, *_ = rows[-1]
        query(current.db, "delete_decisions", last)
    return len(rows)


def _prune_minutes(db: apsw.Connection, before: int, limit: int) -> int:
    before -= before % 3600
    dropped = 0
    while dropped < limit:
        oldest = query(db, "oldest_minute")[0][0]
        if oldest is None or oldest >= before:
            break
        hour = oldest - oldest % 3600
        query(db, "set_minutes_from", hour + 3600)
        query(db, "delete_minutes", hour, hour + 3600, limit - dropped)
        dropped += db.changes()
    return dropped
