"""The cells that a commit added, as views read them: all of them, or those of some projects.

There may be a view for each of 200 projects. If each of them looked at all cells of a commit, these
would be looked at 200 times. So the first view of a project sorts them by project, for all views.
"""

from collections.abc import Iterator, Mapping, Set

from routecast.core.rollup import Cells, Key, PeriodCells, Sums

# A cell with its minute since 1970.
MinuteCell = tuple[int, Key, Sums]


class CommitCells:
    """The cells of a commit, which do not change any more."""

    __slots__ = ("_by_project", "_sorting", "minutes")

    def __init__(self, cells: Cells) -> None:
        self.minutes: Mapping[int, PeriodCells] = cells.minutes
        self._by_project: dict[str, list[MinuteCell]] = {}
        self._sorting: Iterator[None] | None = None

    def sorting(self) -> Iterator[None]:
        """Return the work of sorting by project, one cell in each iteration.

        It is the same for all callers: each goes on where another one stopped.
        """
        if self._sorting is None:
            self._sorting = _sort(self.minutes, self._by_project)
        return self._sorting

    def of_projects(self, names: Set[str]) -> Iterator[MinuteCell]:
        """Yield the cells of some projects. Run `sorting` to its end before."""
        for name in self._by_project.keys() & names:  # takes as long as the smaller one
            yield from self._by_project[name]


def _sort(
    minutes: Mapping[int, PeriodCells], by_project: dict[str, list[MinuteCell]]
) -> Iterator[None]:
    for minute, cells in minutes.items():
        for key, sums in cells.items():
            by_project.setdefault(key.project, []).append((minute, key, sums))
            yield
