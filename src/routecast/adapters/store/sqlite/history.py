"""History in a SQLite file: sums by series and bucket, computed by the engine."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import apsw
import msgspec

from routecast.adapters.store.history import Add, Term, add_deltas, filters, selections
from routecast.adapters.store.sqlite.connection import SQLITE_SQL, query, transaction
from routecast.adapters.store.sqlite.deltas import parts_after
from routecast.adapters.store.sqlite.wide_sums import HIGH
from routecast.core.history import ORIGIN, Plan
from routecast.core.overflow import SUMS
from routecast.core.time_series import TimeSeries
from routecast.errors import NotHeld, Unavailable
from routecast.protocol import Position

# One read may delay others for at most this time, in seconds. It is checked after each RANGE_STEPS
# steps of SQLite, which take a few milliseconds.
RANGE_READ_SECONDS: Final = 5.0
RANGE_STEPS: Final = 500_000

# SQLite's integers have 64 bits, and its `sum` fails on overflow. So the two halves of a value are
# summed up separately. A value of a summary has its bits above HIGH in a column of their own.
HALF: Final = 32


def sum_of(table: str, column: str) -> Sequence[Term]:
    """Return the terms of a column's sum (`SumOf`)."""
    if column not in SUMS:
        return (Term(column, f"sum({column})"),)
    halves = (
        Term(column, f"sum({column} >> {HALF})", HALF),
        Term(column, f"sum({column} & {(1 << HALF) - 1})"),
    )
    if table == "rollups":
        return halves
    return (*halves, Term(column, f"sum({column}_high)", HIGH))


def read(db: apsw.Connection, plan: Plan) -> TimeSeries:
    """Return the sums that a plan needs. Raises NotHeld if its minutes are not kept any more."""
    with in_time(db, "the range is too long to add up; ask for a shorter one"):
        return _read(db, plan)


@contextmanager
def in_time(db: apsw.Connection, error: str) -> Iterator[None]:
    """Interrupt the body's reads after RANGE_READ_SECONDS: raise Unavailable with `error`."""
    deadline = time.monotonic() + RANGE_READ_SECONDS
    db.set_progress_handler(lambda: time.monotonic() > deadline, RANGE_STEPS)
    try:
        yield
    except apsw.InterruptError:
        raise Unavailable(error) from None
    finally:
        db.set_progress_handler(None)


def _read(db: apsw.Connection, plan: Plan) -> TimeSeries:
    with transaction(db, "BEGIN"):
        epoch, seq, minutes_from, folded, parts = query(db, "history")[0]
        if plan.period == "minute" and plan.buckets.first < minutes_from:
            raise NotHeld("minutes before that are not kept any more")
        series = TimeSeries(Position(epoch, seq))
        for add, rows in _rows(db, plan):
            add(series, plan, rows)
        add_deltas(series, plan, parts_after(db, Position(epoch, folded), parts))
    return series


def _rows(db: apsw.Connection, plan: Plan) -> Iterator[tuple[Add, Iterator[Any]]]:
    """Yield rows, and how to add them."""
    first, step, _ = plan.buckets
    buckets = (first, plan.buckets.end, step, ORIGIN)
    chosen = {part: msgspec.json.encode(names).decode() for part, names in filters(plan).items()}
    tests = [
        SQLITE_SQL["history_filter"].format(part=part, number=number)
        for number, part in enumerate(chosen, len(buckets) + 2)
    ]
    for one in selections(plan, "iif(series.status = 'error', count, 0)", sum_of):
        series = f"series.{plan.group_by}" if one.part is None else "name"
        sql = SQLITE_SQL[one.query].format(
            series="'all'" if plan.group_by is None else series,
            values=one.values,
            table=one.table,
            filters=" ".join(tests),
            grouping=one.grouping,
        )
        if one.part is None:
            yield one.add, db.execute(sql, (plan.period, *buckets, *chosen.values()))
        else:
            yield one.add, db.execute(sql, (one.part, *buckets, chosen.get(one.part)))
