"""Benchmarks `views`, `browsers` and `deltas`: the cost of sending changes, and their size."""

import json
import random
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from typing import Any, Final, NamedTuple

import httpx2
import msgspec
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from benchmarks.fanout import COMPLETE, SECONDS, Contender, Sample, side_by_side
from benchmarks.load import HOST
from benchmarks.options import Options
from benchmarks.report import Figure, Report, ratios
from benchmarks.servers import Running
from benchmarks.servers import routecast as serving
from benchmarks.stage import Stage, set_stage
from benchmarks.streams import PATH, floor, floor_by_views, posting, routecast
from benchmarks.traffic import MODELS, latencies

CLIENTS: Final = 10_000
VIEWS: Final = 50
INTERVAL: Final = 1.0
V1_JSON, V1_MSGPACK = "routecast.v1.json", "routecast.v1.msgpack"

STRATEGIES: Final = 20
PROVIDERS: Final = 15
TICK: Final = 0.1


# -- views --------------------------------------------------------------------------------------


def views(options: Options) -> Report:
    """10,000 clients of 50 views that change every second, compared with the floor in C."""
    with tempfile.TemporaryDirectory() as folder:
        stage = set_stage(Path(folder))
        messages = stage.folder / "messages"
        messages.write_text("".join(f"{json.dumps(_subscribe(n))}\n" for n in range(VIEWS)))
        crowd = {"subprotocol": V1_JSON, "messages": messages}
        found = against_floors(options, stage, Contender(_changing, PATH, crowd), VIEWS)
    ours, least = found.ours, found.least
    figures = [
        *found.figures,
        Figure("tick to last client, p99: server, ms", [each.last_ms for each in ours]),
        Figure("tick to last client, p99: floor, ms", [each.last_ms for each in least]),
        Figure("memory a connection, bytes", [each.memory for each in ours], decimals=0),
        Figure("messages ÷ messages due", [each.complete for each in ours], least=COMPLETE),
        Figure("clients, share of a core", [each.busy for each in ours]),
    ]
    title = (
        f"{VIEWS} views of {found.clients:,} clients, each changed and told each {INTERVAL:.0f} s"
    )
    return Report("views", title, figures, options.quick)


class Compared(NamedTuple):
    """The samples of a server and of the floor, and figures that compare it with both floors."""

    clients: int
    ours: list[Sample]
    least: list[Sample]
    figures: list[Figure]


def against_floors(options: Options, stage: Stage, contender: Contender, views: int) -> Compared:
    """Compare a server with the floor, and with the floor that goes view by view."""
    pairs, clients, seconds = (2, 1_000, 3) if options.quick else (6, CLIENTS, SECONDS)
    contenders = [contender, Contender(floor), Contender(floor_by_views(views))]
    runs = [side_by_side(stage, contenders, clients, seconds, run) for run in options.runs(pairs)]
    ours, least, by_views = map(list, zip(*runs, strict=True))
    served, floors, ordered = (
        list(map(attrgetter("message_us"), each)) for each in (ours, least, by_views)
    )
    figures = [
        Figure("CPU a message: server ÷ floor", ratios(served, floors), most=1.3),
        Figure("CPU a message: server ÷ floor that goes view by view", ratios(served, ordered)),
        Figure("CPU a message: server, µs", served),
        Figure("CPU a message: floor, µs", floors),
        Figure("CPU a message: floor that goes view by view, µs", ordered),
    ]
    return Compared(clients, ours, least, figures)


def browsers(options: Options) -> Report:
    """10,000 clients of one view that offer compression, compared with the floor in C."""
    pairs, clients, seconds = (2, 1_000, 3) if options.quick else (6, CLIENTS, SECONDS)
    with tempfile.TemporaryDirectory() as folder:
        stage = set_stage(Path(folder))
        messages = stage.folder / "messages"
        messages.write_text(json.dumps({"type": "subscribe", "id": "main", "interval": INTERVAL}))
        crowd = {"subprotocol": V1_JSON, "messages": messages}
        contenders = [
            Contender(_changing, PATH, {**crowd, "extensions": "permessage-deflate"}),
            Contender(floor),
        ]
        runs = [
            side_by_side(stage, contenders, clients, seconds, run) for run in options.runs(pairs)
        ]
    ours, least = map(list, zip(*runs, strict=True))
    served, floors = (list(map(attrgetter("message_us"), each)) for each in (ours, least))
    figures = [
        Figure("CPU a message: server ÷ floor", ratios(served, floors), most=1.25),
        Figure("CPU a message: server, µs", served),
        Figure("CPU a message: floor, µs", floors),
        Figure("memory a connection, bytes", [each.memory for each in ours], decimals=0),
        Figure("messages ÷ messages due", [each.complete for each in ours], least=COMPLETE),
        Figure("clients, share of a core", [each.busy for each in ours]),
    ]
    title = f"{clients:,} clients with permessage-deflate, told of changes each {INTERVAL:.0f} s"
    return Report("browsers", title, figures, options.quick)


