"""A metrics document as a terminal shows it, fitted to the terminal's width and height."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from routecast.cli import figures
from routecast.cli.tables import ONE_LINE, WIDE, tables
from routecast.cli.terminal import plain

Document = Mapping[str, Any]

# Lines around the tables: head, tiles and foot, with a blank line after each of the first two
# and before the last; then, between the tables, a blank line and two headings.
_AROUND: Final = 1 + 1 + 3 + 1 + 2
_BETWEEN: Final = 3
# In fewer columns than this, words are chosen short; in so many, long.
NARROW: Final = 72
ROOMY: Final = 150


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
        if self.asked:
            yield Text(plain(self.asked), style="dim", overflow="ellipsis", no_wrap=True)
        if self.document is None:
            yield Text("\nNo numbers yet.", style="dim")
        elif not self.document["total_decisions"]:
            yield _welcome(self.first_decision, bool(self.asked))
        else:
            height = 10_000 if self.unbounded else options.size.height
            yield from self._numbers(self.document, width, height - bool(self.asked))
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
        yield tables(document, width, height - _AROUND - _BETWEEN, style)


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
    total = document["total_decisions"]
    wide, narrow = width >= WIDE, width < NARROW
    pace, late = f"{figures.rate(document['rate'])}/s", f"p95 {figures.latency(latency['p95'])}"
    if width >= ROOMY:
        pace += " over the last minute"
    if wide:
        late += f", p99 {figures.latency(latency['p99'])}"
    elif narrow:
        late = "median"
    tiles = (
        ("decisions", figures.count(total), pace),
        (
            "confidence" if narrow else "avg confidence",
            figures.confidence(document["avg_confidence"]),
            "average" if narrow else "of 0 to 1",
        ),
        (
            "cost",
            figures.money(cost["total"] if cost["priced"] else None),
            f"{figures.count(cost['unpriced'])} unpriced" if cost["unpriced"] else "",
        ),
        ("errors", figures.count(errors["count"]), figures.share(errors["count"], total)),
        (
            "latency" if narrow else "median latency",
            figures.latency(latency["p50"]),
            late if latency["p50"] else "",
        ),
    )
    grid = Table.grid(padding=(0, 2, 0, 0), expand=True)
    for _ in tiles:
        grid.add_column(ratio=1 if wide else None, **ONE_LINE)  # else as each needs
    for place, look in enumerate(("dim", f"bold {style}", "dim")):
        grid.add_row(*(Text(tile[place], style=look) for tile in tiles))
    return grid


def _movement(
    rates: Sequence[float | None], seconds_apart: float, width: int, height: int
) -> RenderResult:
    shown = list(rates)[-width:]
    known = [rate for rate in shown if rate is not None]
    span = figures.age(len(shown) * seconds_apart)
    words = Text("decisions a second: ", style="bold")
    if known:
        newest = f"now {figures.rate(shown[-1])}, highest {figures.rate(max(known))}"
        words.append(f"{newest}, over {span}", style="dim not bold")
    else:
        words.append("collecting", style="dim not bold")
    words.no_wrap, words.overflow = True, "ellipsis"
    yield words
    for line in figures.chart(shown, height):
        yield Text(line.rjust(width), style="cyan", no_wrap=True)
