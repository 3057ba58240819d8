"""Exact sums over all time of some series: what is folded of them, and what is not folded yet."""

from collections.abc import Iterable, Set

import apsw

from routecast.adapters.store.sqlite.connection import query
from routecast.adapters.store.sqlite.rollups import Rollups
from routecast.core import room
from routecast.core.rollup import Cells, Key, PeriodCells, Sums


class Totals:
    """Tells which series may lack room for more, and what their sums are.

    `added` and `folded` must hear of every part of a delta.
    """

    def __init__(self, db: apsw.Connection, rollups: Rollups) -> None:
        self._db = db
        self._rollups = rollups
        self.forget()

    def forget(self) -> None:
        """Forget everything; `read` must come before anything else."""
        self._near: set[Key] = set()  # series that are near the limit of 64 bits
        self._growth = 0  # no sum of a series grows by more when all of it is folded
        self._unfolded: dict[Key, Sums] = {}  # what is not folded, of series that were asked for

    def read(self) -> None:
        """Learn which series are near the limit."""
        self._near = {Key(*row) for row in query(self._db, "near_series")}

    # -- keeping up -----------------------------------------------------------------------------

    def added(self, largest: int, cells: Cells | None = None) -> None:
        """Note a part that is not folded: no sum of a series grows by more than `largest` by it.

        `cells` is None for one that was stored before `read`.
        """
        self._growth += largest
        if self._unfolded and cells is not None:
            _add_known(self._unfolded, cells)

    def folded(self, largest: int, total: PeriodCells) -> None:
        """Note that parts were folded: their `largest` in all, and what they added to the total."""
        self._growth -= largest
        totals = self._rollups.totals(total)
        self._near.update(key for key, sums in totals.items() if sums.largest >= room.NEAR)
        for key in total.keys() & self._unfolded.keys():
            self._unfolded[key].subtract_scalars(total[key])

    # -- asking ---------------------------------------------------------------------------------

    def to_check(self, cells: Cells, growth: int) -> Set[Key]:
        """Return those keys of a commit's cells whose sums may have no room for them.

        No sum grows by more than `growth`. `exact` tells what the sums are.
        """
        if self._growth + growth > room.MOST_UNFOLDED_SUM:
            return frozenset(cells.keys())
        return self._near.intersection(cells.keys()) if self._near else frozenset()

    def near(self) -> frozenset[Key]:
        """Return the series that have a sum near the limit of 64 bits, of what is folded."""
        return frozenset(self._near)

    def exact(self, keys: Set[Key], unfolded: Iterable[Cells]) -> PeriodCells:
        """Return the sums over all time of some series, without their histograms.

        The series must be known. `unfolded` are the parts that are not folded; they are added up
        once for each series, and kept up to date from then on.
        """
        if new := keys - self._unfolded.keys():
            found: PeriodCells = {key: Sums() for key in new}
            for cells in unfolded:
                _add_known(found, cells)
            self._unfolded |= found
        totals = {key: sums.copy() for key, sums in self._rollups.totals(keys).items()}
        for key in keys:
            totals.setdefault(key, Sums()).merge_scalars(self._unfolded[key])
        return totals


def _add_known(into: PeriodCells, cells: Cells) -> None:
    """Add cells to the sums of those series that there are already, without the histograms."""
    for added in cells.minutes.values():
        for key in into.keys() & added.keys():
            into[key].merge_scalars(added[key])
