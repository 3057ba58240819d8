"""Benchmarks `fanout` and `twins`: the cost of sending a document to 10,000 clients a second."""

import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, NamedTuple

from benchmarks.cases import Broken
from benchmarks.options import Options
from benchmarks.processes import cpu_seconds, unique_bytes
from benchmarks.report import Figure, Report, ratios
from benchmarks.stage import Stage, set_stage
from benchmarks.streams import INTERVALS_TO_SETTLE, PATH, Server, floor, floor_by_views, routecast
from benchmarks.subscribers import Subscribers
from routecast.streaming.heartbeat import PING_SECONDS

CLIENTS: Final = 10_000
INTERVAL: Final = 1.0
# After this number of intervals, Routecast's ticks have merged; other servers get the same time.
SETTLE_SECONDS: Final = INTERVALS_TO_SETTLE * INTERVAL
EMPTY_SECONDS: Final = 2.0
# A server is measured for this number of seconds, in which Routecast pings each client exactly
# once.
SECONDS: Final = PING_SECONDS
# In this part of an interval no server has a tick: the measurement begins there.
SILENCE: Final = 0.92
# The minimum part of the due frames that must arrive; a tick may be just outside of the
# measurement.
COMPLETE: Final = 0.98


class Sample(NamedTuple):
    """The result of one run of a server."""

    message_us: float  # the server's processor time for each message that arrived
    memory: float  # of the server, in bytes per connection
    last_ms: float  # from a tick to its last client, 99th percentile
    complete: float  # the part of the due messages that arrived
    busy: float  # the clients' share of a core


class Contender(NamedTuple):
    """A server, and how its clients connect (`Subscribers`)."""

    server: Server
    path: str = f"{PATH}?interval={INTERVAL}"
    crowd: Mapping[str, Any] = {}


def side_by_side(
    stage: Stage, contenders: Sequence[Contender], clients: int, seconds: float, run: int = 0
) -> list[Sample]:
    """Run servers at the same time, each with `clients` clients, and measure them together.

    Their ticks fall into different parts of the interval, so changes in the speed of the machine
    affect all of them. Because the order may matter (`twins`), odd runs begin with the last server.
    Raises Broken if one loses clients.
    """
    with ExitStack() as stack:
        sides = [_Side(stage, contender, stack) for contender in contenders]
        for side in reversed(sides) if run % 2 else sides:
            side.fill(clients, stack)
        time.sleep(SETTLE_SECONDS)
        time.sleep((SILENCE - time.monotonic()) % INTERVAL)
        for side in sides:
            side.begin()
        time.sleep(seconds)
        return [side.end(seconds) for side in sides]


class _Side:
    """One of the servers, and its clients."""

    def __init__(self, stage: Stage, contender: Contender, stack: ExitStack) -> None:
        self._stage = stage
        self._contender = contender
        self._server = stack.enter_context(contender.server(stage, INTERVAL))
        with self._subscribers(1) as first:  # the first client has costs of its own
            first.joined()
        time.sleep(EMPTY_SECONDS)
        self._empty = unique_bytes(self._server.pid)
        self._clients = 0
        self._used = 0.0

    def _subscribers(self, count: int) -> Subscribers:
        contender = self._contender
        return Subscribers(self._stage, self._server.port, contender.path, count, **contender.crowd)

    def fill(self, clients: int, stack: ExitStack) -> None:
        """Connect clients, and wait until all are connected."""
        self._clients = clients
        self._crowd = stack.enter_context(self._subscribers(clients))
        self._crowd.joined()

    def begin(self) -> None:
        """Begin to measure."""
        self._used = cpu_seconds(self._server.pid)
        self._crowd.report()

    def end(self, seconds: float) -> Sample:
        """Return the result of the measured seconds. Raises Broken if clients were lost."""
        used = cpu_seconds(self._server.pid) - self._used
        heard = self._crowd.report()
        if heard.open < self._clients:
            raise Broken(f"only {heard.open:,} of {self._clients:,} clients stayed")
        return Sample(
            1e6 * used / heard.frames,
            (unique_bytes(self._server.pid) - self._empty) / self._clients,
            heard.last_p99,
            heard.frames / (self._clients * seconds / INTERVAL),
            heard.busy / heard.seconds,
        )


def fanout(options: Options) -> Report:
    """One document to 10,000 clients each second, compared with the floor (epoll, send() in C)."""
    pairs, clients, seconds = (2, 1_000, 3) if options.quick else (6, CLIENTS, SECONDS)
    contenders = [Contender(routecast), Contender(floor)]
    with tempfile.TemporaryDirectory() as folder:
        stage = set_stage(Path(folder))
        runs = [
            side_by_side(stage, contenders, clients, seconds, run) for run in options.runs(pairs)
        ]
    ours, least = map(list, zip(*runs, strict=True))
    served, needed = ([each.message_us for each in side] for side in (ours, least))
    late, soonest = ([each.last_ms for each in side] for side in (ours, least))
    memory = [each.memory for each in ours]
    figures = [
        Figure("CPU a message: server ÷ floor", ratios(served, needed), most=1.10),
        Figure("CPU a message: server, µs", served),
        Figure("CPU a message: floor, µs", needed),
        Figure("tick to last client, p99: server ÷ floor", ratios(late, soonest), most=1.25),
        Figure("tick to last client, p99: server, ms", late),
        Figure("tick to last client, p99: floor, ms", soonest),
        Figure("memory a connection, bytes", memory, most=3_072, decimals=0),
        Figure("messages ÷ messages due", [each.complete for each in ours], least=COMPLETE),
        Figure("clients, share of a core", [each.busy for each in ours]),
    ]
    title = f"One document to {clients:,} clients, each {INTERVAL:.0f} s"
    return Report("fanout", title, figures, options.quick)


def twins(options: Options) -> Report:
    """The floor compared with itself: it shows how far a ratio may be from 1 by chance."""
    pairs, clients, seconds = (2, 1_000, 3) if options.quick else (6, CLIENTS, SECONDS)
    contenders = [Contender(floor_by_views(1)), Contender(floor)]
    with tempfile.TemporaryDirectory() as folder:
        stage = set_stage(Path(folder))
        runs = [
            side_by_side(stage, contenders, clients, seconds, run) for run in options.runs(pairs)
        ]
    one, other = ([each.message_us for each in side] for side in zip(*runs, strict=True))
    plain = ratios(one, other)
    figures = [
        Figure("CPU a message: one ÷ the other", plain),
        Figure(
            "CPU a message: whose clients came first ÷ the other",
            [1 / ratio if run % 2 else ratio for run, ratio in enumerate(plain)],
        ),
    ]
    title = f"One document to {clients:,} clients, each {INTERVAL:.0f} s, by two floors"
    return Report("twins", title, figures, options.quick)
