"""`routecast.v1` as a client sees it, on both WebSocket edges and in both encodings."""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory

from tests.support.needs import skip_as_meant
from tests.support.raw import open_stream
from tests.support.running_services import broken
from tests.support.server import EDGES, Edge, Server
from tests.support.stream import receive as receive_document
from tests.support.v1 import JSON, MSGPACK, V1Client, v1_client, without_nulls

GOOD = {"strategy": "hybrid", "provider": "gemini"}
FAST = 0.1


@pytest.fixture(scope="module", params=EDGES)
def edge(request: pytest.FixtureRequest) -> Edge:
    """Each edge in turn."""
    return cast("Edge", request.param)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, edge: Edge) -> Iterator[Server]:
    """A server that tests share; none of them depends on the contents of the database."""
    with Server(tmp_path_factory.mktemp("server"), edge=edge) as running:
        running.post(GOOD)
        yield running


@pytest.fixture(params=[JSON, MSGPACK])
async def client(server: Server, request: pytest.FixtureRequest) -> AsyncIterator[V1Client]:
    """A connection in each encoding."""
    async with v1_client(server, request.param) as connected:
        yield connected


async def closed(client: V1Client) -> int:
    """Return the close code of the server."""
    with pytest.raises(ConnectionClosed) as ended:
        await client.receive_until(lambda _: False)
    assert ended.value.rcvd is not None
    return ended.value.rcvd.code


def metrics(server: Server, **query: Any) -> dict[str, Any]:
    """Return the document of `GET /routing/metrics` as routecast.v1 has it."""
    document = server.metrics(**query)
    del document["timestamp"]
    return cast("dict[str, Any]", without_nulls(document))


# -- coming -------------------------------------------------------------------------------------


async def test_hello_comes_first(server: Server, client: V1Client) -> None:
    """The first message has the limits, the database's epoch and a name of the connection."""
    hello = client.messages[0]
    assert hello["protocol"] == "routecast.v1"
    assert hello["epoch"] == server.http.get("/health").json()["position"]["epoch"]
    assert hello["limits"] == {
        "subscriptions": 16,
        "messages_per_minute": 120,
        "max_message_bytes": 65_536,
        "min_interval": 0.1,
    }
    async with v1_client(server) as other:
        assert other.messages[0]["connection"] != hello["connection"]


async def test_no_known_subprotocol_means_the_default_stream(server: Server) -> None:
    """A client with no or only unknown subprotocols gets whole documents and no subprotocol."""
    for offered in (None, ["graphql-ws"]):
        async with connect(f"{server.ws_url}?interval={FAST}", subprotocols=offered) as stream:  # type: ignore[arg-type]  # -- a NewType of str
            assert stream.subprotocol is None
            await stream.send('{"type":"subscribe","id":"main"}')
            for _ in range(2):
                assert list(await receive_document(stream))[-1] == "timestamp"


async def test_the_first_known_subprotocol_is_chosen(server: Server) -> None:
    """The server chooses the first subprotocol it knows, in the client's order."""
    offered = ["graphql-ws", MSGPACK, JSON]
    async with connect(server.ws_url, subprotocols=offered) as stream:  # type: ignore[arg-type]  # -- a NewType of str
        assert stream.subprotocol == MSGPACK


async def test_a_bad_query_is_refused_before_the_upgrade(server: Server) -> None:
    """A bad query gets 400, and no upgrade."""
    with pytest.raises(InvalidStatus) as refused:
        async with v1_client(server, query="?interval=0"):
            pass
    assert refused.value.response.status_code == 400


# -- following ----------------------------------------------------------------------------------


