"""Benchmark `history`: the cost of thirty days with a hundred times as many decisions."""

import asyncio
import itertools
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import urlencode

import msgspec
import uvloop

from benchmarks.cases import answer, run_case
from benchmarks.load import Client, get, post
from benchmarks.options import Options
from benchmarks.report import Figure, Report, percentile, ratios
from benchmarks.servers import routecast
from benchmarks.totals import Filled
from benchmarks.traffic import FAILING, MODELS, STRATEGIES, latencies
from routecast.core.decision import DAY, SECOND, DecisionRecord
from routecast.core.history import GROUPS
from routecast.server.databases import open_store

SMALL: Final = 50_000
LARGE: Final = 5_000_000
GROUP: Final = 10_000
SPAN: Final = 30 * DAY
POINTS: Final = 300
DECISION: Final = (
    b'{"strategy":"hybrid","provider":"gemini","model":"gemini-2.5-pro","cost":0.0015}'
)
# The fields that dashboards draw. Each query is made for every hour of a day, by each group and by
# none.
DRAWN: Final = {
    "count and cost": "count,cost",
    "all but percentiles": "count,cost,avg_cost,avg_confidence,input_tokens,output_tokens,errors,"
    "fallbacks,avg_latency_ms",
    "percentiles": "count,p50_latency_ms,p95_latency_ms,p99_latency_ms",
}


class Fill(msgspec.Struct, tag=True):
    """Write a database of decisions made in the thirty days before a time."""

    database: str
    decisions: int
    end: int


class Ask(msgspec.Struct, tag=True):
    """Query two servers in turns for what dashboards draw of the time before `end`."""

    ports: tuple[int, int]
    fields: str
    span: int
    end: int
    rounds: int


class Taken(msgspec.Struct):
    """The seconds that each request took, by round, for both servers."""

    first: list[list[float]]
    second: list[list[float]]


def history(options: Options) -> Report:
    """Thirty days in 300 points, at 5,000,000 decisions and at 50,000."""
    large, rounds = (500_000, 3) if options.quick else (LARGE, 5)
    end = time.time_ns() // 1000
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as folder:
        few, many = Path(folder, "few.db"), Path(folder, "many.db")
        for database, count in ((few, SMALL), (many, large)):
            fill = Fill(f"sqlite:///{database}", count, end)
            run_case("benchmarks.history", fill, Filled)
        with routecast(few) as first, routecast(many) as second:
            for name, fields in DRAWN.items():
                ask = Ask((first, second), fields, SPAN, end, rounds)
                figures += _compare(name, run_case("benchmarks.history", ask, Taken), most=1.2)
            ask = Ask((first, second), DRAWN["count and cost"], DAY, end, rounds)
            figures += _compare("one day", run_case("benchmarks.history", ask, Taken))
    title = f"Thirty days in {POINTS} points at {large:,} decisions and at {SMALL:,}"
    return Report("history", title, figures, options.quick)


def _paths(task: Ask, number: int) -> list[str]:
    """Return a path for each hour of a day and each group."""
    asked = []
    for hours, group in itertools.product(range(24), (None, *GROUPS)):
        to = task.end // SECOND - 3600 * hours
        since = to - task.span // SECOND
        query = {"from": since, "to": to, "points": POINTS, "fields": task.fields}
        asked.append(f"/v1/history?{urlencode(query | ({'group_by': group} if group else {}))}")
    random.Random(number).shuffle(asked)
    return asked


def _compare(name: str, taken: Taken, most: float | None = None) -> list[Figure]:
    def each(percent: int, rounds: list[list[float]]) -> list[float]:
        return [1e3 * percentile(seconds, percent) for seconds in rounds]

    few, many = taken.first, taken.second
    return [
        Figure(f"{name}, many: p99, ms", each(99, many), most=None if most is None else 50),
        Figure(f"{name}, many: median, ms", each(50, many)),
        Figure(f"{name}, few: median, ms", each(50, few)),
        Figure(f"{name}, many ÷ few", ratios(each(50, many), each(50, few)), most=most),
    ]


# -- the cases ----------------------------------------------------------------------------------


def _decisions(count: int, end: int) -> Iterator[DecisionRecord]:
    """Yield decisions in the order of time, spread evenly over the days, of random series."""
    rng = random.Random(count)
    latency = latencies(rng)
    pool = [round(1000 * next(latency)) for _ in range(100_000)]
    for number in range(count):
        provider, model = rng.choice(MODELS)
        confidence = round(1e6 * rng.betavariate(5, 2))
        yield DecisionRecord(
            f"{number:016x}",
            "default",
            rng.choice(STRATEGIES),
            provider,
            model,
            "high" if confidence >= 800_000 else "medium" if confidence >= 500_000 else "low",
            "error" if rng.random() < FAILING else "success",
            end - SPAN + number * SPAN // count,
            confidence,
            1_500_000,
            pool[rng.randrange(len(pool))],
            900,
            200,
            fallback=False,
            reason=None,
            owner="default",
        )


async def _fill(task: Fill) -> Filled:
    store = open_store(task.database)
    await store.open()
    rest = _decisions(task.decisions, task.end)
    while group := list(itertools.islice(rest, GROUP)):
        await store.commit([group], task.end)
    await store.prune(decisions_before=0, minutes_before=0, limit=1)  # it folds all deltas
    for hour in await store.unsummed(before=task.end):
        await store.summarise(hour)
    await store.close()
    return Filled(task.decisions)


async def _ask(task: Ask) -> Taken:
    clients = [await Client.connect(port) for port in task.ports]

    async def ask(client: Client, path: str) -> float:
        # After a commit, every answer must be read again, including the deltas that are not folded.
        await client.ask(post(DECISION))
        request = get(path)
        started = time.perf_counter()
        await client.ask(request)
        return time.perf_counter() - started

    taken = Taken([], [])
    for number in range(task.rounds):
        paths = _paths(task, number)
        pairs = [[await ask(client, path) for client in clients] for path in paths]
        taken.first.append([few for few, _ in pairs])
        taken.second.append([many for _, many in pairs])
    return taken


def measure(task: Fill | Ask) -> Filled | Taken:
    """Do one of the tasks."""
    match task:
        case Fill():
            return asyncio.run(_fill(task))
        case Ask():
            return uvloop.run(_ask(task))


if __name__ == "__main__":
    answer(Fill | Ask, measure)
