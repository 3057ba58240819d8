"""The cluster adapter on Redis: claims and the number of streams of several nodes."""

import asyncio

import pytest

from routecast.core.token_bucket import Quota
from tests.support.engines import PATIENCE, SharedRedis


@pytest.fixture
def shared(redis_url: str) -> SharedRedis:
    return SharedRedis(redis_url)


async def test_one_node_gets_a_claim(shared: SharedRedis) -> None:
    """Several nodes ask at once, and all but one learn that it is claimed."""
    nodes = [shared.cluster() for _ in range(8)]
    claimed = await asyncio.gather(*(node.claim("look", 600) for node in nodes))
    assert sum(claimed) == 1
    for node in nodes:
        await node.close()


async def test_streams_of_all_nodes_count(shared: SharedRedis) -> None:
    """The newest report of each node counts; a node that stops removes its own."""
    first, second = shared.cluster(), shared.cluster()
    await first.report_connections(5)
    await second.report_connections(7)
    await first.report_connections(6)
    assert await first.total_connections() == await second.total_connections() == 13
    await first.close()
    assert await second.total_connections() == 7
    await second.close()


async def test_silent_node_does_not_count(shared: SharedRedis) -> None:
    """Its last report expires by the clock of Redis."""
    silent, watcher = shared.cluster(0.2), shared.cluster()
    await watcher.report_connections(1)
    await silent.report_connections(5)
    async with asyncio.timeout(PATIENCE):
        while await watcher.total_connections() != 1:  # noqa: ASYNC110  -- asking is the test
            await asyncio.sleep(0.02)
    await silent.report_connections(5)
    assert await watcher.total_connections() == 6
    for node in (silent, watcher):
        await node.close()


async def test_counts_expire_when_all_nodes_are_silent(shared: SharedRedis) -> None:
    """They expire also if no node reads them."""
    node, watcher = shared.cluster(0.1), shared.cluster()
    await node.report_connections(5)
    async with asyncio.timeout(PATIENCE):
        while await watcher.total_connections():  # noqa: ASYNC110  -- asking is the test
            await asyncio.sleep(0.02)
    for one in (node, watcher):
        await one.close()


async def test_summaries_are_those_of_nodes_that_report(shared: SharedRedis) -> None:
    """Each node reads those of all; that of a silent node expires."""
    silent, other = shared.cluster(0.2), shared.cluster()
    await silent.report_connections(1, b"silent")
    await other.report_connections(2, b"other")
    async with asyncio.timeout(PATIENCE):
        while await other.summaries() != [b"other"]:  # noqa: ASYNC110  -- asking is the test
            await asyncio.sleep(0.02)
    await silent.report_connections(1, b"back")
    assert sorted(await silent.summaries()) == [b"back", b"other"]
    await other.close()
    assert await silent.summaries() == [b"back"]
    await silent.close()


async def test_nodes_spend_from_the_same_allowances(shared: SharedRedis) -> None:
    """Whoever asks; another prefix has its own."""
    quota = Quota(100, 3_600.0)
    first, second = shared.cluster(), shared.cluster()
    await asyncio.gather(*(node.spend("ingest", quota, {"ana": 20}) for node in (first, second)))
    assert await first.spend("ingest", quota, {"ana": 0}) == {"ana": pytest.approx(60, abs=1)}
    other = SharedRedis(shared._url).cluster()
    assert await other.spend("ingest", quota, {"ana": 0}) == {"ana": 100}
    for node in (first, second, other):
        await node.close()


async def test_allowances_do_not_stay_in_redis(shared: SharedRedis) -> None:
    """Each goes when all of it is there again. Names of clients are not in its key."""
    node, link = shared.cluster(), shared.link()
    await node.spend("ingest", Quota(100, 60.0), {"subject ana": 50})
    keys = await link.call(lambda redis: redis.keys(f"{link.key('limit')}*"))
    assert len(keys) == 1
    assert b"ana" not in keys[0]
    milliseconds = await link.call(lambda redis: redis.pttl(keys[0]))
    assert 25_000 < milliseconds <= 31_000
    for one in (node, link):
        await one.close()