async def test_a_snapshot_comes_at_once_and_then_changes(server: Server, client: V1Client) -> None:
    """The first message is the whole document; a decision then sends only what it changed."""
    name = secrets.token_hex(4)
    snapshot = await client.subscribe("main", interval=FAST)
    assert snapshot["type"] == "snapshot"
    assert snapshot["data"] == metrics(server)
    assert (snapshot["source"], snapshot["age_ms"] < 1000) == ("live", True)
    seq = server.post({**GOOD, "strategy": name, "confidence": 0.5})["position"]["seq"]
    delta = await client.receive()
    assert delta["type"] == "delta"
    assert delta["position"]["seq"] == seq
    count = snapshot["data"]["total_decisions"] + 1
    assert delta["data"]["total_decisions"] == count
    assert delta["data"]["strategy_performance"] == {name: {"count": 1, "avg_confidence": 0.5}}
    assert set(delta["data"]["confidence_distribution"]) == {"medium"}
    assert client.held["main"].document == metrics(server)


async def test_nothing_changed_nothing_sent(server: Server, client: V1Client) -> None:
    """Nothing is sent while the view does not change, also after commits outside its filter."""
    name = secrets.token_hex(4)
    await client.subscribe("main", interval=FAST, filter={"strategy": [name]})
    server.post(GOOD)
    with pytest.raises(TimeoutError):
        await client.receive(seconds=8 * FAST)
    server.post({**GOOD, "strategy": name})
    assert (await client.receive())["data"]["total_decisions"] == 1


async def test_each_subscription_has_its_own_view(server: Server, client: V1Client) -> None:
    """Subscriptions of one connection have their own fields, filter, window and interval."""
    asked: dict[str, dict[str, Any]] = {
        "all": {},
        "cost": {"fields": ["total_decisions", "cost", "tokens", "latency_ms", "errors"]},
        "one": {"filter": {"strategy": ["hybrid"], "provider": ["gemini", "claude"]}},
        "hour": {"window": "1h", "fields": ["total_decisions", "models", "fallbacks"]},
        "none": {"filter": {"project": ["no such"]}},
    }
    for identity, view in asked.items():
        await client.subscribe(identity, interval=FAST, **view)
    full = {**GOOD, "cost": 0.25, "latency_ms": 12.5, "model": "flash", "status": "error"}
    seq = server.post([full, {**GOOD, "provider": "claude"}])["position"]["seq"]
    for identity, view in asked.items():
        if identity != "none":
            await client.follow_to(identity, seq)
        query = dict(view.get("filter", {}))
        if "fields" in view:
            query["fields"] = ",".join(view["fields"])
        if "window" in view:
            query["window"] = view["window"]
        assert client.held[identity].document == metrics(server, **query), identity


async def test_clients_may_use_different_ids_for_the_same_view(
    server: Server, client: V1Client
) -> None:
    """Clients share a document, and each message has the id that its client chose."""
    names = ["a", 'quote " and \\ and ☂', "x" * 64, "é"]
    for name in names:
        await client.subscribe(name, interval=FAST)
    seq = server.post(GOOD)["position"]["seq"]
    for name in names:
        held = await client.follow_to(name, seq)
        assert held.document == client.held["a"].document


async def test_unsubscribing_ends_only_that_subscription(server: Server, client: V1Client) -> None:
    """No more messages come under the id, which can be used again; others continue."""
    await client.subscribe("gone", interval=FAST)
    await client.subscribe("stays", interval=FAST)
    await client.send({"type": "unsubscribe", "id": "gone"})
    await client.send({"type": "ping", "id": "p"})
    await client.receive_until(lambda message: message == {"type": "pong", "id": "p"})
    for _ in range(3):
        seq = server.post(GOOD)["position"]["seq"]
        await client.follow_to("stays", seq)
    assert client.held["gone"].seq < seq
    assert (await client.subscribe("gone"))["type"] == "snapshot"


async def test_the_default_interval_is_the_servers(server: Server) -> None:
    """Without an interval in the message, that of the query counts, or else the server's."""
    async with v1_client(server, query=f"?interval={FAST}") as client:
        await client.subscribe("main")
        seq = server.post(GOOD)["position"]["seq"]
        async with asyncio.timeout(4):  # the default is 5
            await client.follow_to("main", seq)


# -- coming back --------------------------------------------------------------------------------


