"""Metrics as a terminal shows it, fitted to the terminal's width and height."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from routecast.cli import figures
from routecast.cli.choice import HELP, Choice, footer
from routecast.cli.movement import Movement
from routecast.cli.tables import ONE_LINE, WIDE, tables
from routecast.cli.terminal import plain
from routecast.client import Cost, Errors, Latency, Metrics

_FIRST_DECISION: Final = """  --json '{"strategy":"hybrid","provider":"gemini"}'"""
_GAP: Final = 4  # columns between two charts
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
    """All that is shown at one moment.

    Without a `movement` it shows every row and no more, for output that scrolls. With it, the last
    line tells the keys, where they may change the choice; `help` has them in place of the numbers.
    """

    title: str
    asked: str
    status: Status
    metrics: Metrics | None
    movement: Movement | None = None
    keys: Choice | None = None
    help: bool = False

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        yield _head(self.title, self.status, width)
        if self.asked:
            yield Text(plain(self.asked), style="dim", **ONE_LINE)
        if self.help:
            yield _help()
        elif self.metrics is None:
            yield Text("\nNo numbers yet.", style="dim")
        elif not self.metrics.total_decisions:
            yield _welcome(self.title, bool(self.asked))
        else:
            height = options.size.height if self.movement else 10_000
            yield from self._numbers(self.metrics, width, height - bool(self.asked))
        if self.movement:
            foot = footer(self.keys, width) if self.keys else "Ctrl-C leaves"
            yield Text(f"\n{foot}", style="dim")

    def _numbers(self, metrics: Metrics, width: int, height: int) -> RenderResult:
        style = "" if self.status.fresh else "dim"
        yield Text()
        yield _tiles(metrics, width, style)
        yield Text()
        if self.movement and self.movement.rates:
            chart_height = 1 if height < 30 else 3
            yield _movements(self.movement, width, chart_height)
            yield Text()
            height -= chart_height + 2
        yield tables(metrics, width, height - _AROUND - _BETWEEN, style)


def _head(title: str, status: Status, width: int) -> Table:
    head = Table.grid(expand=True)
    head.add_column(no_wrap=True, overflow="ellipsis")
    head.add_column(justify="right", no_wrap=True, overflow="ellipsis", max_width=width * 2 // 3)
    head.add_row(
        Text.assemble(("Routecast", "bold"), f"  {plain(title)}"),
        Text(f"● {plain(status.words)}", style=status.style),
    )
    return head


def _help() -> RenderableType:
    table = Table.grid(padding=(0, 3, 0, 0))
    for keys, words in HELP:
        table.add_row(Text(keys, style="bold"), words)
    return Group(Text(), table)


def _welcome(server: str, filtered: bool) -> RenderableType:
    if filtered:
        return Text("\nNo decision matches.", style="bold")
    command = f"curl {server}/v1/decisions \\\n{_FIRST_DECISION}"
    return Group(
        Text("\nNo decisions yet.", style="bold"),
        Text("This line, in another terminal, sends a first one:\n"),
        Text(command, style="cyan"),
    )


# -- the single figures -----------------------------------------------------------------------


def _tiles(metrics: Metrics, width: int, style: str) -> Table:
    cost, errors = metrics.cost or Cost(0, 0, 0), metrics.errors or Errors(0)
    latency, total = metrics.latency_ms or Latency(), metrics.total_decisions
    wide, narrow = width >= WIDE, width < NARROW
    pace, late = f"{figures.rate(metrics.rate)}/s", f"p95 {figures.latency(latency.p95)}"
    if width >= ROOMY:
        pace += " over the last minute"
    if not narrow:
        late += f", p99 {figures.latency(latency.p99)}"
    tiles = (
        ("decisions", figures.count(total), pace),
        (
            "confidence" if narrow else "avg confidence",
            figures.confidence(metrics.avg_confidence),
            "average" if narrow else "of 0 to 1",
        ),
        (
            "cost",
            figures.money(cost.total if cost.priced else None),
            f"{figures.count(cost.unpriced)} unpriced" if cost.unpriced else "",
        ),
        ("errors", figures.count(errors.count), figures.share(errors.count, total)),
        (
            "latency p50" if narrow else "median latency",
            figures.latency(latency.p50),
            late if latency.p50 else "",
        ),
    )
    grid = Table.grid(padding=(0, 2, 0, 0), expand=True)
    for _ in tiles:
        grid.add_column(ratio=1 if wide else None, **ONE_LINE)  # else as each needs
    for place, look in enumerate(("dim", f"bold {style}", "dim")):
        grid.add_row(*(Text(tile[place], style=look) for tile in tiles))
    return grid


def _movements(movement: Movement, width: int, height: int) -> RenderableType:
    """Two charts side by side: how many decisions, and what they cost."""
    left, right = (width - _GAP + 1) // 2, (width - _GAP) // 2
    grid = Table.grid(padding=(0, _GAP, 0, 0))
    grid.add_column(width=left, **ONE_LINE)
    grid.add_column(width=right, **ONE_LINE)
    grid.add_row(
        _chart("decisions a second", movement.rates, figures.rate, movement.period, left, height),
        _chart("cost a minute", movement.costs, figures.money_rate, movement.period, right, height),
    )
    return grid


def _chart(
    heading: str,
    samples: Iterable[float | None],
    show: Callable[[float | None], str],
    period: float,
    width: int,
    height: int,
) -> RenderableType:
    shown = list(samples)[-width:]
    known = [sample for sample in shown if sample is not None]
    span = figures.age(len(shown) * period)
    words = Text(heading, style="bold", **ONE_LINE)
    for more in (
        f": now {show(shown[-1])}, highest {show(max(known))}, over {span}" if known else "",
        f": now {show(shown[-1])}, most {show(max(known))}" if known else "",
        f": {show(shown[-1])}",
    ):
        if more and len(heading) + len(more) <= width:
            words.append(more, style="dim not bold")
            break
    lines = (Text(line.rjust(width), style="cyan") for line in figures.chart(shown, height))
    return Group(words, *lines)
