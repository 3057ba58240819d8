"""Freshness: from an acknowledged decision to the frame that holds it."""

import asyncio
import json
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Final

import msgspec
import uvloop
from websockets.asyncio.client import ClientConnection, connect

from benchmarks.cases import Broken, answer, command, run_case
from benchmarks.load import HOST, Client, post
from benchmarks.options import Options
from benchmarks.report import Figure, Report
from benchmarks.servers import routecast
from benchmarks.traffic import SEED, Ids, decisions

INTERVAL: Final = 0.1
CROWD: Final = 100


class Watch(msgspec.Struct, tag=True):
    """Send so many decisions to a node, one after the other; wait for the frame that holds each.

    Frames are those of node `frames_of`, of the same one where it is 0.
    """

    port: int
    samples: int
    frames_of: int = 0


class Crowd(msgspec.Struct, tag=True):
    """Keep so many streams open on each node, until killed."""

    ports: list[int]
    streams: int
    interval: float = INTERVAL


class Waited(msgspec.Struct):
    """Seconds from each decision's acknowledgement to the first frame that counts it."""

    seconds: list[float]


def freshness(options: Options) -> Report:
    """From acknowledged decision to frame, at an interval of 0.1 s."""
    figures = []
    samples = 60 if options.quick else 600
    with tempfile.TemporaryDirectory() as folder:
        with routecast(Path(folder, "alone.db")) as port:
            waited = run_case("benchmarks.freshness", Watch(port, samples), Waited)
            figures += percentiles("one stream", waited.seconds, most=150)
        with routecast(Path(folder, "crowded.db")) as port, crowd(Crowd([port], CROWD)):
            waited = run_case("benchmarks.freshness", Watch(port, samples), Waited)
            figures += percentiles(f"beside {CROWD} streams", waited.seconds, most=150)
    title = f"From acknowledged decision to frame, interval {1000 * INTERVAL:.0f} ms, {samples}"
    return Report("freshness", f"{title} decisions a case", figures, options.quick)


def percentiles(case: str, seconds: list[float], most: float) -> list[Figure]:
    """Return how long decisions waited for their frames; `most` milliseconds, of 99 in 100."""
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    p50, p95, p99 = (1000 * cuts[percent - 1] for percent in (50, 95, 99))
    return [
        Figure(f"{case}, p50, ms", [p50], decimals=0),
        Figure(f"{case}, p95, ms", [p95], decimals=0),
        Figure(f"{case}, p99, ms", [p99], most=most, decimals=0),
        Figure(f"{case}, p99 ÷ interval", [p99 / (1000 * INTERVAL)], most=most / (1000 * INTERVAL)),
    ]


@contextmanager
def crowd(task: Crowd) -> Iterator[None]:
    """Keep streams open, in a process of their own."""
    process = subprocess.Popen(command("benchmarks.freshness", task), stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        if not process.stdout.readline():
            raise Broken("the crowd of streams could not connect")
        yield
    finally:
        process.kill()
        process.wait()


# -- the cases ----------------------------------------------------------------------------------


def _stream(port: int, interval: float = INTERVAL) -> connect:
    return connect(f"ws://{HOST}:{port}/ws/metrics?interval={interval}", compression=None)


async def _watch(task: Watch) -> Waited:
    rng = random.Random(SEED)
    client = await Client.connect(task.port)
    requests = [post(msgspec.json.encode(d)) for d in decisions(task.samples, Ids.RANDOM)]
    waited = []
    async with _stream(task.frames_of or task.port) as stream:
        frames = _Frames(stream)
        for number, request in enumerate(requests, await frames.first() + 1):
            await asyncio.sleep(INTERVAL * rng.random())
            await client.ask(request)
            acknowledged = time.perf_counter()
            # A frame sent before the answer can come before it, too: nobody waited for that one.
            waited.append(max(0.0, await frames.holding(number) - acknowledged))
        await frames.close()
    client.close()
    return Waited(waited)


class _Frames:
    """Notes when a count was first seen in a stream."""

    def __init__(self, stream: ClientConnection) -> None:
        self._total, self._at = -1, 0.0
        self._came = asyncio.Event()
        self._task = asyncio.create_task(self._read(stream))

    async def _read(self, stream: ClientConnection) -> None:
        async for frame in stream:
            now, total = time.perf_counter(), json.loads(frame)["total_decisions"]
            if total > self._total:
                self._total, self._at = total, now
                self._came.set()

    async def first(self) -> int:
        """Return how many decisions the first frame held; wait for it."""
        await self.holding(0)
        return self._total

    async def holding(self, total: int) -> float:
        """Return when a frame first held so many decisions; wait for it."""
        while self._total < total:
            self._came.clear()
            await self._came.wait()
        return self._at

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def _join(task: Crowd) -> Waited:
    async with AsyncExitStack() as stack:
        streams = [
            await stack.enter_async_context(_stream(port, task.interval))
            for _ in range(task.streams)
            for port in task.ports
        ]
        readers = [asyncio.create_task(_drain(stream)) for stream in streams]
        print("connected", flush=True)
        await asyncio.gather(*readers)
    return Waited([])


async def _drain(stream: ClientConnection) -> None:
    async for _ in stream:
        pass


def measure(task: Watch | Crowd) -> Waited:
    """Do one of the tasks."""
    return uvloop.run(_watch(task) if isinstance(task, Watch) else _join(task))


if __name__ == "__main__":
    answer(Watch | Crowd, measure)
