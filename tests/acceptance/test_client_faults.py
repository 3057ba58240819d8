"""The Python client against a scripted server: wrong bases, goodbyes, close codes."""

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from routecast.client import (
    BadRequest,
    Health,
    Metrics,
    Refused,
    State,
    Unauthenticated,
    Unavailable,
    connect,
    stream,
)
from routecast.protocol import V1_JSON, V1_MSGPACK, Position, Subscribe, Unsubscribe
from tests.support.scripted_server import ScriptedConnection, delta, scripted, snapshot, until
from tests.support.wire import GOLDEN

WAIT_SECONDS = 20.0


async def take(metrics: AsyncIterator[Metrics]) -> Metrics:
    """Return the next metrics."""
    async with asyncio.timeout(WAIT_SECONDS):
        return await anext(metrics)


class HealthLog:
    """The changes of health that a client reported."""

    def __init__(self) -> None:
        self.healths: list[Health] = []
        self._changed = asyncio.Event()

    def __call__(self, health: Health) -> None:
        self.healths.append(health)
        self._changed.set()

    async def of(self, state: State) -> Health:
        """Wait for the health of a state."""
        async with asyncio.timeout(WAIT_SECONDS):
            while not (found := [health for health in self.healths if health.state is state]):
                self._changed.clear()
                await self._changed.wait()
        return found[0]


async def steady(connection: ScriptedConnection) -> None:
    """Send one document and keep the connection open."""
    await connection.hello()
    await connection.receive()
    await connection.send(snapshot(1, {"total_decisions": 1}))
    await connection.wait_closed()


# -- documents ----------------------------------------------------------------------------------


async def test_deltas_are_merged() -> None:
    """A reader gets whole documents with their positions; a slow reader gets the newest."""
    read = asyncio.Event()

    async def script(connection: ScriptedConnection) -> None:
        await connection.hello()
        assert await connection.receive() == Subscribe(
            "s1", ["total_decisions", "rate"], interval=0.5
        )
        await connection.send(snapshot(1, {"total_decisions": 1, "rate": 0.5}))
        await read.wait()
        await connection.send(delta(1, 2, {"rate": None}), delta(2, 4, {"total_decisions": 4}))
        await connection.send(delta(4, 5, {"total_decisions": 5}), {"type": "from the future"})
        await connection.receive()

    async with scripted(script) as server, connect(server.url) as client:
        feed = await client.subscribe(fields=("total_decisions", "rate"), interval=0.5)
        first = await take(feed)
        assert (first.data, first.position) == (
            {"total_decisions": 1, "rate": 0.5},
            Position("e", 1),
        )
        read.set()
        await until(lambda: feed.health.position == Position("e", 5))
        last = await take(feed)
        assert (last.data, last.position) == ({"total_decisions": 5}, Position("e", 5))
        assert first.data == {"total_decisions": 1, "rate": 0.5}
        assert feed.metrics == last


async def test_a_delta_with_a_wrong_base_is_not_applied() -> None:
    """The client unsubscribes, subscribes again, and shows the snapshot."""

    async def script(connection: ScriptedConnection) -> None:
        await connection.hello()
        await connection.receive()
        await connection.send(
            snapshot(1, {"total_decisions": 1}), delta(7, 8, {"total_decisions": 66})
        )
        assert [await connection.receive(), await connection.receive()] == [
            Unsubscribe("s1"),
            Subscribe("s1"),
        ]
        await connection.send(snapshot(9, {"total_decisions": 9}))
        await connection.wait_closed()

    async with scripted(script) as server:
        seen = []
        async for metrics in stream(server.url):
            seen.append(metrics.total_decisions)
            if seen[-1] == 9:
                break
        assert seen in ([1, 9], [9])


async def test_after_a_loss_it_resumes_from_its_position() -> None:
    """After a reconnect each subscription sends its position, and gets a delta from there."""

    async def before(connection: ScriptedConnection) -> None:
        await steady_until(connection, 5)

    async def after(connection: ScriptedConnection) -> None:
        await connection.hello()
        assert await connection.receive() == Subscribe("s1", position=Position("e", 5))
        await connection.send(delta(5, 9, {"rate": 1.5}))
        await connection.wait_closed()

    async def steady_until(connection: ScriptedConnection, seq: int) -> None:
        await connection.hello()
        await connection.receive()
        await connection.send(snapshot(seq, {"total_decisions": 5}))
        await connection.close(1011)

    async with scripted(before, after) as server:
        metrics = stream(server.url)
        assert (await take(metrics)).position == Position("e", 5)
        last = await take(metrics)
        assert (last.position, last.data) == (
            Position("e", 9),
            {"total_decisions": 5, "rate": 1.5},
        )
        await metrics.aclose()


