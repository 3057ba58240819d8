"""Benchmark `freshness`: the time from an acknowledged decision to the frame that counts it."""

import asyncio
import json
import random
import statistics
import subprocess
import tempfile
import time
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Final

import msgspec
import uvloop
from websockets import Subprotocol
from websockets.asyncio.client import ClientConnection, connect

from benchmarks.cases import Broken, answer, command, run_case
from benchmarks.load import HOST, Client, post
from benchmarks.options import Options
from benchmarks.report import Figure, Report
from benchmarks.servers import routecast
from benchmarks.traffic import SEED, Ids, decisions

INTERVAL: Final = 0.1
CROWD: Final = 100
PARTS_PER_SECOND: Final = 100  # requests per second of a steady flow


class Watch(msgspec.Struct, tag=True):
    """Send decisions to a node, one after the other; wait for the frame that counts each.

    Frames are those of the node at port `frames_of`, or of the same node if it is 0: of the default
    stream, or of a `routecast.v1` subscription. A decision is sent `apart` to `apart` + 1 intervals
    after the frame of the decision before.
    """

    port: int
    samples: int
    frames_of: int = 0
    v1: bool = False
    apart: float = 0.0


class Flow(msgspec.Struct, tag=True):
    """Send decisions at a steady pace; wait for the `routecast.v1` message that counts each."""

    port: int
    samples: int
    per_second: int


class Crowd(msgspec.Struct, tag=True):
    """Keep streams open on each node until killed."""

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
        with routecast(Path(folder, "pushed.db")) as port:
            rare = Watch(port, samples, v1=True, apart=1.1)
            waited = run_case("benchmarks.freshness", rare, Waited)
            figures += percentiles("routecast.v1, further apart", waited.seconds, most=10)
        with routecast(Path(folder, "steady.db")) as port:
            flow = Flow(port, 10 * samples, per_second=1_000)
            waited = run_case("benchmarks.freshness", flow, Waited)
            figures += percentiles("routecast.v1, 1,000 a second", waited.seconds, most=110)
    title = f"From acknowledged decision to frame, interval {1000 * INTERVAL:.0f} ms, {samples}"
    return Report("freshness", f"{title} decisions a case", figures, options.quick)


def percentiles(case: str, seconds: list[float], most: float) -> list[Figure]:
    """Return how long decisions waited for their frames; `most` milliseconds, of 99 in 100."""
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    p50, p95, p99 = (1000 * cuts[percent - 1] for percent in (50, 95, 99))
    return [
        Figure(f"{case}, p50, ms", [p50], decimals=1),
        Figure(f"{case}, p95, ms", [p95], decimals=1),
        Figure(f"{case}, p99, ms", [p99], most=most, decimals=1),
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


def _v1(port: int) -> connect:
    subprotocols = [Subprotocol("routecast.v1.json")]
    url = f"ws://{HOST}:{port}/ws/metrics"
    return connect(url, compression=None, subprotocols=subprotocols)


_SUBSCRIBE: Final = json.dumps(
    {"type": "subscribe", "id": "x", "fields": ["total_decisions"], "interval": INTERVAL}
)


async def _watch(task: Watch) -> Waited:
    rng = random.Random(SEED)
    client = await Client.connect(task.port)
    requests = [post(msgspec.json.encode(d)) for d in decisions(task.samples, Ids.RANDOM)]
    waited = []
    async with (_v1 if task.v1 else _stream)(task.frames_of or task.port) as stream:
        if task.v1:
            await stream.send(_SUBSCRIBE)
        frames = _Frames(stream)
        for number, request in enumerate(requests, await frames.first() + 1):
            await asyncio.sleep(INTERVAL * (task.apart + rng.random()))
            await client.ask(request)
            acknowledged = time.perf_counter()
            # A frame may arrive before the answer: then the delay is 0.
            waited.append(max(0.0, await frames.holding(number) - acknowledged))
        await frames.close()
    client.close()
    return Waited(waited)


async def _flow(task: Flow) -> Waited:
    client = await Client.connect(task.port)
    size = task.per_second // PARTS_PER_SECOND
    sent = list(decisions(task.samples, Ids.RANDOM))
    parts = [sent[start : start + size] for start in range(0, len(sent), size)]
    requests = [post(msgspec.json.encode(part)) for part in parts]
    acknowledged = {}
    async with _v1(task.port) as stream:
        await stream.send(_SUBSCRIBE)
        frames = _Frames(stream)
        total, began = await frames.first(), time.perf_counter()
        for number, request in enumerate(requests, 1):
            await asyncio.sleep(began + number / PARTS_PER_SECOND - time.perf_counter())
            await client.ask(request)
            total += size
            acknowledged[total] = time.perf_counter()
        await frames.holding(total)
        await frames.close()
    client.close()
    return Waited([max(0.0, frames.first_with(total) - at) for total, at in acknowledged.items()])


class _Frames:
    """Records when a stream first had each count of decisions."""

    def __init__(self, stream: ClientConnection) -> None:
        self._total, self._at = -1, 0.0
        self._seen: list[tuple[int, float]] = []  # each count, and when it arrived
        self._came = asyncio.Event()
        self._task = asyncio.create_task(self._read(stream))

    async def _read(self, stream: ClientConnection) -> None:
        async for frame in stream:
            now, message = time.perf_counter(), json.loads(frame)
            total = message.get("data", message).get("total_decisions", -1)
            if total > self._total:
                self._total, self._at = total, now
                self._seen.append((total, now))
                self._came.set()

    def first_with(self, total: int) -> float:
        """Return when a frame that has arrived first had `total` decisions."""
        return self._seen[bisect_left(self._seen, (total, 0.0))][1]

    async def first(self) -> int:
        """Wait for the first frame; return its count of decisions."""
        await self.holding(0)
        return self._total

    async def holding(self, total: int) -> float:
        """Wait for a frame with `total` decisions; return when it arrived."""
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


def measure(task: Watch | Flow | Crowd) -> Waited:
    """Do one of the tasks."""
    match task:
        case Watch():
            return uvloop.run(_watch(task))
        case Flow():
            return uvloop.run(_flow(task))
        case Crowd():
            return uvloop.run(_join(task))


if __name__ == "__main__":
    answer(Watch | Flow | Crowd, measure)
