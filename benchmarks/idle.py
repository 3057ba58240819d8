"""Benchmark `idle`: the cost of a server with no clients, and with 100."""

import tempfile
import time
from pathlib import Path
from typing import Final

from benchmarks.options import Options
from benchmarks.processes import cpu_seconds
from benchmarks.report import Figure, Report
from benchmarks.stage import set_stage
from benchmarks.streams import INTERVALS_TO_SETTLE, PATH, routecast
from benchmarks.subscribers import Subscribers
from routecast.streaming.heartbeat import PING_SECONDS

FEW: Final = 100
INTERVAL: Final = 5.0
START_SECONDS: Final = 3.0
# Seconds until the ticks of all clients have merged.
SETTLE_SECONDS: Final = INTERVALS_TO_SETTLE * INTERVAL
# A server is measured for this number of seconds, in which it pings each client exactly twice.
SECONDS: Final = 2 * PING_SECONDS


def idle(options: Options) -> Report:
    """A server with no client, and with 100 at the default interval."""
    runs = 1 if options.quick else 3
    settle, seconds = (START_SECONDS, INTERVAL) if options.quick else (SETTLE_SECONDS, SECONDS)
    no_client: list[float] = []
    few: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        stage = set_stage(Path(folder))
        for _ in options.runs(runs):
            with routecast(stage, INTERVAL) as server:
                time.sleep(START_SECONDS)
                no_client.append(_percent(server.pid, seconds))
                with Subscribers(stage, server.port, PATH, FEW) as crowd:
                    crowd.joined()
                    time.sleep(settle)
                    few.append(_percent(server.pid, seconds))
    figures = [
        Figure("no client, % of a core", no_client, most=0.1, decimals=3),
        Figure(f"{FEW} clients, % of a core", few, most=0.05, decimals=3),
        Figure(
            f"{FEW} clients, less what none cost, % of a core",
            [a - b for a, b in zip(few, no_client, strict=True)],
            decimals=3,
        ),
    ]
    title = f"Next to nothing to do, interval {INTERVAL:.0f} s"
    return Report("idle", title, figures, options.quick)


def _percent(pid: int, seconds: float) -> float:
    """Return the part of a core that a process uses in the next seconds, in percent."""
    started, used = time.monotonic(), cpu_seconds(pid)
    time.sleep(seconds)
    return 100 * (cpu_seconds(pid) - used) / (time.monotonic() - started)
