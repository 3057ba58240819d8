"""Names in a PostgreSQL database: listed, and folded into `other`."""

from collections.abc import Collection, Iterable, Mapping

from routecast.adapters.store.loading import START_OF
from routecast.adapters.store.names import Uses, check_room, in_steps, moved_cells, moves
from routecast.adapters.store.names import folded_names as by_part
from routecast.adapters.store.postgres.connection import (
    DatabaseSession,
    in_thread,
    query,
    transaction,
)
from routecast.adapters.store.postgres.deltas import deltas_of
from routecast.adapters.store.postgres.folding import fold
from routecast.adapters.store.postgres.rollups import MERGED_AT_ONCE, merge
from routecast.adapters.store.postgres.series import number_series, series_names
from routecast.core.cardinality import NAMED, FoldedNames
from routecast.core.rollup import Key, PeriodCells, Sums
from routecast.ports import DELTAS_KEPT, NameUse
from routecast.protocol import Position

# If the command is suspended within its transaction, the server ends that after this time: commits
# wait for it.
IDLE_IN_TRANSACTION = "30s"


async def folded_names(session: DatabaseSession) -> FoldedNames:
    """Return the names that were folded, by part."""
    return by_part(await query(session, "folded_names"))


async def listed(session: DatabaseSession) -> list[NameUse]:
    """Return all names. Call it within a transaction that sees the database at one moment."""
    uses = Uses()
    state = (await query(session, "state"))[0]
    series = await series_names(session)
    for number, count in await query(session, "series_counts"):
        uses.count(series[number], count)
    for part, name, first, last in await query(session, "name_hours", NAMED):
        uses.see(part, name, first, last)
    for number, first, last in await query(session, "unsummed_series_hours"):
        for part in NAMED:
            uses.see(part, getattr(series[number], part), first, last)
    deltas = await query(session, "deltas", state["folded"])
    await in_thread(lambda: uses.add(deltas_of(deltas, state["epoch"])))
    return uses.sorted(await folded_names(session))


async def fold_names(
    session: DatabaseSession, part: str, names: Collection[str], *, remember: bool
) -> Position:
    """Count these names of a part as `other`, and begin a new epoch.

    If it fails, do not use the session any more: it remembers series whose insertion was undone.
    """
    async with transaction(session):
        # First wait for running commits, and keep others from beginning. Then wait for folding and
        # retention, which hold the lock of the rollups.
        await query(session, "limit_idle", IDLE_IN_TRANSACTION)
        await query(session, "lock_commits")
        await query(session, "lock_rollups")
        seq = await fold(session, DELTAS_KEPT)
        keys = moves(await series_names(session), part, names)
        if keys:
            await number_series(session, keys.values())
            largest = 0
            for period, unit in START_OF.items():
                largest = max(largest, await _move_rollups(session, period, unit, keys))
            await query(session, "raise_largest", largest)
            new = [session.series[key] for key in keys.values()]
            await query(session, "move_decisions", list(keys), new)
        change = "remember_names" if remember else "forget_names"
        await query(session, change, part, sorted(names))
        epoch = (await query(session, "begin_epoch"))[0]["epoch"]
        return Position(epoch, seq)


async def _move_rollups(
    session: DatabaseSession, period: str, unit: int, keys: Mapping[int, Key]
) -> int:
    """Move the rollups of a period to new keys; return the largest sum of a total."""
    largest, old = 0, list(keys)
    for starts in in_steps(await query(session, "starts_of_series", period, old)):
        rows = await query(session, "take_rollups_of_series", period, starts, old)
        periods = await in_thread(moved_cells, rows, keys, unit)
        if period == "total":
            check_room(periods[0], await _totals(session, periods[0]))
        largest = max(largest, await merge(session, period, periods))
    return largest if period == "total" else 0


async def _totals(session: DatabaseSession, keys: Iterable[Key]) -> PeriodCells:
    """Return the folded sums over all time of some series, which the session must know."""
    numbers = {session.series[key]: key for key in keys}
    series = list(numbers)
    found: PeriodCells = {}
    for first in range(0, len(series), MERGED_AT_ONCE):
        some = series[first : first + MERGED_AT_ONCE]
        rows = await query(session, "rollups_at", "total", [0] * len(some), some)
        found |= {numbers[row["series"]]: Sums.from_row(row[2:]) for row in rows}
    return found
