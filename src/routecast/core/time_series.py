"""The past as it was found: sums by series and bucket, and the answer that is told of them."""

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

# Series told by name; the others, should there be more, are summed up in one more.
MAX_SERIES: Final = 30
# More of a snapshot's sums are not added up while others wait: it takes some 5 ms. One with its
# histogram counts as several.
MAX_SUMS: Final = 4_000
HISTOGRAM_SUMS: Final = 5
_TOO_MUCH: Final = "that is too much to add up at once"
# More values than these keep others waiting while they are made or encoded: it is for a thread.
# A percentile takes as long as several.
MANY_VALUES: Final = 5_000
PERCENTILE_VALUES: Final = 10


class Point(Sums):
    """The sums of a bucket's decisions of one series, and how many of these are errors.

    Only those sums that a plan names are right.
    """

    __slots__ = ("_lanes", "errors")

    def __init__(self) -> None:
        super().__init__()
        self.errors = 0
        self._lanes: PackedHistogramSum | None = (
            None  # of histograms added as `pack_counts` has them
        )

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
        if other._lanes is not None:
            self.add_counts(other._lanes.pack())

    def add_counts(self, packed: bytes) -> None:
        """Add a histogram as `pack_counts` has it, after what it counts was added."""
        if self._lanes is None:
            self._lanes = PackedHistogramSum()
        self._lanes.add(packed, self.latency_count)

    def percentiles(self, percents: tuple[int, ...]) -> Sequence[float | None]:
        """Return percentiles of latency in microseconds; None where nothing is counted."""
        if self._lanes is None:
            return percentiles(self.latency_bins, percents)
        if not self.latency_bins:
            return self._lanes.percentiles(percents)
        bins = self._lanes.bins()
        add_bins(bins, self.latency_bins)
        return percentiles(bins, percents)


@dataclass(slots=True)
class TimeSeries:
    """The sums that a plan asked for as of a position, by series and the second it begins at."""

    position: Position
    points: dict[str, dict[int, Point]] = field(default_factory=dict)

    def point(self, series: str, second: int) -> Point:
        """Return the point of a series at a bucket's beginning, empty if it is new."""
        points = self.points.setdefault(series, {})
        point = points.get(second)
        if point is None:
            point = points[second] = Point()
        return point

    def add(self, plan: Plan, second: int, cells: Mapping[Key, Sums]) -> None:
        """Add the sums of a minute or an hour; the plan tells which of them, and to what."""
        buckets = plan.buckets
        if not buckets.first <= second < buckets.end:
            return
        start, filters, histogram = buckets.start_of(second), plan.filters, plan.histograms
        for key, sums in cells.items():
            if filters.filtered and not filters.matches(key):
                continue
            point = self.point(plan.group_of(key), start)
            point.take(key, sums, histogram=histogram)


def summaries(bucket: Mapping[Key, Sums]) -> dict[tuple[str, str], Point]:
    """Return the sums of an hour along each of PARTS: by part and its value."""
    found: dict[tuple[str, str], Point] = {}
    for key, sums in bucket.items():
        # PARTS, and the parts of a key, in the order of these.
        for place in zip(PARTS, (ALL, *key), strict=True):
            point = found.get(place)
            if point is None:
                point = found[place] = Point()
            point.take(key, sums)
    return found


def past_of(snapshot: Snapshot, plan: Plan) -> TimeSeries:
    """Return what a plan asks for out of a snapshot.

    Raises NotHeld when it does not hold all of it, or too much to be added up at once.
    """
    past = TimeSeries(snapshot.position)
    minutes = plan.period == "minute"
    unit = 60 if minutes else 3600
    held = snapshot.minute if minutes else snapshot.hour
    periods = snapshot.minutes if minutes else snapshot.hours
    room = MAX_SUMS // (HISTOGRAM_SUMS if plan.histograms else 1)
    for number in range(plan.buckets.first // unit, plan.buckets.end // unit):
        if periods.packed_cells(number) > room:  # which takes a while to unpack
            raise NotHeld(_TOO_MUCH)
        cells = held(number)
        room -= len(cells)
        if room < 0:
            raise NotHeld(_TOO_MUCH)
        past.add(plan, number * unit, cells)
    return past


# -- what is told -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HistoryResponse:
    """What a query came to: for each of `series` its `key`, and a list of values a field.

    `names` are the keys that have a series of their own, in order.
    """

    position: Position
    buckets: Buckets
    names: tuple[str, ...]
    series: list[dict[str, Any]]

    @property
    def values(self) -> int:
        """How many values there are, about: what it costs to encode."""
        return self.buckets.points * sum(map(len, self.series))

    def document(self) -> dict[str, Any]:
        """Return it as it goes over the wire, but for a type and an id."""
        return {
            "position": self.position,
            "step": self.buckets.step,
            "from": rfc3339(self.buckets.first * SECOND),
            "points": self.buckets.points,
            "series": self.series,
        }


def render(past: TimeSeries, plan: Plan, names: Sequence[str] = ()) -> HistoryResponse:
    """Return the answer to a plan. `names` have a series already; new ones come after them.

    Largest first, then by name; when there is no room for more, the rest go to OTHER, which comes
    last, also where names over the limit were counted as OTHER.
    """
    if plan.group_by is None:
        names = (ALL,)
    counts = {name: sum(p.count for p in points.values()) for name, points in past.points.items()}
    new = sorted(counts.keys() - {*names, OTHER}, key=lambda name: (-counts[name], name))
    named = (*names, *new[: max(0, MAX_SERIES - len(names))])
    shown = {name: past.points.get(name, {}) for name in named}
    if rest := [name for name in (*new, OTHER) if name in counts and name not in shown]:
        shown[OTHER] = _united([past.points[name] for name in rest])
    starts = range(plan.buckets.first, plan.buckets.end, plan.buckets.step)
    series = [_columns(name, points, starts, plan.fields) for name, points in shown.items()]
    return HistoryResponse(past.position, plan.buckets, named, series)


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
    columns = {field: list(map(_VALUES[field], held)) for field in fields if field in _VALUES}
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
    # To the nanosecond: coarser would cost short latencies their 2 %.
    return None if latency is None else round(latency / 1000, 6)


_VALUES: Final[dict[str, Callable[[Point], Any]]] = {
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
