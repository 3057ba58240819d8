"""Time series: the sums of a history by series and bucket, and the answer made of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

from routecast.core.cardinality import OTHER
from routecast.core.decision import SECOND
from routecast.core.histogram import PackedHistogramSum, add_bins, percentiles
from routecast.core.history import (
    ALL,
    PARTS,
    PERCENTILE_FIELDS,
    Buckets,
    Plan,
)
from routecast.core.metrics import quotient
from routecast.core.rollup import Key, Sums
from routecast.core.snapshot import Snapshot
from routecast.errors import NotHeld
from routecast.protocol import Position, rfc3339

# Series with a name of their own; all others are summed up as `other`.
MAX_SERIES: Final = 30
# At most this many sums of a snapshot are added up on the event loop, which takes about 5 ms. A sum
# with a histogram counts as several.
MAX_SUMS: Final = 4_000
HISTOGRAM_SUMS: Final = 5
_TOO_MUCH: Final = "that is too much to add up at once"
# Answers with this number of values or more are made and encoded in a thread. A percentile counts
# as several.
MANY_VALUES: Final = 5_000
PERCENTILE_VALUES: Final = 10


class Point(Sums):
    """The sums of one series in one bucket, and its number of errors.

    Only the sums that the plan needs (`Plan.columns`) are valid.
    """

    __slots__ = ("_histograms", "errors")

    def __init__(self) -> None:
        super().__init__()
        self.errors = 0
        # The sum of the histograms that came packed by `pack_counts`.
        self._histograms: PackedHistogramSum | None = None

    def take(self, key: Key, sums: Sums, *, histogram: bool = True) -> None:
        """Add the sums of a key."""
        if histogram:
            self.merge(sums)
        else:
            self.merge_scalars(sums)
        if key.status == "error":
            self.errors += sums.count

    def unite(self, other: "Point") -> None:
        """Add another point."""
        self.merge(other)
        self.errors += other.errors
        if other._histograms is not None:
            self.add_counts(other._histograms.pack())

    def add_counts(self, packed: bytes) -> None:
        """Add a histogram packed by `pack_counts`; its decisions must have been added before."""
        if self._histograms is None:
            self._histograms = PackedHistogramSum()
        self._histograms.add(packed, self.latency_count)

    def percentiles(self, percents: tuple[int, ...]) -> Sequence[float | None]:
        """Return percentiles of latency in microseconds; None if there is no latency."""
        if self._histograms is None:
            return percentiles(self.latency_bins, percents)
        if not self.latency_bins:
            return self._histograms.percentiles(percents)
        bins = self._histograms.bins()
        add_bins(bins, self.latency_bins)
        return percentiles(bins, percents)


@dataclass(slots=True)
class TimeSeries:
    """The sums of a plan at a position, by series and by the second at which a bucket begins."""

    position: Position
    points: dict[str, dict[int, Point]] = field(default_factory=dict)

    def point(self, series: str, second: int) -> Point:
        """Return a series' point in the bucket that begins at a second; a new one is empty."""
        points = self.points.setdefault(series, {})
        point = points.get(second)
        if point is None:
            point = points[second] = Point()
        return point

    def add(self, plan: Plan, second: int, cells: Mapping[Key, Sums]) -> None:
        """Add the sums that a plan includes of the minute or hour that begins at a second."""
        buckets = plan.buckets
        if not buckets.first <= second < buckets.end:
            return
        start, filters, histogram = buckets.start_of(second), plan.filters, plan.histograms
        for key, sums in cells.items():
            if filters.filtered and not filters.matches(key):
                continue
            point = self.point(plan.group_of(key), start)
            point.take(key, sums, histogram=histogram)


def summaries(cells: Mapping[Key, Sums]) -> dict[tuple[str, str], Point]:
    """Return the sums of an hour's cells, by each of PARTS and each of its names."""
    found: dict[tuple[str, str], Point] = {}
    for key, sums in cells.items():
        # The fields of a key are in the order of PARTS.
        for part_and_name in zip(PARTS, (ALL, *key), strict=True):
            point = found.get(part_and_name)
            if point is None:
                point = found[part_and_name] = Point()
            point.take(key, sums)
    return found