async def test_a_client_that_reconnects_gets_a_delta(server: Server, client: V1Client) -> None:
    """A client that resumes gets one delta from its position, if it is smaller than a snapshot."""
    await client.subscribe("main", interval=FAST)
    held = client.held["main"]
    await client.send({"type": "unsubscribe", "id": "main"})
    for _ in range(3):
        server.post(GOOD)
    back = await client.subscribe("main", interval=FAST, position=held.position)
    assert (back["type"], back["base"]) == ("delta", held.seq)
    assert client.held["main"].document == metrics(server)
    await client.send({"type": "unsubscribe", "id": "main"})
    again = await client.subscribe("main", position=client.held["main"].position)
    assert (again["type"], again["data"]) == ("delta", {})


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": "0123456789abcdef"},
        {"seq": 10**9},
        {"seq": 2**63},
        {"seq": -1},
        {"epoch": "", "seq": 0},
        {"epoch": "☂" * 1000},
    ],
    ids=str,
)
async def test_an_unknown_position_gets_a_snapshot(
    client: V1Client, change: dict[str, Any]
) -> None:
    """A position of another epoch, of the future or out of range is answered by a snapshot."""
    await client.subscribe("first")
    position = {**client.held["first"].position, **change}
    assert (await client.subscribe("main", position=position))["type"] == "snapshot"


async def test_a_view_that_depends_on_the_time_is_not_resumed(client: V1Client) -> None:
    """Resuming a view whose document depends on the time gives a snapshot."""
    for number, view in enumerate([{"window": "5m"}, {"fields": ["rate", "total_decisions"]}]):
        await client.subscribe(f"a{number}", **view)
        position = client.held[f"a{number}"].position
        again = await client.subscribe(f"b{number}", position=position, **view)
        assert again["type"] == "snapshot"


# -- looking back -------------------------------------------------------------------------------


async def test_history_is_what_http_returns(server: Server, client: V1Client) -> None:
    """A history has the buckets and values of HTTP, under the client's id, which is then free."""
    server.post([{**GOOD, "cost": 0.5, "latency_ms": 3}, {**GOOD, "strategy": "other"}])
    for _ in range(2):
        await client.send(
            {
                "type": "history",
                "id": "h1",
                "group_by": "strategy",
                "points": 90,
                "fields": ["count", "cost", "p95_latency_ms"],
                "filter": {"provider": ["gemini"]},
            }
        )
        told = await client.receive()
        query = "group_by=strategy&points=90&fields=count,cost,p95_latency_ms&provider=gemini"
        asked = server.http.get(f"/v1/history?{query}").json()
        assert (told.pop("type"), told.pop("id")) == ("history", "h1")
        if told["from"] == asked["from"]:  # no minute went by in between
            assert told == asked
        assert len(told["series"][0]["count"]) == told["points"]


async def test_a_followed_history_agrees_with_live_numbers(
    server: Server, client: V1Client
) -> None:
    """A late decision is in the history and the totals at one position; the points add up."""
    view = {"filter": {"strategy": [secrets.token_hex(4)]}}
    first = {**GOOD, "strategy": view["filter"]["strategy"][0]}
    server.post([first, first])
    await client.subscribe("main", interval=60, **view)
    await client.send({"type": "history", "id": "h1", "points": 60, "follow": True, **view})
    told = await client.receive_until(lambda message: message.get("id") == "h1")
    assert points(told) == client.held["main"].document["total_decisions"] == 2
    past = datetime.now(UTC) - timedelta(minutes=5)
    server.post({**first, "timestamp": past.isoformat()})
    chart = counts(told)
    while sum(chart.values()) < 3:
        message = await client.receive()
        if message["id"] == "h1":  # also where a minute has ended, at the position of before
            first_told = datetime.fromisoformat(message["from"])
            chart = {at: n for at, n in chart.items() if at < first_told} | counts(message)
        if sum(chart.values()) > client.held["main"].document["total_decisions"]:
            live = await client.receive()  # unless a tick has brought them before
            assert (live["id"], live["position"]) == ("main", message["position"])
    assert client.held["main"].document["total_decisions"] == sum(chart.values()) == 3
    # In between, the minute may end for either of them.
    await client.send({"type": "history", "id": "h1"})
    refused = await client.receive_until(lambda message: message["type"] == "error")
    assert (refused["id"], refused["code"]) == ("h1", "id_in_use")
    await client.send({"type": "unsubscribe", "id": "h1"})
    await client.send({"type": "history", "id": "h1"})
    again = await client.receive_until(lambda message: message.get("id") == "h1")
    assert again["type"] == "history"


