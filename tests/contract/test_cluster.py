"""The contract of every cluster (`ports.Cluster`)."""

import asyncio

from routecast.ports import Cluster
from tests.support.engines import PATIENCE, Shared


async def test_work_is_claimed_once(cluster: Cluster) -> None:
    """While it is claimed, no node gets it again, not even the same one; other work is free."""
    assert await cluster.claim("look", 600)
    assert not await cluster.claim("look", 600)
    assert await cluster.claim("load", 600)


async def test_claim_ends_in_its_time(cluster: Cluster) -> None:
    """Then the first to ask gets it; a claim needs no release."""
    assert await cluster.claim("look", 0.05)
    async with asyncio.timeout(PATIENCE):
        while not await cluster.claim("look", 600):  # noqa: ASYNC110  -- asking is the test
            await asyncio.sleep(0.01)
    assert not await cluster.claim("look", 600)


async def test_one_of_many_gets_the_work(cluster: Cluster) -> None:
    """Of many that ask at once."""
    claimed = await asyncio.gather(*(cluster.claim("look", 600) for _ in range(50)))
    assert sum(claimed) == 1


async def test_no_node_has_streams_at_first(cluster: Cluster) -> None:
    """Zero, not an error."""
    assert await cluster.total_connections() == 0


async def test_newest_report_of_a_node_counts(cluster: Cluster) -> None:
    """Not the sum of its reports."""
    await cluster.report_connections(5)
    await cluster.report_connections(3)
    assert await cluster.total_connections() == 3


async def test_node_that_left_does_not_count(shared: Shared) -> None:
    """It may also leave a second time."""
    node = shared.cluster()
    await node.report_connections(5)
    await node.close()
    await node.close()
    watcher = shared.cluster()
    assert await watcher.total_connections() == 0
    await watcher.close()
