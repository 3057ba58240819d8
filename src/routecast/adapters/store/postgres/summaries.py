"""Summaries in PostgreSQL: hours that are over, summed up along each part of the key."""

from routecast.adapters.store.history import summary_rows
from routecast.adapters.store.names import HOUR_SECONDS
from routecast.adapters.store.postgres.connection import (
    POSTGRES_SQL,
    DatabaseSession,
    chunks,
    in_thread,
    query,
)
from routecast.adapters.store.postgres.series import names_of_series
from routecast.core.history import PARTS
from routecast.core.rollup import PeriodCells, Sums


async def unsummed(session: DatabaseSession, before: int) -> list[int]:
    """Return the hours that ended before a second and are not summed up, oldest first."""
    return [
        row["start"] for row in await query(session, "unsummed_hours", before - HOUR_SECONDS, None)
    ]


async def summarise(session: DatabaseSession, start: int) -> None:
    """Sum up an hour. Call it within a transaction that holds the lock of the rollups."""
    cells: PeriodCells = {}
    async for found in chunks(session, POSTGRES_SQL["rollups"], "hour", start, start + 1):
        names = await names_of_series(session, (row["series"] for row in found))
        cells |= {names[row["series"]]: Sums.from_row(row[2:]) for row in found}
    rows = await in_thread(summary_rows, {start: cells})
    await query(session, "drop_summaries", PARTS, [start])
    await query(session, "drop_latency_summaries", PARTS, [start])
    if cells:
        await query(session, "put_summaries", *zip(*rows.sums, strict=True))
        await query(session, "put_latency_summaries", *zip(*rows.latencies, strict=True))
    await query(session, "hours_are_summed", [start])
