"""Folding: what commits added goes into the rollups, in steps of a bounded size.

A delta is stored in parts. The history says how many deltas are folded, and how many parts of the
next one; the rollups and the parts after those are the sums, at any moment.
"""

from collections import deque
from collections.abc import Sequence, Set
from typing import Final, NamedTuple

import apsw
import msgspec

from routecast.adapters.store.loading import START_OF
from routecast.adapters.store.sqlite.connection import insert_rows, query
from routecast.adapters.store.sqlite.rollups import Rollups
from routecast.adapters.store.sqlite.series import SeriesNumbers
from routecast.core import room
from routecast.core.delta import Delta
from routecast.core.rollup import Cells, Key, PeriodCells, Sums, merge_cells
from routecast.core.room import LARGEST_SUM, most_added
from routecast.ports import DELTA_CELLS_KEPT, DELTAS_KEPT
from routecast.protocol import Position

# The cells of one part: packing or unpacking it holds the interpreter's lock for a few ms.
PART_CELLS: Final = 100
# Folding begins when this number of cells, or of parts, is not folded.
SQLITE_FOLD_CELLS: Final = 2_000
SQLITE_FOLD_COMMITS: Final = 64
# One step folds parts until their sum has STEP_CELLS, or they have STEP_CELLS_READ in all: 5 to
# 25 ms, for which a commit may have to wait.
STEP_CELLS: Final = 100
STEP_CELLS_READ: Final = 1_000
# While more cells than this are not folded, a commit leaves them to the steps between commits.
IN_COMMIT_CELLS: Final = 2 * SQLITE_FOLD_CELLS
# When more cells than this are not folded, a commit folds as many as it adds.
MOST_UNFOLDED_CELLS: Final = 80_000
# The cells of unfolded parts that are kept in memory; those of other parts are read when needed.
REMEMBERED_CELLS: Final = 5_000

_unfolded: Final = msgspec.json.Decoder(list[tuple[int, int, int, int]]).decode


class PackedPart(NamedTuple):
    """A part of a delta, ready to be stored."""

    cells: Cells
    number: int  # of cells
    largest: int  # no sum of a series grows by more when it is folded
    packed: bytes


class _StoredPart(NamedTuple):
    """A part that is stored and not folded yet."""

    seq: int
    part: int
    number: int
    largest: int
    cells: Cells | None  # None where it has to be read


def pack_parts(cells: Cells, received: int) -> list[PackedPart]:
    """Return a delta in parts, which are stored without its position: that is in their rows."""
    nowhere = Position("", 0)
    return [
        PackedPart(
            part,
            part.number,
            min(LARGEST_SUM, most_added(part)),
            Delta(nowhere, part, received).pack(),
        )
        for part in cells.split(PART_CELLS)
    ]


