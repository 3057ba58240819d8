"""History: the sums of a range of time in buckets, made of minute or hour rollups.

A query becomes a plan: the buckets, and the rollups that they are made of. All plans count buckets
from the same moment, so equal queries have equal plans, and buckets follow one another.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final, Literal, NamedTuple, TypeVar

from routecast.core.decision import DAY, SECOND
from routecast.core.numbers import read_number
from routecast.core.rollup import Key, Sums
from routecast.core.snapshot import HOUR
from routecast.core.times import read_time, unix_time
from routecast.core.view import FILTERS, View, only, read_filters, read_parameters
from routecast.errors import BadParameter
from routecast.protocol import MAX_POINTS

T = TypeVar("T")

DEFAULT_POINTS: Final = 300
DEFAULT_RANGE: Final = HOUR
# A longer range is made of hours, because reading its minutes would cost too much: a minute may
# have as many rollups as an hour.
MINUTES_RANGE: Final = 2 * DAY
# The last moment of a query; calendars with four-digit years end soon after it.
LATEST: Final = 253_370_764_800 * SECOND  # 9999-01-01

EVERYTHING: Final = View()  # no filter
ALL: Final = "all"  # the key of the only series of a query without `group_by`
GROUPS: Final = ("strategy", "provider", "model", "band", "status")
# The parts of the key by which hours are summed up.
PARTS: Final = (ALL, *Key._fields)

# In seconds. Beyond the last of them steps double, so they stay whole weeks.
HOUR_STEP: Final = 3_600
BUCKET_STEPS: Final = (
    *(60 * minutes for minutes in (1, 2, 5, 10, 15, 30)),
    *(HOUR_STEP * hours for hours in (1, 2, 3, 4, 6, 12, 24, 48)),
    *(7 * 24 * HOUR_STEP * weeks for weeks in (1, 2, 4)),
)
# The moment from which all buckets are counted: a Monday before every decision.
ORIGIN: Final = -3 * 24 * HOUR_STEP

POINTS_RULE: Final = f"must be an integer from 1 to {MAX_POINTS:,}"
GROUP_RULE: Final = f"must be one of {', '.join(GROUPS)}"
HISTORY_PARAMETERS: Final = ("from", "to", "points", "group_by", "fields", *FILTERS)
_INTEGER: Final = re.compile(r"\d{1,9}", re.ASCII)
_SECONDS: Final = re.compile(r"-?\d{1,12}(\.\d+)?", re.ASCII)
_BLANK_OFFSET: Final = re.compile(r" (?=\d\d:?\d\d\Z)")

# The columns of a point, except its histogram.
POINT_COLUMNS: Final = (
    "errors",
    *(name for name in Sums.SCALARS if not name.startswith("metered_")),
)

# The fields of a bucket, and the sums that each needs.
HISTORY_FIELDS: Final[dict[str, tuple[str, ...]]] = {
    "count": ("count",),
    "cost": ("cost_count", "cost_sum"),
    "avg_cost": ("cost_count", "cost_sum"),
    "avg_confidence": ("confidence_count", "confidence_sum"),
    "input_tokens": ("input_tokens",),
    "output_tokens": ("output_tokens",),
    "errors": ("errors",),
    "fallbacks": ("fallbacks",),
    "avg_latency_ms": ("latency_count", "latency_sum"),
    "p50_latency_ms": ("latency_count",),
    "p95_latency_ms": ("latency_count",),
    "p99_latency_ms": ("latency_count",),
}
PERCENTILE_FIELDS: Final = {"p50_latency_ms": 50, "p95_latency_ms": 95, "p99_latency_ms": 99}
DEFAULT_HISTORY_FIELDS: Final = ("count", "cost")


# -- queries ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HistoryQuery:
    """A range from `start` to before `end` (microseconds), in at most `points` buckets.

    Without an end, or with `follow` and an earlier end, it ends with the current bucket. Without a
    start, it begins DEFAULT_RANGE before the end; the first bucket may be left out to keep within
    `points`. Only the filters of the view `filters` are used. Make a query with `history_query`,
    which checks it.
    """

    start: int | None = None
    end: int | None = None
    points: int = DEFAULT_POINTS
    group_by: str | None = None
    fields: tuple[str, ...] = DEFAULT_HISTORY_FIELDS
    filters: View = EVERYTHING
    follow: bool = False


def history_query(
    *,
    start: int | None = None,
    end: int | None = None,
    points: int | None = None,
    group_by: str | None = None,
    fields: Iterable[str] | None = None,
    filters: View | None = None,
    follow: bool = False,
) -> HistoryQuery:
    """Return a query; None means not given. Raises BadParameter with names as on the wire."""
    for name, moment in (("from", start), ("to", end)):
        if moment is not None and not 0 <= moment <= LATEST:
            raise BadParameter(name, "must be from 1970 to 9999")
    if start is not None and end is not None and start >= end:
        raise BadParameter("from", "must be before `to`")
    if points is not None and not 1 <= points <= MAX_POINTS:
        raise BadParameter("points", POINTS_RULE)
    if group_by is not None and group_by not in GROUPS:
        raise BadParameter("group_by", GROUP_RULE)
    asked = frozenset(DEFAULT_HISTORY_FIELDS if fields is None else fields)
    if unknown := sorted(asked - HISTORY_FIELDS.keys()):
        raise BadParameter(
            "fields", f"{unknown[0][:64]!r} is not one of {', '.join(HISTORY_FIELDS)}"
        )
    if not asked:
        raise BadParameter("fields", f"must name some of {', '.join(HISTORY_FIELDS)}")
    # In one order, so that equal requests are equal queries.
    ordered = tuple(name for name in HISTORY_FIELDS if name in asked)
    most = points or DEFAULT_POINTS
    return HistoryQuery(start, end, most, group_by, ordered, filters or EVERYTHING, follow)


def parse_history(query: bytes | str) -> HistoryQuery:
    """Read the query string of `GET /v1/history`. Raises BadParameter, naming the parameter."""
    given = read_parameters(query, HISTORY_PARAMETERS)
    if "step" in given:  # only answers have it
        raise BadParameter("step", "no such parameter; `points` chooses the step")

    def one(name: str, read: Callable[[str, str], T]) -> T | None:
        return read(name, only(name, given)) if name in given else None

    return history_query(
        start=one("from", _moment),
        end=one("to", _moment),
        points=one("points", _integer),
        group_by=one("group_by", lambda _, value: value),
        fields=[name.strip() for value in given["fields"] for name in value.split(",")]
        if "fields" in given
        else None,
        filters=replace(EVERYTHING, **read_filters(given)),
    )


def _integer(name: str, value: str) -> int:
    if not _INTEGER.fullmatch(value):
        raise BadParameter(name, POINTS_RULE)
    return int(value)


def _moment(name: str, value: str) -> int:
    try:
        if _SECONDS.fullmatch(value):
            return unix_time(read_number(value, lenient=True))
        # A plus sign in a query string is a blank, unless it is written as %2B.
        return read_time(_BLANK_OFFSET.sub("+", value))
    except ValueError:
        raise BadParameter(
            name, "must be RFC 3339 with an offset, such as Z, or Unix seconds"
        ) from None


# -- plans --------------------------------------------------------------------------------------


class Buckets(NamedTuple):
    """A number of buckets of `step` seconds; `first` is the first second, since 1970."""

    first: int
    step: int
    points: int

    @property
    def end(self) -> int:
        """The second after the last bucket."""
        return self.first + self.step * self.points

    def start_of(self, second: int) -> int:
        """Return the first second of the bucket of this step that a second is in."""
        return second - (second - ORIGIN) % self.step


@dataclass(frozen=True, slots=True)
class Plan:
    """The buckets to make, the period of rollups to make them of, and the fields of each."""

    buckets: Buckets
    group_by: str | None
    fields: tuple[str, ...]
    filters: View

    @property
    def period(self) -> Literal["minute", "hour"]:
        """The rollups that fit these buckets."""
        return "minute" if self.buckets.step < HOUR_STEP else "hour"

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of POINT_COLUMNS that are needed, always with `count`."""
        needed = {"count"}.union(*(HISTORY_FIELDS[name] for name in self.fields))
        return tuple(name for name in POINT_COLUMNS if name in needed)

    @property
    def histograms(self) -> bool:
        """Whether latency histograms are needed."""
        return not PERCENTILE_FIELDS.keys().isdisjoint(self.fields)

    @property
    def summary(self) -> str | None:
        """The one of PARTS whose summaries suffice for an hour; None if rollups must be read."""
        parts = {name for name in FILTERS if getattr(self.filters, name) is not None}
        if self.group_by is not None:
            parts.add(self.group_by)
        if self.period != "hour" or len(parts) > 1:
            return None
        return parts.pop() if parts else ALL

    def group_of(self, key: Key) -> str:
        """Return the name of the series that a key belongs to."""
        return ALL if self.group_by is None else str(getattr(key, self.group_by))