async def test_many_histories_at_once(server: Server, client: V1Client) -> None:
    """Sixteen histories of ten years by minute are each answered in turn, with limited length."""
    for number in range(16):
        asked = {"points": 2000 - number, "from": "2016-01-01T00:00:00Z", "group_by": "model"}
        await client.send({"type": "history", "id": f"{number}", **asked})
    told = [await client.receive() for _ in range(16)]
    assert [answer["id"] for answer in told] == [f"{number}" for number in range(16)]
    assert all(0 < answer["points"] <= 2000 for answer in told)


def counts(history: dict[str, Any]) -> dict[datetime, int]:
    """Return the number of decisions in each bucket, by the bucket's start."""
    first, step = datetime.fromisoformat(history["from"]), timedelta(seconds=history["step"])
    starts = [first + number * step for number in range(history["points"])]
    found = dict.fromkeys(starts, 0)
    for series in history["series"]:
        for start, count in zip(starts, series["count"], strict=True):
            found[start] += count
    return found


def points(history: dict[str, Any]) -> int:
    """Return the number of decisions in all buckets."""
    return sum(sum(series["count"]) for series in history["series"])


# -- what goes wrong ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"interval": 0}, "interval: must be a number of seconds from 0.1 to 60"),
        ({"interval": "1s"}, "interval: must be a number of seconds from 0.1 to 60"),
        ({"window": 5}, "window: must be a string, not a number"),
        ({"fields": "cost"}, "fields: must be an array, not a string"),
        ({"fields": [1]}, "fields: each must be a string, not a number"),
        ({"filter": {"model": []}}, "filter.model: must not be empty"),
        ({"filter": {"model": ["m"] * 101}}, "filter.model: must be at most 100 values"),
        ({"filter": {"model": ["m" * 129]}}, "filter.model: each must be at most 128 characters"),
        ({"filter": {"model": [""]}}, "filter.model: each must not be empty"),
        ({"position": 4711}, "position: must be an object, not a number"),
        ({"type": "ack", "seq": -1}, "seq: must be 0 or more"),
        ({"type": "history", "points": 2.5}, "points: must be an integer from 1 to 2,000"),
        ({"type": "history", "points": 2001}, "points: must be an integer from 1 to 2,000"),
        (
            {"type": "history", "group_by": "reason"},
            "group_by: must be one of strategy, provider, model, band, status",
        ),
        *(
            (
                {"type": "history", name: moment},
                f"{name}: must be RFC 3339 with an offset, such as 2026-01-31T12:34:56Z",
            )
            for name in ("from", "to")
            for moment in (1_700_000_000, "2026-01-31T12:34:56", "yesterday")
        ),
        ({"type": "history", "follow": "yes"}, "follow: must be true or false, not a string"),
    ],
    ids=lambda value: str(value)[:60],
)
async def test_errors_have_the_words_of_http(
    client: V1Client, message: dict[str, Any], words: str
) -> None:
    """An error says what a value must be in the words of the API, without Python types."""
    await client.send({"type": "subscribe", "id": "x", **message})
    error = await client.receive()
    assert error["message"] == words


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ({"type": "subscribe"}, "id"),
        ({"type": "subscribe", "id": ""}, "id"),
        ({"type": "subscribe", "id": "x" * 65}, "id"),
        ({"type": "subscribe", "id": "x", "interval": 0}, "interval"),
        ({"type": "subscribe", "id": "x", "interval": 61}, "interval"),
        ({"type": "subscribe", "id": "x", "window": "2h"}, "window"),
        ({"type": "subscribe", "id": "x", "fields": ["nonsense"]}, "fields"),
        ({"type": "subscribe", "id": "x", "fields": []}, "fields"),
        ({"type": "subscribe", "id": "x", "filter": {"model": "flash"}}, "filter.model"),
        ({"type": "subscribe", "id": "x", "filter": {"model": ["m"] * 10_000}}, "filter.model"),
        ({"type": "subscribe", "id": "x", "position": 4711}, "position"),
        ({"type": "subscribe", "id": "x", "position": {"epoch": "e"}}, "position.seq"),
        ({"type": "unsubscribe", "id": "nobody"}, "id"),
        ({"type": "ack", "id": "nobody", "seq": 1}, "id"),
        ({"type": "ack", "id": "main", "seq": -1}, "seq"),
        ({"type": "refresh"}, "token"),
        ({"type": "refresh", "token": "abc"}, "token"),
        ({"type": "ping", "id": 1}, "id"),
        ({"type": "history", "id": "h", "points": 1_000_000}, "points"),
        ({"type": "history", "id": "h", "from": "yesterday"}, "from"),
        ({"type": "history", "id": "h", "from": "1969-01-01T00:00:00Z"}, "from"),
        ({"type": "history", "id": "h", "from": "9999-01-01T00:00:00Z"}, "from"),
        ({"type": "history", "id": "h", "group_by": "reason"}, "group_by"),
        ({"type": "history", "id": "h", "fields": ["nonsense"]}, "fields"),
        ({"type": "history", "id": "main"}, "id"),
        ({"type": "subscribe", "id": "main"}, "id"),
    ],
    ids=lambda value: str(value)[:60],
)
async def test_a_wrong_field_is_named(client: V1Client, message: Any, field: str) -> None:
    """An error names the wrong field, and the connection stays open."""
    await client.subscribe("main", interval=60)
    await client.send(message)
    error = await client.receive()
    assert error["type"] == "error"
    assert error["message"].startswith(f"{field}: ")
    assert error["retryable"] is False
    await client.send({"type": "ping", "id": "p"})
    assert await client.receive() == {"type": "pong", "id": "p"}


