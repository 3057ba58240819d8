"""Verification in PostgreSQL: recounts the rollups from the decisions, and yields differences."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, Final

from routecast.adapters.store.names import HOUR_SECONDS
from routecast.adapters.store.postgres.connection import (
    POSTGRES_SQL,
    DatabaseSession,
    chunks,
    query,
    transaction,
    value,
)
from routecast.adapters.store.postgres.failures import CORRUPT, described
from routecast.adapters.store.postgres.integrity import check_files
from routecast.adapters.store.verification import Comparison, SumsRow, SumsRows
from routecast.core.delta import Delta
from routecast.core.histogram import EDGES
from routecast.core.history import PARTS
from routecast.ports import COMPARING, COUNTING, Checked, Difference

# What no recount can detect; each completes "It cannot detect".
POSTGRES_UNVERIFIABLE: Final = (
    "a decision that was changed, added or removed together with every sum that holds it",
    "a changed reason or time of receipt: no sum depends on them",
    "a delta that was folded into the rollups and changed later, as long as it can be read",
)

# The maximum number of rows of the recount that are fetched at a time.
PREFETCH: Final = 1_000


async def verify(
    session: DatabaseSession, unchecked: list[str]
) -> AsyncGenerator[Checked | Difference]:
    """Yield progress, and every difference in stored sums, at one position.

    `unchecked` is filled with what cannot be checked, one phrase each.
    """
    unchecked[:] = POSTGRES_UNVERIFIABLE
    async for found in check_files(session, unchecked):
        yield found
    try:
        async with aclosing(_recount(session)) as differences:
            async for found in differences:
                yield found
    except CORRUPT as error:
        yield Difference("the database", "readable", described(error))


async def _recount(session: DatabaseSession) -> AsyncGenerator[Checked | Difference]:
    async with transaction(session, isolation="repeatable_read", readonly=True):
        state = (await query(session, "state"))[0]
        kept_from = state["pruned_commit"], state["pruned_place"]
        seq = (await query(session, "position"))[0]["seq"]
        of = await value(session, "count_decisions", *kept_from)
        async for wrong in _strays(session, kept_from, seq):
            yield wrong
        deltas: list[Delta] = []
        async for wrong in _read_deltas(session, state["folded"], seq, deltas):
            yield wrong

        series = {row[1:]: row[0] for row in await query(session, "series")}
        comparison = Comparison(series, state["minutes_from"], deltas)
        hours = {row["start"] for row in await query(session, "hours")} | comparison.hours
        yield Checked(COUNTING, 0, of)
        unsummed = {row[0] for row in await query(session, "unsummed_hours", 2**62, None)}
        done = 0
        async for hour, minutes in _by_hour(session, *kept_from, EDGES, sorted(hours)):
            rollups: dict[str, list[Any]] = {"hour": [], "minute": [], "pruned": []}
            for period, *row in await query(session, "hour", hour):
                rollups[period].append(tuple(row))
            summaries = None if hour in unsummed else await _summaries(session, hour)
            for difference in comparison.hour(hour, minutes, rollups, summaries):
                yield difference
            done += sum(row[0] for row in minutes.values())
            yield Checked(COMPARING, done, of)
        for difference in comparison.total(await query(session, "rollups", "total", 0, 1)):
            yield difference


async def _strays(
    session: DatabaseSession, kept_from: tuple[int, int], seq: int
) -> AsyncIterator[Difference]:
    """Yield rows that do not belong together, even if all sums are right."""
    last = await value(session, "latest_commit")
    if last > seq:
        yield Difference("position", f"seq {last} or more", f"seq {seq}")
    if strays := await value(session, "stray_decisions", *kept_from):
        yield Difference("commits", "one for each decision", f"{strays} decisions of none")
    for what, count in await query(session, "strays", *kept_from, PARTS):
        if count:
            yield Difference(what, "none", str(count))
    given, highest = (await query(session, "commit_numbers"))[0]
    if given < highest:
        yield Difference("numbers of commits", f"{highest} or more", str(given))


async def _read_deltas(
    session: DatabaseSession, folded: int, seq: int, deltas: list[Delta]
) -> AsyncIterator[Difference]:
    """Append the deltas that are not folded to `deltas`, and yield the faults of the whole log."""
    if folded > seq:
        yield Difference("deltas", f"those up to seq {folded}", f"those up to seq {seq}")
    expected = folded + 1
    async for rows in chunks(session, POSTGRES_SQL["deltas"], 0):
        for number, packed in rows:
            delta = None
            try:
                delta = Delta.unpack(packed)
            except ValueError:
                yield Difference(f"delta {number}", "a delta", "unreadable")
            if number > folded:
                if number != expected:
                    yield Difference("deltas", f"seq {expected}", f"seq {number}")
                expected = number + 1
                deltas += [delta] if delta else []


async def _by_hour(session: DatabaseSession, *values: Any) -> AsyncIterator[tuple[int, SumsRows]]:
    """Yield each hour, in order, with its minutes as recounted from the decisions."""
    current: int | None = None
    minutes: SumsRows = {}
    recount = await session.prepare(POSTGRES_SQL["recount"])
    async for row in recount.cursor(*values, prefetch=PREFETCH):
        start, series, *sums = row
        hour = start // HOUR_SECONDS * HOUR_SECONDS
        if hour != current:
            if current is not None:
                yield current, minutes
            current, minutes = hour, {}
        if series is not None:
            minutes[start, series] = _sums(sums)
    if current is not None:
        yield current, minutes


async def _summaries(session: DatabaseSession, hour: int) -> list[Any]:
    """Return the summaries of an hour, their sums as integers."""
    rows = await query(session, "summaries", hour)
    return [(part, name, *map(int, sums), counts) for part, name, *sums, counts in rows]


def _sums(values: list[Any]) -> SumsRow:
    *scalars, bins, counts = values
    return (*scalars, dict(zip(bins or (), counts or (), strict=True)))
