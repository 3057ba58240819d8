"""The screen of `routecast top`: its contents, its keys, and that it fits the terminal."""

import io
from typing import get_args

import pytest
from msgspec.structs import replace
from rich.cells import cell_len
from rich.console import Console

from routecast.cli.top.choice import Shown, top_footer
from routecast.cli.top.screen import TopScreen
from routecast.cli.top.source import Observed, Rate
from routecast.protocol import (
    ClosedConnection,
    ClosedConnections,
    ConnectionOrder,
    FollowedView,
    NodeSummaries,
    NodeSummary,
    OpenConnection,
    OpenConnections,
    Position,
)

NODE = NodeSummary(
    node="1a2b3c4d",
    host="metrics-1",
    pid=4242,
    version="1.2.3",
    role="all",
    started="2026-12-01T10:00:00.000000+00:00",
    at="2026-12-01T12:30:00.000000+00:00",
    connections=1_234,
    closed=56,
    messages=1_000_000,
    bytes=400_000_000,
    conflated=789,
    position=Position("e", 100),
    queue=12,
    commits=100,
    commit_seconds=0.5,
    bus_lag_seconds=0.01,
    cpu_seconds=60.0,
    memory_bytes=150_000_000,
)
OPEN = OpenConnection(
    id="0123456789abcde",
    node=NODE.node,
    subject="ann",
    credential=None,
    expires=None,
    address="192.0.2.1",
    client="wall/1.0",
    protocol="routecast.v1.json",
    started="2026-12-01T12:29:00.000000+00:00",
    subscriptions=[FollowedView("a", ["cost"], {"model": ["x", "y"]}, "1h", 0.5, 3)],
    histories=1,
    messages=4_321,
    bytes=98_765,
    saved_by_patches=700_000,
    saved_by_compression=54_000,
    conflated=17,
    lag=3,
    pong_age=2.5,
    round_trip_ms=45,
    unsent=0,
)
CLOSED = ClosedConnection(
    id="0123456789abcdf",
    node=NODE.node,
    subject="",
    credential=None,
    address="192.0.2.2",
    client="",
    protocol="sse",
    started="2026-12-01T12:20:00.000000+00:00",
    ended="2026-12-01T12:29:30.000000+00:00",
    code=4409,
    reason="it could not keep up",
    messages=10,
    bytes=2_000,
    saved_by_patches=6_500,
    saved_by_compression=None,
    conflated=3,
)
RATES = {"1a2b3c4d": Rate(250.0, 100_000.0, 0.42), "0123456789abcde": Rate(2.0, 500.0, 0.0)}


def observed(count: int = 1, nodes: int = 1, closed: bool = False) -> Observed:
    """Return some nodes and connections."""
    summaries = [replace(NODE, node=f"{place:08x}") for place in range(nodes - 1)]
    all_nodes = NodeSummaries(NODE.node, [NODE, *summaries])
    if closed:
        return Observed(
            all_nodes, ClosedConnections(NODE.node, count, None, [CLOSED] * count), RATES
        )
    return Observed(all_nodes, OpenConnections(NODE.node, count, None, [OPEN] * count), RATES)


def drawn(
    seen: Observed,
    width: int = 200,
    height: int = 30,
    shown: Shown | None = None,
    trouble: str = "",
) -> str:
    """Return the live screen as text."""
    out = io.StringIO()
    console = Console(file=out, width=width, height=height, highlight=False)
    screen = TopScreen(
        "http://127.0.0.1:8000", shown or Shown(), seen, trouble, is_live=True, has_keys=True
    )
    console.print(screen)
    return out.getvalue()


