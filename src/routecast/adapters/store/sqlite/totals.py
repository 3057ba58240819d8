"""Exact sums over all time of some series: their rollups, and the deltas not folded yet."""

from collections.abc import Iterable, Set

import apsw

from routecast.adapters.store.sqlite.connection import query
from routecast.adapters.store.sqlite.rollups import Rollups
from routecast.core import overflow
from routecast.core.rollup import Cells, Key, PeriodCells, Sums


class SqliteTotals:
    """Knows which series may lack room, and returns their exact sums.

    Call `added` for every part of a delta, and `folded` after parts were folded.
    """

    def __init__(self, db: apsw.Connection, rollups: Rollups) -> None:
        self._db = db
        self._rollups = rollups
        self.forget()

    def forget(self) -> None:
        """Forget everything; call `read` before anything else."""
        self._near: set[Key] = set()  # series that are near the limit of 64 bits
        self._growth = 0  # the largest growth of any sum when everything is folded
        self._unfolded: dict[Key, Sums] = {}  # the unfolded sums of series passed to `exact`

    def read(self) -> None:
        """Read which series are near the limit."""
        self._near = {Key(*row) for row in query(self._db, "near_series")}

    # -- changes --------------------------------------------------------------------------------

    def added(self, largest: int, cells: Cells | None = None) -> None:
        """Record an unfolded part. No sum grows by more than `largest` when it is folded.

        `cells` is None for a part that was stored before `read`.
        """
        self._growth += largest
        if self._unfolded and cells is not None:
            _add_known(self._unfolded, cells)

    def folded(self, largest: int, total: PeriodCells) -> None:
        """Record that parts were folded: the sum of their `largest`, and their sums in total."""
        self._growth -= largest
        totals = self._rollups.totals(total)
        self._near.update(key for key, sums in totals.items() if sums.largest >= overflow.NEAR)
        for key in total.keys() & self._unfolded.keys():
            self._unfolded[key].subtract_scalars(total[key])

    # -- questions ------------------------------------------------------------------------------

    def to_check(self, cells: Cells, growth: int) -> Set[Key]:
        """Return those keys of a commit's cells whose sums may have no room for them.

        No sum grows by more than `growth`. Call `exact` for the sums of these keys.
        """
        if self._growth + growth > overflow.MOST_UNFOLDED_SUM:
            return frozenset(cells.keys())
        return self._near.intersection(cells.keys()) if self._near else frozenset()

    def near(self) -> frozenset[Key]:
        """Return the series that have a folded sum near the limit of 64 bits."""
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
    """Add cells to the sums of those series that `into` already has, without the histograms."""
    for added in cells.minutes.values():
        for key in into.keys() & added.keys():
            into[key].merge_scalars(added[key])
