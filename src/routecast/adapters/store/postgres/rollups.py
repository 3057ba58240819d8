"""Rollups in PostgreSQL: how cells are added to them, and their lock."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from routecast.adapters.store.loading import START_OF
from routecast.adapters.store.postgres.connection import (
    DatabaseSession,
    in_thread,
    query,
    rest_since,
)
from routecast.core.rollup import PeriodCells, Sums

# Rollups that are read, merged and written at a time: this takes a few ms of the event loop.
MERGED_AT_ONCE: Final = 500
# Folding rests after each such step until this number of rollups is merged. Then it does not rest
# any more, because commits may wait for the lock of the rollups.
MERGED_WITH_RESTS: Final = 20_000
# The time for which background work waits for the lock of the rollups.
ROLLUPS_LOCK: Final = "15s"

RollupId = tuple[int, int]  # the start of a period, and the number of a series


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
    """Add the cells of periods to the rollups; return the largest sum among the changed rollups.

    `periods` are by number: the start divided by the length of a period. The session must know the
    series. With `rests` there are pauses between steps.
    """
    unit, series = START_OF[period], session.series

    def by_id() -> tuple[dict[RollupId, Sums], list[RollupId]]:
        added = {
            (number * unit, series[key]): sums
            for number, cells in periods.items()
            for key, sums in cells.items()
        }
        return added, sorted(added)

    (added, ids), largest = await in_thread(by_id), 0
    for first in range(0, len(ids), MERGED_AT_ONCE):
        began = time.monotonic()
        some = ids[first : first + MERGED_AT_ONCE]
        largest = max(largest, await _merge_some(session, period, some, added))
        if rests and first < MERGED_WITH_RESTS:
            await rest_since(began)
    return largest


async def _merge_some(
    session: DatabaseSession,
    period: str,
    ids: Sequence[RollupId],
    added: Mapping[RollupId, Sums],
) -> int:
    starts, series = zip(*ids, strict=True)
    found = await query(session, "rollups_at", period, starts, series)

    def merge() -> tuple[list[tuple[Any, ...]], int]:
        held = {(row[0], row[1]): Sums.from_row(row[2:]) for row in found}
        for rollup, sums in held.items():
            sums.merge(added[rollup])
        merged = [held.get(rollup, added[rollup]) for rollup in ids]
        columns = list(zip(*(sums.row() for sums in merged), strict=True))
        return columns, max(sums.largest for sums in merged)

    columns, largest = await in_thread(merge)
    await query(session, "put_rollups", period, starts, series, *columns)
    return largest
