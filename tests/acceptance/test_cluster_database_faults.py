"""Faults of PostgreSQL under a cluster with load; the ledger checks every answer and frame.

As in `test_cluster_faults`: decisions are refused while it cannot take them, and streams go on.
"""

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest

from tests.acceptance.faults import LOCK, OUTAGE, busy, survived
from tests.acceptance.ledger import Ledger
from tests.support.needs import skip_without
from tests.support.nodes import Nodes
from tests.support.postgres import USER, OwnPostgres
from tests.support.redis import RedisServer

CUT = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'routecast'"


@asynccontextmanager
async def connected(url: str) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def locked(connection: "asyncpg.Connection[asyncpg.Record]") -> AsyncIterator[None]:
    """Lock the tables that every commit needs."""
    while True:
        transaction = connection.transaction()
        await transaction.start()
        try:
            await connection.execute("LOCK TABLE routecast.deltas, routecast.history")
            break
        except asyncpg.DeadlockDetectedError:  # with a node that has one and waits for the other
            await transaction.rollback()
    try:
        yield
    finally:
        await transaction.rollback()


async def test_postgres_killed(ledger: Ledger, own_postgres: OwnPostgres) -> None:
    """After SIGKILL decisions are refused until PostgreSQL has recovered; streams continue."""
    with ledger.fault():
        own_postgres.kill()
        await asyncio.sleep(OUTAGE)
        await asyncio.to_thread(own_postgres.start)
    report = await survived(ledger)
    assert report.retries > 0
    assert report.failures == 0


async def test_postgres_connections_terminated(ledger: Ledger, own_postgres: OwnPostgres) -> None:
    """Nothing is lost if all connections are terminated again and again."""
    async with connected(own_postgres.url) as connection:
        with ledger.fault():
            for _ in range(round(10 * OUTAGE)):
                await connection.execute(CUT)
                await asyncio.sleep(0.1)
    report = await survived(ledger)
    assert report.failures == 0


async def test_postgres_connections_exhausted(ledger: Ledger, own_postgres: OwnPostgres) -> None:
    """Nothing is lost if other programs have taken all connections."""
    async with connected(own_postgres.url) as connection:
        with ledger.fault():
            others = []
            try:
                for _ in range(100):
                    await connection.execute(CUT)
                    try:
                        others.append(await asyncpg.connect(own_postgres.url))
                    except asyncpg.TooManyConnectionsError:
                        break
                await asyncio.sleep(OUTAGE)
            finally:
                for other in others:
                    await other.close()
    assert len(others) > 50
    report = await survived(ledger)
    assert report.retries > 0
    assert report.failures == 0


async def test_postgres_lock_held(ledger: Ledger, cluster: Nodes) -> None:
    """Nothing is lost if another session locks the tables for longer than a producer waits."""
    async with connected(cluster.database_url) as connection:
        with ledger.fault():
            async with locked(connection):
                await asyncio.sleep(LOCK)
    report = await survived(ledger)
    assert report.retries > 0
    assert report.failures == 0


async def test_postgres_read_only(ledger: Ledger, cluster: Nodes) -> None:
    """Nothing is lost on an old primary, whose sessions refuse each commit from now on."""
    async with connected(cluster.database_url) as connection:
        database = await connection.fetchval("SELECT current_database()")
        with ledger.fault():
            await connection.execute(
                f"ALTER DATABASE {database} SET default_transaction_read_only = on"
            )
            await connection.execute(CUT)
            await asyncio.sleep(OUTAGE)
            # From now on, new sessions reach the new primary.
            await connection.execute(
                f"ALTER DATABASE {database} RESET default_transaction_read_only"
            )
    report = await survived(ledger)
    assert report.retries > 0
    assert report.failures == 0


@pytest.fixture
def small_disk(own_postgres: OwnPostgres) -> Iterator[Path]:
    """A disk with room for a new database and little else, and ballast that can be removed."""
    folder = own_postgres.folder / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=32m,mode=755", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        skip_without("a small disk to fill up", "run as root, where tmpfs may be mounted")
    (folder / "space").mkdir()
    if USER:
        shutil.chown(folder / "space", USER)
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


async def test_postgres_disk_full(
    tmp_path: Path, own_postgres: OwnPostgres, own_redis: RedisServer, small_disk: Path
) -> None:
    """Without room decisions are refused; with room they are accepted again."""
    async with connected(own_postgres.url) as connection:
        await connection.execute(f"CREATE TABLESPACE small LOCATION '{small_disk / 'space'}'")
        await connection.execute("CREATE DATABASE small TABLESPACE small")
    url = own_postgres.url.replace("/postgres", "/small")
    nodes = Nodes(tmp_path, 2, database_url=url, redis_url=own_redis.url, prefix="small")
    async with busy(nodes) as ledger:
        with ledger.fault():
            fill(small_disk / "ballast")
            await asyncio.sleep(OUTAGE)
            (small_disk / "ballast").unlink()
        report = await survived(ledger)
    assert report.retries > 0
    assert report.failures == 0
    async with connected(own_postgres.url) as connection:
        await connection.execute("DROP DATABASE small WITH (FORCE)")
        await connection.execute("DROP TABLESPACE small")


def fill(ballast: Path) -> None:
    """Fill the disk."""
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
