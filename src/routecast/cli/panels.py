"""A metrics document as a terminal shows it, fitted to the terminal's width and height."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from routecast.cli import figures
from routecast.cli.terminal import plain

Document = Mapping[str, Any]

Item = TypeVar("Item")

_WIDE: Final = 120
_GAP: Final = 4
_BAR: Final = 12
# Lines beside the tables: head, tiles, chart's title, blank lines and foot.
_FRAME: Final = 13
_LEAST_ROWS: Final = 3


@dataclass(frozen=True, slots=True)
class Status:
    """How the connection is, in words, and how that looks."""

    words: str
    style: str
    fresh: bool


@dataclass(frozen=True, slots=True)
class Screen:
    """All that is shown at one moment. `rates` are decisions a second, oldest first, None a gap.

    `unbounded` shows every row, for output that scrolls.
    """

    title: str
    asked: str
    status: Status
    document: Document | None
    rates: Sequence[float | None]
    seconds_apart: float
    first_decision: str
    foot: str
    unbounded: bool = False

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        yield _head(self.title, self.status, width)
        yield Text(plain(self.asked), style="dim", overflow="ellipsis", no_wrap=True)
        if self.document is None:
            yield Text("\nNo numbers yet.", style="dim")
        elif not self.document["total_decisions"]:
            yield _welcome(self.first_decision, bool(self.asked))
        else:
            height = 10_000 if self.unbounded else options.size.height
            yield from self._numbers(self.document, width, height)
        if self.foot:
            yield Text(f"\n{self.foot}", style="dim")

    def _numbers(self, document: Document, width: int, height: int) -> RenderResult:
        style = "" if self.status.fresh else "dim"
        yield Text()
        yield _tiles(document, width, style)
        yield Text()
        if self.rates:
            chart_height = 1 if height < 30 else 3
            yield from _movement(self.rates, self.seconds_apart, width, chart_height)
            yield Text()
            height -= chart_height + 2
        yield _tables(document, width, height - _FRAME + 4, style)


def _head(title: str, status: Status, width: int) -> Table:
    head = Table.grid(expand=True)
    head.add_column(no_wrap=True, overflow="ellipsis")
    head.add_column(justify="right", no_wrap=True, overflow="ellipsis", max_width=width * 2 // 3)
    head.add_row(
        Text.assemble(("Routecast", "bold"), f"  {plain(title)}"),
        Text(f"● {plain(status.words)}", style=status.style),
    )
    return head


def _welcome(command: str, filtered: bool) -> RenderableType:
    if filtered:
        return Text("\nNo decision matches.", style="bold")
    return Group(
        Text("\nNo decisions yet.", style="bold"),
        Text("This line, in another terminal, sends a first one:\n"),
        Text(command, style="cyan"),
    )


# -- the single figures -----------------------------------------------------------------------


def _tiles(document: Document, width: int, style: str) -> Table:
    cost, errors, latency = document["cost"], document["errors"], document["latency_ms"]
    unpriced = f"without {figures.count(cost['unpriced'])} unpriced" if cost["unpriced"] else ""
    late = f"p95 {figures.latency(latency['p95'])}, p99 {figures.latency(latency['p99'])}"
    tiles = (
        ("decisions", figures.count(document["total_decisions"]), _rate_words(document)),
        ("confidence", figures.confidence(document["avg_confidence"]), "average"),
        ("cost", figures.money(cost["total"] if cost["priced"] else None), unpriced),
        (
            "errors",
            figures.count(errors["count"]),
            figures.share(errors["count"], document["total_decisions"]),
        ),
        ("latency", figures.latency(latency["p50"]), late if latency["p50"] is not None else ""),
    )
    grid = Table.grid(padding=(0, 2 if width < _WIDE else _GAP, 0, 0), expand=True)
    for _ in tiles:
        grid.add_column(no_wrap=True, overflow="ellipsis")
    for place, look in enumerate(("dim", f"bold {style}", "dim")):
        grid.add_row(*(Text(tile[place], style=look) for tile in tiles))
    return grid


def _rate_words(document: Document) -> str:
    return f"{figures.rate(document['rate'])}/s, last minute"


def _movement(
    rates: Sequence[float | None], seconds_apart: float, width: int, height: int
) -> RenderResult:
    shown = list(rates)[-width:]
    known = [rate for rate in shown if rate is not None]
    span = figures.age(len(shown) * seconds_apart)
    words = Text("decisions a second ", style="bold")
    if known:
        newest = f"now {figures.rate(shown[-1])}, highest {figures.rate(max(known))}"
        words.append(f"{newest}, over {span}", style="dim not bold")
    else:
        words.append("collecting", style="dim not bold")
    words.no_wrap, words.overflow = True, "ellipsis"
    yield words
    for line in figures.chart(shown, height):
        yield Text(line.rjust(width), style="cyan", no_wrap=True)


# -- the tables -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Bar:
    name: str
    count: int
    whole: int


def _tables(document: Document, width: int, height: int, style: str) -> RenderableType:
    strategies = list(document["strategy_performance"].items())
    providers = list(document["provider_usage"].items())
    total = document["total_decisions"]
    bands = document["confidence_distribution"]
    known = sum(bands.values())
    band_bars = [_Bar(name, count, known) for name, count in bands.items()]
    unknown = total - known
    rows_below = max(len(band_bars) + bool(unknown), len(providers))
    wide = width >= _WIDE
    if wide:
        left = max(height, _LEAST_ROWS + 1)
        below = max(height - len(band_bars) - 3, _LEAST_ROWS + 1)
    else:
        left, below = _shared(height, len(strategies), rows_below)
    confidence = _bars("confidence", band_bars, 10)
    if unknown:
        confidence = Group(confidence, Text(f"{unknown:,} without one", style="dim"))
    provider_bars = [_Bar(name, count, total) for name, count in providers]
    provider_table = _bars("providers", provider_bars, below)
    table = _strategies(strategies, total, left, width * 3 // 5 if wide else width)
    if not wide:
        grid = _side_by_side(confidence, provider_table, (1, 1))
        return _styled(Group(table, Text(), grid), style)
    return _styled(_side_by_side(table, Group(confidence, Text(), provider_table), (3, 2)), style)


def _shared(height: int, first: int, second: int) -> tuple[int, int]:
    """Divide lines between two stacked tables: each gets what it needs, or its fair part."""
    if first + second <= height:
        return first, second
    half = max(height // 2, _LEAST_ROWS)
    if first <= half:
        return first, max(height - first, _LEAST_ROWS)
    if second <= half:
        return max(height - second, _LEAST_ROWS), second
    return half, max(height - half, _LEAST_ROWS)


def _side_by_side(left: RenderableType, right: RenderableType, ratios: tuple[int, int]) -> Table:
    grid = Table.grid(expand=True, padding=(0, _GAP, 0, 0))
    for ratio in ratios:
        grid.add_column(ratio=ratio)
    grid.add_row(left, right)
    return grid


def _styled(content: RenderableType, style: str) -> RenderableType:
    grid = Table.grid(expand=True)
    grid.add_column(style=style)
    grid.add_row(content)
    return grid


def _table(*headings: str) -> Table:
    table = Table(box=None, expand=True, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(Text(headings[0], style="bold not dim"), ratio=1, **_ONE_LINE)
    for heading in headings[1:]:
        table.add_column(heading, justify="right", **_ONE_LINE)
    return table


_ONE_LINE: Final[dict[str, Any]] = {"no_wrap": True, "overflow": "ellipsis"}


def _strategies(
    rows: Sequence[tuple[str, Mapping[str, Any]]], total: int, room: int, width: int
) -> RenderableType:
    table = _table("strategies", "decisions", "share", "", "avg cost", "avg confidence")
    table.columns[3].justify = "left"
    table.columns[3].width = _BAR if width < _WIDE else 2 * _BAR
    digits = figures.money_digits(row["avg_cost"] for _, row in rows)
    shown, rest = _cut(rows, room)
    for name, row in shown:
        table.add_row(
            Text(plain(name)),
            figures.count(row["count"]),
            figures.share(row["count"], total),
            Text(figures.bar(row["count"], total, table.columns[3].width or 0), style="cyan"),
            figures.money(row["avg_cost"], digits),
            figures.confidence(row["avg_confidence"]),
        )
    return _with_rest(table, len(rest), sum(row["count"] for _, row in rest))


def _bars(heading: str, bars: Sequence[_Bar], room: int) -> RenderableType:
    table = _table(heading, "", "share", "")
    table.columns[3].justify = "left"
    table.columns[3].width = _BAR - 4
    shown, rest = _cut(bars, room)
    for bar in shown:
        table.add_row(
            Text(plain(bar.name)),
            figures.count(bar.count),
            figures.share(bar.count, bar.whole),
            Text(figures.bar(bar.count, bar.whole, _BAR - 4), style="cyan"),
        )
    return _with_rest(table, len(rest), sum(bar.count for bar in rest))


def _cut(rows: Sequence[Item], room: int) -> tuple[Sequence[Item], Sequence[Item]]:
    if len(rows) <= room:
        return rows, ()
    return rows[: room - 1], rows[room - 1 :]


def _with_rest(table: Table, more: int, decisions: int) -> RenderableType:
    if not more:
        return table
    return Group(table, Text(f"and {more:,} more, with {decisions:,} decisions", style="dim"))
