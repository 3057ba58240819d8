"""Fan-out: what it costs to send a document to 10,000 clients each second."""

import tempfile
import time
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import Final, NamedTuple

from benchmarks.cases import Broken
from benchmarks.options import Options
from benchmarks.processes import cpu_seconds, unique_bytes
from benchmarks.report import Figure, Report, ratios
from benchmarks.stage import Stage, set_stage
from benchmarks.streams import (
    INTERVALS_TO_SETTLE,
    PATH,
    Server,
    floor,
    routecast,
    spread_floor,
)
from benchmarks.subscribers import Subscribers

CLIENTS: Final = 10_000
INTERVAL: Final = 1.0
SETTLE_SECONDS: Final = 2.0
# What must arrive at least of the frames that are due: a tick may be on either side of an end.
COMPLETE: Final = 0.98


class Sample(NamedTuple):
    """What one run of a server came to."""

    message_us: float  # the server's processor time for each message that arrived
    memory: float  # of the server, in bytes for each connection
    last_ms: float  # from a tick to its last client, 99th percentile
    complete: float  # how many messages arrived, of those that were due
    busy: float  # the clients' share of a core


def sample(stage: Stage, server: Server, clients: int, seconds: float) -> Sample:
    """Run a server with so many clients, and look at it for so many seconds.

    Raises Broken when it does not keep them.
    """
    with server(stage, INTERVAL) as running:
        path = f"{PATH}?interval={INTERVAL}"
        with Subscribers(stage, running.port, path, 1) as first:  # what only the first one costs
            first.joined()
        time.sleep(SETTLE_SECONDS)
        empty = unique_bytes(running.pid)
        with Subscribers(stage, running.port, path, clients) as crowd:
            crowd.joined()
            crowd.listen(INTERVALS_TO_SETTLE * INTERVAL if server is routecast else SETTLE_SECONDS)
            used = cpu_seconds(running.pid)
            heard = crowd.listen(seconds)
            used = cpu_seconds(running.pid) - used
            memory = (unique_bytes(running.pid) - empty) / clients
    if heard.open < clients:
        raise Broken(f"only {heard.open:,} of {clients:,} clients stayed")
    return Sample(
        1e6 * used / heard.frames,
        memory,
        heard.last_p99,
        heard.frames / (clients * seconds / INTERVAL),
        heard.busy / heard.seconds,
    )


def fanout(options: Options) -> Report:
    """One document to 10,000 clients each second, beside the floor: epoll and send() in C."""
    pairs, clients, seconds = (2, 1_000, 3) if options.quick else (5, CLIENTS, 10)
    ours: list[Sample] = []
    spread: list[Sample] = []
    single: list[Sample] = []
    with tempfile.TemporaryDirectory() as folder:
        stage = set_stage(Path(folder))
        for _ in options.runs(pairs):
            spread.append(sample(stage, spread_floor, clients, seconds))
            ours.append(sample(stage, routecast, clients, seconds))
            single.append(sample(stage, floor, clients, seconds))

    def beside(name: str, unit: str, of: Callable[[Sample], float], most: float) -> list[Figure]:
        served, least, at_once = (list(map(of, runs)) for runs in (ours, spread, single))
        return [
            Figure(f"{name}: server ÷ floor", ratios(served, least), most=most),
            Figure(f"{name}: server ÷ floor with one tick", ratios(served, at_once)),
            Figure(f"{name}: server, {unit}", served),
            Figure(f"{name}: floor, {unit}", least),
            Figure(f"{name}: floor with one tick, {unit}", at_once),
        ]

    memory = [each.memory for each in ours]
    figures = [
        *beside("CPU a message", "µs", attrgetter("message_us"), 1.10),
        *beside("tick to last client, p99", "ms", attrgetter("last_ms"), 1.25),
        Figure("memory a connection, bytes", memory, most=3_072, decimals=0),
        Figure("messages ÷ messages due", [each.complete for each in ours], least=COMPLETE),
        Figure("clients, share of a core", [each.busy for each in ours]),
    ]
    title = f"One document to {clients:,} clients, each {INTERVAL:.0f} s"
    return Report("fanout", title, figures, options.quick)
