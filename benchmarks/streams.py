"""Servers of streams: each sends the stage's document to everyone, once an interval.

Each runs on one processor, listens at `PATH`, and makes its document with the time of its tick.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Final

from benchmarks.servers import Running, free_port, running, serve
from benchmarks.stage import SERVER_CORE, Stage

PATH: Final = "/ws/metrics"
# Routecast gives those who come within so many seconds one tick.
TICK_SECONDS: Final = 0.05
ROOM: Final = {"ROUTECAST_MAX_CONNECTIONS": "15000"}

Server = Callable[[Stage, float], AbstractContextManager[Running]]


@contextmanager
def routecast(stage: Stage, interval: float) -> Iterator[Running]:
    """Run `routecast serve`; its clients' ticks follow their arrival."""
    port = free_port()
    command = serve(stage.database, port, "--interval", str(interval))
    with running(command, port, "/ready", environment=ROOM, core=SERVER_CORE) as server:
        yield server


@contextmanager
def floor(stage: Stage, interval: float) -> Iterator[Running]:
    """Run the floor (`floor.c`), everyone in one tick."""
    with _floor(stage, interval, 1) as server:
        yield server


@contextmanager
def spread_floor(stage: Stage, interval: float) -> Iterator[Running]:
    """Run the floor with as many ticks as clients of Routecast have that came one by one."""
    with _floor(stage, interval, round(interval / TICK_SECONDS)) as server:
        yield server


@contextmanager
def _floor(stage: Stage, interval: float, ticks: int) -> Iterator[Running]:
    port = free_port()
    milliseconds = round(interval * 1000)
    command = [stage.floor, str(port), str(milliseconds), str(ticks), stage.document]
    with running([str(part) for part in command], port, "/", core=SERVER_CORE) as server:
        yield server
