"""Benchmarks `tokens`, `authenticated`, `refused`, `operator`, `projects`: credentials.

Each compares with the same server without authentication, or with the floor, in one run.
"""

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from typing import Any, Final, NamedTuple

import httpx2

from benchmarks.cases import Broken
from benchmarks.credentials import Issuer, Secured
from benchmarks.fanout import COMPLETE, SECONDS, Contender, side_by_side
from benchmarks.load import HOST
from benchmarks.options import Options
from benchmarks.processes import cpu_seconds
from benchmarks.report import Figure, Report, ratios
from benchmarks.servers import Running
from benchmarks.stage import CLIENT_CORE, Stage, set_stage
from benchmarks.streams import INTERVALS_TO_SETTLE, PATH, Server, posting, routecast
from benchmarks.subscribers import IN_FLIGHT, Behaviour, Subscribers
from benchmarks.subscriptions import V1_JSON, against_floors

CLIENTS: Final = 10_000
INTERVAL: Final = 1.0
# Long, so that there are no ticks during handshakes, or while an operator watches.
SILENT_INTERVAL: Final = 60.0

NEWCOMERS: Final = 5_000

REFUSED_A_SECOND: Final = 1_000
# Different tokens of another issuer: each signature must be verified before it is refused.
FORGED: Final = 100
# More than are refused while one tick is sent.
REFUSED_IN_FLIGHT: Final = 1_000

CONNECTIONS: Final = "/v1/admin/connections"
WATCH_SECONDS: Final = 1.0

PROJECTS: Final = 200


# -- tokens -------------------------------------------------------------------------------------


def tokens(options: Options) -> Report:
    """Handshakes with a new token, a known one and an API key, compared with none."""
    rounds, clients = (2, 500) if options.quick else (7, NEWCOMERS)
    rates: list[list[float]] = []
    with tempfile.TemporaryDirectory() as folder:
        stage = set_stage(Path(folder))
        secured = Secured(stage)
        new, known, key = secured.tokens(clients), secured.tokens(1), secured.key()
        cases: list[tuple[Server, Path | None]] = [
            (routecast, None),
            (secured, new),
            (secured, known),
            (secured, key),
        ]
        for run in options.runs(rounds):
            # Odd rounds go backwards, because the order may matter.
            order = list(enumerate(cases))[:: -1 if run % 2 else 1]
            found = {n: _handshakes(stage, server, clients, file) for n, (server, file) in order}
            rates.append([found[n] for n in range(len(cases))])
    without, *others = map(list, zip(*rates, strict=True))
    names = {"new RS256 token": 0.7, "known RS256 token": 0.7, "API key": 0.9}
    figures = [
        Figure(f"{name} ÷ without", ratios(each, without), least=least)
        for (name, least), each in zip(names.items(), others, strict=True)
    ]
    figures += [
        Figure(f"{name}, handshakes/s", each, decimals=0)
        for name, each in zip(("without", *names), (without, *others), strict=True)
    ]
    title = f"{clients:,} clients come at once, {IN_FLIGHT} handshakes in flight"
    return Report("tokens", title, figures, options.quick)


def _handshakes(stage: Stage, server: Server, clients: int, credentials: Path | None) -> float:
    path = f"{PATH}?interval={SILENT_INTERVAL}"
    with (
        server(stage, SILENT_INTERVAL) as running,
        Subscribers(stage, running.port, path, clients, credentials=credentials) as crowd,
    ):
        return clients / crowd.joined().seconds


# -- authenticated ------------------------------------------------------------------------------


