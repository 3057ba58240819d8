"""Counting the rollups again from the decisions, and saying what differs.

Nothing here shares code with how rollups are made: the database's own sums are the oracle. It
goes hour by hour, so memory is bounded by one hour's rollups.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import apsw

from routecast.core.delta import Delta
from routecast.core.histogram import bin_of, pack, unpack
from routecast.core.rollup import Sums
from routecast.ports import Checked, Difference

HOUR: Final = 3600
_END: Final = 2**62

# Sums as plain tuples: thirteen integers and a histogram.
_Row = tuple[Any, ...]
_Rows = dict[tuple[int, int], _Row]  # by (start, series)


class _Bins:
    """SQL aggregate: a histogram of the values it is given."""

    def __init__(self) -> None:
        self.bins: dict[int, int] = {}

    def step(self, value: int | None) -> None:
        if value is not None:
            number = bin_of(value)
            self.bins[number] = self.bins.get(number, 0) + 1

    def final(self) -> bytes:
        return pack(self.bins)


def _row(values: tuple[Any, ...]) -> _Row:
    try:
        bins: dict[Any, int] = unpack(values[-1])
    except ValueError:
        bins = {"unreadable": 1}  # which is no histogram, so it will differ
    return (*values[:-1], bins)


def _by_start(start: int, *parts: _Rows) -> _Rows:
    """Return the sums of all rows of a series, as rows of one period."""
    sums: _Rows = {}
    for (_, series), row in itertools.chain.from_iterable(part.items() for part in parts):
        held = sums.get((start, series))
        if held is None:
            sums[start, series] = (*row[:-1], dict(row[-1]))
        else:
            bins = held[-1]
            for number, count in row[-1].items():
                bins[number] = bins.get(number, 0) + count
            scalars = (a + b for a, b in zip(held[:-1], row[:-1], strict=True))
            sums[start, series] = (*scalars, bins)
    return sums


Query = Callable[..., Iterator[Any]]


def recount(db: apsw.Connection, query: Query) -> Iterator[Checked | Difference]:
    """Yield progress, and every place where stored sums differ, as of one position.

    The connection is this function's alone until it is done; `query` runs a named query on it,
    whose rows are read as they are asked for.
    Stored are the rollups and, beside them, the deltas not yet folded into them. Four things must
    hold of both together: minutes are the sums of their decisions; hours, of theirs and those
    pruned; hours, of their minutes (while minutes are kept); and the total, of all hours.
    """
    db.create_aggregate_function("latency_bins", _bins_factory)
    db.execute("BEGIN")
    _, seq, minutes_from, folded = next(query("history"))
    of = next(query("count_decisions"))[0]
    series = {row[1:]: row[0] for row in query("series")}
    names = {number: " / ".join(part or "-" for part in key) for key, number in series.items()}
    last = next(query("latest_seq"))[0]
    if last > seq:
        yield Difference("position", f"seq {last} or more", f"seq {seq}")

    unfolded = _unfolded((Delta.unpack(packed) for _, packed in query("deltas", folded)), series)

    def stored(period: str, first: int, end: int) -> _Rows:
        rows = {(row[0], row[1]): _row(row[2:]) for row in query("rollups", period, first, end)}
        for (start, number), row in unfolded.get(period, {}).items():
            if first <= start < end:
                rows |= _by_start(start, {(start, number): row}, _only(rows, start, number))
        return rows

    yield Checked("counting decisions", 0, of)
    counted = itertools.groupby(query("recount"), key=lambda row: row[0] // HOUR * HOUR)
    hours = {row[0] for row in query("hours")} | {start for start, _ in unfolded["hour"]}
    done = 0
    total: _Rows = {}
    for hour, minutes in _by_hour(counted, iter(sorted(hours))):
        held = stored("hour", hour, hour + 1)
        kept = stored("minute", hour, hour + HOUR)
        pruned = stored("pruned", hour, hour + 1)
        if hour >= minutes_from:
            if not pruned:
                yield from _compare("minute", minutes, kept, names)
            yield from _compare("hour, from its minutes", _by_start(hour, kept), held, names)
        yield from _compare("hour", _by_start(hour, minutes, pruned), held, names)
        total = _by_start(0, total, held)
        done += sum(row[0] for row in minutes.values())
        yield Checked("comparing hours", done, of)
    yield from _compare("total", total, stored("total", 0, 1), names)
    db.execute("ROLLBACK")


def _unfolded(deltas: Iterator[Delta], series: Mapping[tuple[str, ...], int]) -> dict[str, _Rows]:
    """Return what deltas will add to the rollups of each period."""
    added: dict[str, _Rows] = {"minute": {}, "hour": {}, "total": {}}
    for delta in deltas:
        for minute, bucket in delta.cells.minutes.items():
            second = minute * 60
            starts = {"minute": second, "hour": second // HOUR * HOUR, "total": 0}
            for key, sums in bucket.items():
                row = _row(sums.row())
                for period, start in starts.items():
                    rows, number = added[period], series[key]
                    rows |= _by_start(start, {(start, number): row}, _only(rows, start, number))
    return added


def _only(rows: _Rows, start: int, series: int) -> _Rows:
    held = rows.get((start, series))
    return {} if held is None else {(start, series): held}


def _bins_factory() -> tuple[_Bins, Any, Any]:
    return _Bins(), _Bins.step, _Bins.final


def _by_hour(
    counted: Iterator[tuple[int, Iterator[tuple[Any, ...]]]], stored: Iterator[int]
) -> Iterator[tuple[int, _Rows]]:
    """Merge hours that hold decisions with hours that hold rollups, in order, each once."""
    waiting = next(stored, _END)
    for hour, rows in counted:
        while waiting < hour:
            yield waiting, {}
            waiting = next(stored, _END)
        yield hour, {(row[0], row[1]): _row(row[2:]) for row in rows}
        if waiting == hour:
            waiting = next(stored, _END)
    while waiting < _END:
        yield waiting, {}
        waiting = next(stored, _END)


def _compare(
    period: str, expected: _Rows, found: _Rows, names: Mapping[int, str]
) -> Iterator[Difference]:
    for key in sorted(expected.keys() | found.keys()):
        want, have = expected.get(key), found.get(key)
        if want != have:
            start, series = key
            what = f"{period} {_time(start)}{names.get(series, f'series {series}')}"
            yield Difference(what, _text(want, have), _text(have, want))


def _time(start: int) -> str:
    return f"{datetime.fromtimestamp(start, UTC):%Y-%m-%dT%H:%MZ} " if start else ""


def _text(row: _Row | None, other: _Row | None) -> str:
    if row is None:
        return "nothing"
    pairs = zip(Sums.COLUMNS, row, other or (None,) * len(row), strict=True)
    return ", ".join(f"{name} {value}" for name, value, theirs in pairs if value != theirs)
