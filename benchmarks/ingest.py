"""Benchmarks `batches` and `singles`: decisions over HTTP into SQLite, compared with the floor."""

import http.client
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.bare_loop import Stored, Storing
from benchmarks.cases import Broken, run_case
from benchmarks.load import HOST, Load, Sent
from benchmarks.options import Options
from benchmarks.report import Figure, Report, ratios
from benchmarks.servers import bare_route, routecast
from benchmarks.traffic import Ids, write_bodies

BATCH: Final = 1_000
BATCHES_IN_FLIGHT: Final = 8
SINGLES_IN_FLIGHT: Final = 64


@dataclass(frozen=True, slots=True)
class Plan:
    """Requests of `batch` decisions, `in_flight` at a time; the first ones are not timed."""

    folder: Path
    requests: int
    batch: int
    in_flight: int
    warm_up: int

    @property
    def bodies(self) -> Path:
        """The file of request bodies."""
        return self.folder / "bodies"

    @property
    def decisions(self) -> int:
        """The number of decisions in all requests."""
        return self.requests * self.batch

    def rate(self, seconds: float) -> float:
        """Return decisions per second, of the timed requests."""
        return (self.requests - self.warm_up) * self.batch / seconds

    def send(self, port: int) -> Sent:
        """Send everything to a server."""
        load = Load(port, str(self.bodies), self.in_flight, self.warm_up)
        return run_case("benchmarks.load", load, Sent)

    def send_to_routecast(self) -> Sent:
        """Send everything to a server on a new database; its totals must hold every decision."""
        database = self.folder / "routecast.db"
        with routecast(database) as port:
            sent = self.send(port)
            self.must_hold(sent.accepted)
            self.must_hold(_total_decisions(port))
        database.unlink()
        return sent

    def store(self) -> Stored:
        """Store everything with the bare loop, in a new database."""
        database = self.folder / "bare.db"
        storing = Storing(str(self.bodies), str(database), self.warm_up)
        stored = run_case("benchmarks.bare_loop", storing, Stored)
        self.must_hold(stored.rows)
        database.unlink()
        return stored

    def must_hold(self, found: int) -> None:
        """Raise Broken unless every decision is stored exactly once."""
        if found != self.decisions:
            raise Broken(f"{found:,} decisions where {self.decisions:,} were sent")


def _total_decisions(port: int) -> int:
    connection = http.client.HTTPConnection(HOST, port)
    connection.request("GET", "/routing/metrics")
    total: int = json.loads(connection.getresponse().read())["total_decisions"]
    connection.close()
    return total


def batches(options: Options) -> Report:
    """Batches of 1,000 into SQLite, compared with a bare loop of decode and insert."""
    figures = [figure for ids in Ids for figure in _batches(ids, options)]
    title = f"Batches of {BATCH:,}, {BATCHES_IN_FLIGHT} in flight, synchronous=FULL"
    return Report("batches", title, figures, options.quick)


def _batches(ids: Ids, options: Options) -> list[Figure]:
    server, floor, busy = [], [], []
    pairs, requests = (2, 50) if options.quick else (9, 310)
    with tempfile.TemporaryDirectory() as folder:
        plan = Plan(Path(folder), requests, BATCH, BATCHES_IN_FLIGHT, warm_up=10)
        write_bodies(plan.bodies, requests, BATCH, ids)
        for _ in options.runs(pairs):
            floor.append(plan.rate(plan.store().seconds))
            sent = plan.send_to_routecast()
            server.append(plan.rate(sent.seconds))
            busy.append(sent.busy)
    return [
        Figure(f"{ids} ids: server ÷ bare loop", ratios(server, floor), least=0.5),
        Figure(f"{ids} ids: server, decisions/s", server, least=100_000, decimals=0),
        Figure(f"{ids} ids: bare loop, decisions/s", floor, decimals=0),
        Figure(f"{ids} ids: load generator, share of a core", busy),
    ]


def singles(options: Options) -> Report:
    """One decision per request, 64 in flight, compared with a bare Starlette route."""
    server, floor, busy = [], [], []
    pairs, requests = (2, 3_000) if options.quick else (9, 30_500)
    with tempfile.TemporaryDirectory() as folder:
        plan = Plan(Path(folder), requests, 1, SINGLES_IN_FLIGHT, warm_up=500)
        write_bodies(plan.bodies, requests, None, Ids.RANDOM)
        for _ in options.runs(pairs):
            with bare_route() as port:
                sent = plan.send(port)
            floor.append(plan.rate(sent.seconds))
            busy.append(sent.busy)
            server.append(plan.rate(plan.send_to_routecast().seconds))
    figures = [
        Figure("server ÷ bare route", ratios(server, floor), least=0.5),
        Figure("server, requests/s", server, decimals=0),
        Figure("bare route, requests/s", floor, decimals=0),
        Figure("load generator on the bare route, share of a core", busy),
    ]
    title = f"One decision a request, {SINGLES_IN_FLIGHT} in flight, answered after its commit"
    return Report("singles", title, figures, options.quick)
