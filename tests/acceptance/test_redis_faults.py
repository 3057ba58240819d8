"""Faults of a real Redis under two nodes: no call hangs, the cause is reported, and nodes recover.

Two nodes are on one bus; one of them publishes a delta every few milliseconds throughout. A fault
is over when the other hears what was published after it.
"""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from routecast.adapters.redis_client import CALL_SECONDS
from routecast.core.delta import Delta
from routecast.core.snapshot import Snapshot
from routecast.errors import Unavailable
from routecast.ports import DELTAS_KEPT
from routecast.protocol import Position
from tests.support.decisions import NOW, cells_of, kept
from tests.support.engines import SharedRedis, carried
from tests.support.proxy import Proxy
from tests.support.redis import RedisServer, RedisWithSentinels

# A failing Redis is told of, and a healed one used again, within so many seconds.
TELL_SECONDS = 5.0
HEAL_SECONDS = 5.0
# How long a frozen Redis stays so. Nothing changes after the first seconds; try 30 to see it.
FREEZE_SECONDS = float(os.environ.get("ROUTECAST_TEST_FREEZE_SECONDS", "2"))
# What does not wait for Redis takes less, on a busy machine too; what waits takes a second.
AT_ONCE = 0.5
# Between two deltas.
PUBLISH_SECONDS = 0.025
CELLS = cells_of([kept()])
# Of which a delta takes some hundred KB, compressed.
LARGE = cells_of([kept(model=os.urandom(48).hex()) for _ in range(2000)])


class Nodes:
    """Two nodes on a bus, of which one publishes all the time and the other listens."""

    def __init__(self, shared: SharedRedis) -> None:
        self.shared = shared
        self.here = shared.bus()
        self.there = shared.bus()
        self.cache = shared.cache()
        self.cluster = shared.cluster()
        self.seq = 0
        self.heard: list[int] = []
        self.slowest = 0.0  # publish, in seconds
        self.there.listen(lambda news: self.heard.append(_seq(news)))

    @asynccontextmanager
    async def publishing(self) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(carried(self.here))
            await stack.enter_async_context(carried(self.there))
            stack.push_async_callback(self.cache.close)
            stack.push_async_callback(self.cluster.close)
            task = asyncio.create_task(self._publish())
            stack.callback(task.cancel)
            await self.hears_again()
            yield
            assert self.slowest < AT_ONCE

    async def _publish(self) -> None:
        while True:
            self.seq += 1
            started = time.perf_counter()
            self.here.publish(Delta(Position("e", self.seq), CELLS, NOW))
            self.slowest = max(self.slowest, time.perf_counter() - started)
            await asyncio.sleep(PUBLISH_SECONDS)

    async def tell(self, words: str = "") -> None:
        """Return when both nodes report that the bus fails, and why."""
        await within(TELL_SECONDS, lambda: words in (self.here.failing or "\0"))
        await within(TELL_SECONDS, lambda: bool(self.there.failing) or bool(words))

    async def hears_again(self, seconds: float = HEAL_SECONDS) -> None:
        """Return when one node receives new messages of the other, and neither fails."""
        now = self.seq
        await within(seconds, lambda: bool(self.heard) and self.heard[-1] > now)
        await within(seconds, lambda: not self.here.failing and not self.there.failing)

    async def hears_all(self) -> None:
        """Return when every message published up to now was received."""
        now = self.seq
        await within(HEAL_SECONDS, lambda: set(range(1, now + 1)) <= set(self.heard))


async def within(seconds: float, reached: Callable[[], bool]) -> None:
    """Return when a condition holds; fail if that takes longer than `seconds`."""
    async with asyncio.timeout(seconds):
        while not reached():  # noqa: ASYNC110  -- no event tells of it
            await asyncio.sleep(0.01)


def _seq(news: Delta | Position) -> int:
    return news.position.seq if isinstance(news, Delta) else news.seq


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis of this test's own, which it may break."""
    with RedisServer(tmp_path / "redis") as running:
        yield running


