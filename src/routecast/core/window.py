"""The query of one window to a database, and the snapshot that answers it."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from routecast.core import histogram
from routecast.core.decision import MINUTE
from routecast.core.delta import Delta
from routecast.core.rollup import Key, PeriodCells, Sums, merge_cells
from routecast.core.snapshot import Parts, Snapshot, Span, parts_of
from routecast.core.view import View
from routecast.protocol import WINDOWS, Position


class WindowQuery(NamedTuple):
    """A window (a key of WINDOWS), and whether latency histograms, and a rate, are needed."""

    window: str
    histograms: bool
    rate: bool


def query_of(view: View) -> WindowQuery:
    """Return the window query that a view needs."""
    return WindowQuery(view.window, "latency_ms" in view.fields, "rate" in view.fields)


class WindowSums:
    """Adds up a database's rows of a window, by series; `now` is in microseconds."""

    def __init__(self, asked: WindowQuery, now: int) -> None:
        self._asked = asked
        self._now = now
        length = WINDOWS[asked.window]
        self._parts: Parts | None = None if length is None else parts_of(length, now)
        minute = now // MINUTE
        self._last_minutes = Span(minute - 1, minute + 1)
        self._sums: dict[int, Sums] = {}
        self._counts: dict[int, dict[int, int]] = {}

    @property
    def ranges(self) -> list[tuple[str, int, int]]:
        """The rollups to add up: their period, the first second and the end."""
        if self._parts is None:
            return [("total", 0, 1)]
        found = [("hour", self._parts.hours.first * 3600, self._parts.hours.end * 3600)]
        found += [("minute", first * 60, end * 60) for first, end in self._parts.minutes]
        return [(period, first, end) for period, first, end in found if first < end]

    @property
    def last_minutes(self) -> tuple[int, int] | None:
        """The first second and the end of the minutes of a rate; None if no rate is wanted."""
        if not self._asked.rate:
            return None
        return self._last_minutes.first * 60, self._last_minutes.end * 60

    @property
    def oldest_minute(self) -> int | None:
        """The first second of the minutes that are needed; None if no minutes are needed."""
        minutes = [first for period, first, _ in self.ranges if period == "minute"]
        return min([*minutes, *(self.last_minutes or ())[:1]], default=None)

    def add_sums(self, rows: Iterable[Any]) -> None:
        """Add rows of a series and its sums, in the order of `Sums.row`, without a histogram."""
        for series, *values in rows:
            sums = Sums.from_row((*map(int, values), b""))
            held = self._sums.get(series)
            if held is None:
                self._sums[series] = sums
            else:
                held.merge_scalars(sums)

    def add_bins(self, rows: Iterable[Any]) -> None:
        """Add rows of a series and a packed histogram, after the sums."""
        for series, packed in rows:
            if packed:
                histogram.add_bins(self._sums[series].latency_bins, histogram.unpack(packed))

    def add_counts(self, rows: Iterable[Any]) -> None:
        """Add rows of the last minutes: a start in seconds, a series and a count."""
        for start, series, count in rows:
            self._counts.setdefault(start // 60, {})[series] = count

    def build(
        self, position: Position, names: Mapping[int, Key], deltas: Iterable[Delta]
    ) -> Snapshot:
        """Return the snapshot, with the deltas that are not in the rollups yet."""
        sums: PeriodCells = {names[series]: sums for series, sums in self._sums.items()}
        minutes = {
            minute: {names[series]: _count(count) for series, count in counts.items()}
            for minute, counts in self._counts.items()
        }
        for delta in deltas:
            position = delta.position
            for minute, cells in delta.cells.minutes.items():
                if self._has(minute):
                    merge_cells(sums, cells)
                if self._asked.rate and self._last_minutes.holds(minute):
                    merge_cells(minutes.setdefault(minute, {}), cells)
        return Snapshot(
            position,
            self._now,
            sums,
            minutes=minutes,
            covered=("5m",) if self._asked.rate else (),
            scope=self._asked.window,
        )

    def _has(self, minute: int) -> bool:
        parts = self._parts
        return (
            parts is None
            or parts.hours.holds(minute // 60)
            or any(span.holds(minute) for span in parts.minutes)
        )


def _count(count: int) -> Sums:
    sums = Sums()
    sums.count = count
    return sums
