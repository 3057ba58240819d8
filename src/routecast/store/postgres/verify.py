"""Counting the rollups again from the decisions, and saying what differs."""

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, Final

from routecast.core.histogram import EDGES
from routecast.ports import Checked, Difference
from routecast.store.comparison import HOUR, Comparison, Row, Rows
from routecast.store.postgres.fold import deltas_of
from routecast.store.postgres.session import SQL, Session, query, value

# At most this number of rows of the recount is fetched at a time.
PREFETCH: Final = 1_000


async def recount(session: Session) -> AsyncGenerator[Checked | Difference]:
    """Yield progress, and every place where stored sums differ, as of one position."""
    async with session.transaction(isolation="repeatable_read", readonly=True):
        state = (await query(session, "state"))[0]
        kept_from = state["pruned_commit"], state["pruned_place"]
        seq = (await query(session, "position"))[0]["seq"]
        of = await value(session, "count_decisions", *kept_from)
        last = await value(session, "latest_commit")
        if last > seq:
            yield Difference("position", f"seq {last} or more", f"seq {seq}")
        if strays := await value(session, "stray_decisions", *kept_from):
            yield Difference("commits", "one for each decision", f"{strays} decisions of none")

        series = {row[1:]: row[0] for row in await query(session, "series")}
        deltas = await query(session, "deltas", state["folded"])
        comparison = Comparison(series, state["minutes_from"], deltas_of(deltas, state["epoch"]))
        hours = {row["start"] for row in await query(session, "hours")} | comparison.hours
        yield Checked("counting decisions", 0, of)
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
            yield Checked("comparing hours", done, of)
        for difference in comparison.total(await query(session, "rollups", "total", 0, 1)):
            yield difference


async def _by_hour(session: Session, *values: Any) -> AsyncIterator[tuple[int, Rows]]:
    """Yield each hour, in order, with the minutes in it as the decisions give them."""
    current: int | None = None
    minutes: Rows = {}
    async for row in session.cursor(SQL["recount"], *values, prefetch=PREFETCH):
        start, series, *sums = row
        hour = start // HOUR * HOUR
        if hour != current:
            if current is not None:
                yield current, minutes
            current, minutes = hour, {}
        if series is not None:
            minutes[start, series] = _sums(sums)
    if current is not None:
        yield current, minutes


async def _summaries(session: Session, hour: int) -> list[Any]:
    """Return the summaries of an hour, their sums as integers."""
    rows = await query(session, "summaries", hour)
    return [(part, name, *map(int, sums), counts) for part, name, *sums, counts in rows]


def _sums(values: list[Any]) -> Row:
    *scalars, bins, counts = values
    return (*scalars, dict(zip(bins or (), counts or (), strict=True)))
