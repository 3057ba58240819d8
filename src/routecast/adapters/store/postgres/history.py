"""History in PostgreSQL: sums by series and bucket, computed by the server."""

from collections.abc import Iterator, Sequence
from typing import Any

from routecast.adapters.store.history import (
    Add,
    Term,
    add_deltas,
    filters,
    selections,
)
from routecast.adapters.store.postgres.connection import (
    POSTGRES_SQL,
    DatabaseSession,
    chunks,
    in_thread,
    query,
)
from routecast.adapters.store.postgres.deltas import deltas_of
from routecast.core.history import ORIGIN, Plan
from routecast.core.time_series import TimeSeries
from routecast.errors import NotHeld
from routecast.protocol import Position


async def read(session: DatabaseSession, plan: Plan) -> TimeSeries:
    """Return the sums that a plan needs.

    Call it within a transaction that sees the database at one moment. Raises NotHeld if minutes of
    the plan are not kept any more.
    """
    state = (await query(session, "state"))[0]
    if plan.period == "minute" and plan.buckets.first < state["minutes_from"]:
        raise NotHeld("minutes before that are not kept any more")
    series = TimeSeries(Position(*(await query(session, "position"))[0]))
    for add, sql, values in _queries(plan):
        async for rows in chunks(session, sql, *values):
            await in_thread(add, series, plan, rows)
    deltas = deltas_of(await query(session, "deltas", state["folded"]), series.position.epoch)
    await in_thread(add_deltas, series, plan, deltas)
    return series


def _queries(plan: Plan) -> Iterator[tuple[Add, str, Sequence[Any]]]:
    first, step, _ = plan.buckets
    buckets = (first, plan.buckets.end, step, ORIGIN)
    chosen = filters(plan)
    tests = [
        POSTGRES_SQL["history_filter"].format(part=part, number=number)
        for number, part in enumerate(chosen, len(buckets) + 2)
    ]
    needs_series = tests or plan.group_by is not None or "errors" in plan.columns
    errors = "CASE series.status WHEN 'error' THEN count ELSE 0 END"
    for one in selections(plan, errors, _sum_of):
        series = f"series.{plan.group_by}" if one.part is None else "name"
        sql = POSTGRES_SQL[one.query].format(
            series="'all'" if plan.group_by is None else series,
            values=one.values,
            table=one.table,
            join=POSTGRES_SQL["history_series"] if needs_series else "",
            filters=" ".join(tests),
            grouping=one.grouping,
        )
        if one.part is None:
            yield one.add, sql, (plan.period, *buckets, *chosen.values())
        else:
            yield one.add, sql, (one.part, *buckets, chosen.get(one.part))


def _sum_of(_: str, column: str) -> Sequence[Term]:
    return (Term(column, f"sum({column})"),)  # a numeric, which has no limit
