"""Verification: stored rollups are compared with what they should be, hour by hour.

It shares no code with the making of rollups: they are compared with sums that the database itself
computes from the decisions. It holds the rollups of one hour at a time.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from operator import itemgetter
from typing import Any, Final

from routecast.adapters.store.names import HOUR_SECONDS
from routecast.core.delta import Delta
from routecast.core.histogram import unpack, unpack_counts
from routecast.core.history import POINT_COLUMNS
from routecast.core.rollup import Key, Sums
from routecast.ports import Difference

# A summary has this number of a rollup's sums: the first ones. In its row, errors come before them.
SUMMARISED: Final = len(POINT_COLUMNS) - 1

# The key of a series that does not exist.
_UNKNOWN: Final = Key(*["?"] * len(Key._fields))

# Sums as plain tuples: the integers, then the histogram.
SumsRow = tuple[Any, ...]
SumsRows = dict[tuple[int, int], SumsRow]  # by (start, series)


class Comparison:
    """Compares the sums of a database at one position. `series` are the numbers of series by key.

    The rollups and the deltas that are not folded yet are added first. Then five things must hold:

    - minutes are the sums of their decisions;
    - hours are the sums of their decisions and the pruned ones;
    - hours are the sums of their minutes, if these are kept (from `minutes_from` on);
    - the total is the sum of all hours;
    - summaries are sums of their hour's rollups, without deltas.

    Rows of sums begin with start and series, and end with the histogram as it is stored.
    """

    def __init__(
        self, series: Mapping[tuple[str, ...], int], minutes_from: int, deltas: Iterable[Delta]
    ) -> None:
        self._names = {
            number: " / ".join(part or "-" for part in key) for key, number in series.items()
        }
        self._keys = {number: Key(*key) for key, number in series.items()}
        self._minutes_from = minutes_from
        self._unfolded = _unfolded(deltas, series)
        self._total: SumsRows = {}

    @property
    def hours(self) -> set[int]:
        """The hours that deltas add to."""
        return {start for start, _ in self._unfolded["hour"]}

    def hour(
        self,
        hour: int,
        minutes: SumsRows,
        rollups: Mapping[str, Sequence[Any]],
        summaries: Iterable[Any] | None,
    ) -> Iterator[Difference]:
        """Yield the differences of an hour, given its recounted minutes and its stored rows.

        Call it once for each hour that has any rows. `summaries` is None for an hour that is not
        summed up, or not any more.
        """
        if summaries is not None:
            yield from self._summaries(hour, rollups["hour"], summaries)
        held = self._stored("hour", hour, hour + 1, rollups["hour"])
        kept = self._stored("minute", hour, hour + HOUR_SECONDS, rollups["minute"])
        pruned = self._stored("pruned", hour, hour + 1, rollups["pruned"])
        if hour >= self._minutes_from:
            if pruned:
                yield from self._compare_least("minute", minutes, kept)
            else:
                yield from self._compare("minute", minutes, kept)
            yield from self._compare("hour, from its minutes", _by_start(hour, kept), held)
        yield from self._compare("hour", _by_start(hour, minutes, pruned), held)
        self._total = _by_start(0, self._total, held)

    def _summaries(
        self, hour: int, rollups: Iterable[Any], summaries: Iterable[Any]
    ) -> Iterator[Difference]:
        expected: dict[tuple[str, str], list[Any]] = {}
        for _, series, *values, packed in rollups:
            key = self._keys.get(series, _UNKNOWN)
            errors = values[0] if key.status == "error" else 0
            sums = [errors, *values[:SUMMARISED]]
            bins = unpacked((packed,))[0]
            for named in (("all", "all"), *zip(Key._fields, key, strict=True)):
                held = expected.setdefault(named, [*[0] * len(sums), {}])
                held[:-1] = [a + b for a, b in zip(held[:-1], sums, strict=True)]
                for number, count in bins.items():
                    held[-1][number] = held[-1].get(number, 0) + count
        found = {(row[0], row[1]): [*row[2:-1], _counts(row[-1])] for row in summaries}
        for part, name in sorted(expected.keys() | found.keys()):
            want, have = expected.get((part, name)), found.get((part, name))
            if want != have:
                what = f"summary {_time(hour)}{part} {name}"
                yield Difference(what, str(want or "nothing"), str(have or "nothing"))

    def total(self, rollups: Iterable[Any]) -> Iterator[Difference]:
        """Yield the differences of the total, after all hours were compared."""
        yield from self._compare("total", self._total, self._stored("total", 0, 1, rollups))

    def _stored(self, period: str, first: int, end: int, rollups: Iterable[Any]) -> SumsRows:
        rows = {(row[0], row[1]): unpacked(row[2:]) for row in rollups}
        for (start, number), row in self._unfolded.get(period, {}).items():
            if first <= start < end:
                rows |= _by_start(start, {(start, number): row}, _only(rows, start, number))
        return rows

    def _compare(self, period: str, expected: SumsRows, found: SumsRows) -> Iterator[Difference]:
        for key in sorted(expected.keys() | found.keys()):
            want, have = expected.get(key), found.get(key)
            if want != have:
                start, series = key
                name = self._names.get(series, f"series {series}")
                what = f"{period} {_time(start)}{name}"
                yield Difference(what, _text(want, have), _text(have, want))

    def _compare_least(self, period: str, least: SumsRows, found: SumsRows) -> Iterator[Difference]:
        """Yield sums that are less than was recounted; they may be more, by pruned decisions."""
        for key, want in sorted(least.items(), key=itemgetter(0)):
            have = found.get(key)
            if have is None or not _holds(have, want):
                start, series = key
                name = self._names.get(series, f"series {series}")
                what = f"{period} {_time(start)}{name}"
                yield Difference(what, f"{_text(want, have)} or more", _text(have, want))


def readable(packed: Iterable[tuple[int, bytes]], found: list[Difference]) -> Iterator[Delta]:
    """Yield packed deltas, which come with their seq; report unreadable ones in `found`."""
    for seq, text in packed:
        try:
            yield Delta.unpack(text)
        except ValueError:
            found.append(Difference(f"delta of seq {seq}", "a delta", "unreadable"))


def moment(start: int) -> str:
    """Return a second since 1970 as text."""
    return f"{datetime.fromtimestamp(start, UTC):%Y-%m-%dT%H:%MZ}"


def _holds(row: SumsRow, part: SumsRow) -> bool:
    """Whether sums can include those of a part."""
    bins = row[-1]
    scalars = all(a >= b for a, b in zip(row[:-1], part[:-1], strict=True))
    return scalars and all(bins.get(number, 0) >= count for number, count in part[-1].items())


def unpacked(values: tuple[Any, ...]) -> SumsRow:
    """Return sums with their histogram unpacked."""
    try:
        bins: dict[Any, int] = unpack(values[-1])
    except ValueError:
        bins = {"unreadable": 1}  # not a histogram, so it differs
    return (*values[:-1], bins)


def _counts(packed: bytes | None) -> dict[Any, int]:
    """Return a summary's histogram."""
    try:
        return unpack_counts(packed or b"")
    except ValueError:
        return {"unreadable": 1}