class Folding:
    """What is not folded yet, and how it is. Used within the transactions of the one writer."""

    def __init__(self, db: apsw.Connection, series: SeriesNumbers, rollups: Rollups) -> None:
        self._db = db
        self._series = series
        self._rollups = rollups
        self.forget()

    def forget(self) -> None:
        """Forget everything; `read` must come before anything else."""
        self._parts: deque[_StoredPart] = deque()
        self._folded = 0  # as in the history
        self._folded_parts = 0
        self._near: set[Key] = set()  # series that are near the limit of 64 bits
        self._added = 0  # no sum of a series grows by more when all of it is folded
        self._unfolded: dict[Key, Sums] = {}  # what is not folded, of series that were asked for
        self._remembered = 0  # cells
        self.cells = 0  # not folded
        self.due = False  # there was so much that all of it should be folded soon

    def read(self, folded: int, parts: int) -> None:
        """Learn what is not folded; the arguments are the history's."""
        self._folded, self._folded_parts = folded, parts
        self._near = {Key(*row) for row in query(self._db, "near_series")}
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
            _add_known(self._unfolded, part.cells)
            self._append(_StoredPart(seq, place, part.number, part.largest, cells))

    def _append(self, part: _StoredPart) -> None:
        self._parts.append(part)
        self.cells += part.number
        self._added += part.largest
        if self.cells >= SQLITE_FOLD_CELLS or len(self._parts) >= SQLITE_FOLD_COMMITS:
            self.due = True

    def keys_to_check(self, cells: Cells, most: int) -> Set[Key]:
        """Return those keys of a commit's cells whose sums may have no room for them.

        No sum grows by more than `most`. `exact_totals` tells what the sums are.
        """
        if self._added + most > room.MOST_UNFOLDED_SUM:
            return frozenset(cells.keys())
        return self._near.intersection(cells.keys()) if self._near else frozenset()

    def near(self) -> frozenset[Key]:
        """Return the series that have a sum near the limit of 64 bits, of what is folded."""
        return frozenset(self._near)

    def exact_totals(self, keys: Set[Key]) -> PeriodCells:
        """Return the sums over all time of some series, without their histograms.

        The series must be known. What is not folded is counted, too.
        """
        self._read_unfolded(keys - self._unfolded.keys())
        totals = {key: sums.copy() for key, sums in self._rollups.totals(keys).items()}
        for key in keys:
            totals.setdefault(key, Sums()).merge_scalars(self._unfolded[key])
        return totals

    def _read_unfolded(self, keys: Set[Key]) -> None:
        """Add up what is not folded of some series; it is kept up to date from then on."""
        if not keys:
            return
        found: PeriodCells = {key: Sums() for key in keys}
        for part in self._parts:
            _add_known(found, self._cells_of(part))
        self._unfolded |= found

    def fold_all(self) -> None:
        """Fold all there is."""
        while self._parts:
            self.step()

    def after_commit(self, added: int) -> None:
        """Fold what a commit that added `added` cells should fold, before it ends."""
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
        cells, number, ends_large = self._take()
        self._series.learn(cells.keys())
        self._rollups.add("minute", cells.minutes)
        self._rollups.add("hour", hours := cells.hours())
        starts = [hour * START_OF["hour"] for hour in hours]
        query(self._db, "note_unsummed_hours", msgspec.json.encode(starts).decode())
        self._rollups.add("total", {0: (total := cells.total())})
        totals = self._rollups.totals(total)
        self._near.update(key for key, sums in totals.items() if sums.largest >= room.NEAR)
        for key in total.keys() & self._unfolded.keys():
            self._unfolded[key].subtract_scalars(total[key])
        self.cells -= number
        if not self._parts:
            self.due = False
        query(self._db, "set_folded", self._folded, self._folded_parts)
        query(self._db, "drop_deltas", self._folded - DELTAS_KEPT)
        if ends_large:
            query(self._db, "drop_large_deltas", self._folded, DELTA_CELLS_KEPT)

    def _take(self) -> tuple[Cells, int, bool]:
        """Return the sum of the next parts, how many cells these have, and if they end a large one.

        A large delta is one of several parts.
        """
        part, cells = self._next()
        number = part.number
        if number < STEP_CELLS:
            cells = Cells.sum([Cells(), cells])  # a copy: what is stored is shared with others
        distinct = number
        while self._parts and distinct < STEP_CELLS and number < STEP_CELLS_READ:
            part, more = self._next()
            number += part.number
            distinct += _merge(cells, more)
        if self._parts and self._parts[0].seq == part.seq:
            self._folded, self._folded_parts = part.seq - 1, part.part + 1
        else:
            self._folded, self._folded_parts = part.seq, 0
        return cells, number, not self._folded_parts and part.part > 0

    def _next(self) -> tuple[_StoredPart, Cells]:
        part = self._parts.popleft()
        self._added -= part.largest
        if part.cells is not None:
            self._remembered -= part.number
        return part, self._cells_of(part)

    def _cells_of(self, part: _StoredPart) -> Cells:
        if part.cells is not None:
            return part.cells
        packed = query(self._db, "delta_part", part.seq, part.part)[0][0]
        return Delta.unpack(packed).cells


def _add_known(into: PeriodCells, cells: Cells) -> None:
    """Add cells to the sums of those series that there are already, without the histograms."""
    if into:
        for bucket in cells.minutes.values():
            for key in into.keys() & bucket.keys():
                into[key].merge_scalars(bucket[key])


def _merge(into: Cells, cells: Cells) -> int:
    """Add cells to others; return how many of them are new there."""
    new = 0
    for minute, bucket in cells.minutes.items():
        held = into.minutes.setdefault(minute, {})
        before = len(held)
        merge_cells(held, bucket)
        new += len(held) - before
    return new
