"""The screen of `routecast top`: nodes and connections, fitted to a terminal."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from routecast.cli.terminal import plain
from routecast.cli.top.choice import TOP_HELP, Shown, top_footer
from routecast.cli.top.source import Observed, Rate, seconds_of
from routecast.cli.watch import format as fmt
from routecast.cli.watch.tables import ONE_LINE
from routecast.protocol import ClosedConnection, FollowedView, NodeSummary, OpenConnection

_GAP: Final = 2
# Lines around the rows: the head, headings, what is shown, the foot, and blank lines.
_BESIDE: Final = 8
# A column of text is not wider than this.
_WIDEST: Final = 40


@dataclass(frozen=True, slots=True)
class _Column:
    """A column; the one with the highest `rank` is left out first if there is no room."""

    heading: str
    rank: int
    is_text: bool = False


_NODE_COLUMNS: Final = (
    *(_Column("node", 0, True), _Column("host", 3, True), _Column("pid", 12)),
    *(_Column("version", 11, True), _Column("up", 5), _Column("streams", 1), _Column("cpu", 2)),
    *(_Column("memory", 4), _Column("msg/s", 2), _Column("bytes/s", 6), _Column("conflated", 9)),
    *(_Column("queue", 7), _Column("commit", 8), _Column("behind", 10)),
)
_OPEN_COLUMNS: Final = (
    *(_Column("id", 1, True), _Column("subject", 3, True), _Column("address", 2, True)),
    *(_Column("protocol", 5, True), _Column("client", 12, True), _Column("age", 7)),
    *(_Column("views", 11, True), _Column("msg/s", 6), _Column("messages", 10)),
    *(_Column("bytes", 0), _Column("saved", 13), _Column("conflated", 4), _Column("lag", 3)),
    *(_Column("rtt", 8), _Column("unsent", 9)),
)
_CLOSED_COLUMNS: Final = (
    *(_Column("id", 1, True), _Column("subject", 3, True), _Column("address", 2, True)),
    *(_Column("protocol", 6, True), _Column("client", 9, True), _Column("ended", 4)),
    *(_Column("lasted", 7), _Column("code", 0), _Column("reason", 3, True)),
    *(_Column("messages", 8), _Column("bytes", 5), _Column("saved", 11)),
    _Column("conflated", 10),
)


@dataclass(frozen=True, slots=True)
class TopScreen:
    """Everything that is shown at one moment.

    `trouble` says why there is nothing newer. Without `is_live` all rows are shown and nothing
    else, for output that scrolls.
    """

    title: str
    shown: Shown
    observed: Observed | None
    trouble: str = ""
    is_live: bool = False
    has_keys: bool = False
    help: bool = False

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        yield self._head()
        if self.trouble:
            yield Text(plain(self.trouble), style="red", **ONE_LINE)
        if self.help:
            yield Text()
            for keys, words in TOP_HELP:
                yield Text.assemble((keys.ljust(6), "bold"), words)
        elif self.observed is not None:
            height = options.size.height if self.is_live else 10_000
            yield from self._tables(self.observed, width, height - bool(self.trouble))
        if self.is_live:
            foot = top_footer(self.shown, width) if self.has_keys else "Ctrl-C leaves"
            yield Text(f"\n{foot}", style="dim", **ONE_LINE)

    def _head(self) -> Text:
        seen = self.observed
        state = ""
        if seen is not None:
            nodes, streams = seen.nodes.nodes, sum(each.connections for each in seen.nodes.nodes)
            state = f"  {_many(len(nodes), 'node')}, {_many(streams, 'stream')}"
            if seen.nodes.missing:
                state += f"; others are not known: {seen.nodes.missing}"
        return Text.assemble(
            ("Routecast", "bold"), f"  {plain(self.title)}", (plain(state), "green"), **ONE_LINE
        )

    def _tables(self, seen: Observed, width: int, height: int) -> RenderResult:
        nodes, connections = seen.nodes.nodes, seen.page.connections
        room = max(height - _BESIDE, 2)
        shown_nodes = nodes[: max(1, room - min(len(connections), max(room // 2, 1)))]
        rows = connections[: max(room - len(shown_nodes), 1)]
        newest = max((each.position.seq for each in nodes if each.position), default=0)
        now = max((seconds_of(each.at) for each in nodes if each.node == seen.page.node), default=0)
        yield Text()
        yield _table(
            _NODE_COLUMNS,
            [_node(each, seen.rates.get(each.node), newest) for each in shown_nodes],
            width,
        )
        yield Text()
        count = f"{len(rows):,} of {seen.page.total:,}"
        missing = f"; {seen.page.missing}" if seen.page.missing else ""
        yield Text(plain(f"{self.shown.words}: {count}{missing}"), style="dim", **ONE_LINE)
        if self.shown.closed:
            closed = [_closed(each, now) for each in rows if isinstance(each, ClosedConnection)]
            yield _table(_CLOSED_COLUMNS, closed, width)
        else:
            opened = [
                _opened(each, seen.rates.get(each.id), now)
                for each in rows
                if isinstance(each, OpenConnection)
            ]
            yield _table(_OPEN_COLUMNS, opened, width)


def _many(count: int, word: str) -> str:
    return f"{count:,} {word}{'s' * (count != 1)}"


def _node(node: NodeSummary, rate: Rate | None, newest: int) -> list[str]:
    commit = 1000 * node.commit_seconds / node.commits if node.commits else None
    return [
        node.node,
        node.host,
        str(node.pid),
        node.version + (f" {node.role}" if node.role != "all" else ""),
        fmt.age(seconds_of(node.at) - seconds_of(node.started)),
        fmt.count(node.connections),
        fmt.DASH if rate is None else f"{100 * max(rate.cpu, 0):.0f}%",
        fmt.size(node.memory_bytes),
        *_rates(rate),
        fmt.count(node.conflated),
        fmt.count(node.queue),
        fmt.latency(commit),
        fmt.DASH if node.position is None else fmt.count(max(0, newest - node.position.seq)),
    ]


def _opened(one: OpenConnection, rate: Rate | None, now: float) -> list[str]:
    return [
        one.id,
        one.subject or fmt.DASH,
        one.address,
        one.protocol,
        one.client or fmt.DASH,
        fmt.age(now - seconds_of(one.started)),
        _views(one.subscriptions, one.histories),
        _rates(rate)[0],
        fmt.count(one.messages),
        fmt.size(one.bytes),
        fmt.size(_saved(one)),
        fmt.count(one.conflated),
        fmt.count(one.lag),
        fmt.DASH if one.round_trip_ms is None else f"{one.round_trip_ms:,} ms",
        fmt.size(one.unsent),
    ]


def _closed(one: ClosedConnection, now: float) -> list[str]:
    return [
        one.id,
        one.subject or fmt.DASH,
        one.address,
        one.protocol,
        one.client or fmt.DASH,
        f"{fmt.age(now - seconds_of(one.ended))} ago",
        fmt.age(seconds_of(one.ended) - seconds_of(one.started)),
        str(one.code),
        one.reason,
        fmt.count(one.messages),
        fmt.size(one.bytes),
        fmt.size(_saved(one)),
        fmt.count(one.conflated),
    ]


def _saved(one: OpenConnection | ClosedConnection) -> int:
    """Return the bytes that patches and compression saved, as far as that is known."""
    return one.saved_by_patches + (one.saved_by_compression or 0)


def _rates(rate: Rate | None) -> tuple[str, str]:
    """Return messages and bytes a second; a count that began again has no rate."""
    if rate is None or rate.messages < 0 or rate.bytes < 0:
        return fmt.DASH, fmt.DASH
    return fmt.rate(rate.messages), fmt.size(round(rate.bytes))


def _views(views: Sequence[FollowedView], histories: int) -> str:
    words = [_view(each) for each in views]
    if histories:
        words.append(f"{histories} histor{'y' if histories == 1 else 'ies'}")
    return "; ".join(words) or fmt.DASH


def _view(view: FollowedView) -> str:
    filters = [f"{part} {'|'.join(names)}" for part, names in view.filter.items()]
    return ", ".join([view.window, *filters, f"{view.interval:g} s"])


def _table(columns: Sequence[_Column], rows: Sequence[Sequence[str]], width: int) -> Table:
    """Return a table that fits: columns are left out, and then texts are cut."""
    cells = [[plain(cell) for cell in row] for row in rows]
    needed = [
        max([cell_len(column.heading), *(cell_len(row[place]) for row in cells)])
        for place, column in enumerate(columns)
    ]
    for place, column in enumerate(columns):
        if column.is_text:
            needed[place] = min(needed[place], _WIDEST)
    kept = list(range(len(columns)))
    while len(kept) > 1 and sum(needed[place] + _GAP for place in kept) - _GAP > width:
        kept.remove(max(kept, key=lambda place: columns[place].rank))
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="dim")
    for place in kept:
        column = columns[place]
        table.add_column(
            column.heading,
            justify="left" if column.is_text else "right",
            max_width=_WIDEST if column.is_text else None,
            **ONE_LINE,
        )
    for row in cells:
        table.add_row(*(Text(row[place]) for place in kept))
    return table
