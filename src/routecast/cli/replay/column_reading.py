"""`ColumnReading`: the one way in which a whole column is read, or a `Doubt`.

One cell is often ambiguous: 01/02/2026 is a day of January or of February. The column is not, as
soon as one of its cells can be read in one way only. If all cells are ambiguous, or contradict one
another, there is a `Doubt`, and nothing may be sent.
"""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from itertools import combinations
from typing import Any, Final

from routecast.cli.replay.parsers import Cell, Kind, NoSuchValue, shown

_SAMPLE: Final = 1000
# If more than this part of a column's cells cannot be read, the column is not this field.
# Otherwise, rows with such a cell lose its value.
_MOST_BAD: Final = 0.25


class Doubt(ValueError):
    """A column that cannot be read, or that can be read in several ways.

    `ways` are the readings of `example`. `forms` are those that --map accepts to settle it.
    """

    def __init__(
        self,
        words: str = "",
        *,
        example: Cell = None,
        ways: Sequence[str] = (),
        forms: Sequence[str] = (),
    ) -> None:
        super().__init__(words)
        self.example = example
        self.ways = ways
        self.forms = forms


def _always(_: Cell) -> bool:
    return True


class ColumnReading:
    """The possible readings of one column: add its cells, then choose.

    `sample` holds the first cells. `open_cell` says whether a cell with two readings is a reason
    for doubt; other cells get the first reading of `kind`.
    """

    def __init__(self, kind: Kind, open_cell: Callable[[Cell], bool] = _always) -> None:
        self.kind = kind
        self.sample: list[Cell] = []
        self._open_cell = open_cell
        self._total = 0
        self._accepted: Counter[tuple[str, ...]] = Counter()
        self._differ: dict[tuple[str, str], Cell] = {}
        self._doubtful: dict[tuple[str, str], Cell] = {}
        self._no_such_value = 0
        self._bad: tuple[Cell, str] | None = None

    def add(self, cell: Cell) -> None:
        """Add a cell that holds a value."""
        self._total += 1
        if self._total <= _SAMPLE:
            self.sample.append(cell)
        try:
            values = self.kind(cell)
        except ValueError as error:
            self._no_such_value += isinstance(error, NoSuchValue)
            self._bad = self._bad or (cell, str(error))
            return
        self._accepted[tuple(values)] += 1
        for pair in combinations(values, 2):
            if values[pair[0]] != values[pair[1]]:
                self._differ.setdefault(pair, cell)
                if pair not in self._doubtful and self._open_cell(cell):
                    self._doubtful[pair] = cell

    @property
    def proven(self) -> set[str]:
        """The forms that are the only ones for at least one cell."""
        return {form_of(names[0]) for names in self._accepted if len(names) == 1}

    @property
    def usable(self) -> bool:
        """Whether any cell can be read."""
        return bool(self._accepted)

    def matters(self, name: str) -> bool:
        """Whether some cell would have another value, or none, in another reading."""
        return form_of(name) in self.proven or any(name in pair for pair in self._differ)

    def decide(self, proven: Collection[str], *, asked: str | None, lenient: bool) -> str:
        """Return the name of the column's reading.

        `proven` are forms of other columns of the file: people write all numbers of a file in one
        way. `asked` is the form that a person asked for. `lenient` is for a column that a
        person named: it may have any number of cells that cannot be read. Raises Doubt.
        """
        fits = Counter[str]()
        for names, count in self._accepted.items():
            fits.update({n: count for n in names if asked in (None, n, form_of(n))})
        if not self._total:
            return ""  # then it does not matter
        if not fits:
            raise self._misfit(self._total)
        best = max(fits, key=lambda name: fits[name])  # the first one, if several are equal
        rivals = [name for name in fits if self._rival(best, name)]
        usual = [name for name in (best, *rivals) if form_of(name) in proven]
        if len(usual) == 1:
            best = usual[0]
        elif doubtful := [n for n in rivals if self._example(self._doubtful, best, n) is not None]:
            example = self._example(self._doubtful, best, doubtful[0])
            raise Doubt(example=example, ways=(best, *doubtful))
        bad = self._total - fits[best]
        # Values that do not exist show the column's form, unless they are most of it.
        strange = bad if self._no_such_value > fits[best] else bad - self._no_such_value
        if strange > _MOST_BAD * self._total and not lenient:
            raise self._misfit(bad)
        return best

    def _rival(self, best: str, other: str) -> bool:
        """Whether no cell shows that it is `best` rather than `other`."""
        if self._example(self._differ, best, other) is None:
            return False
        against = any(other in names and best not in names for names in self._accepted)
        return against or not any(best in names and other not in names for names in self._accepted)

    def _example(self, cells: dict[tuple[str, str], Cell], one: str, other: str) -> Cell:
        return cells.get((one, other), cells.get((other, one)))

    def _misfit(self, bad: int) -> Doubt:
        if self._bad is None:
            return Doubt(f"{bad:,} of {self._total:,} values are written in another way")
        return Doubt(f"{self._bad[1]} ({bad:,} of {self._total:,} values)")


def form_of(name: str) -> str:
    """Return the name of a reading for --map: the first word of its name."""
    return name.partition(" ")[0]


def reader(kind: Kind, name: str) -> Callable[[Cell], Any]:
    """Return the reader of that name. It raises ValueError with the broken rule."""

    def read(cell: Cell) -> Any:
        values = kind(cell)
        if name not in values:
            raise ValueError(f"{shown(cell)} is not written as the other values are")
        return values[name]

    return read
