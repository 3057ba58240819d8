"""Windows in a SQLite file: the sums of one window, by series."""

import apsw

from routecast.adapters.store.sqlite.connection import (
    query,
    select,
    transaction,
)
from routecast.adapters.store.sqlite.deltas import parts_after
from routecast.adapters.store.sqlite.history import in_time
from routecast.adapters.store.sqlite.series import series_names
from routecast.core.rollup import Key
from routecast.core.snapshot import Snapshot
from routecast.core.window import WindowQuery, WindowSums
from routecast.errors import NotHeld
from routecast.protocol import Position


class WindowReader:
    """Reads windows, and remembers the keys of series. Use it in one thread only."""

    def __init__(self) -> None:
        self._epoch = ""
        self._names: dict[int, Key] = {}

    def read(self, db: apsw.Connection, asked: WindowQuery, now: int) -> Snapshot:
        """Return a window at `now`.

        Raises NotHeld if minutes of it are not kept any more, Unavailable if it takes too long.
        """
        with in_time(db, "the window has too many series to add up in time"):
            return self._read(db, asked, now)

    def _read(self, db: apsw.Connection, asked: WindowQuery, now: int) -> Snapshot:
        sums = WindowSums(asked, now)
        with transaction(db, "BEGIN"):
            epoch, _, minutes_from, folded, parts = query(db, "history")[0]
            if sums.oldest_minute is not None and sums.oldest_minute < minutes_from:
                raise NotHeld("minutes of the window are not kept any more")
            for period in sums.ranges:
                sums.add_sums(select(db, "window_sums", *period))
                if asked.histograms:
                    sums.add_bins(select(db, "window_bins", *period))
            if sums.last_minutes is not None:
                sums.add_counts(select(db, "window_counts", *sums.last_minutes))
            position = Position(epoch, folded)
            deltas = parts_after(db, position, parts)
            return sums.build(position, self._keys(db, epoch), deltas)

    def _keys(self, db: apsw.Connection, epoch: str) -> dict[int, Key]:
        if epoch != self._epoch or query(db, "last_series")[0][0] not in self._names:
            self._epoch, self._names = epoch, series_names(db)
        return self._names