@pytest.fixture
async def nodes(server: RedisServer) -> AsyncIterator[Nodes]:
    """Two nodes on the test's Redis, of which one publishes."""
    made = Nodes(SharedRedis(server.url))
    async with made.publishing():
        yield made


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """The log, from warnings on."""
    caplog.set_level(logging.WARNING)
    return caplog


def lines(said: pytest.LogCaptureFixture) -> list[str]:
    """Return the logged lines without numbers and reasons, sorted."""
    return sorted(record.getMessage().split(":")[0].split(",")[0] for record in said.records)


GONE = "Redis is unavailable and will be tried again"
BACK = "Redis is available again"


async def test_killed_and_restarted_empty(
    server: RedisServer, nodes: Nodes, said: pytest.LogCaptureFixture
) -> None:
    """After SIGKILL each node logs once that Redis is gone, and once that it is back."""
    await nodes.cluster.claim("look", 600)
    server.kill()
    await nodes.tell()
    await within(TELL_SECONDS, lambda: lines(said) == [GONE, GONE])
    await asyncio.sleep(1)  # some tries later
    server.start()
    await nodes.hears_again()
    assert lines(said) == [BACK, BACK, GONE, GONE]
    assert await nodes.cache.get() is None
    assert await nodes.cluster.claim("look", 600)


async def test_frozen(server: RedisServer, nodes: Nodes, said: pytest.LogCaptureFixture) -> None:
    """After SIGSTOP calls time out, then fail at once; after SIGCONT no message is missing."""
    server.freeze()
    try:
        started = time.perf_counter()
        with pytest.raises(Unavailable):
            await nodes.cache.get()
        assert time.perf_counter() - started < CALL_SECONDS + AT_ONCE
        await nodes.tell()
        for _ in range(2):
            with pytest.raises(Unavailable):
                await nodes.cache.get()
        started = time.perf_counter()
        with pytest.raises(Unavailable, match="is unavailable"):
            await nodes.cache.get()
        assert time.perf_counter() - started < AT_ONCE
        await asyncio.sleep(FREEZE_SECONDS)
    finally:
        server.thaw()
    await nodes.hears_again()
    if nodes.seq < DELTAS_KEPT:
        await nodes.hears_all()
    assert len(nodes.heard) < nodes.seq + 100  # and little twice
    assert lines(said) == [BACK, BACK, GONE, GONE, GONE]  # the cache's own was not asked again


async def test_flushed(server: RedisServer, nodes: Nodes, said: pytest.LogCaptureFixture) -> None:
    """After FLUSHALL new deltas arrive, cached data is gone, and nothing is logged."""
    await nodes.cache.put(Snapshot(Position("e", 1), NOW))
    server.ask("FLUSHALL")
    await nodes.hears_again()
    assert await nodes.cache.get() is None
    assert lines(said) == []


async def test_stream_that_began_anew_with_older_ids(server: RedisServer, nodes: Nodes) -> None:
    """Nodes read on at once if a new master's ids are older than those they have read."""
    stream = server.ask("KEYS", f"*{nodes.shared.prefix}*deltas")[0]
    fields = ("node", "x", "epoch", "e", "seq", "0")
    server.ask("XADD", stream, "99999999999999-0", *fields)
    await within(HEAL_SECONDS, lambda: 0 in nodes.heard)
    server.ask("DEL", stream)
    await nodes.hears_again()


async def test_connections_killed(
    server: RedisServer, nodes: Nodes, said: pytest.LogCaptureFixture
) -> None:
    """After repeated CLIENT KILL the reader continues where it was, and no message is missing."""
    for _ in range(20):
        server.ask("CLIENT", "KILL", "TYPE", "normal")
        await nodes.hears_again()  # one lost again while it is made anew is a Redis that is gone
    await nodes.hears_all()
    assert lines(said) == []