def _by_start(start: int, *parts: SumsRows) -> SumsRows:
    """Return the sums of all rows of each series, as rows of one period."""
    sums: SumsRows = {}
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


def _unfolded(
    deltas: Iterable[Delta], series: Mapping[tuple[str, ...], int]
) -> dict[str, SumsRows]:
    """Return what deltas will add to the rollups of each period."""
    added: dict[str, SumsRows] = {"minute": {}, "hour": {}, "total": {}}
    for delta in deltas:
        for minute, cells in delta.cells.minutes.items():
            second = minute * 60
            starts = {"minute": second, "hour": second // HOUR_SECONDS * HOUR_SECONDS, "total": 0}
            for key, sums in cells.items():
                row = unpacked(sums.row())
                for period, start in starts.items():
                    rows, number = added[period], series.get(key, -1)
                    rows |= _by_start(start, {(start, number): row}, _only(rows, start, number))
    return added


def _only(rows: SumsRows, start: int, series: int) -> SumsRows:
    held = rows.get((start, series))
    return {} if held is None else {(start, series): held}


def _time(start: int) -> str:
    return f"{moment(start)} " if start else ""


def _text(row: SumsRow | None, other: SumsRow | None) -> str:
    if row is None:
        return "nothing"
    pairs = zip(Sums.COLUMNS, row, other or (None,) * len(row), strict=True)
    return ", ".join(f"{name} {value}" for name, value, theirs in pairs if value != theirs)
