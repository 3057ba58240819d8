"""Benchmark `soak`: 500,000 clients connect, receive a message and leave; memory must not grow."""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Final

from benchmarks.cases import Broken
from benchmarks.options import Options
from benchmarks.processes import unique_bytes
from benchmarks.report import Figure, Report
from benchmarks.stage import set_stage
from benchmarks.streams import PATH, routecast
from benchmarks.subscribers import Behaviour, Heard, Subscribers

CYCLES: Final = 500_000
INTERVAL: Final = 5.0
LOOK_SECONDS: Final = 1.0


def soak(options: Options) -> Report:
    """500,000 clients that connect, receive a message and leave: does memory stay flat?"""
    cycles = 10_000 if options.quick else CYCLES
    with tempfile.TemporaryDirectory() as folder:
        stage = set_stage(Path(folder))
        with (
            routecast(stage, INTERVAL) as server,
            Subscribers(stage, server.port, PATH, cycles, behaviour=Behaviour.CYCLE) as crowd,
        ):
            started = time.monotonic()
            memory = [unique_bytes(server.pid)]
            while _left(crowd.report(), cycles):
                time.sleep(LOOK_SECONDS)
                memory.append(unique_bytes(server.pid))
            seconds = time.monotonic() - started
    quarter = max(len(memory) // 4, 1)
    second, last = memory[quarter : 2 * quarter] or memory, memory[-quarter:]
    growth = statistics.median(last) / statistics.median(second)
    figures = [
        Figure("memory: last quarter ÷ second", [growth], most=1.02, decimals=3),
        Figure("memory at the start, MB", [memory[0] / 1e6], decimals=1),
        Figure("memory in the second quarter, MB", [statistics.median(second) / 1e6], decimals=1),
        Figure("memory in the last quarter, MB", [statistics.median(last) / 1e6], decimals=1),
        Figure("clients/s", [cycles / seconds], decimals=0),
    ]
    title = f"{cycles:,} clients come, take a message, and leave"
    return Report("soak", title, figures, options.quick)


def _left(heard: Heard, cycles: int) -> int:
    """Return the number of clients that have not left yet. Raises Broken if one was refused."""
    if heard.refused or heard.lost:
        raise Broken(f"{heard.refused:,} clients were refused, {heard.lost:,} were cut off")
    return cycles - heard.done