async def test_slow(server: RedisServer, said: pytest.LogCaptureFixture) -> None:
    """A delay of 200 ms is used; with one of seconds Redis counts as failing until it ends."""
    async with Proxy(server.port) as proxy:
        nodes = Nodes(SharedRedis(f"redis://127.0.0.1:{proxy.port}"))
        async with nodes.publishing():
            proxy.delay = 0.1
            await asyncio.sleep(1)
            await nodes.hears_again()
            assert lines(said) == []
            proxy.delay = 3.0
            await nodes.tell()
            await within(TELL_SECONDS, lambda: lines(said) == [GONE, GONE])
            proxy.delay = 0.0
            await nodes.hears_again()
            assert lines(said) == [BACK, BACK, GONE, GONE], said.text


async def test_narrow(server: RedisServer) -> None:
    """A backlog that is too large for one answer in time is read in parts."""
    async with Proxy(server.port) as proxy:
        shared = SharedRedis(server.url)
        there = SharedRedis(f"redis://127.0.0.1:{proxy.port}/0", shared.prefix).bus()
        heard: list[int] = []
        there.listen(lambda news: heard.append(_seq(news)))
        async with carried(shared.bus()) as here, carried(there):
            proxy.delay = 3.0
            await within(TELL_SECONDS, lambda: bool(there.failing))
            for seq in range(1, 11):
                here.publish(Delta(Position("e", seq), LARGE, NOW))
            proxy.delay = 0.1  # a forwarded piece, of at most 64 KiB
            await within(3 * HEAL_SECONDS, lambda: heard[-1:] == [10])
            assert sorted(set(heard)) == list(range(1, 11))


async def test_out_of_memory(
    server: RedisServer, nodes: Nodes, said: pytest.LogCaptureFixture
) -> None:
    """Redis refuses writes but not reads; when it has memory again, no message is missing."""
    snapshot = Snapshot(Position("e", 1), NOW)
    await nodes.cache.put(snapshot)
    server.ask("SET", "of others", bytes(1_000_000))
    server.ask("CONFIG", "SET", "maxmemory", "1mb")
    await nodes.tell("maxmemory")
    assert nodes.there.failing is None  # it has nothing to send
    with pytest.raises(Unavailable, match="maxmemory"):
        await nodes.cache.put(snapshot)
    assert await nodes.cache.get() is not None
    await asyncio.sleep(0.5)
    server.ask("CONFIG", "SET", "maxmemory", "0")
    await nodes.hears_again()
    await nodes.hears_all()
    assert lines(said) == ["Deltas are sent again", "Deltas cannot be sent"]


async def test_queue_that_runs_over(server: RedisServer, nodes: Nodes) -> None:
    """In a long outage the oldest messages are dropped and counted, and the newest arrive."""
    server.kill()
    await nodes.tell()
    sent = 0
    while not (dropped := nodes.shared.instruments.bus_dropped._value.get()):
        sent += 1
        nodes.here.publish(Delta(Position("big", sent), LARGE, NOW))
        await asyncio.sleep(0)
        assert sent < 1000
    assert dropped > 0
    server.start()
    await nodes.hears_again(60)  # after all 16 MiB that wait were sent and received


async def test_failover(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    """With three sentinels and a replica, nodes find the new master, and leave the old one."""
    with RedisWithSentinels(tmp_path) as redis:
        nodes = Nodes(SharedRedis(redis.url))
        async with nodes.publishing():
            redis.master.kill()
            await nodes.tell()
            await asyncio.to_thread(redis.wait_for_failover)
            await nodes.hears_again()
            # While sentinels still agree among themselves, a node may find the master, lose it
            # again, and say so: each loss once, and each is over.
            told = lines(said)
            assert set(told) == {BACK, GONE}, said.text
            assert 2 <= told.count(GONE) == told.count(BACK) <= 4, said.text
