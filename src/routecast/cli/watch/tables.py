"""The tables of `routecast watch`: strategies, confidence bands and providers."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from routecast.cli.terminal import plain
from routecast.cli.watch import format as fmt
from routecast.client import Metrics, Performance

# From this width on, the tables are in two columns.
WIDE: Final = 120
# No cell is wrapped: the layout counts lines.
ONE_LINE: Final[dict[str, Any]] = {"no_wrap": True, "overflow": "ellipsis"}

_COLUMN_GAP: Final = 4
_NARROW_BAR: Final = 8
_MIDDLE_BAR: Final = 12
_WIDE_BAR: Final = 24
_LEAST_ROWS: Final = 3
_BAR_COLUMN: Final = 3
_PADDING: Final = 2
# At least this many characters of a name are shown before any column beside it.
_LEAST_NAME: Final = 12

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class _Bar:
    name: str
    count: int
    whole: int


def tables(metrics: Metrics, width: int, height: int, style: str) -> RenderableType:
    """Lay out the three tables: over each other with two side by side, or all in two columns.

    `height` is the room for rows of all tables; further rows are summed up in one.
    """
    total, bands = metrics.total_decisions or 0, metrics.confidence_distribution
    known = sum(bands.values())
    band_bars = [_Bar(name, count, known) for name, count in bands.items()]
    provider_bars = [_Bar(name, count, total) for name, count in metrics.provider_usage.items()]
    strategies = list(metrics.strategy_performance.items())
    note = f"{total - known:,} without one" if total > known else ""
    content: RenderableType
    if width >= WIDE:
        half = width * 2 // 5
        bar = _bar_width(width * 2 // 5 - 36, _WIDE_BAR)
        confidence = _bars("confidence", band_bars, len(bands), bar, half, note)
        room = height - len(bands) - bool(note)
        providers = _bars("providers", provider_bars, max(room, _LEAST_ROWS), bar, half)
        bar = _bar_width(width * 3 // 5 - 66, _WIDE_BAR)
        rows = max(height + 2, _LEAST_ROWS)
        table = _strategies(strategies, total, rows, bar, width - _COLUMN_GAP - half)
        content = _side_by_side(table, Group(confidence, Text(), providers), (3, 2))
    else:
        needed = max(len(bands) + bool(note), len(provider_bars))
        above, below = _shared(height, len(strategies), needed)
        half = width // 2 - _COLUMN_GAP  # of the left one
        bar = _bar_width(width // 2 - 30, _NARROW_BAR)
        confidence = _bars("confidence", band_bars, len(bands), bar, half, note)
        providers = _bars("providers", provider_bars, below, bar, half)
        table = _strategies(strategies, total, above, _bar_width(width - 64, _MIDDLE_BAR), width)
        content = Group(table, Text(), _side_by_side(confidence, providers, (1, 1)))
    grid = Table.grid(expand=True)
    grid.add_column(style=style)
    grid.add_row(content)
    return grid


def _bar_width(room: int, most: int) -> int:
    """Return the width of a table's bars, 0 if they would take room from names."""
    return max(0, min(room, most))


def _shared(height: int, first: int, second: int) -> tuple[int, int]:
    """Divide lines between two stacked tables: each gets its need, or its fair share."""
    if first + second <= height:
        return first, second
    half = max(height // 2, _LEAST_ROWS)
    if first <= half:
        return first, max(height - first, _LEAST_ROWS)
    if second <= half:
        return max(height - second, _LEAST_ROWS), second
    return half, max(height - half, _LEAST_ROWS)


def _side_by_side(left: RenderableType, right: RenderableType, ratios: tuple[int, int]) -> Table:
    grid = Table.grid(expand=True, padding=(0, _COLUMN_GAP, 0, 0))
    for ratio in ratios:
        grid.add_column(ratio=ratio)
    grid.add_row(left, right)
    return grid


def _strategies(
    rows: Sequence[tuple[str, Performance]], total: int, room: int, bar: int, width: int
) -> RenderableType:
    digits = fmt.money_digits(row.avg_cost for _, row in rows)
    shown, rest = _cut(rows, room)
    table = _table(
        width,
        bar,
        ("strategies", "decisions", "share", "", "avg cost", "avg confidence"),
        (
            (
                name,
                fmt.count(row.count),
                fmt.share(row.count, total),
                fmt.bar(row.count, total, bar),
                fmt.money(row.avg_cost, digits),
                fmt.confidence(row.avg_confidence),
            )
            for name, row in shown
        ),
    )
    return _with_note(table, _rest_words([row.count for _, row in rest]))


def _bars(
    heading: str, bars: Sequence[_Bar], room: int, bar: int, width: int, note: str = ""
) -> RenderableType:
    shown, rest = _cut(bars, room)
    table = _table(
        width,
        bar,
        (heading, "", "share", ""),
        (
            (
                row.name,
                fmt.count(row.count),
                fmt.share(row.count, row.whole),
                fmt.bar(row.count, row.whole, bar),
            )
            for row in shown
        ),
    )
    return _with_note(table, note or _rest_words([row.count for row in rest]))


def _table(width: int, bar: int, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Return a table of names and numbers; its fourth column has bars, or is left out if `bar` is
    0.

    If it is too narrow for all columns, the last ones are left out before names become too short.
    """
    rows = [[plain(cell) for cell in row] for row in rows]
    table = Table(
        box=None, expand=True, pad_edge=False, padding=(0, _PADDING, 0, 0), header_style="dim"
    )
    table.add_column(Text(headings[0], style="bold not dim"), ratio=1, **ONE_LINE)
    columns = [column for column in range(1, len(headings)) if bar or column != _BAR_COLUMN]
    needed = [max(map(cell_len, column)) for column in zip(headings, *rows, strict=True)]
    needed[_BAR_COLUMN] = bar
    name = max(cell_len(headings[0]), min(needed[0], _LEAST_NAME))
    while columns[1:] and name + sum(_PADDING + needed[column] for column in columns) > width:
        columns.pop()
    for column in columns:
        if column == _BAR_COLUMN:
            table.add_column(headings[column], width=bar, style="cyan", **ONE_LINE)
        else:
            table.add_column(headings[column], justify="right", **ONE_LINE)
    for row in rows:
        table.add_row(*(Text(row[column]) for column in (0, *columns)))
    return table


def _cut(rows: Sequence[Item], room: int) -> tuple[Sequence[Item], Sequence[Item]]:
    if len(rows) <= room:
        return rows, ()
    return rows[: room - 1], rows[room - 1 :]


def _rest_words(counts: Sequence[int]) -> str:
    return f"and {len(counts):,} more, with {sum(counts):,} decisions" if counts else ""


def _with_note(table: Table, note: str) -> RenderableType:
    return Group(table, Text(note, style="dim")) if note else table
