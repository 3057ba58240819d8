"""The engines that contract tests run on: each suite runs unchanged on every one of them."""

from collections.abc import AsyncIterator, Callable
from itertools import count
from pathlib import Path
from typing import Protocol

import pytest

from routecast.adapters import redis_client
from routecast.adapters.store import names
from routecast.adapters.store.postgres import PostgresStore, compactor
from routecast.adapters.store.postgres import folding as postgres_folding
from routecast.adapters.store.sqlite import SqliteStore, deltas, folding
from routecast.ports import Bus, Cache, Cluster, Database
from tests.support.engines import Shared, SharedMemory, SharedRedis, carried
from tests.support.needs import skip_as_meant
from tests.support.pgbouncer import PgBouncer
from tests.support.postgres import Postgres

# Makes a store, not yet opened, on one and the same database each time.
Connect = Callable[[], Database]


class Databases(Protocol):
    """An engine with any number of databases."""

    def create(self) -> Connect:
        """Make a new, empty database."""
        ...


class SqliteDatabases:
    """A file for each database."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = count()

    def create(self) -> Connect:
        path = self._folder / f"{next(self._numbers)}.db"
        return lambda: SqliteStore(path)


class PostgresDatabases:
    """One server with a database each, reached directly or through a pooler."""

    def __init__(self, server: Postgres, pooler: PgBouncer | None = None) -> None:
        self._server = server
        self._pooler = pooler

    def create(self) -> Connect:
        url = self._server.create()
        if self._pooler is not None:
            url = self._pooler.through(url)
        return lambda: PostgresStore(url)


@pytest.fixture(params=["sqlite", "postgres", "pgbouncer"])
def databases(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Databases:
    """Each database engine in turn; it folds often and in small parts."""
    monkeypatch.setattr(folding, "SQLITE_FOLD_COMMITS", 3)
    monkeypatch.setattr(deltas, "PART_CELLS", 2)
    monkeypatch.setattr(folding, "STEP_CELLS", 3)
    monkeypatch.setattr(compactor, "POSTGRES_FOLD_COMMITS", 3)
    monkeypatch.setattr(postgres_folding, "BYTES_AT_ONCE", 1)
    monkeypatch.setattr(names, "ROLLUPS_AT_ONCE", 2)
    if request.param == "sqlite":
        return SqliteDatabases(tmp_path)
    if request.param == "pgbouncer" and request.node.get_closest_marker("many_databases"):
        skip_as_meant("the lives of stores take a hundred databases, and no pooler")
    server = request.getfixturevalue("postgres")
    if request.param == "postgres":
        return PostgresDatabases(server)
    return PostgresDatabases(server, request.getfixturevalue("pgbouncer"))


@pytest.fixture
def connect(databases: Databases) -> Connect:
    """A function that opens stores on one new, empty database."""
    return databases.create()


@pytest.fixture
async def store(connect: Connect) -> AsyncIterator[Database]:
    """An open store on an empty database."""
    opened = connect()
    await opened.open()
    yield opened
    await opened.close()


@pytest.fixture(params=["memory", "redis"])
def shared(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Shared:
    """Each engine that nodes share in turn; a busy machine may be slow to reach it."""
    if request.param == "memory":
        return SharedMemory()
    for limit in ("REDIS_CONNECT_SECONDS", "REDIS_ANSWER_SECONDS", "CALL_SECONDS"):
        monkeypatch.setattr(redis_client, limit, 30.0)
    return SharedRedis(request.getfixturevalue("redis_url"))


@pytest.fixture
async def cache(shared: Shared) -> AsyncIterator[Cache]:
    """An empty cache with a lifetime longer than a test."""
    made = shared.cache(600)
    yield made
    await made.close()


@pytest.fixture
async def bus(shared: Shared) -> AsyncIterator[Bus]:
    """A bus without listeners."""
    async with carried(shared.bus()) as made:
        yield made


@pytest.fixture
async def other(shared: Shared, bus: Bus) -> AsyncIterator[Bus]:
    """Another node's end of the bus."""
    async with carried(shared.bus()) as made:
        yield made


@pytest.fixture
async def cluster(shared: Shared) -> AsyncIterator[Cluster]:
    """The only node of a cluster."""
    made = shared.cluster()
    yield made
    await made.close()
