"""Fixtures of unit tests: a SQLite store, the cache and bus of one process, and a held clock."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from routecast.adapters.bus.memory import MemoryBus
from routecast.adapters.cache.memory import MemoryCache
from routecast.adapters.store.sqlite import SqliteStore
from routecast.instruments import Instruments
from tests.support.clock import HeldClock


@pytest.fixture
def clock() -> HeldClock:
    """A clock in the middle of an hour."""
    return HeldClock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The path of the test's database."""
    return tmp_path / "routecast.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqliteStore]:
    """An open store on an empty database."""
    opened = SqliteStore(path)
    await opened.open()
    yield opened
    await opened.close()


@pytest.fixture
def cache(clock: HeldClock) -> MemoryCache:
    """An empty cache that keeps snapshots for 30 seconds of the clock."""
    return MemoryCache(clock, 30)


@pytest.fixture
def bus() -> MemoryBus:
    """A bus without subscribers."""
    return MemoryBus()


@pytest.fixture
def instruments() -> Instruments:
    """Instruments that have counted nothing."""
    return Instruments()
