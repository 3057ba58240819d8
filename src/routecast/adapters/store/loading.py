"""Loading a snapshot from any database: as many windows as there is room for."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from routecast.core.delta import Delta
from routecast.core.rollup import Key, PackedSums, Sums
from routecast.core.snapshot import BOUNDED, Snapshot, Span, needed
from routecast.protocol import Position

# The part of the room that loading may fill. The rest is for the commits of the next hour.
LOADED_SHARE: Final = 0.75
# A period with more cells is not held: reading it takes 4 µs per cell on the event loop.
MAX_PERIOD_CELLS: Final = 20_000
PERIOD_SECONDS: Final = {"hour": 3600, "minute": 60}
# The starts of periods are multiples of this, in seconds; that of the total is 0.
START_OF: Final = {"total": 0, "hour": 3600, "pruned": 3600, "minute": 60}


class Loader:
    """Fills a snapshot with rows: the shortest window first, until there is no room for the next.

    Call `add_total` first. For each of `spans`, pass its rows to `add`, some at a time. Then call
    `build`.
    """

    def __init__(
        self, position: Position, now: int, names: Mapping[int, Key], room: int | None
    ) -> None:
        self._names = names
        self._room = room
        self._full = False
        self._snapshot = Snapshot(position, now, room=room, covered=())
        self._keys = self._snapshot.share_keys(names.values())

    def add_total(self, rows: Iterable[Any]) -> None:
        """Add rows of the total: a start, a series, and the values of `Sums.row`."""
        total, names = self._snapshot.total, self._names
        for row in rows:
            total[names[row[1]]] = Sums.from_row(row[2:])

    def spans(self) -> Iterator[tuple[str, int, int]]:
        """Yield the periods to read: `hour` or `minute`, the first second and the end."""
        snapshot, held = self._snapshot, needed(self._snapshot.taken, ())
        for window in BOUNDED:
            wanted = needed(snapshot.taken, (*snapshot.covered, window))
            pieces = [("hour", span) for span in _without(wanted.hours, [held.hours])]
            for minutes in wanted.minutes:
                pieces += [("minute", span) for span in _without(minutes, held.minutes)]
            for period, span in pieces:
                yield period, span.first * PERIOD_SECONDS[period], span.end * PERIOD_SECONDS[period]
                if self._full:
                    snapshot.cover(snapshot.covered)  # drops the rows of the last window
                    return
            held = wanted
            snapshot.cover((*snapshot.covered, window))

    def add(self, period: str, rows: Iterable[Any]) -> bool:
        """Add rows of hours or minutes; return False if there is no room for more of the span."""
        periods = self._snapshot.hours if period == "hour" else self._snapshot.minutes
        found: dict[int, list[PackedSums]] = {}
        for row in rows:
            cells = found.setdefault(row[0] // PERIOD_SECONDS[period], [])
            cells.append((self._keys.number(self._names[row[1]]), row[2:]))
        for number, cells in found.items():
            periods.add_rows(number, cells)
            if periods.packed_cells(number) > MAX_PERIOD_CELLS:
                self._full = True
        if self._room is not None and self._snapshot.size > LOADED_SHARE * self._room:
            self._full = True
        return not self._full

    def build(self, deltas: Iterable[Delta]) -> Snapshot:
        """Return the snapshot, with the deltas that are not in the rollups yet."""
        for delta in deltas:
            self._snapshot.apply(delta)
        self._snapshot.forget_commits()  # a part of the first one may be in the rollups already
        return self._snapshot


def _without(span: Span, others: Iterable[Span]) -> list[Span]:
    """Return the parts of a span that are in none of the others."""
    parts = [span]
    for other in others:
        parts = [
            part
            for first, end in parts
            for part in (Span(first, min(end, other.first)), Span(max(first, other.end), end))
            if part.first < part.end
        ]
    return parts