def series_from_snapshot(snapshot: Snapshot, plan: Plan) -> TimeSeries:
    """Return the sums of a plan from a snapshot.

    Raises NotHeld if the snapshot does not hold all of them, or they are too many to add at once.
    """
    found = TimeSeries(snapshot.position)
    minutes = plan.period == "minute"
    unit = 60 if minutes else 3600
    held = snapshot.minute if minutes else snapshot.hour
    periods = snapshot.minutes if minutes else snapshot.hours
    room = MAX_SUMS // (HISTOGRAM_SUMS if plan.histograms else 1)
    for number in range(plan.buckets.first // unit, plan.buckets.end // unit):
        if periods.packed_cells(number) > room:  # unpacking them takes too long
            raise NotHeld(_TOO_MUCH)
        cells = held(number)
        room -= len(cells)
        if room < 0:
            raise NotHeld(_TOO_MUCH)
        found.add(plan, number * unit, cells)
    return found


# -- answers ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HistoryResponse:
    """The answer to a query: each of `series` has its `key`, and a list of values for each field.

    `names` are the keys that have a series of their own, in order.
    """

    position: Position
    buckets: Buckets
    names: tuple[str, ...]
    series: list[dict[str, Any]]

    @property
    def values(self) -> int:
        """About the number of values, which is the cost to encode the answer."""
        return self.buckets.points * sum(map(len, self.series))

    def document(self) -> dict[str, Any]:
        """Return the answer as on the wire, without type and id."""
        return {
            "position": self.position,
            "step": self.buckets.step,
            "from": rfc3339(self.buckets.first * SECOND),
            "points": self.buckets.points,
            "series": self.series,
        }


def render(found: TimeSeries, plan: Plan, names: Sequence[str] = ()) -> HistoryResponse:
    """Return the answer to a plan.

    `names` come first; new names follow, largest first, then by name. If there are more than
    MAX_SERIES, the rest is summed up as OTHER, together with the decisions that the database
    counts as OTHER. That series comes last.
    """
    if plan.group_by is None:
        names = (ALL,)
    counts = {name: sum(p.count for p in points.values()) for name, points in found.points.items()}
    new = sorted(counts.keys() - {*names, OTHER}, key=lambda name: (-counts[name], name))
    named = (*names, *new[: max(0, MAX_SERIES - len(names))])
    shown = {name: found.points.get(name, {}) for name in named}
    if rest := [name for name in (*new, OTHER) if name in counts and name not in shown]:
        shown[OTHER] = _united([found.points[name] for name in rest])
    starts = range(plan.buckets.first, plan.buckets.end, plan.buckets.step)
    series = [_columns(name, points, starts, plan.fields) for name, points in shown.items()]
    return HistoryResponse(found.position, plan.buckets, named, series)


def _united(parts: Sequence[Mapping[int, Point]]) -> dict[int, Point]:
    united: dict[int, Point] = {}
    for points in parts:
        for start, point in points.items():
            held = united.get(start)
            if held is None:
                held = united[start] = Point()
            held.unite(point)
    return united


_EMPTY: Final = Point()


def _columns(
    name: str, points: Mapping[int, Point], starts: Sequence[int], fields: Sequence[str]
) -> dict[str, Any]:
    held = [points.get(start, _EMPTY) for start in starts]
    columns = {
        field: list(map(_COLUMN_VALUES[field], held)) for field in fields if field in _COLUMN_VALUES
    }
    if percents := {
        field: PERCENTILE_FIELDS[field] for field in fields if field in PERCENTILE_FIELDS
    }:
        asked = tuple(percents.values())
        found = zip(*(point.percentiles(asked) for point in held), strict=True)
        for field, latencies in zip(percents, found, strict=True):
            columns[field] = list(map(_milliseconds, latencies))
    return {"key": name, **{field: columns[field] for field in fields}}


@cache
def _milliseconds(latency: float | None) -> float | None:
    # To the nanosecond: rounding more would add to the 2 % error of short latencies.
    return None if latency is None else round(latency / 1000, 6)


_COLUMN_VALUES: Final[dict[str, Callable[[Point], Any]]] = {
    "count": lambda point: point.count,
    "cost": lambda point: point.cost_sum / 10**9 if point.cost_count else None,
    "avg_cost": lambda point: quotient(point.cost_sum, point.cost_count, 9),
    "avg_confidence": lambda point: quotient(point.confidence_sum, point.confidence_count, 6),
    "input_tokens": lambda point: point.input_tokens,
    "output_tokens": lambda point: point.output_tokens,
    "errors": lambda point: point.errors,
    "fallbacks": lambda point: point.fallbacks,
    "avg_latency_ms": lambda point: quotient(point.latency_sum, point.latency_count, 3),
}
