"""The engines under contract: each suite runs unchanged on every one of them."""

from collections.abc import AsyncIterator, Callable
from itertools import count
from pathlib import Path
from typing import Protocol

import pytest

from routecast.bus.memory import MemoryBus
from routecast.cache.memory import MemoryCache
from routecast.clock import SystemClock
from routecast.ports import Bus, Cache, Store
from routecast.store import sqlite
from routecast.store.sqlite import SqliteStore

# Makes a store, not yet opened, on one and the same database each time.
Connect = Callable[[], Store]
# Makes a cache that keeps a snapshot for so many seconds.
MakeCache = Callable[[float], Cache]


class Databases(Protocol):
    """An engine that can hold any number of databases."""

    def create(self) -> Connect:
        """Make a new, empty database."""
        ...


class SqliteDatabases:
    """A file each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = count()

    def create(self) -> Connect:
        path = self._folder / f"{next(self._numbers)}.db"
        return lambda: SqliteStore(path)


@pytest.fixture(params=[pytest.param(SqliteDatabases, id="sqlite")])
def databases(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Databases:
    """An engine for databases, each one in its turn; it folds often, to be seen to."""
    monkeypatch.setattr(sqlite, "FOLD_COMMITS", 3)
    engine: Databases = request.param(tmp_path)
    return engine


@pytest.fixture
def connect(databases: Databases) -> Connect:
    """An empty database, to which any number of stores may connect."""
    return databases.create()


@pytest.fixture
async def store(connect: Connect) -> AsyncIterator[Store]:
    """An open store on an empty database."""
    opened = connect()
    await opened.open()
    yield opened
    await opened.close()


def _memory_cache(lifetime: float) -> Cache:
    return MemoryCache(SystemClock(), lifetime)


@pytest.fixture(params=[pytest.param(_memory_cache, id="memory")])
def make_cache(request: pytest.FixtureRequest) -> MakeCache:
    """Makes caches, on each engine in its turn."""
    make: MakeCache = request.param
    return make


@pytest.fixture
async def cache(make_cache: MakeCache) -> AsyncIterator[Cache]:
    """An empty cache that keeps things for longer than a test takes."""
    made = make_cache(600)
    yield made
    await made.close()


@pytest.fixture(params=[pytest.param(MemoryBus, id="memory")])
async def bus(request: pytest.FixtureRequest) -> AsyncIterator[Bus]:
    """A bus with nobody on it."""
    made: Bus = request.param()
    yield made
    await made.close()
