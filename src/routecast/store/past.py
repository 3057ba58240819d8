"""History out of a database, whichever: how a plan becomes SQL, and rows become points."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from routecast.core.delta import Delta
from routecast.core.histogram import add_bins, pack_counts, unpack
from routecast.core.history import COLUMNS, Plan
from routecast.core.past import Past, summaries
from routecast.core.rollup import Key, Sums
from routecast.core.view import FILTERS


def filters(plan: Plan) -> dict[str, list[str]]:
    """Return the values that a plan lets through, by the parts that it names some of."""
    chosen = {name: getattr(plan.filters, name) for name in FILTERS}
    return {name: sorted(values) for name, values in chosen.items() if values is not None}


def sums(plan: Plan, errors: str, histogram: str) -> dict[str, str]:
    """Return what to select of a plan's columns, and how; in SQL, what errors and bins are."""
    columns = [errors if name == "errors" else name for name in plan.columns]
    if plan.histograms:  # which no database can add up
        return {"sums": ", ".join([*columns, histogram]), "grouping": ""}
    return {"sums": ", ".join(f"sum({name})" for name in columns), "grouping": "GROUP BY 1, 2"}


def add_rows(past: Past, plan: Plan, rows: Iterable[Any], *, summed: bool) -> None:
    """Add rows: series, beginning, the plan's columns, and a packed histogram where it needs it.

    `summed` says that they are of summaries, whose histograms are packed in another way.
    """
    columns, histograms = plan.columns, plan.histograms
    for series, start, *values in rows:
        point = past.point(series, start)
        for column, value in zip(columns, values, strict=False):
            setattr(point, column, getattr(point, column) + int(value))
        if histograms and summed:
            point.add_counts(values[-1])
        elif histograms:
            add_bins(point.latency_bins, unpack(values[-1]))


def add_deltas(past: Past, plan: Plan, deltas: Iterable[Delta]) -> None:
    """Add what is not in the rollups yet."""
    for delta in deltas:
        for minute, cells in delta.cells.minutes.items():
            past.add(plan, 60 * minute, cells)


class SummaryRows(NamedTuple):
    """Rows of the two tables of summaries."""

    sums: list[tuple[Any, ...]]
    latencies: list[tuple[str, int, str, bytes]]


def summary_rows(hours: Mapping[int, Mapping[Key, Sums]]) -> SummaryRows:
    """Return the summaries of hours, by the second they begin at."""
    rows = SummaryRows([], [])
    for start, bucket in hours.items():
        for (part, name), point in summaries(bucket).items():
            sums = (getattr(point, column) for column in COLUMNS)
            rows.sums.append((part, start, name, *sums))
            rows.latencies.append((part, start, name, pack_counts(point.latency_bins)))
    return rows