async def test_an_error_is_reported_and_passes() -> None:
    """While the server cannot answer, the last numbers stay and are marked stale."""
    seen = asyncio.Event()
    error = {"type": "error", "id": "s1", "code": "unavailable", "message": "no", "retryable": True}

    async def script(connection: ScriptedConnection) -> None:
        await connection.hello()
        await connection.receive()
        await connection.send(snapshot(1, {"total_decisions": 1}))
        await seen.wait()
        await connection.send(error)
        seen.clear()
        await seen.wait()
        await connection.send(delta(1, 2, {"total_decisions": 2}))
        await connection.wait_closed()

    async with scripted(script) as server, connect(server.url) as client:
        feed = await client.subscribe()
        await take(feed)
        assert feed.health.state is State.CONNECTED
        seen.set()
        await until(lambda: feed.health.state is State.STALE)
        assert "no" in feed.health.trouble
        assert feed.metrics is not None
        assert feed.metrics.total_decisions == 1
        seen.set()
        assert (await take(feed)).total_decisions == 2
        assert feed.health.state is State.CONNECTED


async def test_one_bad_subscription_leaves_the_others() -> None:
    """A bad subscription raises in its own iterator; the connection stays."""

    async def script(connection: ScriptedConnection) -> None:
        await connection.hello()
        for _ in range(2):
            asked = await connection.receive()
            if asked.fields:
                about = {"id": asked.id, "code": "bad_request", "message": "fields: no"}
                await connection.send({"type": "error", "retryable": False, **about})
            else:
                await connection.send(snapshot(1, {"total_decisions": 1}, id=asked.id))
        await connection.wait_closed()

    async with scripted(script) as server, connect(server.url) as client:
        bad = await client.subscribe(fields="nonsense")
        good = await client.subscribe()
        with pytest.raises(BadRequest, match="fields: no"):
            await take(bad)
        assert (await take(good)).total_decisions == 1


async def test_a_history_that_cannot_be_read_now() -> None:
    """A single query raises; a followed history is requested again."""
    about = {"code": "unavailable", "message": "no database", "retryable": True}
    heard = []

    async def script(connection: ScriptedConnection) -> None:
        await connection.hello()
        for _ in range(2):
            heard.append(await connection.receive())
            await connection.send({"type": "error", "id": heard[-1].id, **about})
        heard.append(await connection.receive())
        await connection.send({**GOLDEN["history"]["message"], "id": heard[-1].id})
        await connection.wait_closed()

    async with scripted(script) as server, connect(server.url) as client:
        once = await client.history(timedelta(hours=1))
        with pytest.raises(Unavailable, match="no database"):
            await anext(once)
        async with asyncio.timeout(WAIT_SECONDS):
            history = await anext(await client.history(timedelta(hours=1), follow=True))
        assert history.points == 3
    assert heard[1] == heard[2]


async def test_closing_a_feed_unsubscribes() -> None:
    """`close` unsubscribes, and ends every iteration of the feed."""

    async def script(connection: ScriptedConnection) -> None:
        await connection.hello()
        await connection.receive()
        await connection.send(snapshot(1, {}))
        heard.set_result(await connection.receive())
        await connection.wait_closed()

    heard = asyncio.get_running_loop().create_future()
    async with scripted(script) as server, connect(server.url) as client:
        async with await client.subscribe() as feed:
            await take(feed)
        assert await heard == Unsubscribe("s1")
        assert [metrics async for metrics in feed] == []
        open_feed = await client.subscribe()
        await client.close()
        assert [metrics async for metrics in open_feed] == []


# -- ends ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_reason", [False, True], ids=["message", "close reason"])
async def test_goodbye_is_honoured(in_reason: bool) -> None:
    """The client reconnects after exactly the time that `goodbye` says."""
    closed = 0.0

    async def leaving(connection: ScriptedConnection) -> None:
        nonlocal closed
        await connection.hello()
        await connection.receive()
        if not in_reason:
            await connection.send({"type": "goodbye", "code": 1012, "reconnect_after_ms": 400})
        closed = time.monotonic()
        await connection.close(1012, "reconnect_after_ms=400" if in_reason else "")

    health_log = HealthLog()
    async with (
        scripted(leaving, steady) as server,
        connect(server.url, on_change=health_log) as client,
    ):
        feed = await client.subscribe()
        health = await health_log.of(State.RECONNECTING)
        assert health.trouble == "closed with 1012"
        assert health.retry_in == pytest.approx(0.4, abs=0.05)
        await take(feed)
        assert 0.4 <= time.monotonic() - closed < 5


@pytest.mark.parametrize("code", [1000, 1001, 1011, 1012, 1013, 4408, 4409, 4429, 4999])
async def test_close_codes_after_which_it_reconnects(code: int) -> None:
    """It reconnects after a random delay; after 4429 the delay is at least a minute."""

    async def closing(connection: ScriptedConnection) -> None:
        await connection.hello()
        await connection.close(code, "because")

    health_log = HealthLog()
    async with scripted(closing) as server, connect(server.url, on_change=health_log) as client:
        await client.subscribe()
        health = await health_log.of(State.RECONNECTING)
        assert health.trouble == f"closed with {code}: because"
        assert health.retry_in is not None
        least = 60 if code == 4429 else 0
        assert least - 0.1 <= health.retry_in <= least + 1


