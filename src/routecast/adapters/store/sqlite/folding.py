"""Folding: deltas are added to the rollups, in steps of a bounded size.

A delta is stored in parts. The table `history` has the seq of the last folded delta, and the number
of folded parts of the next one. The sums are, at any moment, the rollups and the unfolded parts.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import apsw
import msgspec

from routecast.adapters.store.loading import START_OF
from routecast.adapters.store.sqlite.connection import insert_rows, query
from routecast.adapters.store.sqlite.deltas import PackedPart
from routecast.adapters.store.sqlite.rollups import Rollups
from routecast.adapters.store.sqlite.series import SeriesNumbers
from routecast.adapters.store.sqlite.totals import SqliteTotals
from routecast.core.delta import Delta
from routecast.core.rollup import Cells, merge_cells
from routecast.ports import DELTA_CELLS_KEPT, DELTAS_KEPT

# Folding begins when this number of cells, or this number of parts, is not folded.
SQLITE_FOLD_CELLS: Final = 2_000
SQLITE_FOLD_COMMITS: Final = 64
# One step folds parts until their sum has STEP_CELLS, or until they have STEP_CELLS_READ together.
# It takes 5 to 25 ms, for which a commit may have to wait.
STEP_CELLS: Final = 100
STEP_CELLS_READ: Final = 1_000
# If more cells than this are not folded, a commit leaves them to the steps between commits.
IN_COMMIT_CELLS: Final = 2 * SQLITE_FOLD_CELLS
# If more cells than this are not folded, a commit folds as many as it adds.
MOST_UNFOLDED_CELLS: Final = 80_000
# Unfolded cells that are kept in memory; those of other parts are read when they are needed.
REMEMBERED_CELLS: Final = 5_000

_unfolded: Final = msgspec.json.Decoder(list[tuple[int, int, int, int]]).decode


class _StoredPart(NamedTuple):
    """A part that is stored and not folded yet."""

    seq: int
    part: int
    number: int
    largest: int
    cells: Cells | None  # None if they must be read from the database


class Folding:
    """The deltas that are not folded yet. Folds them in steps, in the writer's transactions."""

    def __init__(
        self, db: apsw.Connection, series: SeriesNumbers, rollups: Rollups, totals: SqliteTotals
    ) -> None:
        self._db = db
        self._series = series
        self._rollups = rollups
        self._totals = totals
        self.forget()

    def forget(self) -> None:
        """Forget everything; call `read` before anything else."""
        self._parts: deque[_StoredPart] = deque()
        self._folded = 0  # as in the table `history`
        self._folded_parts = 0
        self._remembered = 0  # the number of cells in memory
        self.cells = 0  # the number of cells that are not folded
        self.due = False  # whether all deltas should be folded soon

    def read(self, folded: int, parts: int) -> None:
        """Read which parts are not folded. The arguments are columns of the table `history`."""
        self._folded, self._folded_parts = folded, parts
        self._totals.read()
        for row in _unfolded(query(self._db, "unfolded", folded, parts)[0][0]):
            self._append(_StoredPart(*row, None))

    def add(self, seq: int, parts: Sequence[PackedPart]) -> None:
        """Store the delta of a commit."""
        rows = [
            (seq, place, part.number, part.largest, part.packed) for place, part in enumerate(parts)
        ]
        insert_rows(self._db, "add_delta", rows)
        for place, part in enumerate(parts):
            keep = self._remembered + part.number <= REMEMBERED_CELLS
            self._remembered += part.number if keep else 0
            cells = part.cells if keep else None
            self._append(_StoredPart(seq, place, part.number, part.largest, cells), part.cells)

    def _append(self, part: _StoredPart, new: Cells | None = None) -> None:
        self._parts.append(part)
        self.cells += part.number
        self._totals.added(part.largest, new)
        if self.cells >= SQLITE_FOLD_CELLS or len(self._parts) >= SQLITE_FOLD_COMMITS:
            self.due = True

    def unfolded(self) -> Iterator[Cells]:
        """Yield the cells of all parts that are not folded."""
        return map(self._cells_of, self._parts)

    def fold_all(self) -> None:
        """Fold everything."""
        while self._parts:
            self.step()

    def after_commit(self, added: int) -> None:
        """Fold what a commit of `added` cells must fold before it ends."""
        if self.cells > MOST_UNFOLDED_CELLS:
            least = max(MOST_UNFOLDED_CELLS, self.cells - added)
            while self.cells > least:
                self.step()
        elif self.due and self.cells <= IN_COMMIT_CELLS:
            self.step()

    def step(self) -> None:
        """Fold some parts, if there are any."""
        if not self._parts:
            return
        cells, number, largest, ends_large = self._take()
        self._series.learn(cells.keys())
        self._rollups.add("minute", cells.minutes)
        self._rollups.add("hour", hours := cells.hours())
        starts = [hour * START_OF["hour"] for hour in hours]
        query(self._db, "note_unsummed_hours", msgspec.json.encode(starts).decode())
        self._rollups.add("total", {0: (total := cells.total())})
        self._totals.folded(largest, total)
        self.cells -= number
        if not self._parts:
            self.due = False
        query(self._db, "set_folded", self._folded, self._folded_parts)
        query(self._db, "drop_deltas", self._folded - DELTAS_KEPT)
        if ends_large:
            query(self._db, "drop_large_deltas", self._folded, DELTA_CELLS_KEPT)

    def _take(self) -> tuple[Cells, int, int, bool]:
        """Take out the parts of the next step, and return their sum.

        Also returns the number of their cells, the largest growth of any sum, and whether they end
        a large delta (one of several parts).
        """
        part, cells = self._next()
        number, largest = part.number, part.largest
        if number < STEP_CELLS:
            cells = Cells.sum([Cells(), cells])  # a copy, because these cells are shared
        distinct = number
        while self._parts and distinct < STEP_CELLS and number < STEP_CELLS_READ:
            part, more = self._next()
            number += part.number
            largest += part.largest
            distinct += _merge(cells, more)
        if self._parts and self._parts[0].seq == part.seq:
            self._folded, self._folded_parts = part.seq - 1, part.part + 1
        else:
            self._folded, self._folded_parts = part.seq, 0
        return cells, number, largest, not self._folded_parts and part.part > 0

    def _next(self) -> tuple[_StoredPart, Cells]:
        part = self._parts.popleft()
        if part.cells is not None:
            self._remembered -= part.number
        return part, self._cells_of(part)

    def _cells_of(self, part: _StoredPart) -> Cells:
        if part.cells is not None:
            return part.cells
        packed = query(self._db, "delta_part", part.seq, part.part)[0][0]
        return Delta.unpack(packed).cells


def _merge(into: Cells, cells: Cells) -> int:
    """Add cells to others; return how many of them are new there."""
    new = 0
    for minute, added in cells.minutes.items():
        held = into.minutes.setdefault(minute, {})
        before = len(held)
        merge_cells(held, added)
        new += len(held) - before
    return new
