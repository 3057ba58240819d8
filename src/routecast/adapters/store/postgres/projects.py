"""Deleting a project from a PostgreSQL database."""

from collections.abc import Mapping, Sequence

from routecast.adapters.store.loading import START_OF
from routecast.adapters.store.postgres import access
from routecast.adapters.store.postgres.connection import (
    POSTGRES_SQL,
    DatabaseSession,
    chunks,
    in_thread,
    query,
    transaction,
    value,
)
from routecast.adapters.store.postgres.folding import fold
from routecast.adapters.store.postgres.names import IDLE_IN_TRANSACTION
from routecast.adapters.store.postgres.rollups import MERGED_AT_ONCE, RollupId
from routecast.adapters.store.postgres.series import number_series, series_names
from routecast.adapters.store.projects import periods_of, series_of
from routecast.core.decision import DecisionRecord
from routecast.core.delta import Delta
from routecast.core.keys import without_project
from routecast.core.rollup import Cells, PeriodCells, Sums
from routecast.ports import DELTAS_KEPT, DeletedProject


async def has_decisions(session: DatabaseSession, project: str) -> bool:
    """Whether decisions of a project are kept."""
    return bool(await value(session, "has_decisions_of", project))


async def delete_project(session: DatabaseSession, project: str, now: int) -> DeletedProject:
    """Delete all that a project has, and begin a new epoch.

    Do not use the session afterwards: it remembers series that are gone.
    """
    async with transaction(session):
        # As in `fold_names`: wait for running commits, then for folding and retention.
        await query(session, "limit_idle", IDLE_IN_TRANSACTION)
        await query(session, "lock_commits")
        await query(session, "lock_rollups")
        await fold(session, DELTAS_KEPT)
        own = series_of(await series_names(session), project)
        hours = {row["start"] for row in await query(session, "starts_of_series", "hour", own)}
        state = (await query(session, "state"))[0]
        kept_from = state["pruned_commit"], state["pruned_place"]
        hours |= await _subtract(session, project, kept_from)
        decisions = await value(session, "delete_decisions_of", project, *kept_from)
        folded = await query(session, "forget_project", project)
        keys = await access.change(session, lambda records: without_project(records, project, now))
        if own or decisions or keys.put_keys or folded:
            await query(session, "delete_rollups_of", own)
            await query(session, "delete_series", own)
            starts = sorted(hours)
            await query(session, "note_unsummed_hours", starts)
            await query(session, "delete_summaries_of_hours", starts)
            await query(session, "delete_latency_summaries_of_hours", starts)
            await _empty_deltas(session)
            await query(session, "begin_epoch")
        return DeletedProject(decisions, tuple(keys.put_keys))


async def _subtract(session: DatabaseSession, project: str, kept_from: tuple[int, int]) -> set[int]:
    """Subtract what a project's decisions add to the sums of `other`; return the changed hours."""
    hours = set[int]()
    found = chunks(session, POSTGRES_SQL["decisions_as_other"], project, *kept_from)
    async for rows in found:
        cells = Cells()
        await in_thread(cells.add, [DecisionRecord(*row) for row in rows])
        await number_series(session, cells.keys())
        for period, periods in periods_of(cells):
            await _subtract_from(session, period, periods)
        hours |= {number * START_OF["hour"] for number in cells.hours()}
    return hours


async def _subtract_from(
    session: DatabaseSession, period: str, periods: Mapping[int, PeriodCells]
) -> None:
    gone = {
        (number * START_OF[period], session.series[key]): sums
        for number, cells in periods.items()
        for key, sums in cells.items()
    }
    ids = sorted(gone)
    for first in range(0, len(ids), MERGED_AT_ONCE):
        await _subtract_some(session, period, ids[first : first + MERGED_AT_ONCE], gone)


async def _subtract_some(
    session: DatabaseSession, period: str, ids: Sequence[RollupId], gone: Mapping[RollupId, Sums]
) -> None:
    left: dict[RollupId, Sums] = {}
    for start, series, *row in await query(session, "rollups_at", period, *_columns(ids)):
        sums = left[start, series] = Sums.from_row(row)
        sums.subtract(gone[start, series])
    if empty := [rollup for rollup, sums in left.items() if not sums.count]:
        await query(session, "delete_rollups_at", period, *_columns(empty))
    if kept := [rollup for rollup, sums in left.items() if sums.count]:
        columns = zip(*(left[rollup].row() for rollup in kept), strict=True)
        await query(session, "put_rollups", period, *_columns(kept), *columns)


def _columns(ids: Sequence[RollupId]) -> list[list[int]]:
    return [[start for start, _ in ids], [series for _, series in ids]]


async def _empty_deltas(session: DatabaseSession) -> None:
    """Delete the deltas, which no other epoch can use. The last one stays, empty: it has the seq.

    All of them must be folded.
    """
    await query(session, "delete_old_deltas")
    for seq, packed in await query(session, "deltas", -1):
        delta = Delta.unpack(packed)
        empty = Delta(delta.position, Cells(), delta.received).pack()
        await query(session, "replace_delta", seq, empty)
