"""Benchmark `handshakes`: handshakes per second, compared with Starlette on stock uvicorn."""

import tempfile
from pathlib import Path
from typing import Final

from benchmarks.options import Options
from benchmarks.report import Figure, Report, ratios
from benchmarks.stage import Stage, set_stage
from benchmarks.streams import PATH, Server, routecast, starlette
from benchmarks.subscribers import IN_FLIGHT, Heard, Subscribers

CLIENTS: Final = 5_000
# Long, so that there are no ticks during the handshakes.
INTERVAL: Final = 60.0


def _join(stage: Stage, server: Server, clients: int) -> Heard:
    with (
        server(stage, INTERVAL) as running,
        Subscribers(stage, running.port, f"{PATH}?interval={INTERVAL}", clients) as crowd,
    ):
        return crowd.joined()


def handshakes(options: Options) -> Report:
    """5,000 clients that connect at once, compared with Starlette on stock uvicorn."""
    pairs, clients = (2, 500) if options.quick else (7, CLIENTS)
    ours: list[Heard] = []
    stock: list[Heard] = []
    with tempfile.TemporaryDirectory() as folder:
        stage = set_stage(Path(folder))
        for _ in options.runs(pairs):
            stock.append(_join(stage, starlette, clients))
            ours.append(_join(stage, routecast, clients))
    served, beside = ([clients / each.seconds for each in runs] for runs in (ours, stock))
    figures = [
        Figure("server ÷ stock uvicorn", ratios(served, beside), least=3),
        Figure("server, handshakes/s", served, decimals=0),
        Figure("stock uvicorn, handshakes/s", beside, decimals=0),
        Figure("clients, share of a core", [each.busy / each.seconds for each in ours]),
    ]
    title = f"{clients:,} clients come at once, {IN_FLIGHT} handshakes in flight"
    return Report("handshakes", title, figures, options.quick)
