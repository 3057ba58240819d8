"""Benchmark `pages`: how much of its own memory a tick and a rare POST touch.

On some virtual machines, touching a page that was idle for a quarter of a second takes about 5 µs.
There, the number of pages decides the cost of a tick or a POST after a pause.
"""

import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import httpx2

from benchmarks.fanout import INTERVAL, SETTLE_SECONDS, SILENCE
from benchmarks.load import HOST
from benchmarks.options import Options
from benchmarks.processes import clear_references, referenced_bytes
from benchmarks.report import Figure, Report
from benchmarks.stage import Stage, set_stage
from benchmarks.streams import PATH, routecast
from benchmarks.subscribers import Subscribers

CLIENTS: Final = 10_000
DECISION: Final = {"strategy": "hybrid", "provider": "gemini", "confidence": 0.9, "cost": 0.002}
KIB: Final = 1024


def pages(options: Options) -> Report:
    """The memory that a tick of 10,000 clients, an idle second and a sparse POST touch."""
    runs, clients = (2, 1_000) if options.quick else (6, CLIENTS)
    with tempfile.TemporaryDirectory() as folder:
        stage = set_stage(Path(folder))
        ticks = [each for _ in options.runs(1) for each in _ticks(stage, clients, runs)]
        nothing, posts = _posts(stage, runs)
    figures = [
        Figure(f"a tick of {clients:,} clients, KiB", ticks, decimals=0),
        Figure("a second without any, KiB", nothing, decimals=0),
        Figure("a POST after a second's pause, KiB", posts, decimals=0),
    ]
    return Report("pages", "Memory that is touched", figures, options.quick)


def _ticks(stage: Stage, clients: int, runs: int) -> list[float]:
    """Return the memory that single ticks touched."""
    found = []
    with ExitStack() as stack:
        server = stack.enter_context(routecast(stage, INTERVAL))
        path = f"{PATH}?interval={INTERVAL}"
        crowd = stack.enter_context(Subscribers(stage, server.port, path, clients))
        crowd.joined()
        time.sleep(SETTLE_SECONDS)
        for _ in range(runs):
            time.sleep((SILENCE - time.monotonic()) % INTERVAL)
            clear_references(server.pid)
            time.sleep(INTERVAL)
            found.append(referenced_bytes(server.pid) / KIB)
    return found


def _posts(stage: Stage, runs: int) -> tuple[list[float], list[float]]:
    """Return the memory that an idle second touched, and a second with a POST."""
    nothing: list[float] = []
    posts: list[float] = []
    with (
        routecast(stage, INTERVAL) as server,
        httpx2.Client(base_url=f"http://{HOST}:{server.port}") as client,
    ):
        client.post("/v1/decisions", json=DECISION).raise_for_status()
        for _ in range(runs):
            for found, is_post in ((nothing, False), (posts, True)):
                time.sleep(1)
                clear_references(server.pid)
                if is_post:
                    client.post("/v1/decisions", json=DECISION).raise_for_status()
                time.sleep(0.25 if is_post else 1)
                found.append(referenced_bytes(server.pid) / KIB)
    return nothing, posts
