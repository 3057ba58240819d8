"""Counting the rollups of a SQLite database again from the decisions, and saying what differs."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, Final

import apsw

from routecast.core.delta import Delta
from routecast.core.histogram import bin_of, pack
from routecast.ports import Checked, Difference
from routecast.store.comparison import HOUR, Comparison, Rows, unpacked
from routecast.store.sqlite.summaries import joined

_END: Final = 2**62


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


Query = Callable[..., Iterator[Any]]


def recount(db: apsw.Connection, query: Query) -> Iterator[Checked | Difference]:
    """Yield progress, and every place where stored sums differ, as of one position.

    The connection is this function's alone until it is done; `query` runs a named query on it,
    whose rows are read as they are asked for.
    """
    db.create_aggregate_function("latency_bins", _bins_factory)
    db.execute("BEGIN")
    _, seq, minutes_from, folded, parts = next(query("history"))
    of = next(query("count_decisions"))[0]
    series = {row[1:]: row[0] for row in query("series")}
    last = next(query("latest_seq"))[0]
    if last > seq:
        yield Difference("position", f"seq {last} or more", f"seq {seq}")

    deltas = (Delta.unpack(packed) for _, packed in query("deltas", folded, parts))
    comparison = Comparison(series, minutes_from, deltas)
    yield Checked("counting decisions", 0, of)
    counted = itertools.groupby(query("recount"), key=lambda row: row[0] // HOUR * HOUR)
    hours = {row[0] for row in query("hours")} | comparison.hours
    unsummed = {row[0] for row in query("unsummed_hours", _END, -1)}
    done = 0
    for hour, minutes in _by_hour(counted, iter(sorted(hours))):
        rollups = {
            "hour": list(query("rollups", "hour", hour, hour + 1)),
            "minute": list(query("rollups", "minute", hour, hour + HOUR)),
            "pruned": list(query("rollups", "pruned", hour, hour + 1)),
        }
        summaries = None if hour in unsummed else joined(query("summaries", hour))
        yield from comparison.hour(hour, minutes, rollups, summaries)
        done += sum(row[0] for row in minutes.values())
        yield Checked("comparing hours", done, of)
    yield from comparison.total(query("rollups", "total", 0, 1))
    db.execute("ROLLBACK")


def _bins_factory() -> tuple[_Bins, Any, Any]:
    return _Bins(), _Bins.step, _Bins.final


def _by_hour(
    counted: Iterator[tuple[int, Iterator[tuple[Any, ...]]]], stored: Iterator[int]
) -> Iterator[tuple[int, Rows]]:
    """Merge hours that hold decisions with hours that hold rollups, in order, each once."""
    waiting = next(stored, _END)
    for hour, rows in counted:
        while waiting < hour:
            yield waiting, {}
            waiting = next(stored, _END)
        yield hour, {(row[0], row[1]): unpacked(row[2:]) for row in rows}
        if waiting == hour:
            waiting = next(stored, _END)
    while waiting < _END:
        yield waiting, {}
        waiting = next(stored, _END)
