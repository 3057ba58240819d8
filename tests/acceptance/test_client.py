"""The Python client against a real server: streams, subscriptions, histories and reconnects."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import pytest

from routecast.client import (
    BadRequest,
    Health,
    Metrics,
    Refused,
    Source,
    State,
    connect,
    stream,
    stream_sync,
)
from routecast.client.client import PROTOCOLS
from routecast.protocol import V1_JSON, V1_MSGPACK
from tests.support.scripted_server import until
from tests.support.server import EDGES, Edge, Server
from tests.support.v1 import without_nulls

WAIT_SECONDS = 40.0
FAST = 0.1
DECISION: dict[str, Any] = {"strategy": "hybrid", "provider": "gemini", "confidence": 0.9}

Value = TypeVar("Value")


async def first(values: AsyncIterator[Value], good: Callable[[Value], bool]) -> Value:
    """Return the first value that meets a condition."""
    async with asyncio.timeout(WAIT_SECONDS):
        async for value in values:
            if good(value):
                return value
    raise AssertionError("it came to an end")


def has(count: int) -> Callable[[Metrics], bool]:
    """Return a condition: metrics have this number of decisions."""
    return lambda metrics: metrics.total_decisions == count


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("protocols", [(V1_JSON,), (V1_MSGPACK,), ()], ids=str)
async def test_the_document_is_the_servers(
    server: Server, edge: Edge, protocols: tuple[str, ...]
) -> None:
    """The client shows the server's document in both encodings and on the default stream."""
    server.post([DECISION, {**DECISION, "strategy": "cost", "cost": 0.5}])
    asked: dict[str, Any] = {"strategy": ("cost", "other"), "fields": ("cost", "models", "rate")}
    async with connect(server.url, protocols=protocols) as client:
        whole = await client.subscribe(interval=FAST)
        part = await client.subscribe(interval=FAST, window="1h", **asked)
        metrics = await first(whole, has(2))
        narrow = await first(part, lambda metrics: metrics.cost is not None)
        assert whole.health.state is State.CONNECTED
        if protocols:
            assert (metrics.source, whole.health.source) == (Source.LIVE, Source.LIVE)
            assert metrics.position is not None
    document = server.metrics()
    del document["timestamp"]
    assert metrics.data == without_nulls(document)
    assert list(metrics.data) == list(without_nulls(document))
    assert narrow.cost is not None
    assert (narrow.cost.total, narrow.total_decisions) == (0.5, None)


async def test_a_stream_that_was_cut_equals_one_that_was_not(server: Server) -> None:
    """A stream whose server was killed shows the same documents, by position, as another."""
    cut: dict[int, dict[str, Any]] = {}
    whole: dict[int, dict[str, Any]] = {}

    async def watch(seen: dict[int, dict[str, Any]], stop: int) -> None:
        async for metrics in stream(server.url, interval=FAST):
            assert metrics.position
            seen[metrics.position.seq] = metrics.data
            if metrics.total_decisions == stop:
                return

    async with asyncio.timeout(WAIT_SECONDS), asyncio.TaskGroup() as group:
        group.create_task(watch(cut, 20))
        for number in range(20):
            await asyncio.to_thread(server.post, {**DECISION, "strategy": f"s{number % 3}"})
            await until(lambda seen=number + 1: any(_total(d) == seen for d in cut.values()))  # type: ignore[misc]  # -- a default binds it
            if number == 9:
                server.kill()
                await asyncio.to_thread(server.start)
    async with asyncio.timeout(WAIT_SECONDS):
        await watch(whole, 20)
    last = max(cut)
    assert last == max(whole)
    assert cut[last] == whole[last]
    assert sorted(_total(document) for document in cut.values())[-20:] == [*range(1, 21)]


def _total(document: dict[str, Any]) -> int:
    total: int = document["total_decisions"]
    return total


async def test_health_reports_a_loss_and_a_return(server: Server) -> None:
    """The numbers stay, with position and age; the `goodbye` of a stop is obeyed."""
    server.post(DECISION)
    async with connect(server.url) as client:
        feed = await client.subscribe(interval=FAST)
        await first(feed, has(1))
        held = feed.health
        assert (held.state, held.trouble, held.retry_in) == (State.CONNECTED, "", None)
        stopping = asyncio.create_task(asyncio.to_thread(server.stop))
        # Soon it tries again, and its trouble is that nobody listens.
        await until(lambda: feed.health.trouble == "closed with 1012")
        assert feed.health.state is State.RECONNECTING
        await stopping
        assert feed.health.position == held.position
        assert (feed.health.age or 0) >= (held.age or 0)
        assert feed.metrics is not None
        await asyncio.to_thread(server.start)
        await asyncio.to_thread(server.post, DECISION)
        await first(feed, has(2))
        assert feed.health.state is State.CONNECTED


async def test_a_server_that_freezes_is_noticed(server: Server) -> None:
    """The last document is stale while an open connection is silent; then the client reconnects."""
    server.post(DECISION)
    async with connect(server.url, protocols=()) as client:
        feed = await client.subscribe(interval=FAST)
        await first(feed, has(1))
        server.freeze()
        try:
            await until(lambda: feed.health.state is State.STALE)
            assert feed.health.trouble == "connected, but receives nothing"
        finally:
            server.thaw()
        await first(feed, has(1))
        await until(lambda: feed.health.state is State.CONNECTED)


@pytest.mark.parametrize("protocols", [PROTOCOLS, ()], ids=["v1", "default stream"])
async def test_a_bad_view_raises_where_it_is_iterated(
    server: Server, protocols: tuple[str, ...]
) -> None:
    """The exception has the server's words, and the client does not try again."""
    async with connect(server.url, protocols=protocols) as client:
        with pytest.raises(BadRequest, match=r"^fields: 'nonsense' is not one of"):
            await first(await client.subscribe(fields="nonsense"), has(0))


