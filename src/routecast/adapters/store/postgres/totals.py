"""Exact sums over all time of some series: their rollups, and the deltas not folded yet."""

import asyncio
from collections.abc import Iterable
from typing import Any

from routecast.adapters.store.postgres.connection import (
    POSTGRES_SQL,
    DatabaseSession,
    chunks,
    query,
)
from routecast.adapters.store.postgres.deltas import last_commit
from routecast.adapters.store.postgres.folding import BYTES_AT_ONCE
from routecast.core.delta import Delta
from routecast.core.rollup import Key, PeriodCells, Sums


class PostgresTotals:
    """Sums over all time of some series, without histograms. `update` adds the latest commits.

    Use it within a transaction that sees the commits of others; it needs no lock. The session must
    know the series.
    """

    def __init__(self, session: DatabaseSession, keys: Iterable[Key]) -> None:
        self._session = session
        self._keys = {session.series[key]: key for key in keys}
        self._seq = -1  # of the last commit in the sums
        self.sums: PeriodCells = {}

    async def update(self) -> None:
        """Add the commits since the last call; the first call reads the rollups, too."""
        if self._seq < 0 or not await self._follow(await last_commit(self._session)):
            while not await self._follow(await self._read()):
                pass  # deltas were folded meanwhile, and are not in the log any more

    async def _read(self) -> int:
        """Read the rollups; return the last commit at that moment."""
        self.sums = {key: Sums() for key in self._keys.values()}
        until = 0
        async for rows in chunks(self._session, POSTGRES_SQL["folded_totals"], list(self._keys)):
            for folded, seq, series, *values in rows:
                self._seq, until = folded, seq
                if series is not None:
                    self.sums[self._keys[series]].merge_scalars(Sums.from_row((*values, b"")))
        return until

    async def _follow(self, until: int) -> bool:
        """Add the commits up to a seq; False if the log does not have all of them any more."""
        while self._seq < until:
            rows = await query(self._session, "some_deltas", self._seq, until, BYTES_AT_ONCE)
            if not rows or rows[0]["seq"] != self._seq + 1:
                return False
            await asyncio.to_thread(self._add, rows)
            self._seq = rows[-1]["seq"]
        return True

    def _add(self, rows: Iterable[Any]) -> None:
        for row in rows:
            for cells in Delta.unpack(row["packed"]).cells.minutes.values():
                for key in self.sums.keys() & cells.keys():
                    self.sums[key].merge_scalars(cells[key])