async def test_unknown_fields_are_ignored(client: V1Client) -> None:
    """Unknown fields of a message and of its filter are ignored, with any content."""
    deep: Any = []
    for _ in range(50):
        deep = [deep]
    asked = {"filter": {"colour": ["red"]}, "colour": deep, "ttl": None, "fields": None}
    assert (await client.subscribe("main", **asked))["type"] == "snapshot"


async def test_three_invalid_messages_in_a_row_close_the_connection(client: V1Client) -> None:
    """Two invalid messages get an error each; the third closes the connection with 4400."""
    strange: list[Any] = [[1, 2], {"type": "dance"}, {"id": "main"}]
    for _ in range(2):  # what is of the protocol in between begins the count again
        for message in strange[:2]:
            await client.send(message)
            error = await client.receive()
            assert (error["type"], error["code"]) == ("error", "not_protocol")
        await client.send({"type": "ping", "id": "p"})
        assert await client.receive() == {"type": "pong", "id": "p"}
    for message in strange:
        await client.send(message)
    assert await closed(client) == 4400


async def test_bytes_that_are_no_message(client: V1Client) -> None:
    """Three messages that are neither JSON nor msgpack close the connection."""
    text = client.stream.subprotocol == JSON
    for _ in range(3):
        await client.send("{" if text else b"\xc1")
    assert await closed(client) == 4400


async def test_the_other_kind_of_message(client: V1Client) -> None:
    """A binary message on a text subprotocol, or the reverse, closes with 1003."""
    await client.send(b"{}" if client.stream.subprotocol == JSON else "{}")
    assert await closed(client) == 1003


async def test_a_message_over_the_limit(client: V1Client) -> None:
    """A message of 64 KiB is accepted; a longer one closes the connection with 1009."""
    await client.send({"type": "ping", "id": "p", "x": "x" * 65_000})
    assert (await client.receive())["type"] == "pong"
    await client.send({"type": "ping", "id": "p", "x": "x" * 66_000})
    assert await closed(client) == 1009


async def test_too_many_messages(client: V1Client) -> None:
    """120 messages in a minute are answered; the next one closes with 4429."""
    for number in range(120):
        await client.send({"type": "ping", "id": f"{number}"})
    for number in range(120):
        assert await client.receive() == {"type": "pong", "id": f"{number}"}
    await client.send({"type": "ping", "id": "x"})
    assert await closed(client) == 4429


