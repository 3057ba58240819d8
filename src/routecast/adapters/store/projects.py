"""Projects in any database: which series a deleted project has, and what stays of other sums.

A decision that counts as `other` may be of any project. If its project is deleted, its sums are
subtracted from those of `other`. Decisions that retention dropped cannot be told apart any more:
their part of `other` stays.
"""

from collections.abc import Iterator, Mapping
from typing import Final

from routecast.core.rollup import Cells, Key, PeriodCells

# Decisions whose sums are subtracted at a time, which bounds the memory.
SUBTRACTED_AT_ONCE: Final = 2_000


def series_of(series: Mapping[int, Key], project: str) -> list[int]:
    """Return the numbers of the series of a project."""
    return [number for number, key in series.items() if key.project == project]


def periods_of(cells: Cells) -> Iterator[tuple[str, dict[int, PeriodCells]]]:
    """Yield each kind of period that has sums of stored decisions, with the cells by number."""
    yield "minute", cells.minutes
    yield "hour", cells.hours()
    yield "total", {0: cells.total()}
