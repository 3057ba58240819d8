"""Retention in PostgreSQL: decisions are pruned in the order of receipt, and partitions dropped.

Pruned decisions stay in their partition, but are not read any more. When all decisions of a
partition are pruned, it is dropped, at the same cost for any size.
"""

import itertools
from collections.abc import Sequence
from typing import Any, Final

import asyncpg

from routecast.adapters.store.postgres.connection import DatabaseSession, query, transaction, value
from routecast.adapters.store.postgres.rollups import merge
from routecast.adapters.store.postgres.series import keep_numbers, number_series
from routecast.core.clock_check import KeptSpan
from routecast.core.decision import DecisionRecord
from routecast.core.rollup import Cells

# The approximate number of partitions of decisions (generations). Ids are searched in each of them.
# With 4, a decision stays on disk for up to a quarter longer than it is kept.
GENERATIONS: Final = 4


async def span(session: DatabaseSession) -> KeptSpan:
    """Return the range of the kept data."""
    return KeptSpan(*(await query(session, "span"))[0])


async def turn_over(session: DatabaseSession, before: int) -> None:
    """Begin a new generation if the current one spans one part in GENERATIONS of what is kept.

    One also begins if some decisions of the current generation will be pruned: running commits may
    still add to that, and only complete generations can be pruned.
    """
    generation = (await query(session, "state"))[0]["generation"]
    first, last = (await query(session, "generation_span", generation))[0]
    if first is None:
        return
    if first < before or last - first >= max(last - before, 0) / GENERATIONS > 0:
        async with transaction(session):
            await query(session, "begin_generation", generation)


async def prune_decisions(session: DatabaseSession, before: int, limit: int) -> int:
    """Prune at most `limit` decisions received before a moment; return their number.

    Call it within a transaction that holds the lock of the rollups.
    """
    state = (await query(session, "state"))[0]
    commit, place = state["pruned_commit"], state["pruned_place"]
    commits = await query(session, "oldest_commits", commit, state["generation"], limit + 1)
    # In the order of receipt: the first commit that is young enough and all later ones are kept.
    due = list(itertools.takewhile(lambda row: row["received"] < before, commits))
    due = _enough(due, limit, place)
    if not due:
        return 0
    rows = await query(
        session,
        "oldest_decisions",
        *(commit, place, due[-1]["number"], due[0]["generation"], due[-1]["generation"]),
        limit + 1,
    )
    # The next call continues at the first remaining decision, or after the last commit.
    commit, place = rows[limit][:2] if len(rows) > limit else (due[-1]["number"] + 1, 0)
    keep_numbers(session, state["history"])
    cells = Cells()
    cells.add(DecisionRecord(*record) for _commit, _place, *record in rows[:limit])
    if cells.minutes:
        await number_series(session, cells.keys())
        await merge(session, "pruned", cells.hours())
    await query(session, "set_pruned", commit, place)
    # Of a deleted project only the commits are left: that is progress, too.
    return max(1, min(len(rows), limit))


def _enough(commits: Sequence[Any], limit: int, place: int) -> list[Any]:
    """Return the first commits that together have more than `limit` decisions.

    `place` is the number of decisions of the first commit that do not count.
    """
    enough, count = [], -place
    for row in commits:
        enough.append(row)
        count += row["decisions"]
        if count > limit:
            break
    return enough


async def prune_minutes(session: DatabaseSession, before: int, limit: int) -> int:
    """Delete at most `limit` minute rollups of hours that ended before a moment (in seconds).

    Returns their number. Call it within a transaction that holds the lock of the rollups.
    """
    before -= before % 3600
    dropped = 0
    while dropped < limit:
        oldest = await value(session, "oldest_minute")
        if oldest is None or oldest >= before:
            break
        hour = oldest - oldest % 3600
        await query(session, "set_minutes_from", hour + 3600)
        dropped += await value(session, "delete_minutes", hour, hour + 3600, limit - dropped)
    return dropped


async def drop_generations(session: DatabaseSession) -> None:
    """Drop the fully pruned generations; one that is being read is dropped by a later call."""
    state = (await query(session, "state"))[0]
    for generation in range(state["oldest"], state["generation"]):
        if not await value(session, "is_pruned", generation, state["pruned_commit"]):
            break
        try:
            async with transaction(session):
                await query(session, "drop_generation", generation)
        except asyncpg.LockNotAvailableError:
            break
