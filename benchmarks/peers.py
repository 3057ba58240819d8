"""Benchmark `peers`: the same document to equally many clients, by other servers and the floor."""

import tempfile
from pathlib import Path
from typing import Final, NamedTuple

from benchmarks import streams
from benchmarks.cases import Absent, Broken
from benchmarks.fanout import CLIENTS, INTERVAL, SECONDS, Contender, Sample, side_by_side
from benchmarks.options import Options
from benchmarks.plot import Bar, Panel, draw
from benchmarks.report import Figure, Report, ratios
from benchmarks.stage import set_stage

PLOT: Final = Path(__file__).parent.parent / "docs" / "images" / "fanout.svg"
# Longer bars are cut off; otherwise the others would be too short to compare.
MOST_TIMES: Final = 5.0
MOST_KIB: Final = 40.0


class Peer(NamedTuple):
    """A server, and the part of the clients that it can serve."""

    name: str
    server: streams.Server
    share: float = 1.0


FLOOR: Final = "floor: epoll and send() in C"
OWN: Final = Peer("Routecast", streams.routecast)
PEERS: Final = (
    OWN,
    Peer("nginx + nchan", streams.nchan),
    Peer("picows", streams.cython),
    Peer("Node.js ws", streams.node),
    Peer("websockets broadcast()", streams.websockets),
    Peer("Starlette on uvicorn", streams.starlette),
    Peer("Routecast as ASGI on uvicorn", streams.portable),
    Peer("a loop a client, each reading Redis", streams.original, share=0.1),
)


def peers(options: Options) -> Report:
    """The same by other servers: the cost of a message and of a connection. Draws the plot."""
    count, clients, seconds = (1, 500, 2) if options.quick else (2, CLIENTS, SECONDS)
    floors: dict[Peer, list[Sample]] = {}
    samples: dict[Peer, list[Sample]] = {}
    with tempfile.TemporaryDirectory() as folder:
        stage = set_stage(Path(folder))
        for run in options.runs(count):
            for peer in PEERS:
                both = [Contender(streams.floor), Contender(peer.server)]
                try:
                    runs = side_by_side(stage, both, round(clients * peer.share), seconds, run)
                except (Absent, Broken) as why:
                    print(f"{peer.name}: skipped, {why}", flush=True)
                else:
                    floors.setdefault(peer, []).append(runs[0])
                    samples.setdefault(peer, []).append(runs[1])
    times = {
        peer.name: Figure(
            f"CPU a message ÷ floor: {peer.name}",
            ratios([r.message_us for r in runs], [r.message_us for r in floors[peer]]),
        )
        for peer, runs in samples.items()
    }
    memory = {
        name: Figure(f"KiB a connection: {name}", [r.memory / 1024 for r in runs], decimals=1)
        for name, runs in [
            (FLOOR, [run for each in floors.values() for run in each]),
            *((peer.name, runs) for peer, runs in samples.items()),
        ]
    }
    if not options.quick:
        PLOT.write_text(
            draw(
                [
                    _panel("Processor time for each message, floor = 1", times, MOST_TIMES),
                    _panel("Memory of the server for each connection, KiB", memory, MOST_KIB),
                ]
            )
        )
    title = f"One document to {clients:,} clients, each {INTERVAL:.0f} s, by other servers"
    return Report("peers", title, [*times.values(), *memory.values()], options.quick)


def _panel(title: str, figures: dict[str, Figure], most: float) -> Panel:
    bars = [
        Bar(name, figure.median, figure.cells[2], own=name == OWN.name)
        for name, figure in figures.items()
    ]
    return Panel(title, bars, most)
