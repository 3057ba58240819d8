"""Loading a snapshot from a SQLite database."""

from typing import Final

import apsw

from routecast.adapters.store.loading import Loader
from routecast.adapters.store.sqlite.connection import query, transaction
from routecast.adapters.store.sqlite.deltas import deltas_after
from routecast.adapters.store.sqlite.rollups import rollups_between
from routecast.adapters.store.sqlite.series import series_names
from routecast.core.snapshot import Snapshot
from routecast.protocol import Position

# The number of pages that a load caches. It reads each page once, so more pages would only cost
# memory, and the time in which the kernel clears it.
LOAD_PAGES: Final = 64


def load(db: apsw.Connection, now: int, room: int | None = None) -> Snapshot:
    """Return the rollups that a snapshot taken at `now` needs and has room for."""
    db.execute(f"PRAGMA cache_size = {LOAD_PAGES}")
    with transaction(db, "BEGIN"):
        epoch, _, _, folded, parts = query(db, "history")[0]
        loader = Loader(Position(epoch, folded), now, series_names(db), room)
        for rows in rollups_between(db, "total", 0, 1):
            loader.add_total(rows)
        for period, first, end in loader.spans():
            for rows in rollups_between(db, period, first, end):
                if not loader.add(period, rows):
                    break
        return loader.build(deltas_after(db, Position(epoch, folded), parts))
