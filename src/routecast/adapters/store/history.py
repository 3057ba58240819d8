"""History in any database: a plan becomes SQL, and its rows become the points of a series."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from routecast.core import histogram
from routecast.core.delta import Delta
from routecast.core.histogram import pack_counts, unpack
from routecast.core.history import POINT_COLUMNS, Plan
from routecast.core.rollup import Key, Sums
from routecast.core.time_series import TimeSeries, summaries
from routecast.core.view import FILTERS


def filters(plan: Plan) -> dict[str, list[str]]:
    """Return the values that the filters of a plan allow, for each part with a filter."""
    chosen = {name: getattr(plan.filters, name) for name in FILTERS}
    return {name: sorted(values) for name, values in chosen.items() if values is not None}


# Adds rows to time series. A row begins with a series, and the second at which its bucket begins.
Add = Callable[[TimeSeries, Plan, Iterable[Any]], None]


class Term(NamedTuple):
    """A part of a column's sum: the SQL of it, and the number of bits to shift it by."""

    column: str
    sql: str
    shift: int = 0


# Returns the terms that a column's sum is made of, given the table ("rollups" or "summaries"). No
# term may overflow.
SumOf = Callable[[str, str], Sequence[Term]]


class RowSelection(NamedTuple):
    """What to select from a table with a named query, and how to add the rows to time series."""

    query: str
    table: str
    part: str | None  # the part of the table's summaries; None for rollups
    values: str
    grouping: str
    add: Add


def selections(plan: Plan, errors: str, sum_of: SumOf) -> Iterator[RowSelection]:
    """Yield what to select for a plan, in this order.

    `errors` is the SQL expression of the number of errors in a rollup.
    """
    part, grouping = plan.summary, "GROUP BY 1, 2"
    rollups = "history_rollups" if part is None else "history_unsummed"
    terms = [
        term
        for column in plan.columns
        for term in (
            [Term("errors", f"sum({errors})")] if column == "errors" else sum_of("rollups", column)
        )
    ]
    yield RowSelection(rollups, "rollups", None, _values(terms), grouping, partial(add_sums, terms))
    if part is not None:
        terms = [term for column in plan.columns for term in sum_of("summaries", column)]
        add = partial(add_sums, terms)
        yield RowSelection("history_summaries", "summaries", part, _values(terms), grouping, add)
    # Databases cannot add histograms, so their rows are added here, after the sums: the counts tell
    # how wide the lanes must be.
    if plan.histograms:
        yield RowSelection(rollups, "rollups", None, "latency_bins", "", add_bins)
        if part is not None:
            latencies = "latency_summaries"
            yield RowSelection("history_summaries", latencies, part, "counts", "", add_counts)


def _values(terms: Iterable[Term]) -> str:
    return ", ".join(term.sql for term in terms)


# -- adding rows --------------------------------------------------------------------------------


def add_sums(terms: Sequence[Term], found: TimeSeries, _: Plan, rows: Iterable[Any]) -> None:
    """Add rows of the terms of columns."""
    for series, start, *values in rows:
        point = found.point(series, start)
        for (column, _sql, shift), value in zip(terms, values, strict=True):
            setattr(point, column, getattr(point, column) + (int(value) << shift))


def add_bins(found: TimeSeries, _: Plan, rows: Iterable[Any]) -> None:
    """Add rows of a rollup's histogram."""
    for series, start, packed in rows:
        histogram.add_bins(found.point(series, start).latency_bins, unpack(packed))


def add_counts(found: TimeSeries, _: Plan, rows: Iterable[Any]) -> None:
    """Add rows of a summary's histogram."""
    for series, start, packed in rows:
        found.point(series, start).add_counts(packed)


def add_deltas(found: TimeSeries, plan: Plan, deltas: Iterable[Delta]) -> None:
    """Add the deltas that are not in the rollups yet."""
    for delta in deltas:
        for minute, cells in delta.cells.minutes.items():
            found.add(plan, 60 * minute, cells)


class SummaryRows(NamedTuple):
    """Rows of the two tables of summaries."""

    sums: list[tuple[Any, ...]]
    latencies: list[tuple[str, int, str, bytes]]


def summary_rows(hours: Mapping[int, Mapping[Key, Sums]]) -> SummaryRows:
    """Return the summaries of hours, which are given by the second at which they begin."""
    rows = SummaryRows([], [])
    for start, cells in hours.items():
        for (part, name), point in summaries(cells).items():
            sums = (getattr(point, column) for column in POINT_COLUMNS)
            rows.sums.append((part, start, name, *sums))
            rows.latencies.append((part, start, name, pack_counts(point.latency_bins)))
    return rows
