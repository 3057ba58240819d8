"""Windows in PostgreSQL: the sums of one window, by series."""

import asyncio
from typing import Final

from routecast.adapters.store.postgres.connection import (
    POSTGRES_SQL,
    DatabaseSession,
    chunks,
    in_thread,
    query,
)
from routecast.adapters.store.postgres.deltas import deltas_of
from routecast.adapters.store.postgres.series import series_names
from routecast.core.snapshot import Snapshot
from routecast.core.window import WindowQuery, WindowSums
from routecast.errors import NotHeld, Unavailable
from routecast.protocol import Position

# One window may use a session for at most this time, in seconds.
WINDOW_READ_SECONDS: Final = 5.0


async def read(session: DatabaseSession, asked: WindowQuery, now: int) -> Snapshot:
    """Return a window at `now`.

    Call it within a transaction that sees the database at one moment. Raises NotHeld if minutes of
    the window are not kept any more, Unavailable if it takes too long.
    """
    try:
        async with asyncio.timeout(WINDOW_READ_SECONDS):
            return await _read(session, asked, now)
    except TimeoutError:
        raise Unavailable("the window has too many series to add up in time") from None


async def _read(session: DatabaseSession, asked: WindowQuery, now: int) -> Snapshot:
    sums = WindowSums(asked, now)
    state = (await query(session, "state"))[0]
    if sums.oldest_minute is not None and sums.oldest_minute < state["minutes_from"]:
        raise NotHeld("minutes of the window are not kept any more")
    for period in sums.ranges:
        async for rows in chunks(session, POSTGRES_SQL["window_sums"], *period):
            await in_thread(sums.add_sums, rows)
        if asked.histograms:
            async for rows in chunks(session, POSTGRES_SQL["window_bins"], *period):
                await in_thread(sums.add_bins, rows)
    if sums.last_minutes is not None:
        async for rows in chunks(session, POSTGRES_SQL["window_counts"], *sums.last_minutes):
            sums.add_counts(rows)
    names = await series_names(session)
    position = Position(state["epoch"], state["folded"])
    deltas = deltas_of(await query(session, "deltas", state["folded"]), position.epoch)
    return await in_thread(sums.build, position, names, deltas)
