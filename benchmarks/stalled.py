"""Benchmark `stalled`: the effect of 500 clients that never read on others and on the server."""

import http.client
import re
import tempfile
import time
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from benchmarks.cases import Broken
from benchmarks.load import HOST
from benchmarks.options import Options
from benchmarks.processes import kernel_tcp_bytes, unique_bytes
from benchmarks.report import Figure, Report, ratios
from benchmarks.servers import Running
from benchmarks.stage import Stage, set_stage
from benchmarks.streams import INTERVALS_TO_SETTLE, PATH, routecast
from benchmarks.subscribers import Behaviour, Subscribers
from benchmarks.traffic import STRATEGIES

HEALTHY: Final = 10_000
STALLED: Final = 500
# Healthy clients ask for two strategies once per second; stalled ones for all of these, ten times.
STRATEGIES_IN_ALL: Final = 250
HEALTHY_PATH: Final = f"{PATH}?interval=1&strategy={STRATEGIES[0]}&strategy={STRATEGIES[1]}"
STALLED_PATH: Final = f"{PATH}?interval=0.1"
# Their sockets are full within this number of seconds; ten seconds later they must be closed.
FILL_SECONDS: Final = 2.0
LIMIT_SECONDS: Final = 10.0
LOOK_SECONDS: Final = 0.2
PATIENCE_SECONDS: Final = 60.0


class Sample(NamedTuple):
    """The result of one run."""

    without_ms: float  # from tick to healthy client, 99th percentile, without stalled clients
    with_ms: float  # the same with stalled clients
    memory: float  # bytes of the server and the kernel per stalled client
    gone_s: float  # seconds from when all were connected until the last was closed


def stalled(options: Options) -> Report:
    """10,000 clients that read, without and with 500 that do not."""
    runs, healthy, few, seconds = (1, 500, 50, 3) if options.quick else (5, HEALTHY, STALLED, 6)
    with tempfile.TemporaryDirectory() as folder:
        stage = set_stage(Path(folder))
        with routecast(stage, 1.0) as server:
            _add_strategies(server.port)
            with Subscribers(stage, server.port, HEALTHY_PATH, healthy) as crowd:
                crowd.joined()
                crowd.listen(INTERVALS_TO_SETTLE)
                samples = [_sample(stage, server, crowd, few, seconds) for _ in options.runs(runs)]
                if lost := crowd.report().lost:
                    raise Broken(f"{lost:,} healthy clients were cut off")
            counted = _counted_4409(server.port) / (runs * few)
    without, beside, memory, gone = (list(column) for column in zip(*samples, strict=True))
    figures = [
        Figure("tick to client, p99: with ÷ without", ratios(beside, without), most=1.1),
        Figure("tick to client, p99, without, ms", without),
        Figure("tick to client, p99, with, ms", beside),
        Figure("memory of one stalled, KiB", [m / 1024 for m in memory], most=256, decimals=0),
        Figure("gone after, s", gone, most=LIMIT_SECONDS + FILL_SECONDS + 1, decimals=1),
        Figure("counted as 4409, share", [counted], least=1),
    ]
    title = f"{healthy:,} clients that read, and {few:,} that never do"
    return Report("stalled", title, figures, options.quick)


def _sample(
    stage: Stage, server: Running, crowd: Subscribers, count: int, seconds: float
) -> Sample:
    without = crowd.listen(seconds)
    before = unique_bytes(server.pid) + kernel_tcp_bytes()
    with Subscribers(stage, server.port, STALLED_PATH, count, behaviour=Behaviour.STALL) as others:
        others.joined()
        came = time.monotonic()
        time.sleep(FILL_SECONDS)
        beside = crowd.listen(seconds)
        memory = (unique_bytes(server.pid) + kernel_tcp_bytes() - before) / count
        while others.report().open:
            if time.monotonic() - came > PATIENCE_SECONDS:
                raise Broken(f"clients that do not read were there after {PATIENCE_SECONDS:.0f} s")
            time.sleep(LOOK_SECONDS)
        gone = time.monotonic() - came
    return Sample(without.lags[1] / 1000, beside.lags[1] / 1000, memory, gone)


def _add_strategies(port: int) -> None:
    sent = [
        {"strategy": f"strategy-{number:03}", "provider": "gemini", "confidence": 0.5, "cost": 0.01}
        for number in range(STRATEGIES_IN_ALL)
    ]
    connection = http.client.HTTPConnection(HOST, port)
    connection.request("POST", "/v1/decisions", msgspec.json.encode(sent))
    if connection.getresponse().status != 200:
        raise Broken("the server did not take the decisions")
    connection.close()


def _counted_4409(port: int) -> float:
    connection = http.client.HTTPConnection(HOST, port)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    found = re.search(r'routecast_connections_closed_total\{code="4409"\} (\S+)', text)
    return float(found[1]) if found else 0.0
