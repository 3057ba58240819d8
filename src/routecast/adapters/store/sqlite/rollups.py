"""Rollups in a SQLite file: how they are read, and how the writer adds cells to them."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import apsw
import msgspec

from routecast.adapters.store.loading import START_OF
from routecast.adapters.store.sqlite.connection import insert_rows, query, select
from routecast.adapters.store.sqlite.series import SeriesNumbers
from routecast.core.rollup import Key, PeriodCells, Sums

# Rollups that are in memory at a time, when they are read in order.
LOAD_ROWS: Final = 256
# Rollups read in one statement, so that each statement is short.
READ_PER_STEP: Final = 500
# The memory for remembered rollups, in bytes. One takes about ROLLUP_BYTES, and HISTOGRAM_BYTES for
# each byte of its packed histogram.
REMEMBERED_BYTES: Final = 32 * 1024 * 1024
ROLLUP_BYTES: Final = 800
HISTOGRAM_BYTES: Final = 40

# A period, its start, and the number of a series.
RollupKey = tuple[str, int, int]

_encode: Final = msgspec.json.Encoder().encode
if TYPE_CHECKING:
    _Row = tuple[Any, ...]
else:  # a start, a series, the sums, and the histogram in hexadecimal
    _Row = tuple[(int, int, *[int] * len(Sums.SCALARS), str)]
_decode: Final = msgspec.json.Decoder(list[_Row]).decode


def rollups_between(db: apsw.Connection, period: str, first: int, end: int) -> Iterator[list[Any]]:
    """Yield rollups that start in a range of seconds (`end` excluded), some at a time."""
    rest = select(db, "rollups", period, first, end)
    while rows := list(islice(rest, LOAD_ROWS)):
        yield rows


class Rollups:
    """Adds to the rollups of a database, in its writer's transactions.

    It remembers the rollups that were used last, so the cost does not depend on how many others a
    period has. Remembered rollups must equal the stored ones: call `forget` after a transaction was
    undone or another process has written.
    """

    def __init__(self, db: apsw.Connection, series: SeriesNumbers) -> None:
        self._db = db
        self._series = series
        # With their size in bytes. The ones used last come last.
        self._held: OrderedDict[RollupKey, tuple[Sums, int]] = OrderedDict()
        self.size = 0  # of all remembered rollups, in bytes

    def forget(self) -> None:
        """Forget all rollups."""
        self._held.clear()
        self.size = 0

    def totals(self, keys: Iterable[Key]) -> PeriodCells:
        """Return the sums over all time of some series, which must be known.

        The caller must not change them.
        """
        found: PeriodCells = {}
        wanted = iter(keys)
        while some := list(islice(wanted, READ_PER_STEP)):
            rollups = {("total", 0, self._series[key]): key for key in some}
            self._read("total", [rollup for rollup in rollups if rollup not in self._held])
            found |= {key: self._held[at][0] for at, key in rollups.items() if at in self._held}
            self._shrink()
        return found

    def add(self, period: str, periods: Mapping[int, PeriodCells]) -> None:
        """Add the cells of periods, by number, to the rollups. All series must be known."""
        for added in self._steps(period, periods):
            self._read(period, [rollup for rollup in added if rollup not in self._held])
            rows: list[tuple[Any, ...]] = []
            for rollup, sums in added.items():
                held = self._remembered(rollup)
                if held is None:
                    held = sums.copy()
                else:
                    held.merge(sums)
                row = held.row()
                rows.append((*rollup, *row))
                self._remember(rollup, held, len(row[-1]))
            insert_rows(self._db, "put_rollups", rows)
            self._shrink()

    def subtract(self, period: str, periods: Mapping[int, PeriodCells]) -> None:
        """Subtract cells that were added before; without decisions, a rollup is deleted.

        Of a rollup that is not there any more, as old minutes, there is nothing to subtract.
        """
        for gone in self._steps(period, periods):
            self._read(period, [rollup for rollup in gone if rollup not in self._held])
            rows: list[tuple[Any, ...]] = []
            empty: list[tuple[int, int]] = []
            for rollup, sums in gone.items():
                held = self._remembered(rollup)
                if held is None:
                    continue
                held.subtract(sums)
                if held.count:
                    row = held.row()
                    rows.append((*rollup, *row))
                    self._remember(rollup, held, len(row[-1]))
                else:
                    empty.append(rollup[1:])
            query(self._db, "delete_rollups_at", period, _encode(empty).decode())
            insert_rows(self._db, "put_rollups", rows)
            self._shrink()

    def _steps(
        self, period: str, periods: Mapping[int, PeriodCells]
    ) -> Iterator[dict[RollupKey, Sums]]:
        unit = START_OF[period]
        every = (
            ((period, number * unit, self._series[key]), sums)
            for number, cells in periods.items()
            for key, sums in cells.items()
        )
        while step := dict(islice(every, READ_PER_STEP)):
            yield step

    def _read(self, period: str, rollups: Sequence[RollupKey]) -> None:
        if not rollups:
            return
        wanted = _encode([rollup[1:] for rollup in rollups]).decode()
        for start, series, *scalars, bins in _decode(
            query(self._db, "rollups_at", period, wanted)[0][0]
        ):
            sums = Sums.from_row((*scalars, bytes.fromhex(bins)))
            self._remember((period, start, series), sums, len(bins) // 2)

    def _remember(self, rollup: RollupKey, sums: Sums, packed: int) -> None:
        size = ROLLUP_BYTES + HISTOGRAM_BYTES * packed
        self.size += size
        self._held[rollup] = sums, size

    def _remembered(self, rollup: RollupKey) -> Sums | None:
        """Remove a remembered rollup, and return it."""
        found = self._held.pop(rollup, None)
        if found is None:
            return None
        self.size -= found[1]
        return found[0]

    def _shrink(self) -> None:
        while self.size > REMEMBERED_BYTES:
            _, (_, size) = self._held.popitem(last=False)
            self.size -= size
