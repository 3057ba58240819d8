"""Benchmark `totals`: the cost of reading totals with a thousand times as many decisions."""

import asyncio
import itertools
import random
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Final

import msgspec
import uvloop

from benchmarks.cases import answer, run_case
from benchmarks.load import Client, get
from benchmarks.options import Options
from benchmarks.report import Figure, Report, ratios
from benchmarks.servers import routecast
from benchmarks.traffic import MODELS, STRATEGIES, latencies
from routecast.core.decision import MINUTE, DecisionRecord
from routecast.protocol import BANDS
from routecast.server.databases import open_store
from routecast.server.run import spare_collector

SMALL: Final = 5_000
LARGE: Final = 5_000_000
GROUP: Final = 10_000
# The number of minutes in which every series has decisions: few or many decisions make the same
# rollups.
SPAN: Final = 50
# Rendered for each request, because a rate changes with time.
VIEWS: Final = {
    "GET /routing/metrics": "/routing/metrics",
    "GET /routing/metrics, rendered anew": "/routing/metrics?fields=total_decisions,avg_confidence,"
    "strategy_performance,confidence_distribution,provider_usage,rate",
}


class Fill(msgspec.Struct, tag=True):
    """Write a database of decisions."""

    database: str
    decisions: int


class Filled(msgspec.Struct):
    """The number of decisions that were written to a database."""

    decisions: int


class Read(msgspec.Struct, tag=True):
    """Load the rollups of two databases in turns, `times` per round, each with a new store."""

    databases: tuple[str, str]
    times: int
    rounds: int


class Ask(msgspec.Struct, tag=True):
    """Query two servers in turns, `times` each, in `rounds` rounds."""

    ports: tuple[int, int]
    path: str
    times: int
    rounds: int


class Taken(msgspec.Struct):
    """The median seconds of each round, of both servers."""

    first: list[float]
    second: list[float]


def totals(options: Options) -> Report:
    """Reading totals at 5,000,000 decisions and at 5,000."""
    with tempfile.TemporaryDirectory() as folder:
        few, many = (f"sqlite:///{folder}/{name}.db" for name in ("few", "many"))
        figures = reading("SqliteStore", few, many, options)
    title = f"Reading totals at {large(options):,} decisions and at {SMALL:,}, in the same rollups"
    return Report("totals", title, figures, options.quick)


def large(options: Options) -> int:
    """Return the number of decisions of the large database."""
    return 100_000 if options.quick else LARGE


def reading(store: str, few: str, many: str, options: Options) -> list[Figure]:
    """Fill two new databases; return the costs of reading totals with many decisions and few."""
    rounds, times = (3, 5) if options.quick else (11, 15)
    for database, count in ((few, SMALL), (many, large(options))):
        run_case("benchmarks.totals", Fill(database, count), Filled)
    read = Read((few, many), times, rounds)
    figures = _compare(f"{store}.load", run_case("benchmarks.totals", read, Taken))
    with routecast(few) as first, routecast(many) as second:
        for name, path in VIEWS.items():
            ask = Ask((first, second), path, 20 * times, rounds)
            figures += _compare(name, run_case("benchmarks.totals", ask, Taken))
    return figures


def _compare(name: str, taken: Taken) -> list[Figure]:
    few, many = taken.first, taken.second
    return [
        Figure(f"{name}, many ÷ few", ratios(many, few), most=1.1),
        Figure(f"{name}, few, ms", [1e3 * seconds for seconds in few]),
        Figure(f"{name}, many, ms", [1e3 * seconds for seconds in many]),
    ]


# -- the cases ----------------------------------------------------------------------------------


def _decisions(count: int, now: int) -> Iterator[DecisionRecord]:
    """Yield decisions minute by minute; in each minute, the series come in turn."""
    rng = random.Random(count)
    latency = latencies(rng)
    pool = [round(1000 * next(latency)) for _ in range(100_000)]
    series = itertools.cycle(itertools.product(STRATEGIES, MODELS, BANDS))
    for number in range(count):
        minute = now - (SPAN - number * SPAN // count) * MINUTE
        strategy, (provider, model), band = next(series)
        key = ("default", strategy, provider, model, band, "success")
        numbers = (minute, 800_000, 1_500_000, pool[rng.randrange(len(pool))], 900, 200)
        rest = (False, None, "default")
        yield DecisionRecord(f"{number:016x}", *key, *numbers, *rest)


async def _fill(task: Fill) -> Filled:
    now = time.time_ns() // 1000
    store = open_store(task.database)
    await store.open()
    rest = _decisions(task.decisions, now)
    while group := list(itertools.islice(rest, GROUP)):
        await store.commit([group], now)
    await store.prune(decisions_before=0, minutes_before=0, limit=1)  # it folds all deltas
    await store.close()
    return Filled(task.decisions)


async def _read(task: Read) -> Taken:
    async def load(database: str) -> float:
        store = open_store(database)
        await store.open()
        await store.position()  # connects
        started = time.perf_counter()
        await store.load(time.time_ns() // 1000)
        seconds = time.perf_counter() - started
        await store.close()
        return seconds

    few, many = task.databases
    spare_collector()  # as a node does
    return await _by_turns(lambda: load(few), lambda: load(many), task.times, task.rounds)


async def _ask(task: Ask) -> Taken:
    request = get(task.path)

    async def ask(client: Client) -> float:
        started = time.perf_counter()
        await client.ask(request)
        return time.perf_counter() - started

    few, many = [await Client.connect(port) for port in task.ports]
    return await _by_turns(lambda: ask(few), lambda: ask(many), task.times, task.rounds)


Timed = Callable[[], Awaitable[float]]


async def _by_turns(first: Timed, second: Timed, times: int, rounds: int) -> Taken:
    taken = Taken([], [])
    for _ in range(rounds):
        pairs = [(await first(), await second()) for _ in range(times)]
        taken.first.append(statistics.median(seconds for seconds, _ in pairs))
        taken.second.append(statistics.median(seconds for _, seconds in pairs))
    return taken


def measure(task: Fill | Read | Ask) -> Filled | Taken:
    """Do one of the tasks."""
    match task:
        case Fill():
            return asyncio.run(_fill(task))
        case Read():
            return uvloop.run(_read(task))
        case Ask():
            return uvloop.run(_ask(task))


if __name__ == "__main__":
    answer(Fill | Read | Ask, measure)
