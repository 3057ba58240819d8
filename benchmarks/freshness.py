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
    """Send so many decisions, one after the other, and wait for the frame that holds each."""

    port: int
    samples: int


class Crowd(msgspec.Struct, tag=True):
    """Keep so many streams open, until killed."""

    port: int
    streams: int


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
            figures += _percentiles("one stream", waited.seconds)
        with routecast(Path(folder, "crowded.db")) as port, _crowd(port):
            waited = run_case("benchmarks.freshness", Watch(port, samples), Waited)
            figures += _percentiles(f"beside {CROWD} streams", waited.seconds)
    title = f"From acknowledged decision to frame, interval {1000 * INTERVAL:.0f} ms, {samples}"
    return Report("freshness", f"{title} decisions a case", figures, options.quick)


def _percentiles(case: str, seconds: list[float]) -> list[Figure]:
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    p50, p95, p99 = (1000 * cuts[percent - 1] for percent in (50, 95, 99))
    return [
        Figure(f"{case}, p50, ms", [p50], decimals=0),
        Figure(f"{case}, p95, ms", [p95], decimals=0),
        Figure(f"{case}, p99, ms", [p99], most=150, decimals=0),
        Figure(f"{case}, p99 ÷ interval", [p99 / (1000 * INTERVAL)], most=1.5),
    ]


@contextmanager
def _crowd(port: int) -> Iterator[None]:
    """Keep other streams open, in a process of their own."""
    crowd = subprocess.Popen(
        command("benchmarks.freshness", Crowd(port, CROWD)), stdout=subprocess.PIPE
    )
    try:
        assert crowd.stdout is not None
        if not crowd.stdout.readline():
            raise Broken("the crowd of streams could not connect")
        yield
    finally:
        crowd.kill()
        crowd.wait()


# -- the cases ----------------------------------------------------------------------------------


def _stream(port: int) -> connect:
    return connect(f"ws://{HOST}:{port}/ws/metrics?interval={INTERVAL}", compression=None)


async def _watch(task: Watch) -> Waited:
    rng = random.Random(SEED)
    client = await Client.connect(task.port)
    requests = [post(msgspec.json.encode(d)) for d in decisions(task.samples, Ids.RANDOM)]
    waited = []
    async with _stream(task.port) as stream:
        frames = _Frames(stream)
        for number, request in enumerate(requests, 1):
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
        self._total, self._at = 0, 0.0
        self._came = asyncio.Event()
        self._task = asyncio.create_task(self._read(stream))

    async def _read(self, stream: ClientConnection) -> None:
        async for frame in stream:
            now, total = time.perf_counter(), json.loads(frame)["total_decisions"]
            if total > self._total:
                self._total, self._at = total, now
                self._came.set()

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
        streams = [await stack.enter_async_context(_stream(task.port)) for _ in range(task.streams)]
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
