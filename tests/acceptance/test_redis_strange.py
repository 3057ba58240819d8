"""Another program at Redis's address, or reset connections: both count as a failing engine."""

import asyncio
from collections.abc import Callable, Iterator

import pytest
import uvloop

from routecast.core.delta import Delta
from routecast.core.snapshot import Snapshot
from routecast.errors import Unavailable
from routecast.protocol import Position
from tests.support.decisions import NOW, cells_of, kept
from tests.support.engines import SharedRedis, carried
from tests.support.nonsense import NonsenseServer
from tests.support.proxy import Proxy, Reset
from tests.support.redis import RedisServer
from tests.support.running_services import running, until

DELTA = Delta(Position("e", 1), cells_of([kept()]), NOW)
KINDS = ("redis://{}/0", "redis+sentinel://{}/main", "redis+cluster://{}")
ANSWERS = {
    "ok": b"+OK\r\n",
    "none": b"*-1\r\n",
    "empty list": b"*0\r\n",
    "no text": b"$-1\r\n",
    "number": b":42\r\n",
    "text": b"$3\r\nabc\r\n",
    "nested": b"*1\r\n*1\r\n:1\r\n",
    "pong": b"+PONG\r\n",
    "web server": b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n",
    "noise": b"\x15\x03\x01\x00\x02\x02\x46",
    "silence": b"",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as started:
        yield started


async def assert_unavailable(shared: SharedRedis, answer: str) -> None:
    """Assert that every call of every adapter raises Unavailable, and no other exception."""
    cache, cluster, bus = shared.cache(), shared.cluster(), shared.bus()
    calls: list[Callable[[], object]] = [
        cache.get,
        lambda: cache.put(Snapshot(Position("e", 1), NOW)),
        lambda: cache.invalidate(Position("e", 1)),
        lambda: cluster.claim("look", 1),
        lambda: cluster.report_connections(1),
        cluster.total_connections,
    ]
    if answer != "empty list":  # which an empty stream would answer
        calls.append(lambda: bus.deltas(Position("e", 1)))
    for call in calls:
        with pytest.raises(Unavailable):
            await call()  # type: ignore[misc]  # -- a coroutine each
    for adapter in (cache, cluster, bus):
        await adapter.close()


@pytest.mark.parametrize("url", KINDS)
@pytest.mark.parametrize("answer", ANSWERS)
def test_nonsense_is_a_failing_engine(url: str, answer: str) -> None:
    """A strange server, sentinel or cluster node counts as failing; the bus tries again."""
    uvloop.run(_ask_nonsense(url, answer))  # the loop of `routecast serve`


async def _ask_nonsense(url: str, answer: str) -> None:
    async with NonsenseServer(ANSWERS[answer]) as strange:
        shared = SharedRedis(url.format(f"127.0.0.1:{strange.port}"))
        bus = shared.bus()
        async with running(bus.run()) as task:
            bus.publish(DELTA)
            await assert_unavailable(shared, answer)
            await until(lambda: bus.outages >= 2)
            assert bus.failing
            assert not task.done()
        await bus.close()


@pytest.mark.parametrize("when", [Reset.AT_ONCE, Reset.AFTER_BYTES, Reset.ON_REPLY])
def test_resets_crash_nothing(server: RedisServer, when: Reset) -> None:
    """No task crashes while connections are reset, and all works afterwards."""
    uvloop.run(_reset_and_go_on(server, when))  # whose transports fail in a way of their own


async def _reset_and_go_on(server: RedisServer, when: Reset) -> None:
    async with Proxy(server.port) as proxy:
        shared = SharedRedis(f"redis://127.0.0.1:{proxy.port}/0")
        heard: list[Delta | Position] = []
        async with carried(shared.bus()) as here, carried(shared.bus()) as there:
            there.listen(heard.append)
            for seq in range(1, 6):
                proxy.reset(when)
                before = proxy.resets
                here.publish(Delta(Position("e", seq), DELTA.cells, NOW))
                await until(lambda before=before: proxy.resets > before + 5)
                await until(lambda: here.failing or there.failing)
                proxy.reset(Reset.NEVER)
                await until(lambda seq=seq: _seq(heard) == seq)
                await until(lambda: not here.failing and not there.failing)
        cache = shared.cache()
        await cache.put(Snapshot(Position("e", 1), NOW))
        proxy.reset(when)
        with pytest.raises(Unavailable):
            await cache.get()
        proxy.reset(Reset.NEVER)
        while True:
            try:
                assert await cache.get() is not None
                break
            except Unavailable:
                await asyncio.sleep(0.05)
        await cache.close()


def _seq(heard: list[Delta | Position]) -> int:
    last = heard[-1] if heard else Position("e", 0)
    return last.position.seq if isinstance(last, Delta) else last.seq
