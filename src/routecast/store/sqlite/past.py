"""History out of a SQLite database: sums by series and bucket, made by the engine."""

import time
from collections.abc import Iterator
from typing import Any, Final

import apsw
import msgspec

from routecast.core.history import ORIGIN, Plan
from routecast.core.past import Past
from routecast.errors import Unavailable, Uncovered
from routecast.protocol import Position
from routecast.store.past import add_deltas, add_rows, filters, sums
from routecast.store.sqlite.connection import SQL, deltas_after, query, transaction

# One range must not keep the others waiting for longer, in seconds; looked at each so many steps
# of the engine, some milliseconds.
READ_SECONDS: Final = 5.0
STEPS: Final = 500_000


def read(db: apsw.Connection, plan: Plan) -> Past:
    """Return the sums that a plan asks for. Raises Uncovered when its minutes are gone."""
    deadline = time.monotonic() + READ_SECONDS
    db.set_progress_handler(lambda: time.monotonic() > deadline, STEPS)
    try:
        return _read(db, plan)
    except apsw.InterruptError:
        raise Unavailable("the range is too long to add up; ask for a shorter one") from None
    finally:
        db.set_progress_handler(None)


def _read(db: apsw.Connection, plan: Plan) -> Past:
    with transaction(db, "BEGIN"):
        epoch, seq, minutes_from, folded = query(db, "history")[0]
        if plan.period == "minute" and plan.buckets.first < minutes_from:
            raise Uncovered("minutes before that are not kept any more")
        past = Past(Position(epoch, seq))
        for rows, summed in _rows(db, plan):
            add_rows(past, plan, rows, summed=summed)
        add_deltas(past, plan, deltas_after(db, Position(epoch, folded)))
    return past


def _rows(db: apsw.Connection, plan: Plan) -> Iterator[tuple[Iterator[Any], bool]]:
    """Yield rows as they are asked for, and whether they are of summaries."""
    first, step, _ = plan.buckets
    place = (first, plan.buckets.end, step, ORIGIN)
    chosen = {part: msgspec.json.encode(names).decode() for part, names in filters(plan).items()}
    tests = [
        SQL["past_filter"].format(part=part, number=number)
        for number, part in enumerate(chosen, len(place) + 2)
    ]
    sql = SQL["past_rollups" if plan.summary is None else "past_unsummed"].format(
        group="'all'" if plan.group_by is None else f"series.{plan.group_by}",
        **sums(plan, "iif(series.status = 'error', count, 0)", "latency_bins"),
        filters=" ".join(tests),
    )
    yield db.execute(sql, (plan.period, *place, *chosen.values())), False
    if plan.summary is not None:
        sql = SQL["past_summaries"].format(
            group="'all'" if plan.group_by is None else "name",
            latencies=SQL["past_latencies"] if plan.histograms else "",
            **sums(plan, "errors", "counts"),
        )
        yield db.execute(sql, (plan.summary, *place, chosen.get(plan.summary))), True