def authenticated(options: Options) -> Report:
    """One document to 10,000 clients with a token each, compared with the same without."""
    pairs, clients, seconds = (2, 1_000, 3) if options.quick else (6, CLIENTS, SECONDS)
    path = f"{PATH}?interval={INTERVAL}"
    with tempfile.TemporaryDirectory() as folder:
        stage = set_stage(Path(folder))
        secured = Secured(stage)
        # Each client has some other token; those of more clients than this repeat.
        crowd = {"credentials": secured.tokens(min(clients, NEWCOMERS))}
        contenders = [Contender(secured, path, crowd), Contender(routecast, path)]
        runs = [
            side_by_side(stage, contenders, clients, seconds, run) for run in options.runs(pairs)
        ]
    ours, plain = map(list, zip(*runs, strict=True))
    served, without = (list(map(attrgetter("message_us"), each)) for each in (ours, plain))
    figures = [
        Figure("CPU a message: with ÷ without", ratios(served, without), most=1.02, decimals=3),
        Figure("CPU a message: with, µs", served),
        Figure("CPU a message: without, µs", without),
        Figure("memory a connection: with, bytes", [e.memory for e in ours], decimals=0),
        Figure("memory a connection: without, bytes", [e.memory for e in plain], decimals=0),
        Figure("messages ÷ messages due", [each.complete for each in ours], least=COMPLETE),
        Figure("clients, share of a core", [each.busy for each in ours]),
    ]
    title = f"One document to {clients:,} clients with tokens, each {INTERVAL:.0f} s"
    return Report("authenticated", title, figures, options.quick)


# -- refused ------------------------------------------------------------------------------------


class Flood(NamedTuple):
    """The result of one run of `refused`."""

    without_ms: float  # from tick to healthy client, 99th percentile, while none are refused
    with_ms: float  # the same while connections are refused
    rate: float  # connections refused a second


def refused(options: Options) -> Report:
    """10,000 clients that are served, without and with 1,000 refused connections a second."""
    runs, healthy, seconds = (2, 1_000, 3) if options.quick else (6, CLIENTS, 10)
    # Without the delay of repeated refusals, which would spare the server their cost.
    settings = {"ROUTECAST_FAILED_SIGN_INS": "0"}
    with tempfile.TemporaryDirectory() as folder:
        stage = set_stage(Path(folder))
        secured = Secured(stage, settings)
        forged = secured.file("forged", map(Issuer().token, range(FORGED)))
        path = f"{PATH}?interval={INTERVAL}"
        with (
            secured(stage, INTERVAL) as server,
            Subscribers(stage, server.port, path, healthy, credentials=secured.tokens(1)) as crowd,
        ):
            crowd.joined()
            crowd.listen(INTERVALS_TO_SETTLE * INTERVAL)
            samples = [
                _flood(stage, server, crowd, forged, seconds, run) for run in options.runs(runs)
            ]
            if lost := crowd.report().lost:
                raise Broken(f"{lost:,} healthy clients were cut off")
    without, beside, rates = map(list, zip(*samples, strict=True))
    figures = [
        Figure("tick to client, p99: with ÷ without", ratios(beside, without), most=1.10),
        Figure("tick to client, p99, without, ms", without),
        Figure("tick to client, p99, with, ms", beside),
        Figure("refused a second", rates, least=0.98 * REFUSED_A_SECOND, decimals=0),
    ]
    title = f"{healthy:,} clients, and {REFUSED_A_SECOND:,} others refused each second"
    return Report("refused", title, figures, options.quick)


def _flood(
    stage: Stage, server: Running, crowd: Subscribers, forged: Path, seconds: float, run: int
) -> Flood:
    """Measure without and with refusals; odd runs begin with them."""
    rate = 0.0

    def beside() -> float:
        nonlocal rate
        with Subscribers(
            stage,
            server.port,
            PATH,
            REFUSED_A_SECOND,
            behaviour=Behaviour.KNOCK,
            in_flight=REFUSED_IN_FLIGHT,
            credentials=forged,
        ) as others:
            others.started()
            before = others.report()
            heard = crowd.listen(seconds)
            after = others.report()
        if after.joined or after.lost:
            raise Broken(f"{after.joined:,} were let in, {after.lost:,} not refused by 401")
        rate = (after.refused - before.refused) / after.seconds
        return heard.lags[1] / 1000

    def without() -> float:
        return crowd.listen(seconds).lags[1] / 1000

    parts: list[Callable[[], float]] = [without, beside]
    found = {part: part() for part in (reversed(parts) if run % 2 else parts)}
    return Flood(found[without], found[beside], rate)


# -- operator -----------------------------------------------------------------------------------


