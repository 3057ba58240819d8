"""Benchmark `warm`: 5,000 clients ten times a second, each server alone on its core.

With one message per second, some virtual machines measure how long idle memory takes to become
available again; with ten messages per second, memory does not become idle. Two times are reported:
the processor time of the server's process, and the busy time of its core. The second one includes
all interrupts for the server, which the kernel charges to any process that happens to run.
"""

import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from benchmarks.cases import Broken
from benchmarks.fanout import COMPLETE, Contender
from benchmarks.options import Options
from benchmarks.processes import busy_seconds, cpu_seconds
from benchmarks.report import Figure, Report, ratios
from benchmarks.servers import Running
from benchmarks.stage import CLIENT_CORE, SERVER_CORE, Stage, set_stage
from benchmarks.streams import INTERVALS_TO_SETTLE, PATH, floor, posting, routecast
from benchmarks.subscribers import Subscribers
from benchmarks.subscriptions import V1_JSON

CLIENTS: Final = 5_000
INTERVAL: Final = 0.1
SECONDS: Final = 10.0
# Single decisions per second, in the cases that send any.
ARRIVALS: Final = 40
DECISION: Final = {"strategy": "hybrid", "provider": "gemini", "confidence": 0.9, "cost": 0.002}


class Sample(NamedTuple):
    """The result of one run of a server, in microseconds per message that arrived."""

    charged: float
    busy: float
    complete: float  # the part of the due messages that arrived


class Case(NamedTuple):
    """A case, and the maximum of its cost: the busy time of its core ÷ that of the floor."""

    name: str
    contender: Contender
    most: float | None


def warm(options: Options) -> Report:
    """5,000 clients ten times per second; each server in turn, alone on its core."""
    rounds, clients, seconds = (2, 500, 2.0) if options.quick else (6, CLIENTS, SECONDS)
    os.sched_setaffinity(0, {CLIENT_CORE})
    with tempfile.TemporaryDirectory() as folder:
        stage = set_stage(Path(folder))
        messages = stage.folder / "messages"
        messages.write_text(json.dumps({"type": "subscribe", "id": "main", "interval": INTERVAL}))
        v1 = {"subprotocol": V1_JSON, "messages": messages}
        cases = _cases(v1)
        runs: list[list[Sample]] = []
        for _ in options.runs(rounds):
            contenders = [Contender(floor), *(case.contender for case in cases)]
            runs.append([_alone(stage, each, clients, seconds) for each in contenders])
    floors, *ours = map(list, zip(*runs, strict=True))
    figures = []
    for case, samples in zip(cases, ours, strict=True):
        busy, charged = (
            ratios([each[place] for each in samples], [each[place] for each in floors])
            for place in (1, 0)
        )
        figures += [
            Figure(f"{case.name}: core busy ÷ floor", busy, most=case.most),
            Figure(f"{case.name}: CPU charged ÷ floor", charged),
            Figure(f"{case.name}: core busy, µs a message", [each.busy for each in samples]),
            Figure(f"{case.name}: messages ÷ due", [e.complete for e in samples], least=COMPLETE),
        ]
    figures.append(Figure("floor: core busy, µs a message", [each.busy for each in floors]))
    title = f"{clients:,} clients, each {INTERVAL} s, each server alone on its core"
    return Report("warm", title, figures, options.quick)


def _cases(v1: Mapping[str, Any]) -> list[Case]:
    deflate = {**v1, "extensions": "permessage-deflate"}
    return [
        Case("default stream", Contender(routecast, f"{PATH}?interval={INTERVAL}"), 1.10),
        Case("with decisions", Contender(_arriving, f"{PATH}?interval={INTERVAL}"), 1.25),
        Case("routecast.v1", Contender(_arriving, PATH, v1), None),
        Case("routecast.v1, deflated", Contender(_arriving, PATH, deflate), 1.25),
    ]


@contextmanager
def _arriving(stage: Stage, interval: float) -> Iterator[Running]:
    """Run Routecast, and send decisions to it one by one."""
    with (
        routecast(stage, interval) as server,
        posting(server.port, lambda: DECISION, 1 / ARRIVALS),
    ):
        yield server


def _alone(stage: Stage, contender: Contender, clients: int, seconds: float) -> Sample:
    """Run one server with its clients. Raises Broken if it loses any."""
    with (
        contender.server(stage, INTERVAL) as server,
        Subscribers(stage, server.port, contender.path, clients, **contender.crowd) as crowd,
    ):
        crowd.joined()
        time.sleep(INTERVALS_TO_SETTLE * INTERVAL)
        crowd.report()
        charged, busy = -cpu_seconds(server.pid), -busy_seconds(SERVER_CORE)
        time.sleep(seconds)
        charged, busy = charged + cpu_seconds(server.pid), busy + busy_seconds(SERVER_CORE)
        heard = crowd.report()
    if heard.open < clients:
        raise Broken(f"only {heard.open:,} of {clients:,} clients stayed")
    due = clients * seconds / INTERVAL
    return Sample(1e6 * charged / heard.frames, 1e6 * busy / heard.frames, heard.frames / due)