def test_a_wide_terminal_shows_everything() -> None:
    """Rates, units and unknown values are readable."""
    text = drawn(observed(), width=260)
    for word in (
        *("1 node, 1,234 streams", "1a2b3c4d", "metrics-1", "4242", "1.2.3", "2 h", "42%"),
        *("150 MB", "250", "100 kB", "789", "12", "5 ms"),
        *("0123456789abcde", "ann", "192.0.2.1", "routecast.v1.json", "wall/1.0", "60 s"),
        *("1h, model x|y, 0.5 s; 1 history", "2.0", "4,321", "98.8 kB", "17", "45 ms", "0 B"),
        *("saved", "754 kB"),
        "connections, the oldest first: 1 of 1",
    ):
        assert word in text, word


def test_closed_connections_have_code_and_reason() -> None:
    """And how long they lasted."""
    text = drawn(observed(closed=True), shown=Shown(closed=True))
    for word in (
        "4409",
        "it could not keep up",
        "30 s ago",
        "9 min",
        "2 kB",
        "6.5 kB",
        "closed connections",
    ):
        assert word in text, word


@pytest.mark.parametrize("width", [30, 44, 60, 80, 100, 120, 150, 200])
@pytest.mark.parametrize("closed", [False, True])
def test_it_fits_any_width(width: int, closed: bool) -> None:
    """Narrow terminals have fewer columns; no row is wrapped."""
    text = drawn(observed(3, 2, closed=closed), width=width, shown=Shown(closed=closed))
    assert all(cell_len(line) <= width for line in text.splitlines())
    assert text.count("1a2b3c4d") >= 1
    assert ("4409" if closed else "98.8 kB") in text


@pytest.mark.parametrize(("count", "nodes"), [(500, 1), (500, 40), (2, 40), (0, 1), (1, 2)])
@pytest.mark.parametrize("height", [12, 24, 60])
def test_it_fits_any_height(count: int, nodes: int, height: int) -> None:
    """Connections and nodes share the lines."""
    text = drawn(observed(count, nodes), height=height)
    lines = text.splitlines()
    assert len(lines) <= height
    assert "q leave" in lines[-1]
    assert text.count(OPEN.id) >= min(count, 1)


def test_nothing_of_a_client_reaches_the_terminal_as_it_is() -> None:
    """A client may call itself anything."""
    seen = observed()
    assert isinstance(seen.page, OpenConnections)
    seen.page.connections[0] = replace(OPEN, client="\x1b]0;x\x07evil", subject="a\x9bb")
    text = drawn(seen, width=260)
    assert "evil" in text
    assert not set(text) & {"\x1b", "\x07", "\x9b"}


def test_trouble_is_shown_beside_the_last_numbers() -> None:
    """The server may be gone for a moment."""
    text = drawn(observed(), trouble="cannot reach http://127.0.0.1:8000")
    assert "cannot reach" in text
    assert OPEN.id in text


def test_output_that_scrolls_has_all_rows_and_no_keys() -> None:
    """As with `--once`."""
    out = io.StringIO()
    Console(file=out, width=100, height=10).print(TopScreen("x", Shown(), observed(50)))
    assert out.getvalue().count("98.8 kB") == 50
    assert "q leave" not in out.getvalue()


def test_keys_change_what_is_shown() -> None:
    """Each goes around; others change nothing."""
    shown = Shown().pressed("s")
    assert shown.sort == "bytes"
    assert "most bytes first" in shown.words
    others = shown
    for _ in range(len(get_args(ConnectionOrder)) - 1):
        others = others.pressed("s")
        assert others.sort != "bytes"
    assert others.pressed("s").sort == "bytes"
    assert shown.pressed("p").protocol == "default"
    assert shown.pressed("c").closed
    assert "sort" not in shown.pressed("c").query
    assert shown.pressed("c").pressed("s") == shown.pressed("c")
    assert shown.pressed("x") == shown
    for _ in range(5):
        shown = shown.pressed("p")
    assert shown.protocol is None
    assert shown.query == "limit=100&sort=bytes"


@pytest.mark.parametrize("width", range(10, 120, 5))
def test_the_foot_fits(width: int) -> None:
    """It lists as many keys as there is room for."""
    assert len(top_footer(Shown(), width)) <= max(width, 6)
