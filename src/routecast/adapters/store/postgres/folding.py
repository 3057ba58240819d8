"""Folding: what commits added goes into the rollups, many commits at a time."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from routecast.adapters.store.loading import START_OF
from routecast.adapters.store.postgres.connection import (
    DatabaseSession,
    beside,
    keep_numbers,
    number_series,
    query,
    rest_since,
)
from routecast.core.delta import Delta
from routecast.core.rollup import Bucket, Cells, Key, Sums
from routecast.protocol import Position

# At most this number of bytes is merged at a time, or one delta: that takes far less time than a
# session may be idle.
BYTES_AT_ONCE: Final = 1_000_000
# At most this number of rollups is read and written at a time: it takes some ms of the event loop.
PLACES_AT_ONCE: Final = 500
# Folding leaves the server to others between two such steps, as long as no more rollups than this
# came before: commits that have to wait for the lock of the rollups do so for a bounded time.
PLACES_RESTED: Final = 20_000
# Deltas in the log, in bytes: a node that lacks more of them loads a snapshot.
BYTES_KEPT: Final = 16_000_000

# How long work in the background waits for the lock of the rollups.
ROLLUPS_LOCK: Final = "15s"

RollupPlace = tuple[int, int]  # the start of a period, and the number of a series


def deltas_of(rows: Iterable[Any], epoch: str) -> Iterator[Delta]:
    """Yield the deltas that rows of the log hold: they were packed before `seq` was known."""
    for seq, packed in rows:
        delta = Delta.unpack(packed)
        yield Delta(Position(epoch, seq), delta.cells, delta.received)


async def fold(session: DatabaseSession, kept: int) -> int:
    """Add to the rollups what they lack of the commits until now; return the seq they hold then.

    Within a transaction that holds the lock of the rollups. `kept` deltas stay in the log.
    """
    until = await last_commit(session)  # those that come meanwhile are for later
    while (folded := await fold_some(session, kept, until)) < until:
        pass
    return folded


async def lock_rollups(session: DatabaseSession) -> None:
    """Take the lock of the rollups; others may hold it for as long as a large commit is folded."""
    await query(session, "wait_for_locks", ROLLUPS_LOCK)
    await query(session, "lock_rollups")


async def last_commit(session: DatabaseSession) -> int:
    """Return the seq of the last commit."""
    seq: int = (await query(session, "position"))[0]["seq"]
    return seq


async def fold_some(session: DatabaseSession, kept: int, until: int) -> int:
    """Do what `fold` does for the next commits, up to one: as many as have BYTES_AT_ONCE."""
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
    keys, periods = await beside(_sum, rows, epoch)
    await number_series(session, keys)
    largest = 0
    for period, buckets in periods:
        largest = await merge(session, period, buckets, rests=True)
    return largest  # of the total, which comes last


def _sum(rows: Iterable[Any], epoch: str) -> tuple[set[Key], list[tuple[str, dict[int, Bucket]]]]:
    cells = Cells.sum([delta.cells for delta in deltas_of(rows, epoch)])
    total = cells.total()
    periods = [("minute", cells.minutes), ("hour", cells.hours()), ("total", {0: total})]
    return set(total), periods


async def merge(
    session: DatabaseSession, period: str, buckets: Mapping[int, Bucket], *, rests: bool = False
) -> int:
    """Add buckets to the rollups of a period; return the largest sum among those touched.

    The session must know their series. With `rests` the server is left to others between steps.
    """
    unit, series = START_OF[period], session.series

    def by_place() -> tuple[dict[RollupPlace, Sums], list[RollupPlace]]:
        added = {
            (number * unit, series[key]): sums
            for number, cells in buckets.items()
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
