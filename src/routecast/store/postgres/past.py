"""History: sums by series and bucket, made by the server; and summaries for it to read."""

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

from routecast.core.history import ORIGIN, PARTS, Plan
from routecast.core.past import Past
from routecast.core.rollup import Bucket, Sums
from routecast.errors import Uncovered
from routecast.protocol import Position
from routecast.store.past import Add, add_deltas, filters, selections, summary_rows
from routecast.store.postgres.fold import START_OF, deltas_of
from routecast.store.postgres.session import SQL, Session, query, series_names

HOUR = START_OF["hour"]

# Rows, and how to add them.
Found = tuple[Add, Sequence[Any]]


async def read(session: Session, plan: Plan) -> tuple[Position, list[Found], list[Any]]:
    """Return the position, the rows that a plan asks for, and what is not folded yet.

    Within a transaction that sees one moment; `build` makes a Past of it. Raises Uncovered when
    minutes of the plan are not kept any more.
    """
    state = (await query(session, "state"))[0]
    if plan.period == "minute" and plan.buckets.first < state["minutes_from"]:
        raise Uncovered("minutes before that are not kept any more")
    position = Position(*(await query(session, "position"))[0])
    found: list[Found] = [
        (add, await session.fetch(sql, *values)) for add, sql, values in _queries(plan)
    ]
    return position, found, await query(session, "deltas", state["folded"])


def build(plan: Plan, position: Position, found: list[Found], deltas: Sequence[Any]) -> Past:
    """Return what `read` found."""
    past = Past(position)
    for add, rows in found:
        add(past, plan, rows)
    add_deltas(past, plan, deltas_of(deltas, position.epoch))
    return past


def _queries(plan: Plan) -> Iterator[tuple[Add, str, Sequence[Any]]]:
    first, step, _ = plan.buckets
    place = (first, plan.buckets.end, step, ORIGIN)
    chosen = filters(plan)
    tests = [
        SQL["past_filter"].format(part=part, number=number)
        for number, part in enumerate(chosen, len(place) + 2)
    ]
    needs_series = tests or plan.group_by is not None or "errors" in plan.columns
    for one in selections(plan, "CASE series.status WHEN 'error' THEN count ELSE 0 END"):
        series = f"series.{plan.group_by}" if one.part is None else "name"
        sql = SQL[one.query].format(
            series="'all'" if plan.group_by is None else series,
            values=one.values,
            table=one.table,
            join=SQL["past_series"] if needs_series else "",
            filters=" ".join(tests),
            grouping=one.grouping,
        )
        if one.part is None:
            yield one.add, sql, (plan.period, *place, *chosen.values())
        else:
            yield one.add, sql, (one.part, *place, chosen.get(one.part))


async def summarise(session: Session, before: int, limit: int) -> int:
    """Sum at most `limit` hours up that were over before a second; return how many.

    Within a transaction that holds the lock of the rollups.
    """
    starts = [row[0] for row in await query(session, "unsummed_hours", before - HOUR, limit)]
    if not starts:
        return 0
    names = await series_names(session)
    hours: dict[int, Bucket] = {}
    for row in await query(session, "rollups_of_hours", starts):
        hours.setdefault(row[0], {})[names[row[1]]] = Sums.from_row(row[2:])
    rows = await asyncio.to_thread(summary_rows, hours)
    await query(session, "drop_summaries", PARTS, starts)
    await query(session, "drop_latency_summaries", PARTS, starts)
    if hours:
        await query(session, "put_summaries", *zip(*rows.sums, strict=True))
        await query(session, "put_latency_summaries", *zip(*rows.latencies, strict=True))
    await query(session, "hours_are_summed", starts)
    return len(starts)
