"""Faults of Redis and of nodes in a cluster with load; the ledger checks every answer and frame.

Three nodes take decisions and stream all the time. In each test something real happens to the
Redis they share or to one of them; then the ledger says whether all that anybody was told is true,
and whether all nodes equal the database within five seconds. `make faults` takes longer over it,
and kills more often.
"""

import asyncio
import random
import signal
from collections import Counter
from pathlib import Path
from typing import Final

import pytest

from routecast.adapters.redis_client import REDIS_FORMAT
from routecast.core.poll_schedule import STEP_SECONDS
from routecast.core.topology import POLL_SECONDS
from routecast.services.live_state import DELTA_GRACE_SECONDS
from tests.acceptance.faults import (
    FAKETIME,
    FREEZE,
    KILLS,
    ONE,
    OUTAGE,
    bus,
    busy,
    equal_within,
    survived,
    tell,
    unnoticed,
)
from tests.acceptance.ledger import HEAL_SECONDS, Ledger
from tests.support.needs import lacks
from tests.support.nodes import Nodes
from tests.support.postgres import OwnPostgres
from tests.support.proxy import Proxy
from tests.support.redis import RedisServer, RedisWithSentinels
from tests.support.server import Server
from tests.support.waiting import until

# A commit whose delta is lost, with none after it, shows after the next poll in turn.
MISSED_SECONDS: Final = POLL_SECONDS + STEP_SECONDS + DELTA_GRACE_SECONDS + 2.0

# -- Redis --------------------------------------------------------------------------------------


async def test_redis_killed_and_restarted_empty(ledger: Ledger, own_redis: RedisServer) -> None:
    """No producer or stream notices that Redis was killed and came back empty."""
    with ledger.fault():
        own_redis.kill()
        try:
            await asyncio.sleep(OUTAGE)
            await ledger.flows(5)
        finally:
            own_redis.start()
    await unnoticed(ledger)


async def test_redis_frozen(ledger: Ledger, own_redis: RedisServer) -> None:
    """No producer or stream notices that Redis is stopped by SIGSTOP."""
    with ledger.fault():
        own_redis.freeze()
        try:
            await asyncio.sleep(FREEZE)
        finally:
            own_redis.thaw()
    await unnoticed(ledger)


async def test_redis_flushed(ledger: Ledger, own_redis: RedisServer) -> None:
    """No producer or stream notices repeated FLUSHALL."""
    with ledger.fault():
        for _ in range(round(5 * OUTAGE)):
            own_redis.ask("FLUSHALL")
            await asyncio.sleep(0.2)
    await unnoticed(ledger)


async def test_redis_connections_killed(ledger: Ledger, own_redis: RedisServer) -> None:
    """No producer or stream notices that connections to Redis are killed again and again."""
    with ledger.fault():
        for _ in range(round(20 * OUTAGE)):
            own_redis.ask("CLIENT", "KILL", "TYPE", "normal")
            await asyncio.sleep(0.05)
    await unnoticed(ledger)


async def test_deltas_dropped(ledger: Ledger, cluster: Nodes, own_redis: RedisServer) -> None:
    """A node notices deltas that were removed from the stream before it read them."""
    stream = f"{{routecast}}:{REDIS_FORMAT}:deltas"
    with ledger.fault():
        for number in range(round(2.5 * OUTAGE)):
            deaf = cluster[number % len(cluster)]
            others = [node for node in cluster if node is not deaf]
            deaf.freeze()
            try:
                await ledger.flows(10, among=others)
                own_redis.ask("XTRIM", stream, "MAXLEN", 0)
            finally:
                deaf.thaw()
            await ledger.flows(10)
    report = await survived(ledger)
    assert report.failures == 0


def test_last_delta_dropped(cluster: Nodes, own_redis: RedisServer) -> None:
    """A node notices a missing delta though no later one shows the gap."""
    deaf, here = cluster[0], cluster[1]
    stream = f"{{routecast}}:{REDIS_FORMAT}:deltas"
    deaf.freeze()
    before = here.metrics()["total_decisions"]
    # The first is in the socket of the frozen node, which was waiting for it.
    for total in (before + 1, before + 2):
        here.post(ONE)
        equal_within(HEAL_SECONDS, [cluster[2]], total)
    own_redis.ask("XTRIM", stream, "MAXLEN", 0)
    deaf.thaw()
    equal_within(MISSED_SECONDS, cluster, before + 2)


async def test_redis_out_of_memory(ledger: Ledger, own_redis: RedisServer) -> None:
    """No producer or stream notices that Redis refuses writes for a time."""
    with ledger.fault():
        own_redis.ask("SET", "of others", bytes(1_000_000))
        own_redis.ask("CONFIG", "SET", "maxmemory", "1mb")
        await asyncio.sleep(OUTAGE)
        own_redis.ask("CONFIG", "SET", "maxmemory", "0")
    await unnoticed(ledger)


async def test_redis_slow(
    tmp_path: Path, own_postgres: OwnPostgres, own_redis: RedisServer
) -> None:
    """No producer or stream notices a round trip of 200 ms to Redis, or of seconds."""
    async with Proxy(own_redis.port) as proxy:
        url = f"redis://127.0.0.1:{proxy.port}"
        nodes = Nodes(tmp_path, 2, database_url=own_postgres.create(), redis_url=url, prefix="slow")
        async with busy(nodes) as ledger:
            with ledger.fault():
                for proxy.delay in (0.1, 3.0):
                    await asyncio.sleep(OUTAGE)
                proxy.delay = 0.0
            await unnoticed(ledger)