async def test_a_wrong_path_is_refused(server: Server) -> None:
    """404 is final."""
    with pytest.raises(Refused, match="it answered 404") as raised:
        await first(stream(f"{server.url}/elsewhere"), has(0))
    assert raised.value.code == 404


def test_a_stream_without_asyncio(server: Server) -> None:
    """It survives a loss of the server; leaving the loop ends its connection and thread."""
    server.post(DECISION)
    counts = []
    metrics = stream_sync(server.url, interval=FAST)
    for document in metrics:
        counts.append(document.total_decisions)
        if len(counts) == 1:
            server.kill()
            server.start()
            server.post(DECISION)
        elif counts[-1] == 2:
            break
    metrics.close()
    server.wait_for_active(0, WAIT_SECONDS)
    with pytest.raises(BadRequest):
        next(stream_sync(server.url, fields="nonsense"))


# -- the past -----------------------------------------------------------------------------------


def minutes_ago(minutes: int, **more: Any) -> dict[str, Any]:
    """Return a decision of some minutes ago."""
    return {**DECISION, "timestamp": time.time() - 60 * minutes, **more}


async def test_a_history_is_sent_once(server: Server) -> None:
    """The feed has one history, in buckets and by group, and then ends."""
    server.post([minutes_ago(3), minutes_ago(3, strategy="cost"), minutes_ago(1)])
    async with connect(server.url) as client:
        feed = await client.history(timedelta(minutes=10), points=20, group_by="strategy")
        found = [history async for history in feed]
    assert len(found) == 1
    (history,) = found
    assert history.step == 60
    assert len(history.times) == history.points >= 10
    assert history.times[0] <= datetime.now(UTC) - timedelta(minutes=9)
    assert sum(history.series["hybrid"]["count"]) == 2  # type: ignore[arg-type]  # -- a count
    assert sum(history.series["cost"]["count"]) == 1  # type: ignore[arg-type]  # -- a count


async def test_a_followed_history_equals_a_new_one(server: Server) -> None:
    """It misses no bucket over late decisions, a new group and a killed server."""
    server.post([minutes_ago(5), minutes_ago(2)])
    since = datetime.now(UTC) - timedelta(minutes=8)
    asked: dict[str, Any] = {"group_by": "strategy", "points": 100}
    async with connect(server.url) as client:
        feed = await client.history(since, follow=True, **asked)
        await first(feed, lambda history: _count(history) == 2)
        await asyncio.to_thread(server.post, [minutes_ago(4), minutes_ago(1, strategy="late")])
        await first(feed, lambda history: _count(history) == 4)
        server.kill()
        await asyncio.to_thread(server.start)
        await asyncio.to_thread(server.post, minutes_ago(6))
        followed = await first(feed, lambda history: _count(history) == 5)
        again = await client.history(followed.start, **asked)
        anew = await first(again, lambda _: True)
    assert followed.start == anew.start
    # One may have been asked for when the next minute had begun.
    shared = min(followed.points, anew.points)
    for key in ("hybrid", "late"):
        columns = followed.series[key]
        assert {name: values[:shared] for name, values in columns.items()} == {
            name: values[:shared] for name, values in anew.series[key].items()
        }


def _count(history: Any) -> int:
    return sum(sum(columns["count"]) for columns in history.series.values())


async def test_a_bad_history_raises_where_it_is_iterated(server: Server) -> None:
    """The default stream has no histories, so one raises there."""
    async with connect(server.url) as client:
        with pytest.raises(BadRequest, match="nonsense"):
            await anext(await client.history(timedelta(hours=1), fields="nonsense"))
    async with connect(server.url, protocols=()) as client:
        with pytest.raises(BadRequest, match="default stream"):
            await anext(await client.history(timedelta(hours=1)))


async def test_a_subscription_left_before_its_turn_is_not_sent(server: Server) -> None:
    """The client sends no more messages than the server allows, whatever comes and goes."""
    changes: list[State] = []
    async with connect(server.url, on_change=lambda health: changes.append(health.state)) as client:
        await first(await client.subscribe(interval=FAST), has(0))
        for number in range(200):
            subscription = await client.subscribe(strategy=str(number))
            await asyncio.sleep(0)  # what may be sent at once is
            await subscription.close()
        last = await client.subscribe(interval=FAST)
        await first(last, has(0))
    assert changes == [State.CONNECTED, State.CLOSED]


@pytest.mark.parametrize("protocols", [(V1_JSON,), ()])
async def test_loops_raise_what_on_change_raises(server: Server, protocols: Sequence[str]) -> None:
    """They do not wait for documents that never come."""

    def fail(_: Health) -> None:
        raise LookupError("a mistake of the application")

    async with connect(server.url, protocols=protocols, on_change=fail) as client:
        with pytest.raises(LookupError, match="a mistake"):
            await first(await client.subscribe(), has(0))
        if protocols:  # each subscription of the default stream has a connection of its own
            with pytest.raises(LookupError, match="a mistake"):
                await first(await client.subscribe(), has(0))


async def test_a_client_that_is_not_open_refuses_subscriptions(server: Server) -> None:
    """Before `async with` and after it, an error says how to open the client."""
    client = connect(server.url)
    with pytest.raises(RuntimeError, match="async with"):
        await client.subscribe()
    async with client:
        await first(await client.subscribe(), has(0))
    with pytest.raises(RuntimeError, match="async with"):
        await client.history(timedelta(hours=1))
