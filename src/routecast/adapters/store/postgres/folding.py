"""Folding: deltas are added to the rollups, many commits at a time."""

from collections.abc import Iterable
from typing import Any, Final

from routecast.adapters.store.postgres.connection import (
    DatabaseSession,
    in_thread,
    query,
)
from routecast.adapters.store.postgres.deltas import deltas_of, last_commit
from routecast.adapters.store.postgres.rollups import merge
from routecast.adapters.store.postgres.series import keep_numbers, number_series
from routecast.core.rollup import Cells, Key, PeriodCells

# The number of bytes of deltas that are merged at a time, or one larger delta. That takes much less
# time than a session may be idle.
BYTES_AT_ONCE: Final = 1_000_000
# The number of bytes of deltas that stay in the log: a node that lacks more loads a snapshot.
BYTES_KEPT: Final = 16_000_000


async def fold(session: DatabaseSession, kept: int) -> int:
    """Add all present commits to the rollups; return the seq up to which they have commits then.

    Call it within a transaction that holds the lock of the rollups. `kept` deltas stay in the log.
    """
    until = await last_commit(session)  # commits that come meanwhile are not folded
    while (folded := await fold_some(session, kept, until)) < until:
        pass
    return folded


async def fold_some(session: DatabaseSession, kept: int, until: int) -> int:
    """Fold the next commits, as `fold` does, at most up to a seq: those within BYTES_AT_ONCE."""
    state = (await query(session, "state"))[0]
    epoch, folded, largest = state[:3]
    keep_numbers(session, state["history"])
    if folded < until:
        rows = await query(session, "some_deltas", folded, until, BYTES_AT_ONCE)
        largest = max(largest, await _add(session, rows, epoch))
        folded = rows[-1]["seq"]
        await query(session, "set_folded", folded, largest)
        await query(session, "drop_deltas", folded, kept, BYTES_KEPT)
    seq: int = folded
    return seq


async def _add(session: DatabaseSession, rows: Iterable[Any], epoch: str) -> int:
    keys, periods = await in_thread(_sum, rows, epoch)
    await number_series(session, keys)
    largest = 0
    for period, buckets in periods:
        largest = await merge(session, period, buckets, rests=True)
    return largest  # of the total, which comes last


def _sum(
    rows: Iterable[Any], epoch: str
) -> tuple[set[Key], list[tuple[str, dict[int, PeriodCells]]]]:
    cells = Cells.sum([delta.cells for delta in deltas_of(rows, epoch)])
    total = cells.total()
    periods = [("minute", cells.minutes), ("hour", cells.hours()), ("total", {0: total})]
    return set(total), periods
