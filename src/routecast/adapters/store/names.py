"""Names in any database: how often each is used, and what changes when names are folded."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from routecast.core.cardinality import NAMED, OTHER, FoldedNames
from routecast.core.delta import Delta
from routecast.core.overflow import field_without_room
from routecast.core.rollup import Key, PeriodCells, Sums
from routecast.errors import SumFull
from routecast.ports import NameUse

HOUR_SECONDS = 3600
# About this number of rollups is moved at a time, which bounds the memory.
ROLLUPS_AT_ONCE = 20_000


def folded_names(rows: Iterable[Any]) -> FoldedNames:
    """Return names by part from rows of part and name."""
    found: dict[str, set[str]] = {}
    for part, name in rows:
        found.setdefault(part, set()).add(name)
    return found


def moves(series: Mapping[int, Key], part: str, names: Collection[str]) -> dict[int, Key]:
    """Return the new key of each series with a name that will count as `other`, by its number."""
    return {
        number: key._replace(**{part: OTHER})
        for number, key in series.items()
        if getattr(key, part) in names
    }


def in_steps(rows: Iterable[Any]) -> Iterator[list[int]]:
    """Yield starts of periods in groups, each with about ROLLUPS_AT_ONCE rollups at most.

    Each row has the start of a period and its number of rollups.
    """
    starts: list[int] = []
    rollups = 0
    for start, count in rows:
        if starts and rollups + count > ROLLUPS_AT_ONCE:
            yield starts
            starts, rollups = [], 0
        starts.append(start)
        rollups += count
    if starts:
        yield starts


def moved_cells(rows: Iterable[Any], keys: Mapping[int, Key], unit: int) -> dict[int, PeriodCells]:
    """Return the cells of rollups of old series under their new keys.

    Rows begin with start and series. The cells are by the number of the period, which is its start
    divided by `unit` seconds; `unit` is 0 for the total.
    """
    periods: dict[int, PeriodCells] = {}
    for start, number, *values in rows:
        cells = periods.setdefault(start // (unit or 1), {})
        sums, key = Sums.from_row(values), keys[number]
        if key in cells:
            cells[key].merge(sums)
        else:
            cells[key] = sums
    return periods


def check_room(moved: PeriodCells, held: Mapping[Key, Sums]) -> None:
    """Raise SumFull if the totals to which sums are moved have no room for them.

    `held` are the present totals of these keys. The sums of other periods cannot be larger.
    """
    for key, sums in moved.items():
        if full := field_without_room(held.get(key, Sums()), sums):
            raise SumFull(f"{full}: a sum of `{OTHER}` would be over its limit of 64 bits")


class Uses:
    """Collects the use of each name in a database."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], int] = {}
        self._hours: dict[tuple[str, str], tuple[int, int]] = {}

    def count(self, key: Key, decisions: int) -> None:
        """Count decisions of a key."""
        for named in _named_parts(key):
            self._counts[named] = self._counts.get(named, 0) + decisions

    def see(self, part: str, name: str, first: int, last: int) -> None:
        """Record the first and the last hour in which a name occurs, in seconds."""
        held = self._hours.get((part, name), (first, last))
        self._hours[part, name] = min(held[0], first), max(held[1], last)

    def add(self, deltas: Iterable[Delta]) -> None:
        """Count deltas that are not in the rollups yet."""
        for delta in deltas:
            for minute, cells in delta.cells.minutes.items():
                hour = minute * 60 // HOUR_SECONDS * HOUR_SECONDS
                for key, sums in cells.items():
                    self.count(key, sums.count)
                    for part, name in _named_parts(key):
                        self.see(part, name, hour, hour)

    def sorted(self, folded: FoldedNames) -> list[NameUse]:
        """Return all names: by part, then the most used first."""
        remembered = {(part, name) for part, names in folded.items() for name in names}
        uses = [self._use(*named, remembered) for named in self._counts.keys() | remembered]
        return sorted(uses, key=lambda use: (NAMED.index(use.part), -use.count, use.name))

    def _use(self, part: str, name: str, folded: Collection[tuple[str, str]]) -> NameUse:
        named = part, name
        first, last = self._hours.get(named, (None, None))
        return NameUse(part, name, self._counts.get(named, 0), first, last, named in folded)


def _named_parts(key: Key) -> Iterator[tuple[str, str]]:
    return ((part, name) for part, name in zip(NAMED, key, strict=False) if name)
