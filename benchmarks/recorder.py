"""Benchmark `recorder`: the time that `Recorder.record()` takes while decisions are sent."""

import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from benchmarks.cases import Broken
from benchmarks.load import HOST
from benchmarks.options import Options
from benchmarks.report import Figure, Report, percentile
from benchmarks.servers import routecast
from routecast.client import Recorder

DECISION: Final[dict[str, Any]] = {
    "strategy": "hybrid",
    "provider": "gemini",
    "model": "gemini-2.5-flash",
    "confidence": 0.87,
    "cost": 0.0023,
    "latency_ms": 812.5,
    "input_tokens": 1_200,
    "output_tokens": 340,
}
CALLS: Final = 50_000
PACE: Final = 1 / 5_000  # seconds from one call to the next, as in a busy router


def _burst(record: Callable[..., None], calls: int) -> float:
    """Return the average microseconds of a call, in a burst of many."""
    began = time.perf_counter_ns()
    for _ in range(calls):
        record(**DECISION)
    return (time.perf_counter_ns() - began) / calls / 1000


def _paced(record: Callable[..., None], calls: int) -> list[float]:
    """Return the microseconds of each call, at a steady pace."""
    taken = []
    due = time.perf_counter_ns()
    for _ in range(calls):
        due += round(PACE * 1e9)
        time.sleep(max(0, due - time.perf_counter_ns()) / 1e9)
        began = time.perf_counter_ns()
        record(**DECISION)
        taken.append((time.perf_counter_ns() - began) / 1000)
    return taken


def recorder(options: Options) -> Report:
    """The time that `Recorder.record()` takes, in bursts and at 5,000 calls per second."""
    runs, calls = (2, 5_000) if options.quick else (7, CALLS)
    floor: list[float] = []
    bursts: list[float] = []
    singles: dict[int, list[float]] = {50: [], 95: [], 99: []}
    with tempfile.TemporaryDirectory() as folder, routecast(Path(folder) / "routecast.db") as port:
        for _ in options.runs(runs):
            kept: deque[dict[str, Any]] = deque(maxlen=calls)
            floor.append(_burst(lambda kept=kept, **fields: kept.append(fields), calls))
            with Recorder(f"http://{HOST}:{port}", capacity=2 * calls) as ours:
                bursts.append(_burst(ours.record, calls))
                paced = _paced(ours.record, calls // 5)
                if not ours.close(60) or ours.counters.sent != calls + calls // 5:
                    raise Broken(f"not all decisions arrived: {ours.counters}")
            for percent, samples in singles.items():
                samples.append(percentile(paced, percent))
    figures = [
        Figure("a call in a burst, µs", bursts, most=5),
        Figure("floor: to append to a deque, µs", floor),
        *(
            Figure(
                f"a call at 5,000 a second, p{percent}, µs",
                samples,
                most=5 if percent == 50 else None,
            )
            for percent, samples in singles.items()
        ),
    ]
    title = f"{calls:,} calls in a burst and {calls // 5:,} at an even pace, sent to a server"
    return Report("recorder", title, figures, options.quick)
