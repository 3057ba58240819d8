"""Rollups in PostgreSQL: how cells are added to them, and their lock."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from routecast.adapters.store.loading import START_OF
from routecast.adapters.store.postgres.connection import (
    DatabaseSession,
    beside,
    query,
    rest_since,
)
from routecast.core.rollup import PeriodCells, Sums

# Rollups that are read and written at a time: it takes a few ms of the event loop.
PLACES_AT_ONCE: Final = 500
# Folding leaves the server to others between two such steps, up to this number of rollups: so
# commits wait for the lock of the rollups for a bounded time.
PLACES_RESTED: Final = 20_000
# How long background work waits for the lock of the rollups.
ROLLUPS_LOCK: Final = "15s"

RollupPlace = tuple[int, int]  # the start of a period, and the number of a series


async def lock_rollups(session: DatabaseSession) -> None:
    """Take the lock of the rollups; other nodes may hold it while a large commit is folded."""
    await query(session, "wait_for_locks", ROLLUPS_LOCK)
    await query(session, "lock_rollups")


async def merge(
    session: DatabaseSession,
    period: str,
    periods: Mapping[int, PeriodCells],
    *,
    rests: bool = False,
) -> int:
    """Add the cells of periods to the rollups; return the largest sum among those changed.

    The session must know their series. With `rests` there are pauses between steps.
    """
    unit, series = START_OF[period], session.series

    def by_place() -> tuple[dict[RollupPlace, Sums], list[RollupPlace]]:
        added = {
            (number * unit, series[key]): sums
            for number, cells in periods.items()
            for key, sums in cells.items()
        }
        return added, sorted(added)

    (added, places), largest = await beside(by_place), 0
    for first in range(0, len(places), PLACES_AT_ONCE):
        began = time.monotonic()
        some = places[first : first + PLACES_AT_ONCE]
        largest = max(largest, await _merge_some(session, period, some, added))
        if rests and first < PLACES_RESTED:
            await rest_since(began)
    return largest


async def _merge_some(
    session: DatabaseSession,
    period: str,
    places: Sequence[RollupPlace],
    added: Mapping[RollupPlace, Sums],
) -> int:
    starts, series = zip(*places, strict=True)
    found = await query(session, "rollups_at", period, starts, series)

    def merge() -> tuple[list[tuple[Any, ...]], int]:
        held = {(row[0], row[1]): Sums.from_row(row[2:]) for row in found}
        for place, sums in held.items():
            sums.merge(added[place])
        merged = [held.get(place, added[place]) for place in places]
        columns = list(zip(*(sums.row() for sums in merged), strict=True))
        return columns, max(sums.largest for sums in merged)

    columns, largest = await beside(merge)
    await query(session, "put_rollups", period, starts, series, *columns)
    return largest
