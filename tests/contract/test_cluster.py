"""What every cluster promises (`ports.Cluster`)."""

import asyncio

from routecast.ports import Cluster
from tests.support.engines import PATIENCE, Shared


async def test_work_is_claimed_once(cluster: Cluster) -> None:
    """For its time nobody gets it again, not even who has it; other work is free."""
    assert await cluster.claim("look", 600)
    assert not await cluster.claim("look", 600)
    assert await cluster.claim("load", 600)


async def test_claim_ends_in_its_time(cluster: Cluster) -> None:
    """Then who asks first has it; nobody needs to give it back."""
    assert await cluster.claim("look", 0.05)
    async with asyncio.timeout(PATIENCE):
        while not await cluster.claim("look", 600):  # noqa: ASYNC110  -- asking is the test
            await asyncio.sleep(0.01)
    assert not await cluster.claim("look", 600)


async def test_one_of_many_gets_the_work(cluster: Cluster) -> None:
    """However many ask at once."""
    claimed = await asyncio.gather(*(cluster.claim("look", 600) for _ in range(50)))
    assert sum(claimed) == 1


async def test_nobody_has_streams_at_first(cluster: Cluster) -> None:
    """Zero, not an error."""
    assert await cluster.connections() == 0


async def test_newest_word_of_a_node_counts(cluster: Cluster) -> None:
    """Not the sum of all it ever said."""
    await cluster.tell(5)
    await cluster.tell(3)
    assert await cluster.connections() == 3


async def test_node_that_left_does_not_count(shared: Shared) -> None:
    """Nor does it when it leaves a second time."""
    node = shared.cluster()
    await node.tell(5)
    await node.close()
    await node.close()
    watcher = shared.cluster()
    assert await watcher.connections() == 0
    await watcher.close()
