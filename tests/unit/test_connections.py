"""Tests of the registry of connections: it counts them, passes payloads on, and closes them."""

import asyncio
import gc
import logging
import weakref

import pytest

from routecast.adapters.cache.memory import MemoryCache
from routecast.adapters.store.sqlite import SqliteStore
from routecast.core.payload import Payload
from routecast.core.view import View
from routecast.errors import Unavailable
from routecast.instruments import Instruments
from routecast.protocol import CloseCode
from routecast.streaming.connections import ConnectionManager
from tests.support.clock import HeldClock
from tests.support.fanout import FakeConnection, FanoutHarness
from tests.support.running_services import running, until


@pytest.fixture
def fanout(store: SqliteStore, cache: MemoryCache, clock: HeldClock) -> FanoutHarness:
    """A harness without clients."""
    return FanoutHarness(store, cache, clock)


async def test_a_connection_is_counted_and_logged(
    fanout: FanoutHarness, caplog: pytest.LogCaptureFixture
) -> None:
    """One line when it opens and one when it closes, with any protocol."""
    caplog.set_level(logging.INFO, "routecast.streaming.connections")
    one, other = fanout.connect(), fanout.connect_v1()
    sample = fanout.instruments.registry.get_sample_value
    assert (fanout.manager.active, sample("routecast_connections")) == (2, 2)
    one.close()
    one.close()
    other.close(1006)
    assert (fanout.manager.active, sample("routecast_connections")) == (0, 0)
    assert fanout.count("connections_opened") == 2
    assert fanout.count("connections_closed", code="1000") == 1
    assert fanout.count("connections_closed", code="1006") == 1
    assert caplog.messages == [
        "WebSocket connected. Total connections: 1",
        "WebSocket connected. Total connections: 2",
        "Client disconnected normally",
        "WebSocket disconnected. Total connections: 1",
        "WebSocket disconnected. Total connections: 0",
    ]


async def test_nothing_holds_a_connection_that_is_closed(fanout: FanoutHarness) -> None:
    """It is freed with either protocol, also while other connections stay."""
    async with fanout.running():
        stays = fanout.connect()
        gone = [fanout.connect(), fanout.connect(view=View(window="1h")), fanout.connect_v1()]
        gone[-1].subscribe()
        await fanout.go(1)
        for connection in gone:
            connection.close()
        assert not fanout.manager.send_personal(stays.sent[0], gone[0])
        traces = [weakref.ref(connection) for connection in gone]
        del gone, connection
        await fanout.go(1)
        gc.collect()
        assert [trace() for trace in traces] == [None] * 3


def test_limit_refuses() -> None:
    """Over the limit no connection is admitted until another one is closed."""
    manager = ConnectionManager(Instruments(), limit=2)
    connections = [FakeConnection(), FakeConnection()]
    for connection in connections:
        manager.admit()
        manager.connect(connection)
    with pytest.raises(Unavailable, match="too many connections") as refused:
        manager.admit()
    assert refused.value.retry_after > 0
    manager.disconnect(connections[0], CloseCode.GOING_AWAY)
    manager.admit()


async def test_close_says_goodbye_to_all_and_takes_no_more(fanout: FanoutHarness) -> None:
    """All get 1012 and a delay to reconnect, also a late client; `close` waits for the last."""
    connections = [fanout.connect() for _ in range(120)]
    async with running(fanout.manager.close(60)) as closing:
        await until(lambda: all(connection.stopped for connection in connections))
        late = fanout.connect()
        assert {each.stopped for each in [*connections, late]} == {CloseCode.RESTART}
        assert all(0 <= (each.return_ms or 0) <= 2_000 for each in connections)
        assert len({each.return_ms for each in connections}) > 60
        assert not late.sent
        with pytest.raises(Unavailable, match="restarting"):
            fanout.manager.admit()
        for connection in connections:
            connection.close()
        await asyncio.sleep(0)
        assert not closing.done()
        late.close()
        await closing


async def test_close_waits_for_a_limited_time(fanout: FanoutHarness) -> None:
    """A connection that does not end cannot block the stop."""
    connection = fanout.connect()
    await fanout.manager.close(0.01)
    assert connection.stopped is CloseCode.RESTART
    assert fanout.manager.active == 1


async def test_frames_are_counted(fanout: FanoutHarness) -> None:
    """Frames to one and to many count; a payload that a full socket refused counts as conflated."""
    connections = [fanout.connect() for _ in range(3)]
    batch = connections[0].new_batch()
    for connection in connections:
        batch.add(connection)
    connections[1].is_open = False
    sent, conflated = fanout.count("frames_sent"), fanout.count("frames_conflated")
    payload = Payload(b"12345")
    assert fanout.manager.broadcast(payload, batch) == [connections[1]]
    assert fanout.manager.send_personal(payload, connections[0])
    assert not fanout.manager.send_personal(payload, connections[1])
    assert fanout.count("frames_sent") == sent + 3
    assert fanout.count("frames_conflated") == conflated + 2
    assert connections[2].sent[-1] is payload