def operator(options: Options) -> Report:
    """An operator reads the list of 10,000 connections each second, compared with no operator."""
    pairs, clients, seconds = (2, 1_000, 4) if options.quick else (6, CLIENTS, SECONDS)
    os.sched_setaffinity(0, {CLIENT_CORE})
    watched: list[float] = []
    alone: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        stage = set_stage(Path(folder))
        secured = Secured(stage)
        head = {"Authorization": f"Bearer {secured.issuer.token(scope='admin')}"}
        path, file = f"{PATH}?interval={SILENT_INTERVAL}", secured.tokens(1)
        with (
            secured(stage, SILENT_INTERVAL) as server,
            Subscribers(stage, server.port, path, clients, credentials=file) as crowd,
            httpx2.Client(base_url=f"http://{HOST}:{server.port}", headers=head) as client,
        ):
            crowd.joined()
            size = float(_look(client))
            for run in options.runs(pairs):
                for watches in (True, False) if run % 2 else (False, True):
                    used = -cpu_seconds(server.pid)
                    _pass(seconds, client if watches else None)
                    used += cpu_seconds(server.pid)
                    (watched if watches else alone).append(100 * used / seconds)
            if lost := crowd.report().lost:
                raise Broken(f"{lost:,} clients were cut off")
    costs = [a - b for a, b in zip(watched, alone, strict=True)]
    figures = [
        Figure("watching, % of a core", costs, most=3),
        Figure("server, watched, % of a core", watched),
        Figure("server, not watched, % of a core", alone),
        Figure("one answer, bytes", [size], decimals=0),
    ]
    title = f"{clients:,} connections, looked at each {WATCH_SECONDS:.0f} s"
    return Report("operator", title, figures, options.quick)


def _pass(seconds: float, client: httpx2.Client | None) -> None:
    """Let time pass, in which a client, if there is one, looks at the connections."""
    began = time.monotonic()
    for look in range(int(seconds / WATCH_SECONDS)):
        if client is not None:
            _look(client)
        time.sleep(max(0, began + (look + 1) * WATCH_SECONDS - time.monotonic()))


def _look(client: httpx2.Client) -> int:
    answer = client.get(CONNECTIONS).raise_for_status()
    if not answer.json()["connections"]:
        raise Broken("the operator sees no connections")
    return len(answer.content)


# -- projects -----------------------------------------------------------------------------------


def projects(options: Options) -> Report:
    """10,000 clients whose tokens are for one of 200 projects each, compared with the floor."""
    with tempfile.TemporaryDirectory() as folder:
        stage = set_stage(Path(folder))
        secured = Secured(stage)
        messages = stage.folder / "messages"
        # All ask for the same; what they get differs by their tokens.
        messages.write_text(json.dumps({"type": "subscribe", "id": "main", "interval": INTERVAL}))
        restricted = (
            secured.issuer.token(number, projects=[_project(number)]) for number in range(PROJECTS)
        )
        crowd = {
            "subprotocol": V1_JSON,
            "messages": messages,
            "credentials": secured.file("restricted", restricted),
        }
        contender = Contender(_writing(secured), PATH, crowd)
        found = against_floors(options, stage, contender, PROJECTS)
    ours = found.ours
    figures = [
        *found.figures,
        Figure("messages ÷ messages due", [each.complete for each in ours], least=COMPLETE),
        Figure("clients, share of a core", [each.busy for each in ours]),
    ]
    title = (
        f"{PROJECTS} projects of {found.clients:,} clients, told of changes each {INTERVAL:.0f} s"
    )
    return Report("projects", title, figures, options.quick)


def _project(number: int) -> str:
    return f"project-{number:03}"


def _writing(secured: Secured) -> Server:
    """Return the server, to which a decision of every project is committed each interval."""
    decision = {"strategy": "hybrid", "provider": "gemini", "confidence": 0.9, "cost": 0.002}
    sent: list[dict[str, Any]] = [
        {**decision, "project": _project(number)} for number in range(PROJECTS)
    ]
    head = {"Authorization": f"Bearer {secured.issuer.token(scope='write')}"}

    @contextmanager
    def run(stage: Stage, interval: float) -> Iterator[Running]:
        with (
            secured(stage, interval) as server,
            posting(server.port, lambda: sent, interval, head),
        ):
            yield server

    return run
