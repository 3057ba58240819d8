"""History: sums by series and bucket, made by the server; and summaries for it to read."""

from collections.abc import Iterator, Sequence
from typing import Any

from routecast.adapters.store.history import (
    Add,
    Term,
    add_deltas,
    filters,
    selections,
    summary_rows,
)
from routecast.adapters.store.names import HOUR_SECONDS
from routecast.adapters.store.postgres.connection import (
    POSTGRES_SQL,
    DatabaseSession,
    beside,
    chunks,
    names_of_series,
    query,
)
from routecast.adapters.store.postgres.folding import deltas_of
from routecast.core.history import ORIGIN, PARTS, Plan
from routecast.core.rollup import Bucket, Sums
from routecast.core.time_series import TimeSeries
from routecast.errors import NotHeld
from routecast.protocol import Position


async def read(session: DatabaseSession, plan: Plan) -> TimeSeries:
    """Return the sums that a plan asks for, within a transaction that sees one moment.

    Raises NotHeld when minutes of the plan are not kept any more.
    """
    state = (await query(session, "state"))[0]
    if plan.period == "minute" and plan.buckets.first < state["minutes_from"]:
        raise NotHeld("minutes before that are not kept any more")
    past = TimeSeries(Position(*(await query(session, "position"))[0]))
    for add, sql, values in _queries(plan):
        async for rows in chunks(session, sql, *values):
            await beside(add, past, plan, rows)
    deltas = deltas_of(await query(session, "deltas", state["folded"]), past.position.epoch)
    await beside(add_deltas, past, plan, deltas)
    return past


def _queries(plan: Plan) -> Iterator[tuple[Add, str, Sequence[Any]]]:
    first, step, _ = plan.buckets
    place = (first, plan.buckets.end, step, ORIGIN)
    chosen = filters(plan)
    tests = [
        POSTGRES_SQL["past_filter"].format(part=part, number=number)
        for number, part in enumerate(chosen, len(place) + 2)
    ]
    needs_series = tests or plan.group_by is not None or "errors" in plan.columns
    errors = "CASE series.status WHEN 'error' THEN count ELSE 0 END"
    for one in selections(plan, errors, _sum_of):
        series = f"series.{plan.group_by}" if one.part is None else "name"
        sql = POSTGRES_SQL[one.query].format(
            series="'all'" if plan.group_by is None else series,
            values=one.values,
            table=one.table,
            join=POSTGRES_SQL["past_series"] if needs_series else "",
            filters=" ".join(tests),
            grouping=one.grouping,
        )
        if one.part is None:
            yield one.add, sql, (plan.period, *place, *chosen.values())
        else:
            yield one.add, sql, (one.part, *place, chosen.get(one.part))


def _sum_of(_: str, column: str) -> Sequence[Term]:
    return (Term(column, f"sum({column})"),)  # a numeric, which has no end


async def unsummed(session: DatabaseSession, before: int) -> list[int]:
    """Return the hours over before a second that are not summed up, oldest first."""
    return [
        row["start"] for row in await query(session, "unsummed_hours", before - HOUR_SECONDS, None)
    ]


async def summarise(session: DatabaseSession, start: int) -> None:
    """Sum an hour up. Within a transaction that holds the lock of the rollups."""
    bucket: Bucket = {}
    async for found in chunks(session, POSTGRES_SQL["rollups"], "hour", start, start + 1):
        names = await names_of_series(session, (row["series"] for row in found))
        bucket |= {names[row["series"]]: Sums.from_row(row[2:]) for row in found}
    rows = await beside(summary_rows, {start: bucket})
    await query(session, "drop_summaries", PARTS, [start])
    await query(session, "drop_latency_summaries", PARTS, [start])
    if bucket:
        await query(session, "put_summaries", *zip(*rows.sums, strict=True))
        await query(session, "put_latency_summaries", *zip(*rows.latencies, strict=True))
    await query(session, "hours_are_summed", [start])
