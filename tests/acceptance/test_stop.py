"""A server that gets SIGTERM while its database is busy, locked or frozen."""

import asyncio
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import httpx2
import pytest

from routecast.adapters.store.postgres import PostgresStore
from routecast.adapters.store.sqlite import SqliteStore
from routecast.errors import Unavailable
from routecast.ports import MAX_GROUP
from tests.acceptance.test_durability import verify
from tests.support.decisions import NOW, kept
from tests.support.postgres import OwnPostgres
from tests.support.running_services import PATIENCE
from tests.support.server import Server

GOOD = {"strategy": "hybrid", "provider": "gemini"}
# What a node may take to stop; a test process on a busy machine needs some more to see it.
STOP_SECONDS = 15
SLOW = """
CREATE TRIGGER slow BEFORE INSERT ON decisions BEGIN
    SELECT (WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n);
END
"""


def batches() -> Iterator[list[dict[str, Any]]]:
    """Small batches, and a large one that is prepared beside them."""
    for number in range(4):
        yield [{**GOOD, "id": f"small-{number}"}]
    yield [{**GOOD, "id": f"large-{number}"} for number in range(MAX_GROUP + 1)]


def stop_while_waiting(server: Server) -> list[httpx2.Response]:
    """Stop a server while producers wait for it; return their answers."""

    def post(decisions: list[dict[str, Any]]) -> httpx2.Response:
        return httpx2.post(f"{server.url}/v1/decisions", json=decisions, timeout=60)

    with ThreadPoolExecutor(8) as pool:
        answers: list[Future[httpx2.Response]] = [pool.submit(post, one) for one in batches()]
        everything = sum(map(len, batches()))
        while server.instrument("routecast_ingest_queue_decisions") < everything:
            assert not any(answer.done() for answer in answers)
            time.sleep(0.05)  # time between two checks; the answer is the event
        started = time.monotonic()
        server.terminate()
        assert server.wait() == 0
        assert time.monotonic() - started < STOP_SECONDS
        return [answer.result() for answer in answers]


def assert_refused(answers: list[httpx2.Response]) -> None:
    """Assert that each answer is a 503 with `Retry-After`."""
    for answer in answers:
        assert answer.status_code == 503
        assert answer.headers["content-type"] == "application/problem+json"
        assert int(answer.headers["retry-after"]) > 0


@contextmanager
def slow(path: Path) -> Iterator[None]:
    """Make each insert run without end."""
    with sqlite3.connect(path) as other:
        other.execute(SLOW)
    yield
    with sqlite3.connect(path) as other:
        other.execute("DROP TRIGGER slow")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the write lock."""
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    yield
    other.execute("ROLLBACK")
    other.close()


@pytest.mark.parametrize("busy", [slow, locked])
def test_busy_sqlite_does_not_hold_up_the_end(server: Server, busy: Callable[[Path], Any]) -> None:
    """Waiting producers get 503 and nothing of theirs is stored; acknowledged decisions are."""
    server.post([{**GOOD, "id": "before"}])
    with busy(server.database):
        answers = stop_while_waiting(server)
        assert_refused(answers)
    assert "Traceback" not in server.log.read_text()
    server.start()
    assert server.metrics()["total_decisions"] == 1
    for decisions in batches():
        assert server.post(decisions)["accepted"] == len(decisions)
    assert verify(server).returncode == 0


def test_stop_while_a_commit_ends_is_answered_right(server: Server) -> None:
    """Waiting batches are committed if the database can do so in time."""
    with ThreadPoolExecutor(1) as pool, locked(server.database):
        answer = pool.submit(httpx2.post, f"{server.url}/v1/decisions", json=[GOOD], timeout=60)
        while not server.instrument("routecast_ingest_queue_decisions"):
            assert not answer.done()
            time.sleep(0.05)  # time between two checks; the answer is the event
        server.terminate()
    assert answer.result().status_code == 200
    assert server.wait() == 0
    server.start()
    assert server.metrics()["total_decisions"] == 1


def test_frozen_postgresql_does_not_hold_up_the_end(
    tmp_path: Path, own_postgres: OwnPostgres
) -> None:
    """Waiting producers get 503, and the server ends."""
    server = Server(tmp_path / "node", database_url=own_postgres.create())
    server.start()
    server.post([{**GOOD, "id": "before"}])
    own_postgres.signal(signal.SIGSTOP)
    try:
        assert_refused(stop_while_waiting(server))
    finally:
        own_postgres.signal(signal.SIGCONT)
    assert "Traceback" not in server.log.read_text()
    assert asyncio.run(stored(server.database_url)) == 1


async def stored(url: str) -> int:
    """Return the number of decisions in a PostgreSQL database."""
    connection = await asyncpg.connect(url)
    try:
        count: int = await connection.fetchval("SELECT count(*) FROM routecast.decisions")
        return count
    finally:
        await connection.close()


async def test_stop_ends_an_opening_of_postgresql(own_postgres: OwnPostgres) -> None:
    """A node stops while it waits for another node's migration, which does not end."""
    url = own_postgres.create()
    other = await asyncpg.connect(url)
    await other.execute("SELECT pg_advisory_lock(1381254977, 0)")  # as `lock_schema` does
    store = PostgresStore(url)
    opening = asyncio.create_task(store.open())
    waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    async with asyncio.timeout(PATIENCE):
        while not await other.fetchval(waiting):
            assert not opening.done()
        store.stop()
        with pytest.raises(Unavailable):
            await opening
        with pytest.raises(Unavailable):
            await store.open()
        await store.close()
    await other.close()


async def test_stop_ends_what_sqlite_does(tmp_path: Path) -> None:
    """A stop ends an endless commit and the one behind it; nothing of them is stored."""
    store = SqliteStore(tmp_path / "routecast.db")
    await store.open()
    with slow(store.path):
        commit = asyncio.create_task(store.commit([[kept(1)]], NOW))
        queued = asyncio.create_task(store.commit([[kept(2)]], NOW))
        async with asyncio.timeout(PATIENCE):
            while store._writing._work_queue.qsize() != 1:  # noqa: ASYNC110  # -- has no event
                await asyncio.sleep(0.01)
            store.stop()
            await store.close()
            for one in (commit, queued):
                with pytest.raises(Unavailable):
                    await one
    again = SqliteStore(store.path)
    await again.open()
    assert (await again.position()).seq == 0
    await again.close()