@pytest.mark.parametrize("code", [1003, 1007, 1008, 1009, 4400, 4401, 4403])
async def test_close_codes_after_which_it_gives_up(code: int) -> None:
    """The exception has the code; later subscriptions raise the same."""

    async def closing(connection: ScriptedConnection) -> None:
        await connection.close(code, "because")

    async with scripted(closing) as server, connect(server.url) as client:
        feed = await client.subscribe()
        with pytest.raises(Refused, match=f"closed with {code}: because") as raised:
            await take(feed)
        assert raised.value.code == code
        assert isinstance(raised.value, Unauthenticated) == (code == 4401)
        assert client.health.state is State.CLOSED
        with pytest.raises(Refused):
            await take(await client.subscribe())
        assert server.connections == 1


async def test_a_new_token_is_tried_once() -> None:
    """The client calls the token function again: it tries a new token, but not the same one."""
    tokens = iter(["old", "new", "new", "new"])
    shown = []

    async def checking(connection: ScriptedConnection) -> None:
        assert connection.socket.request
        shown.append(connection.socket.request.headers["Authorization"])
        await connection.close(4401)

    async with scripted(checking) as server:
        with pytest.raises(Unauthenticated):
            await take(stream(server.url, token=lambda: next(tokens)))
    assert shown == ["Bearer old", "Bearer new"]


async def test_delays_grow_while_no_document_comes() -> None:
    """Delays also grow if the server sends `hello` and closes the connection."""

    async def closing(connection: ScriptedConnection) -> None:
        await connection.hello()
        await connection.close(1011)

    health_log = HealthLog()
    async with scripted(closing) as server, connect(server.url, on_change=health_log) as client:
        await client.subscribe()
        await until(lambda: server.connections == 3)
        assert client._connection.backoff.failures >= 2


# -- protocols ----------------------------------------------------------------------------------


async def test_a_server_of_the_default_stream_only() -> None:
    """Without `routecast.v1`, each subscription has its own connection with a query."""
    targets = []

    async def script(connection: ScriptedConnection) -> None:
        assert connection.socket.request
        targets.append(connection.socket.request.path)
        if "?" not in targets[-1]:
            await connection.wait_closed()
        total = len(targets)
        await connection.send(
            f'{{"total_decisions":{total},"avg_confidence":null,"timestamp":"t"}}'
        )
        await connection.wait_closed()

    async with scripted(script, protocols=()) as server, connect(server.url) as client:
        first = await client.subscribe(interval=1, window="5m", strategy=("a", "b"))
        metrics = await take(first)
        assert metrics.data == {"total_decisions": 2}
        assert (metrics.position, metrics.source) == (None, None)
        second = await client.subscribe(fields="cost")
        assert (await take(second)).total_decisions == 3
        await second.close()
    path = "/ws/metrics"
    assert targets == [
        path,
        f"{path}?interval=1&window=5m&strategy=a&strategy=b",
        f"{path}?fields=cost",
    ]


@pytest.mark.parametrize("protocol", [V1_JSON, V1_MSGPACK])
async def test_it_speaks_what_the_server_chose(protocol: str) -> None:
    """The subprotocol that the server chose decides between text and binary messages."""

    async def script(connection: ScriptedConnection) -> None:
        heard.append(type(await connection.socket.recv()))
        await connection.close(1008)

    heard: list[Any] = []
    async with scripted(script, protocols=(protocol,)) as server:
        with pytest.raises(Refused):
            await take(stream(server.url))
    assert heard == [str if protocol == V1_JSON else bytes]


async def test_an_invalid_message_ends_only_the_connection() -> None:
    """The client reports what was wrong and reconnects."""

    async def babbling(connection: ScriptedConnection) -> None:
        await connection.send("not JSON")
        await connection.wait_closed()

    health_log = HealthLog()
    async with (
        scripted(babbling, steady) as server,
        connect(server.url, on_change=health_log) as client,
    ):
        feed = await client.subscribe()
        assert (await take(feed)).total_decisions == 1
        assert "routecast.v1" in (await health_log.of(State.RECONNECTING)).trouble


# -- no more than the server takes --------------------------------------------------------------


def limited(limit: int) -> dict[str, Any]:
    """Return a `hello` that allows this number of messages in a minute."""
    return {"type": "hello", "connection": "c", "limits": {"messages_per_minute": limit}}


async def test_frames_come_while_messages_wait_for_their_turn() -> None:
    """Messages over the limit of `hello` are sent later; documents are shown meanwhile."""
    heard: list[Any] = []

    async def strict(connection: ScriptedConnection) -> None:
        await connection.send(limited(10))
        heard.append(await connection.receive())
        await connection.send(snapshot(1, {"total_decisions": 1}))
        while len(heard) < 4:
            heard.append(await connection.receive())
        await connection.send(snapshot(2, {"total_decisions": 2}))
        await connection.receive()
        raise AssertionError("too soon")

    async with scripted(strict) as server, connect(server.url) as client:
        shown = await client.subscribe()
        assert (await take(shown)).total_decisions == 1
        others = [await client.subscribe(strategy=str(number)) for number in range(8)]
        assert (await take(shown)).total_decisions == 2
        for other in others[3:]:
            await other.close()
        assert client.health.state is State.CONNECTED
    assert [message.id for message in heard] == ["s1", "s2", "s3", "s4"]
