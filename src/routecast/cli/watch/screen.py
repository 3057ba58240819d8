"""The screen of `routecast watch`: metrics fitted to a terminal's width and height."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from routecast.cli.terminal import plain
from routecast.cli.watch import format as fmt
from routecast.cli.watch.options import HELP, Choice, footer
from routecast.cli.watch.rate_history import RateHistory
from routecast.cli.watch.tables import ONE_LINE, WIDE, tables
from routecast.client import Cost, Errors, Latency, Metrics

_FIRST_DECISION: Final = """  --json '{"strategy":"hybrid","provider":"gemini"}'"""
_ALL_DECISIONS: Final = "all decisions, over all time"
_CHART_GAP: Final = 4  # columns between two charts
_HEAD_GAP: Final = 2
# Lines around the tables: head, tiles and foot, with a blank line after each of the first two
# and before the last; then, between the tables, a blank line and two headings.
_AROUND: Final = 1 + 1 + 3 + 1 + 2
_BETWEEN: Final = 3
# Below TINY columns, figures are left out; below NARROW, words are short; from ROOMY on, long.
TINY: Final = 56
NARROW: Final = 72
ROOMY: Final = 150


@dataclass(frozen=True, slots=True)
class StatusLine:
    """The state of the connection in words, and its style."""

    words: str
    style: str
    fresh: bool


@dataclass(frozen=True, slots=True)
class Screen:
    """Everything that is shown at one moment.

    Without a `history` it shows all rows and nothing else, for output that scrolls. With it, the
    last line lists the keys, if they may change the choice; `help` shows them instead of the
    numbers.
    """

    title: str
    asked: str
    status: StatusLine
    metrics: Metrics | None
    history: RateHistory | None = None
    keys: Choice | None = None
    help: bool = False

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        yield _head(self.title, self.status, width)
        asked = self.asked or (_ALL_DECISIONS if self.history else "")
        if asked:
            yield Text(plain(asked), style="dim", **ONE_LINE)
        if self.help:
            yield _help()
        elif self.metrics is None:
            yield Text("\nNo numbers yet.", style="dim")
        elif not self.metrics.total_decisions:
            yield _welcome(self.title, bool(self.asked))
        else:
            height = options.size.height if self.history else 10_000
            yield from self._numbers(self.metrics, width, height - bool(asked))
        if self.history:
            foot = footer(self.keys, width) if self.keys else "Ctrl-C leaves"
            yield Text(f"\n{foot}", style="dim")

    def _numbers(self, metrics: Metrics, width: int, height: int) -> RenderResult:
        style = "" if self.status.fresh else "dim"
        yield Text()
        yield _tiles(metrics, width, style)
        yield Text()
        if self.history:
            # Charts take their place also while empty, so that nothing below them jumps.
            chart_height = 1 if height < 29 else 3
            yield _movements(self.history, width, chart_height)
            yield Text()
            height -= chart_height + 2
        yield tables(metrics, width, height - _AROUND - _BETWEEN, style)


def _head(title: str, status: StatusLine, width: int) -> Table:
    name, state = f"Routecast  {plain(title)}", f"● {plain(status.words)}"
    if cell_len(name) + _HEAD_GAP + cell_len(state) > width:
        name = "Routecast"  # a long error takes the place of the address
    head = Table.grid(expand=True, padding=(0, _HEAD_GAP, 0, 0))
    head.add_column(no_wrap=True)
    head.add_column(justify="right", ratio=1, **ONE_LINE)
    head.add_row(
        Text.assemble((name[:9], "bold"), name[9:]), Text(state, style=status.style, **ONE_LINE)
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
    pace, late = f"{fmt.rate(metrics.rate)}/s, 1 min", f"p95 {fmt.latency(latency.p95)}"
    if width >= ROOMY:
        pace = f"{fmt.rate(metrics.rate)}/s over the last minute"
    elif not narrow:
        pace = f"{fmt.rate(metrics.rate)}/s, last min"
    if not narrow:
        late += f", p99 {fmt.latency(latency.p99)}"
    tiles: tuple[tuple[str, str, str], ...] = (
        ("decisions", fmt.count(total), pace),
        (
            "confidence" if narrow else "avg confidence",
            fmt.confidence(metrics.avg_confidence),
            "average" if narrow else "of 0 to 1",
        ),
        (
            "cost",
            fmt.money(cost.total if cost.priced else None),
            f"{fmt.count(cost.unpriced)} unpriced" if cost.unpriced else "",
        ),
        ("errors", fmt.count(errors.count), fmt.share(errors.count, total)),
        (
            "latency p50" if narrow else "median latency",
            fmt.latency(latency.p50),
            late if latency.p50 is not None else "",
        ),
    )
    if width < TINY:
        tiles = tiles[:4]
    grid = Table.grid(padding=(0, 1 if width < TINY else 2, 0, 0), expand=True)
    for _ in tiles:
        grid.add_column(ratio=1 if wide else None, **ONE_LINE)  # None: as wide as needed
    for row, look in enumerate(("dim", f"bold {style}", "dim")):
        grid.add_row(*(Text(tile[row], style=look) for tile in tiles))
    return grid


def _movements(history: RateHistory, width: int, height: int) -> RenderableType:
    """Return two charts side by side: decisions and cost."""
    left, right = (width - _CHART_GAP + 1) // 2, (width - _CHART_GAP) // 2
    grid = Table.grid(padding=(0, _CHART_GAP, 0, 0))
    grid.add_column(width=left, **ONE_LINE)
    grid.add_column(width=right, **ONE_LINE)
    rates = history.rates, fmt.rate, history.period
    costs = history.costs, fmt.money_rate, history.period
    grid.add_row(
        _chart(("decisions a second", "decisions/s"), history.rates_of, *rates, left, height),
        _chart(("cost a minute", "cost/min"), history.costs_of, *costs, right, height),
    )
    return grid


def _chart(
    names: tuple[str, str],
    of: str,
    samples: Iterable[float | None],
    show: Callable[[float | None], str],
    period: float,
    width: int,
    height: int,
) -> RenderableType:
    """Draw samples under a heading; `of` is the time of each sample, `names` are long and short."""
    shown = list(samples)[-width:]
    known = [sample for sample in shown if sample is not None]
    now, most = show(shown[-1] if shown else None), show(max(known, default=None))
    span = fmt.age(len(shown) * period)
    long, short = names
    heading, more = next(
        (
            (heading, more)
            for heading, more in (
                (f"{long}, {of}", f": now {now}, highest {most}, over {span}"),
                (f"{long}, {of}", f": now {now}, most {most}"),
                (f"{short}, {of}", f": now {now}, most {most}"),
                (f"{short}, {of}", f": {now}"),
            )
            if len(heading) + len(more) <= width
        ),
        (short, f": {now}"),
    )
    words = Text.assemble((heading, "bold"), (more, "dim"), **ONE_LINE)
    lines = (Text(line.rjust(width), style="cyan") for line in fmt.chart(shown, height))
    return Group(words, *lines)