def plan(query: HistoryQuery, now: int, *, least_step: int = 0) -> Plan:
    """Return the plan of a query at `now`, with the finest buckets that are few enough.

    `least_step` is in seconds: 3,600 if minutes are not kept any more. The range is widened to
    whole buckets. Raises BadParameter.
    """
    end = now + 1 if query.end is None else query.end  # the current bucket is included
    if query.follow:
        end = max(end, now + 1)
    start = max(0, end - DEFAULT_RANGE) if query.start is None else query.start
    if start >= end:
        raise BadParameter("from", "must be before `to`, which is now by default")
    if end - start > MINUTES_RANGE:
        least_step = max(least_step, HOUR_STEP)
    for step in _steps():
        first, last = _number(start, step), _number(end - 1, step)
        # An hour overlaps 61 minutes. If the request does not say when it begins, 60 are enough.
        if query.start is None and end - start <= query.points * step * SECOND:
            first = max(first, last + 1 - query.points)
        if step < least_step or last - first >= query.points:
            continue
        buckets = Buckets(ORIGIN + first * step, step, last - first + 1)
        return Plan(buckets, query.group_by, query.fields, query.filters)
    raise AssertionError("steps grow without end")


def _steps() -> Iterator[int]:
    yield from BUCKET_STEPS
    step = BUCKET_STEPS[-1]
    while True:
        step *= 2
        yield step


def _number(moment: int, step: int) -> int:
    """Return the number of the bucket that a moment is in, counted from ORIGIN."""
    return (moment - ORIGIN * SECOND) // (step * SECOND)
