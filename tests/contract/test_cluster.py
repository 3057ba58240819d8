"""The contract of every cluster (`ports.Cluster`)."""

import asyncio

import pytest

from routecast.core.keys import AccessRecords
from routecast.core.token_bucket import Quota
from routecast.ports import Cluster
from tests.support.engines import PATIENCE, Shared
from tests.support.keys import a_revocation, an_api_key


async def test_work_is_claimed_once(cluster: Cluster) -> None:
    """No node gets claimed work again, not even the same one; other work is free."""
    assert await cluster.claim("look", 600)
    assert not await cluster.claim("look", 600)
    assert await cluster.claim("load", 600)


async def test_claim_ends_in_its_time(cluster: Cluster) -> None:
    """After its time the first node to ask gets the work, without a release."""
    assert await cluster.claim("look", 0.05)
    async with asyncio.timeout(PATIENCE):
        while not await cluster.claim("look", 600):  # noqa: ASYNC110  -- asking is the test
            await asyncio.sleep(0.01)
    assert not await cluster.claim("look", 600)


async def test_one_of_many_gets_the_work(cluster: Cluster) -> None:
    """Of many nodes that ask at once, one gets the claim."""
    claimed = await asyncio.gather(*(cluster.claim("look", 600) for _ in range(50)))
    assert sum(claimed) == 1


async def test_no_node_has_streams_at_first(cluster: Cluster) -> None:
    """The number of streams is 0 at first."""
    assert await cluster.total_connections() == 0


async def test_newest_report_of_a_node_counts(cluster: Cluster) -> None:
    """A node's reports replace each other, and are not added."""
    await cluster.report_connections(5)
    await cluster.report_connections(3)
    assert await cluster.total_connections() == 3


async def test_node_that_left_does_not_count(shared: Shared) -> None:
    """A node may also leave a second time."""
    node = shared.cluster()
    await node.report_connections(5)
    await node.close()
    await node.close()
    watcher = shared.cluster()
    assert await watcher.total_connections() == 0
    await watcher.close()


async def test_no_keys_are_shared_at_first(cluster: Cluster) -> None:
    """A node then knows that it knows nothing."""
    assert await cluster.shared_version() is None
    assert await cluster.shared_access() is None


async def test_keys_that_were_shared_last_are_known(cluster: Cluster) -> None:
    """All of them are replaced together."""
    key, revocation = an_api_key(1, projects=frozenset({"a"})), a_revocation(until=5)
    first = AccessRecords("1", {key.id: key}, {revocation.about: revocation})
    second = AccessRecords("2", {}, {})
    for records in (first, second):
        await cluster.share_access(records)
        assert await cluster.shared_version() == records.version
        assert await cluster.shared_access() == records


async def test_nodes_read_the_summaries_of_all(shared: Shared) -> None:
    """The newest of each node, byte by byte; a node without one, or that left, has none."""
    node, silent = shared.cluster(), shared.cluster()
    assert await node.summaries() == []
    await node.report_connections(5, b"first")
    summary = '{"host":"n\u00e4me\n%d %s \\"}'.encode()
    await node.report_connections(3, summary)
    assert await node.summaries() == [summary]
    await node.close()
    await silent.report_connections(1)
    assert await silent.summaries() == []
    await silent.close()


HOURLY = Quota(100, 3_600.0)


async def test_what_is_spent_is_missing_for_all(cluster: Cluster) -> None:
    """Each client has its own allowance, and each limit its own; it may go below zero."""
    left = await cluster.spend("ingest", HOURLY, {"ana": 30, "b\u00f6b {x}\n": 0})
    assert left["ana"] == pytest.approx(70, abs=0.5)
    assert left["b\u00f6b {x}\n"] == 100
    assert await cluster.spend("ingest", HOURLY, {"ana": 100}) == {
        "ana": pytest.approx(-30, abs=0.5)
    }
    assert await cluster.spend("ingest", HOURLY, {"ana": -50}) == {
        "ana": pytest.approx(20, abs=0.5)
    }
    assert await cluster.spend("other", HOURLY, {"ana": 1}) == {"ana": pytest.approx(99, abs=0.5)}
    assert await cluster.spend("ingest", HOURLY, {}) == {}


async def test_an_allowance_grows_back(cluster: Cluster) -> None:
    """At its rate, and never over the quota."""
    quick = Quota(1_000, 0.5)
    assert (await cluster.spend("ingest", quick, {"ana": 2_000}))["ana"] < 0
    async with asyncio.timeout(PATIENCE):
        while (await cluster.spend("ingest", quick, {"ana": 0}))["ana"] < 1_000:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert await cluster.spend("ingest", quick, {"ana": 0}) == {"ana": 1_000}


async def test_a_node_alone_gets_no_answer(cluster: Cluster) -> None:
    """And it waits no longer than it said."""
    assert await cluster.questions() == []
    async with asyncio.timeout(PATIENCE):
        assert await cluster.ask(b"who?", 3, 0.05) == []