def _subscribe(view: int) -> dict[str, Any]:
    asked = {"filter": {"strategy": [_strategy(view)]}, "interval": INTERVAL}
    return {"type": "subscribe", "id": "main", **asked}


def _strategy(number: int) -> str:
    return f"strategy-{number:02}"


@contextmanager
def _changing(stage: Stage, interval: float) -> Iterator[Running]:
    """Run Routecast, and commit a decision of every view at each multiple of the interval.

    Routecast sends the change at once, while the floors are silent.
    """
    rng = random.Random(VIEWS)

    def made() -> list[dict[str, Any]]:
        return [_decision(rng, _strategy(number)) for number in range(VIEWS)]

    with routecast(stage, interval) as server, posting(server.port, made, interval):
        yield server


def _decision(rng: random.Random, strategy: str, provider: str | None = None) -> dict[str, Any]:
    known, model = rng.choice(MODELS)
    return {
        "strategy": strategy,
        "provider": provider or known,
        "model": model,
        "confidence": round(rng.betavariate(5, 2), 4),
        "cost": round(rng.lognormvariate(-6.5, 1), 6),
        "latency_ms": next(latencies(rng)),
    }


# -- deltas -------------------------------------------------------------------------------------


class _Counting(socket.socket):
    """A socket that counts what it receives."""

    received = 0

    def recv(self, *arguments: Any) -> bytes:
        data = super().recv(*arguments)
        self.received += len(data)
        return data


def deltas(options: Options) -> Report:
    """The size of a delta: one decision per tick, among 20 strategies and 15 providers."""
    count = 20 if options.quick else 200
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(Path(folder) / "routecast.db") as port,
    ):
        _fill(port)
        found = {
            (name, packed): _measure(port, name, packed, count)
            for name in (V1_JSON, V1_MSGPACK)
            for packed in (True, False)
        }
    sizes = {False: "as it is", True: "deflated"}
    figures = [
        Figure(
            f"{name}, {sizes[packed]}: delta ÷ snapshot",
            [size / snapshot for size in told],
            most=0.10 if (name, packed) == (V1_JSON, True) else None,
            decimals=3,
        )
        for (name, packed), (snapshot, told) in found.items()
    ]
    figures += [
        Figure(f"{name}, {sizes[packed]}: delta, bytes", list(told), decimals=0)
        for (name, packed), (_, told) in found.items()
    ]
    figures.append(Figure("snapshot as JSON, bytes", [found[V1_JSON, False][0]], decimals=0))
    title = f"One decision a tick, {STRATEGIES} strategies × {PROVIDERS} providers"
    return Report("deltas", title, figures, options.quick)


def _fill(port: int) -> None:
    rng = random.Random(STRATEGIES)
    sent = [
        _decision(rng, _strategy(strategy), f"provider-{provider:02}")
        for strategy in range(STRATEGIES)
        for provider in range(PROVIDERS)
        for _ in range(rng.randrange(1, 20))
    ]
    httpx2.post(f"http://{HOST}:{port}/v1/decisions", json=sent).raise_for_status()


def _measure(port: int, name: str, packed: bool, count: int) -> tuple[int, list[float]]:
    """Return the size of the snapshot as JSON, and the bytes of each delta on the wire."""
    rng = random.Random(PROVIDERS)
    line = _Counting(socket.AF_INET, socket.SOCK_STREAM)
    line.connect((HOST, port))
    sizes: list[float] = []
    with (
        connect(
            f"ws://{HOST}:{port}{PATH}",
            sock=line,
            subprotocols=[Subprotocol(name)],
            compression="deflate" if packed else None,
        ) as stream,
        httpx2.Client(base_url=f"http://{HOST}:{port}") as client,
    ):
        packs = name != V1_JSON
        decode: Callable[[Any], Any] = msgspec.msgpack.decode if packs else json.loads
        asked: Any = {"type": "subscribe", "id": "main", "interval": TICK}
        stream.recv()
        stream.send(msgspec.msgpack.encode(asked) if packs else json.dumps(asked))
        snapshot = len(msgspec.json.encode(decode(stream.recv())))
        for _ in range(count):
            strategy = _strategy(rng.randrange(STRATEGIES))
            decision = _decision(rng, strategy, f"provider-{rng.randrange(PROVIDERS):02}")
            before = line.received
            client.post("/v1/decisions", json=decision).raise_for_status()
            # And not a repeated snapshot.
            if decode(stream.recv(timeout=30))["type"] == "delta":
                sizes.append(line.received - before)
    return snapshot, sizes
