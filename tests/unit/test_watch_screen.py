"""The screen of `routecast watch`: its contents, and that it fits the terminal."""

import io
import re

import msgspec
import pytest
from rich.console import Console

from routecast.cli.watch.rate_history import RateHistory
from routecast.cli.watch.screen import Screen, StatusLine
from routecast.client import Cost, Errors, Latency, Metrics, Performance

LIVE = StatusLine("live", "green", fresh=True)
METRICS = Metrics(
    total_decisions=1234,
    avg_confidence=0.75,
    strategy_performance={
        "hybrid": Performance(1000, 0.0023, 0.8),
        "cost-saving": Performance(234, 0.001, None),
    },
    confidence_distribution={"high": 1000, "medium": 200, "low": 34},
    provider_usage={"openrouter": 1000, "gemini": 234},
    cost=Cost(2.5, 1234, 0),
    errors=Errors(3),
    latency_ms=Latency(400, 410, 900, 1500),
    rate=2.5,
    timestamp="2026-01-31T00:00:00Z",
)


def shown(
    width: int,
    status: StatusLine = LIVE,
    asked: str = "",
    history: RateHistory | None = None,
    metrics: Metrics = METRICS,
) -> str:
    """Return the screen as text."""
    out = io.StringIO()
    console = Console(file=out, width=width, height=30, highlight=False)
    console.print(Screen("http://127.0.0.1:8000", asked, status, metrics, history))
    return out.getvalue()


def moved(window: str) -> RateHistory:
    """Return a history with some samples of a window."""
    history = RateHistory(window, 1.0, iter(range(100)).__next__)
    history.arrived(METRICS)
    history.arrived(METRICS)
    return history


def test_known_zeros_are_shown() -> None:
    """Answers from a cache cost nothing and take no time."""
    free = msgspec.structs.replace(METRICS, cost=Cost(0, 1234, 0), latency_ms=Latency(10, 0, 40))
    text = shown(100, metrics=free)
    assert "$0.00" in text
    assert "0 ms" in text
    assert "p95 40 ms" in text


@pytest.mark.parametrize("width", [44, 60, 71, 72, 80, 90, 100, 119, 120, 150, 200])
def test_names_and_words_are_never_cut(width: int) -> None:
    """Narrow terminals have fewer columns instead."""
    screen = shown(width, history=moved("all"))
    assert "…" not in screen
    tables = screen.split("strategies")[1]
    for name in ("hybrid", "cost-saving", "medium", "openrouter", "1,000"):
        assert name in tables
    assert ("avg confidence" in tables) == (width >= 60)


@pytest.mark.parametrize("width", [80, 100, 150])
def test_every_rate_says_its_span_of_time(width: int) -> None:
    """The server's rate is that of the last minute; samples cover an interval, or the window."""
    screen = shown(width, history=moved("all"))
    assert re.search(r"2\.5/s(, last min| over the last minute)", screen)
    assert re.search(r"decisions(/s| a second), each 1 s: ", screen)
    screen = shown(width, history=moved("1h"))
    assert re.search(r"decisions(/s| a second), last min: (now )?2\.5", screen)
    assert re.search(r"cost(/min| a minute), average of 1h: ", screen)


@pytest.mark.parametrize("width", [44, 80, 150])
def test_the_tables_never_move(width: int) -> None:
    """They have the same lines before and after the first sample, and with any filters."""
    screens = (
        shown(width, history=RateHistory("all", 1.0)),
        shown(width, history=moved("all")),
        shown(width, asked="the last 5m, strategy hybrid", history=RateHistory("5m", 1.0)),
    )
    places = [
        [number for number, line in enumerate(screen.splitlines()) if line.startswith("hybrid")]
        for screen in screens
    ]
    assert places[0] == places[1] == places[2] != []


@pytest.mark.parametrize("width", range(60, 121, 5))
def test_the_parts_of_the_head_have_a_gap(width: int) -> None:
    """There is a gap before the state of the connection, which may have any length."""
    words = "reconnecting in 12 s: connection refused, numbers 31 s old"
    head = shown(width, StatusLine(words, "yellow", fresh=False)).splitlines()[0]
    assert re.fullmatch(
        r"Routecast(  http://127\.0\.0\.1:8000)? {2,}● reconnecting in 12 s: .*", head
    )
    assert len(head) <= width
