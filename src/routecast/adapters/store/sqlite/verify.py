"""Verification of a SQLite file: recounts the rollups from the decisions, yields differences."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, Final

import apsw

from routecast.adapters.store.names import HOUR_SECONDS
from routecast.adapters.store.sqlite.wide_sums import joined
from routecast.adapters.store.verification import (
    Comparison,
    SumsRows,
    moment,
    readable,
    unpacked,
)
from routecast.core.cardinality import OTHER
from routecast.core.decision import DAY
from routecast.core.histogram import bin_of, pack
from routecast.ports import COMPARING, COUNTING, MIN_MINUTE_DAYS, Checked, Difference

_END: Final = 2**62
# The maximum number of faults of a file that are reported.
MAX_FAULTS: Final = 20

# What no recount can detect; each completes "It cannot detect".
SQLITE_UNVERIFIABLE: Final = (
    "a decision that was changed, added or removed together with every sum that it is part of",
    "a changed reason, time of receipt or id: no sum depends on them",
    "the sums of dropped decisions that were moved to another minute of the same hour",
    "a name that was changed for all of its decisions, if its hours have no summaries yet",
    "a position or an epoch that was changed together with all traces of later commits",
)


class _Bins:
    """SQL aggregate: a histogram of its values."""

    def __init__(self) -> None:
        self.bins: dict[int, int] = {}

    def step(self, value: int | None) -> None:
        if value is not None:
            number = bin_of(value)
            self.bins[number] = self.bins.get(number, 0) + 1

    def final(self) -> bytes:
        return pack(self.bins)


Query = Callable[..., Iterator[Any]]


def recount(db: apsw.Connection, query: Query, now: int) -> Iterator[Checked | Difference]:
    """Yield progress, faults of the file, and every difference in stored sums, at one position.

    Only this function may use the connection; close it afterwards. `query` runs a named query on it
    and yields its rows; `now` is in microseconds.
    """
    db.create_aggregate_function("latency_bins", _bins_factory)
    db.execute("BEGIN")
    try:
        yield from _check_file(db)
        yield from _recount(query, now)
    except (apsw.CorruptError, apsw.NotADBError, apsw.IOError) as error:
        yield Difference("the database file", "readable", str(error))


def _check_file(db: apsw.Connection) -> Iterator[Checked | Difference]:
    """Yield the faults that SQLite's own check finds in pages, rows and indexes."""
    yield Checked("checking the file", 0, 0)
    for (found,) in db.execute(f"PRAGMA integrity_check({MAX_FAULTS})"):
        if found != "ok":
            yield Difference("the database file", "sound", " ".join(str(found).split()))


def _recount(query: Query, now: int) -> Iterator[Checked | Difference]:
    _, seq, minutes_from, folded, parts = next(query("history"))
    (of,) = next(query("count_decisions"))
    (indexed,) = next(query("count_ids"))
    if indexed != of:
        yield Difference("the index of ids", f"{of} decisions", f"{indexed} decisions")
    series = {row[1:]: row[0] for row in query("series")}
    yield from _strays(query, seq)
    if minutes_from * 10**6 > now - MIN_MINUTE_DAYS * DAY:
        what = f"those of the last {MIN_MINUTE_DAYS} days"
        yield Difference("minutes", what, f"none before {moment(minutes_from)}")
    found: list[Difference] = []
    deltas = readable(_unfolded(query, seq, folded, parts, found), found)
    comparison = Comparison(series, minutes_from, deltas)
    yield from found
    yield Checked(COUNTING, 0, of)
    counted = itertools.groupby(
        query("recount"), key=lambda row: row[0] // HOUR_SECONDS * HOUR_SECONDS
    )
    hours = {row[0] for row in query("hours")} | comparison.hours
    unsummed = {row[0] for row in query("unsummed_hours", _END, -1)}
    done = 0
    for hour, minutes in _by_hour(counted, iter(sorted(hours))):
        rollups = {
            "hour": list(query("rollups", "hour", hour, hour + 1)),
            "minute": list(query("rollups", "minute", hour, hour + HOUR_SECONDS)),
            "pruned": list(query("rollups", "pruned", hour, hour + 1)),
        }
        summaries = None if hour in unsummed else joined(query("summaries", hour))
        yield from comparison.hour(hour, minutes, rollups, summaries)
        done += sum(row[0] for row in minutes.values())
        yield Checked(COMPARING, done, of)
    yield from comparison.total(query("rollups", "total", 0, 1))


def _strays(query: Query, seq: int) -> Iterator[Difference]:
    """Yield rows that do not belong together, even if all sums are right."""
    last = max(next(query("latest_seq"))[0], next(query("latest_delta"))[0])
    if last > seq:
        yield Difference("position", f"seq {last} or more", f"seq {seq}")
    for what, number in query("strays", OTHER):
        if number:
            yield Difference(what, "none", str(number))


def _unfolded(
    query: Query, seq: int, folded: int, parts: int, found: list[Difference]
) -> Iterator[tuple[int, bytes]]:
    """Yield the deltas that are not folded yet, in parts; report missing ones in `found`.

    Folded deltas are kept for nodes that are behind: unreadable ones are reported, too.
    """
    if folded > seq:
        found.append(Difference("rollups", f"of seq {seq} at most", f"of seq {folded}"))
    for _ in readable((row for row in query("deltas", 0, 0) if row[0] <= folded), found):
        pass
    last, next_part = folded, parts
    for number, part, packed in query("delta_parts", folded, parts):
        if number == last + 1 and (last > folded or part == next_part):
            last = number
        elif number != last:
            found.append(Difference("deltas", f"seq {last + 1}", f"seq {number}"))
            last = number
        yield number, packed
    if last < seq:
        found.append(Difference("deltas", f"up to seq {seq}", f"up to seq {last}"))


def _bins_factory() -> tuple[_Bins, Any, Any]:
    return _Bins(), _Bins.step, _Bins.final


def _by_hour(
    counted: Iterator[tuple[int, Iterator[tuple[Any, ...]]]], stored: Iterator[int]
) -> Iterator[tuple[int, SumsRows]]:
    """Merge hours with decisions and hours with rollups, in order, each once."""
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