async def test_redis_failover(tmp_path: Path, own_postgres: OwnPostgres) -> None:
    """No producer or stream notices that three sentinels promote the replica."""
    with RedisWithSentinels(tmp_path / "redis") as redis:
        nodes = Nodes(tmp_path, 2, database_url=own_postgres.create(), redis_url=redis.url)
        async with busy(nodes) as ledger:
            with ledger.fault():
                redis.master.kill()
                await asyncio.to_thread(redis.wait_for_failover)
            await unnoticed(ledger)


async def test_node_without_database(
    tmp_path: Path, cluster: Nodes, own_redis: RedisServer
) -> None:
    """A stream node catches up after an outage of Redis, and after deltas were removed."""
    await asyncio.to_thread(cluster.start)
    with Server(tmp_path, redis_url=own_redis.url, role="stream") as streamer:
        async with Ledger(list(cluster), cluster.database_url, streams=[streamer]) as ledger:
            stream = f"{{routecast}}:{REDIS_FORMAT}:deltas"
            with ledger.fault():
                own_redis.kill()
                try:
                    await asyncio.sleep(OUTAGE)
                    await ledger.flows(5)
                finally:
                    own_redis.start()
                await asyncio.to_thread(until, lambda: bus(streamer) == "ok")
                streamer.freeze()
                try:
                    await ledger.flows(10, among=list(cluster))
                    own_redis.ask("XTRIM", stream, "MAXLEN", 0)
                finally:
                    streamer.thaw()
            report = await survived(ledger)
    assert report.failures == 0
    assert report.retries == 0


# -- nodes --------------------------------------------------------------------------------------


async def test_node_killed_between_commit_and_publish(
    ledger: Ledger, cluster: Nodes, own_redis: RedisServer
) -> None:
    """All numbers stay right though the killed node's last deltas were never published."""
    with ledger.fault():
        own_redis.freeze()
        try:
            await ledger.flows(10)  # each has acknowledged something that it cannot publish
            cluster[0].kill()
        finally:
            own_redis.thaw()
        await asyncio.to_thread(cluster.start)
    await survived(ledger)


def test_node_killed_with_unpublished_commits(cluster: Nodes, own_redis: RedisServer) -> None:
    """Other nodes show the commits of a node that dies for good while Redis is away."""
    cluster.start()
    last, *others = cluster
    own_redis.freeze()
    try:
        until(lambda: all(bus(node) == "failing" for node in cluster))
        last.post(ONE)
        total = last.metrics()["total_decisions"]
        last.kill()
    finally:
        own_redis.thaw()
    equal_within(HEAL_SECONDS, others, total)


async def test_node_frozen(ledger: Ledger, cluster: Nodes) -> None:
    """A node continues after SIGSTOP and catches up; other nodes do not wait for it."""
    with ledger.fault():
        cluster[0].freeze()
        try:
            await ledger.flows(FREEZE + 5, among=list(cluster)[1:])
            await asyncio.sleep(FREEZE)
            await ledger.flows(10, among=list(cluster)[1:])
        finally:
            cluster[0].thaw()
    await survived(ledger)


@pytest.mark.skipif(not FAKETIME, reason=lacks("faketime", "apt install faketime"))
async def test_clocks_an_hour_apart(
    tmp_path: Path, own_postgres: OwnPostgres, own_redis: RedisServer
) -> None:
    """Two nodes whose clocks differ by an hour show the same totals."""
    nodes = Nodes(
        tmp_path,
        2,
        database_url=own_postgres.create(),
        redis_url=own_redis.url,
        prefix="clocks",
        last={
            "LD_PRELOAD": str(FAKETIME[0]),
            "FAKETIME": "+1h",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        },
    )
    async with busy(nodes) as ledger:
        here, there = (node.metrics()["timestamp"] for node in nodes)
        assert here[:13] != there[:13]
        with ledger.fault():
            await ledger.commits(50)
            nodes[0].kill()
            await asyncio.to_thread(nodes.start)  # from what the one ahead has cached, if it can
            await ledger.flows(10)
        await survived(ledger)


async def test_kills_of_everything(
    ledger: Ledger, cluster: Nodes, own_postgres: OwnPostgres, own_redis: RedisServer
) -> None:
    """Killing a random node, Redis or PostgreSQL under load loses no acknowledged decision."""
    chance, killed = random.Random(11), Counter[str]()
    with ledger.fault():
        for _ in range(KILLS):
            await ledger.commits(chance.randrange(20))
            victim = chance.choice([*cluster, *cluster, own_redis, own_postgres])
            await kill(victim)
            killed[type(victim).__name__] += 1
    tell(f"killed: {dict(killed)}")
    await survived(ledger)


async def kill(victim: Server | RedisServer | OwnPostgres) -> None:
    """SIGKILL it, and start it again."""
    if isinstance(victim, Server):
        assert victim.kill() == -signal.SIGKILL
    else:
        victim.kill()
    await asyncio.to_thread(victim.start)
