"""History: sums by series and bucket, made by the server; and summaries for it to read."""

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

from routecast.core.history import ORIGIN, PARTS, Plan
from routecast.core.past import Past
from routecast.core.rollup import Bucket, Sums
from routecast.errors import Uncovered
from routecast.protocol import Position
from routecast.store.past import add_deltas, add_rows, filters, summary_rows, sums
from routecast.store.postgres.fold import START_OF, deltas_of
from routecast.store.postgres.session import SQL, Session, query, series_names

HOUR = START_OF["hour"]


async def read(session: Session, plan: Plan) -> tuple[Position, list[Any], list[Any]]:
    """Return the position, the rows that a plan asks for, and what is not folded yet.

    Within a transaction that sees one moment; `build` makes a Past of it. Raises Uncovered when
    minutes of the plan are not kept any more.
    """
    state = (await query(session, "state"))[0]
    if plan.period == "minute" and plan.buckets.first < state["minutes_from"]:
        raise Uncovered("minutes before that are not kept any more")
    position = Position(*(await query(session, "position"))[0])
    rows = [row for sql, values in _queries(plan) for row in await session.fetch(sql, *values)]
    return position, rows, await query(session, "deltas", state["folded"])


def build(plan: Plan, position: Position, rows: Sequence[Any], deltas: Sequence[Any]) -> Past:
    """Return what `read` found."""
    past = Past(position)
    add_rows(past, plan, rows)
    add_deltas(past, plan, deltas_of(deltas, position.epoch))
    return past


def _queries(plan: Plan) -> Iterator[tuple[str, Sequence[Any]]]:
    first, step, _ = plan.buckets
    place = (first, plan.buckets.end, step, ORIGIN)
    chosen = filters(plan)
    tests = [
        SQL["past_filter"].format(part=part, number=number)
        for number, part in enumerate(chosen, len(place) + 2)
    ]
    needs_series = tests or plan.group_by is not None or "errors" in plan.columns
    sql = SQL["past_rollups" if plan.summary is None else "past_unsummed"].format(
        group="'all'" if plan.group_by is None else f"series.{plan.group_by}",
        **sums(plan, "CASE series.status WHEN 'error' THEN count ELSE 0 END"),
        series=SQL["past_series"] if needs_series else "",
        filters=" ".join(tests),
    )
    yield sql, (plan.period, *place, *chosen.values())
    if plan.summary is not None:
        sql = SQL["past_summaries"].format(
            group="'all'" if plan.group_by is None else "name", **sums(plan, "errors")
        )
        yield sql, (plan.summary, *place, chosen.get(plan.summary))


async def summarise(session: Session, before: int, limit: int) -> int:
    """Sum at most `limit` hours up that were over before a second; return how many.

    Within a transaction that holds the lock of the rollups.
    """
    starts = [row[0] for row in await query(session, "unsummed_hours", before - HOUR, limit)]
    if starts:
        names = await series_names(session)
        hours: dict[int, Bucket] = {}
        for row in await query(session, "rollups_of_hours", starts):
            hours.setdefault(row[0], {})[names[row[1]]] = Sums.from_row(row[2:])
        rows = await asyncio.to_thread(_summaries, hours)
        await query(session, "drop_summaries", PARTS, starts)
        await query(session, "put_summaries", *zip(*rows, strict=True))
        await query(session, "hours_are_summed", starts)
    return len(starts)


def _summaries(hours: dict[int, Bucket]) -> list[tuple[Any, ...]]:
    return [row for start, bucket in hours.items() for row in summary_rows(start, bucket)]