async def test_too_many_subscriptions(client: V1Client) -> None:
    """A 17th subscription is refused until another one ends."""
    for number in range(16):
        assert (await client.subscribe(f"{number}"))["type"] == "snapshot"
    refused = await client.subscribe("more")
    assert (refused["type"], refused["code"]) == ("error", "too_many")
    await client.send({"type": "unsubscribe", "id": "3"})
    assert (await client.subscribe("more"))["type"] == "snapshot"


async def test_subscriptions_that_are_too_large_together(client: V1Client) -> None:
    """The memory that the subscriptions of one connection need is limited."""
    large = {"model": [f"{number:0120}" for number in range(100)]}
    answers = [
        await client.subscribe(f"{number}", filter={"model": large["model"], "provider": ["x"]})
        for number in range(6)
    ]
    assert [answer["type"] for answer in answers] == ["snapshot"] * 5 + ["error"]
    assert answers[-1]["message"].startswith("filter: ")


async def test_numbers_that_may_be_old_say_so(
    tmp_path_factory: pytest.TempPathFactory, edge: Edge
) -> None:
    """While the database fails, messages have the source and age of the numbers, then live ones."""
    env = {"ROUTECAST_CACHE_SECONDS": "1"}
    folder = tmp_path_factory.mktemp("stale")
    with Server(folder, env=env, edge=edge) as server:
        server.post(GOOD)
        async with v1_client(server) as client:
            await client.subscribe("main", interval=FAST)
            held = client.held["main"].document
            with broken(server.database):
                stale = await client.receive_until(lambda m: m.get("source") == "stale")
                assert (stale["type"], stale["data"]) == ("delta", {})
                again = await client.subscribe("more", interval=FAST)
                assert (again["source"], again["data"]) == ("stale", held)
                assert again["age_ms"] >= stale["age_ms"] > 0
            await client.receive_until(lambda m: m.get("source") == "live" and m["id"] == "main")
            seq = server.post(GOOD)["position"]["seq"]
            await client.follow_to("main", seq)


