"""`Columns`: which column of a file becomes which field, and how a row becomes a decision."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from routecast.cli.replay import parsers
from routecast.cli.replay.parsers import Cell
from routecast.core.decode_fields import REQUIRED

# Fields whose absence has a meaning: now, success, no fallback, the project `default`. A row whose
# cell cannot be read must not count as that.
_MEANINGFUL: Final = (*REQUIRED, "timestamp", "status", "fallback", "project")


@dataclass(frozen=True, slots=True)
class FieldSource:
    """The source of one field: its column and reader, and how they were chosen.

    `column` is None if every row has the `value`. `nothing` tells whether a cell has no value.
    """

    field: str
    column: str | None
    value: Any
    how: str
    convert: Callable[[Cell], Any]
    nothing: Callable[[Cell], bool] = parsers.no_value


@dataclass(frozen=True, slots=True)
class Row:
    """One decision ready to send, except for its time: microseconds, or None if unknown.

    `unread` has the reason for each value that could not be used; the decision is without it.
    """

    line: int
    decision: dict[str, Any]
    at: int | None
    unread: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Columns:
    """The whole mapping of one file.

    `last` is the latest time in microseconds, if times count from the start; None for calendar
    times. `warnings` are shown before anything is sent.
    """

    sources: tuple[FieldSource, ...]
    left_out: tuple[tuple[str, str], ...]
    last: int | None
    warnings: tuple[str, ...]

    def row(self, line: int, cells_by_column: Mapping[str, Cell]) -> Row:
        """Turn one row of the file into a decision.

        Raises ValueError naming field and rule if the row has no strategy or provider, or if it has
        an unreadable cell without which the decision would be wrong.
        """
        decision: dict[str, Any] = {}
        unread: list[str] = []
        for source in self.sources:
            if source.column is None:
                decision[source.field] = source.value
                continue
            cell = lookup(cells_by_column, source.column)
            if source.nothing(cell):
                if source.field in REQUIRED:
                    raise ValueError(f"{source.field}: empty (column {source.column})")
                continue
            try:
                decision[source.field] = source.convert(cell)
            except ValueError as error:
                words = f"{source.field}: {error} (column {source.column})"
                if source.field in _MEANINGFUL:
                    raise ValueError(words) from None
                unread.append(words)
        return Row(line, decision, decision.pop("timestamp", None), tuple(unread))

    def has(self, field: str) -> bool:
        """Whether the field gets a value from this mapping."""
        return any(source.field == field for source in self.sources)


def lookup(row: Mapping[str, Cell], column: str) -> Cell:
    """Return the cell of a column; `usage.prompt_tokens` is a member of a nested object."""
    if column in row or "." not in column:
        return row.get(column)
    outer, _, inner = column.partition(".")
    nested = row.get(outer)
    return lookup(nested, inner) if isinstance(nested, Mapping) else None
