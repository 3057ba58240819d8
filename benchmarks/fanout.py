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
# After so many intervals Routecast's ticks have drawn together; the others get as long.
SETTLE_SECONDS: Final = INTERVALS_TO_SETTLE * INTERVAL
EMPTY_SECONDS: Final = 2.0
# So long a server is looked at: in that time Routecast pings each client once, no more and no less.
SECONDS: Final = PING_SECONDS
# In this part of an interval nobody has a tick: there begins what is looked at.
SILENCE: Final = 0.92
# What must arrive at least of the frames that are due: a tick may be on either side of an end.
COMPLETE: Final = 0.98


class Sample(NamedTuple):
    """What one run of a server came to."""

    message_us: float  # the server's processor time for each message that arrived
    memory: float  # of the server, in bytes for each connection
    last_ms: float  # from a tick to its last client, 99th percentile
    complete: float  # how many messages arrived, of those that were due
    busy: float  # the clients' share of a core


class Contender(NamedTuple):
    """A server, and how its clients come (`Subscribers`)."""

    server: Server
    path: str = f"{PATH}?interval={INTERVAL}"
    crowd: Mapping[str, Any] = {}


def side_by_side(
    stage: Stage, contenders: Sequence[Contender], clients: int, seconds: float, run: int = 0
) -> list[Sample]:
    """Run servers at once, with so many clients each, and look at them for the same seconds.

    Their ticks fall into different parts of the interval. So whatever else the machine does, and
    however fast it is just then, all of them meet it. It may matter who comes first (`twins`): so
    runs of an odd number begin with the last. Raises Broken when one loses clients.
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
    """One of the servers, and its crowd."""

    def __init__(self, stage: Stage, contender: Contender, stack: ExitStack) -> None:
        self._stage = stage
        self._contender = contender
        self._server = stack.enter_context(contender.server(stage, INTERVAL))
        with self._subscribers(1) as first:  # what only the first one costs
            first.joined()
        time.sleep(EMPTY_SECONDS)
        self._empty = unique_bytes(self._server.pid)
        self._clients = 0
        self._used = 0.0

    def _subscribers(self, count: int) -> Subscribers:
        contender = self._contender
        return Subscribers(self._stage, self._server.port, contender.path, count, **contender.crowd)

    def fill(self, clients: int, stack: ExitStack) -> None:
        """Let so many clients come."""
        self._clients = clients
        self._crowd = stack.enter_context(self._subscribers(clients))
        self._crowd.joined()

    def begin(self) -> None:
        """Look from now on."""
        self._used = cpu_seconds(self._server.pid)
        self._crowd.report()

    def end(self, seconds: float) -> Sample:
        """Tell what there was in these seconds. Raises Broken when clients were lost."""
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
    """One document to 10,000 clients each second, beside the floor: epoll and send() in C."""
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
    """The floor beside itself: what to make of a ratio that is a little off 1."""
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