async def test_a_change_is_pushed(server: Server) -> None:
    """All subscribers get a change as soon as it is committed, not at the next interval."""
    interval = 6.0
    async with v1_client(server) as client, v1_client(server, MSGPACK) as packing:
        for each in (client, packing):
            await each.subscribe("main", interval=interval, fields=["total_decisions"])
        # An interval after the first message, and soon after a multiple of it: the server has the
        # same clock.
        after = time.monotonic() + interval
        moment = (after // interval + 1) * interval + 0.3
        if moment - after > interval:
            moment -= interval
        await asyncio.sleep(moment - time.monotonic())
        seq = server.post(GOOD)["position"]["seq"]
        async with asyncio.timeout(interval / 2):
            for each in (client, packing):
                await each.follow_to("main", seq)


async def test_shared_compression_keeps_each_clients_context(server: Server) -> None:
    """Each client can decompress shared messages after any messages it was sent before.

    Some clients have a second subscription, whose messages come in between; some connect later, and
    some compress each message alone.
    """
    plain, anew = (
        {"compression": None},
        {"extensions": [ClientPerMessageDeflateFactory(True, True)]},
    )
    options: list[dict[str, Any]] = [{}, {}, {}, anew, anew, plain]
    async with AsyncExitStack() as stack:
        clients: list[V1Client] = []
        for round_ in range(8):
            for option in options if round_ in (0, 3, 4) else []:
                client = await stack.enter_async_context(v1_client(server, JSON, **option))
                clients.append(client)
                await client.subscribe("main", interval=FAST)
                if len(clients) % 2:
                    await client.subscribe("more", interval=FAST, window="1h")
            seq = server.post({**GOOD, "strategy": f"round {round_}"})["position"]["seq"]
            for client in clients:
                await client.follow_to("main", seq)
        for client in clients:
            assert client.held["main"].document == clients[0].held["main"].document
        for client in clients[::2]:
            await client.follow_to("more", seq)
            assert client.held["more"].document == clients[0].held["more"].document


# -- life and death -----------------------------------------------------------------------------


async def test_a_quiet_stream_gets_a_snapshot_in_time(server: Server) -> None:
    """A snapshot with a new timestamp comes within 25 seconds, though nothing changed."""
    quiet = {"filter": {"strategy": [secrets.token_hex(4)]}}

    async def wait(subprotocol: str, interval: float) -> None:
        async with v1_client(server, subprotocol) as client:
            first = await client.subscribe("main", interval=interval, **quiet)
            async with asyncio.timeout(25):
                again = await client.receive()
            assert again["type"] == "snapshot"
            assert again["timestamp"] > first["timestamp"]
            assert again["data"] == first["data"]

    async with asyncio.TaskGroup() as group:
        for subprotocol in (JSON, MSGPACK):
            for interval in (FAST, 10, 60):
                group.create_task(wait(subprotocol, interval))


async def test_goodbye_before_a_restart(
    tmp_path_factory: pytest.TempPathFactory, edge: Edge
) -> None:
    """A server that stops sends `goodbye` with a time to reconnect, and then closes with 1012."""
    if edge == "portable":
        skip_as_meant("uvicorn itself closes its sockets, and asks nobody")
    with Server(tmp_path_factory.mktemp("stops"), edge=edge) as server:
        async with v1_client(server) as client:
            await client.subscribe("main")
            server.terminate()
            goodbye = await client.receive()
            assert (goodbye["type"], goodbye["code"]) == ("goodbye", 1012)
            assert 0 <= goodbye["reconnect_after_ms"] <= 2_000
            assert await closed(client) == 1012


async def test_a_slow_reader_gets_one_merged_delta(
    tmp_path_factory: pytest.TempPathFactory, edge: Edge
) -> None:
    """A slow reader gets one delta from the version it was last sent to the newest."""
    names = [f"{number:03}" + "x" * 60 for number in range(400)]
    batch = [{"strategy": name, "provider": name, "model": name, "cost": 1} for name in names]
    with Server(tmp_path_factory.mktemp("slow"), edge=edge) as server:
        async with v1_client(server, compression=None, max_queue=1, ping_interval=None) as client:
            ids = ["main", *map(str, range(7))]  # each gets messages of its own
            for identity in ids:
                await client.subscribe(identity, interval=FAST)
            client.stream.transport.pause_reading()
            # More than the sockets take: 15 MB. It must not take long: a client that reads nothing
            # answers no ping.
            sent = 0
            while sent < 20 or server.instrument("routecast_frames_conflated_total") < 2 * len(ids):
                server.post(batch)  # nearly all of the document changes
                sent += 1
                assert server.active() == 1
            client.stream.transport.resume_reading()
            seq = server.post({**GOOD, "strategy": "last"})["position"]["seq"]
            for identity in ids:
                held = await client.follow_to(identity, seq)
                assert held.document == metrics(server)
            deltas = [m for m in client.messages if "base" in m and m["id"] == "main"]
            assert max(m["position"]["seq"] - m["base"] for m in deltas) > 1
            assert len(deltas) < seq


def test_streams_that_vanish_leave_nothing(server: Server) -> None:
    """A connection that is reset is forgotten."""
    before = server.active()
    connection = open_stream(server.port, subprotocol=JSON)
    assert connection.frame() is not None
    server.wait_for_active(before + 1, 5)
    connection.reset()
    server.wait_for_active(before, 5)


async def test_a_flood_delays_no_other_client(server: Server, edge: Edge) -> None:
    """A client that sends thousands of messages is disconnected; others are served in time."""
    async with v1_client(server) as other:
        await other.subscribe("main", interval=FAST)
        async with v1_client(server) as client:
            message = json.dumps({"type": "subscribe", "id": "x", "fields": ["x"] * 60})
            with suppress(ConnectionClosed):
                for _ in range(5_000):
                    await client.send(message)
            assert await closed(client) == 4429
        seq = server.post(GOOD)["position"]["seq"]
        async with asyncio.timeout(2):
            await other.follow_to("main", seq)
    assert "Traceback" not in server.log.read_text()
