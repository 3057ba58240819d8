"""History out of a database, whichever: how a plan becomes SQL, and rows become points."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from routecast.core.delta import Delta
from routecast.core.histogram import pack, unpack
from routecast.core.history import COLUMNS, Plan
from routecast.core.past import Past, Point, summaries
from routecast.core.rollup import Key, Sums
from routecast.core.view import FILTERS


def filters(plan: Plan) -> dict[str, list[str]]:
    """Return the values that a plan lets through, by the parts that it names some of."""
    chosen = {name: getattr(plan.filters, name) for name in FILTERS}
    return {name: sorted(values) for name, values in chosen.items() if values is not None}


def add_rows(past: Past, plan: Plan, rows: Iterable[Any]) -> None:
    """Add rows: series, beginning, the plan's columns, and where needed packed histograms."""
    columns = plan.columns
    for series, start, *values in rows:
        point = Point()
        for column, value in zip(columns, values, strict=False):
            setattr(point, column, int(value))
        if plan.histograms:
            point.latency_bins.update(merged(values[-1]))
        past.point(series, start).unite(point)


def merged(histograms: bytes | Iterable[bytes]) -> dict[int, int]:
    """Return one histogram of one packed, or of many."""
    if isinstance(histograms, bytes):
        return unpack(histograms)
    bins: dict[int, int] = {}
    for packed in histograms:
        for number, count in unpack(packed).items():
            bins[number] = bins.get(number, 0) + count
    return bins


def add_deltas(past: Past, plan: Plan, deltas: Iterable[Delta]) -> None:
    """Add what is not in the rollups yet."""
    for delta in deltas:
        for minute, cells in delta.cells.minutes.items():
            past.add(plan, 60 * minute, cells)


def summary_rows(start: int, bucket: Mapping[Key, Sums]) -> Iterator[tuple[Any, ...]]:
    """Yield the summaries of the hour that begins at a second, as rows of their table."""
    for (part, name), point in summaries(bucket).items():
        sums = (getattr(point, column) for column in COLUMNS)
        yield part, start, name, *sums, pack(point.latency_bins)
