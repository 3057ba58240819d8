"""The cluster of several nodes."""

import asyncio

import pytest

from tests.support.engines import PATIENCE, SharedRedis


@pytest.fixture
def shared(redis_url: str) -> SharedRedis:
    return SharedRedis(redis_url)


async def test_one_node_gets_the_work(shared: SharedRedis) -> None:
    """However many ask at once; the others know that it is taken."""
    nodes = [shared.cluster() for _ in range(8)]
    claimed = await asyncio.gather(*(node.claim("look", 600) for node in nodes))
    assert sum(claimed) == 1
    for node in nodes:
        await node.close()


async def test_streams_of_all_nodes_count(shared: SharedRedis) -> None:
    """Each node's newest word; who leaves takes its own away."""
    first, second = shared.cluster(), shared.cluster()
    await first.tell(5)
    await second.tell(7)
    await first.tell(6)
    assert await first.connections() == await second.connections() == 13
    await first.close()
    assert await second.connections() == 7
    await second.close()


async def test_node_that_falls_silent_does_not_count(shared: SharedRedis) -> None:
    """After its time, without a word; by Redis's clock, so that no node's matters."""
    silent, watcher = shared.cluster(0.2), shared.cluster()
    await watcher.tell(1)
    await silent.tell(5)
    async with asyncio.timeout(PATIENCE):
        while await watcher.connections() != 1:  # noqa: ASYNC110  -- asking is the test
            await asyncio.sleep(0.02)
    await silent.tell(5)
    assert await watcher.connections() == 6
    for node in (silent, watcher):
        await node.close()


async def test_census_ends_when_all_fell_silent(shared: SharedRedis) -> None:
    """Without anybody to count them."""
    node, watcher = shared.cluster(0.1), shared.cluster()
    await node.tell(5)
    async with asyncio.timeout(PATIENCE):
        while await watcher.connections():  # noqa: ASYNC110  -- asking is the test
            await asyncio.sleep(0.02)
    for one in (node, watcher):
        await one.close()
