"""The operator's view of real connections: WebSockets over both edges, and server-sent events."""

import asyncio
import os
import re
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx2
import jwt
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from routecast import client
from tests.support.command import routecast
from tests.support.credentials import SIGNED, bearer, token
from tests.support.server import EDGES, Edge, Server
from tests.support.tokens import SECRET
from tests.support.v1 import JSON, MSGPACK, V1Client, v1_client
from tests.support.waiting import until

CONNECTIONS = "/v1/admin/connections"
NODES = "/v1/admin/nodes"
GOOD = {"strategy": "hybrid", "provider": "gemini"}
Row = dict[str, Any]


@pytest.fixture(scope="module", params=EDGES)
def edge(request: pytest.FixtureRequest) -> Edge:
    """Both edges in turn."""
    found: Edge = request.param
    return found


@pytest.fixture(scope="module")
def server(edge: Edge, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for all tests, with a decision."""
    with Server(tmp_path_factory.mktemp(edge), edge=edge) as running:
        running.post(GOOD)
        yield running


@asynccontextmanager
async def streaming(server: Server, agent: str, query: str = "") -> AsyncIterator[ClientConnection]:
    """Open a default stream, and receive its first document."""
    async with connect(f"{server.ws_url}{query}", user_agent_header=agent) as stream:
        await stream.recv()
        yield stream


def listed(server: Server, **query: Any) -> list[Row]:
    """Return the connections that the server lists."""
    answer = server.http.get(CONNECTIONS, params=query)
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    rows: list[Row] = answer.json()["connections"]
    return rows


def one(server: Server, agent: str, **query: Any) -> Row:
    """Return the connection of the client that calls itself by a name."""
    (row,) = (each for each in listed(server, **query) if each["client"] == agent)
    return row


def closed_one(server: Server, agent: str) -> Row:
    """Return the closed connection of a client, as soon as it is listed."""
    until(lambda: any(row["client"] == agent for row in listed(server, closed="true")))
    return one(server, agent, closed="true")


async def read_to_the_end(messages: AsyncIterable[object]) -> None:
    """Read until the stream ends, or raises."""
    async with asyncio.timeout(30):
        with suppress(ConnectionClosed):  # `websockets` raises it for most codes
            async for _ in messages:
                pass


def is_listed(server: Server, agent: str) -> bool:
    return any(row["client"] == agent for row in listed(server))


async def test_a_default_stream_is_listed(server: Server) -> None:
    """With what it asked for, and what it was sent; and once it has left, with its code."""
    async with streaming(server, "wall/1", "?interval=0.1&window=1h&provider=gemini") as stream:
        texts = [await stream.recv() for _ in range(3)]
        row = one(server, "wall/1", protocol="default", address="127.0.0.1", subject="")
        assert re.fullmatch(r"[0-9a-f]{15}", row["id"])
        assert (row["subject"], row["credential"], row["expires"]) == ("", None, None)
        (view,) = row["subscriptions"]
        assert (view["id"], view["window"], view["interval"]) == ("", "1h", 0.1)
        assert view["filter"] == {"provider": ["gemini"]}
        assert (row["conflated"], row["lag"], row["histories"]) == (0, None, 0)
        assert row["messages"] >= 4
        assert row["bytes"] >= 3 * len(texts[0]) * 0.9
        assert row["unsent"] >= 0
        assert row["saved_by_patches"] == 0
        # It is too small to be compressed.
        assert row["saved_by_compression"] == (0 if server.edge == "native" else None)
    row = closed_one(server, "wall/1")
    assert (row["code"], row["reason"], row["protocol"]) == (1000, "done", "default")
    assert row["messages"] >= 4
    assert row["started"] <= row["ended"]


@pytest.mark.parametrize("subprotocol", [JSON, MSGPACK])
async def test_routecast_v1_is_listed(server: Server, subprotocol: str) -> None:
    """Under the id of its hello, with each subscription, and how far it has read."""
    agent = f"v1/{subprotocol}"
    async with connect(
        server.ws_url,
        subprotocols=[subprotocol],  # type: ignore[list-item]  # -- a NewType of str
        user_agent_header=agent,
    ) as stream:
        reader = V1Client(stream)
        hello = await reader.receive()
        first = await reader.subscribe("a")
        await reader.subscribe("b", window="5m", interval=30)
        row = one(server, agent, protocol=subprotocol)
        assert (row["id"], row["protocol"]) == (hello["connection"], subprotocol)
        assert [view["id"] for view in row["subscriptions"]] == ["a", "b"]
        assert (row["messages"], row["lag"]) == (2, None)
        await reader.send({"type": "ack", "id": "a", "seq": first["position"]["seq"]})
        until(lambda: one(server, agent)["lag"] == 0)
        await asyncio.to_thread(server.post, GOOD)
        await reader.receive_until(lambda message: message["type"] == "delta")
        row = one(server, agent)
        assert (row["lag"], row["messages"]) == (1, 3)
        assert row["bytes"] > 100
        assert row["saved_by_patches"] > 0
        if server.edge == "native":
            assert 0 < row["saved_by_compression"] < row["bytes"]
        else:
            assert row["saved_by_compression"] is None
    closed = closed_one(server, agent)
    for saved in ("saved_by_patches", "saved_by_compression"):
        assert (closed[saved] or 0) >= (row[saved] or 0)


def test_server_sent_events_are_listed(server: Server) -> None:
    """Also the address that a stream is limited by, and what the client calls itself, cut."""
    agent = "events/" + "x" * 300
    with server.http.stream("GET", "/sse/metrics", headers={"User-Agent": agent}) as answer:
        lines = answer.iter_lines()
        next(line for line in lines if line.startswith("data"))
        row = one(server, agent[:200], protocol="sse")
        assert row["messages"] >= 1
        assert row["subscriptions"][0]["window"] == "all"
    assert closed_one(server, agent[:200])["protocol"] == "sse"


async def test_an_operator_keeps_a_client_away(server: Server) -> None:
    """It gets 4403, and our clients do not come back."""
    async with client.connect(server.url) as reader:
        feed = await reader.subscribe()
        await anext(feed)
        (row,) = listed(server, protocol=MSGPACK)
        answer = server.http.delete(f"{CONNECTIONS}/{row['id']}")
        assert (answer.status_code, answer.content) == (204, b"")
        with pytest.raises(client.Refused) as refused:
            await read_to_the_end(feed)
        assert refused.value.code == 4403
    until(lambda: not listed(server, protocol=MSGPACK))
    row = closed_one(server, row["client"])
    assert (row["code"], row["reason"]) == (4403, "an operator closed it")


async def test_an_operator_sends_a_client_elsewhere(server: Server) -> None:
    """It gets 1012 and a time to reconnect, with a goodbye in routecast.v1."""
    async with v1_client(server) as reader:
        (row,) = listed(server, protocol=JSON)
        answer = server.http.delete(f"{CONNECTIONS}/{row['id']}", params={"reconnect": "true"})
        assert answer.status_code == 204
        goodbye = await reader.receive()
        assert (goodbye["type"], goodbye["code"]) == ("goodbye", 1012)
    async with streaming(server, "moved/1") as stream:
        identity = one(server, "moved/1")["id"]
        server.http.delete(f"{CONNECTIONS}/{identity}?reconnect=true")
        await read_to_the_end(stream)
        assert stream.close_code == 1012
        assert re.fullmatch(r"reconnect_after_ms=\d+", stream.close_reason or "")


def test_an_operator_ends_server_sent_events(server: Server) -> None:
    """The answer ends."""
    with server.http.stream("GET", "/sse/metrics", headers={"User-Agent": "ended/1"}) as answer:
        lines = answer.iter_lines()
        next(line for line in lines if line.startswith("data"))
        identity = one(server, "ended/1")["id"]
        assert httpx2.delete(f"{server.url}{CONNECTIONS}/{identity}").status_code == 204
        assert not [line for line in lines if "error" in line]
    assert closed_one(server, "ended/1")["code"] == 4403


def test_what_does_not_exist_is_not_found(server: Server) -> None:
    """Whatever its form."""
    for identity in ("0" * 15, "nonsense", "%2e%2e"):
        answer = server.http.delete(f"{CONNECTIONS}/{identity}")
        assert answer.status_code == 404
        assert answer.headers["content-type"] == "application/problem+json"
    answer = server.http.delete(CONNECTIONS)  # of no subject, it would be everyone
    assert (answer.status_code, answer.json()["parameter"]) == (400, "subject")


@pytest.mark.parametrize("query", ["limit=0", "sort=x", "protocol=x", "after=x", "closed=x"])
def test_an_invalid_parameter_is_named(server: Server, query: str) -> None:
    """As everywhere."""
    answer = server.http.get(f"{CONNECTIONS}?{query}")
    assert answer.status_code == 400
    assert answer.json()["parameter"] == query.partition("=")[0]


async def test_a_page_of_another_site_disconnects_nobody(server: Server) -> None:
    """It is refused as other writes are, and a browser lets it not even ask."""
    async with streaming(server, "victim/1") as stream:
        path = f"{CONNECTIONS}/{one(server, 'victim/1')['id']}"
        origin = {"Origin": "https://elsewhere.example"}
        assert server.http.delete(path, headers=origin).status_code == 403
        asked = {**origin, "Access-Control-Request-Method": "DELETE"}
        assert server.http.options(path, headers=asked).status_code == 403
        await stream.recv()
        assert is_listed(server, "victim/1")


async def test_pages_follow_each_other(server: Server) -> None:
    """`next` leads through all connections, each once."""
    async with several_streams(server, 7):
        seen: list[str] = []
        after: dict[str, str] = {}
        while True:
            page = server.http.get(CONNECTIONS, params={"limit": 3, **after}).json()
            assert page["total"] == 7
            seen += [row["id"] for row in page["connections"]]
            if page["next"] is None:
                break
            after = {"after": page["next"]}
        assert len(seen) == len(set(seen)) == 7


@asynccontextmanager
async def several_streams(server: Server, count: int) -> AsyncIterator[None]:
    """Open several streams, when those of other tests have gone."""
    until(lambda: not listed(server))
    streams = [await connect(server.ws_url) for _ in range(count)]
    try:
        for stream in streams:
            await stream.recv()
        yield
    finally:
        for stream in streams:
            await stream.close()


def test_a_node_alone_lists_itself(server: Server) -> None:
    """With numbers that rise."""
    first = server.http.get("/v1/admin/nodes").json()
    receipt = server.post(GOOD)
    second = server.http.get("/v1/admin/nodes").json()
    (before,), (after,) = first["nodes"], second["nodes"]
    assert first["node"] == before["node"] == after["node"]
    assert second["missing"] is None
    assert after["position"] == receipt["position"]
    assert after["commits"] == before["commits"] + 1
    assert after["cpu_seconds"] > before["cpu_seconds"]
    assert after["memory_bytes"] > 10**7
    assert after["at"] > before["at"] > before["started"]


def test_nodes_know_each_other(tmp_path: Path, redis_url: str) -> None:
    """Each lists all, and answers for its own connections; one that stops disappears."""
    env = {"ROUTECAST_REDIS_PREFIX": tmp_path.name}
    one_node = Server(tmp_path / "one", redis_url=redis_url, env=env)
    other = Server(tmp_path / "two", redis_url=redis_url, env=env, role="stream")

    def nodes(server: Server) -> dict[str, Row]:
        found = server.http.get("/v1/admin/nodes").json()["nodes"]
        return {row["role"]: row for row in found}

    with one_node:
        with other:
            until(lambda: len(nodes(one_node)) == len(nodes(other)) == 2)
            with other.http.stream("GET", "/sse/metrics") as answer:
                lines = answer.iter_lines()
                next(line for line in lines if line.startswith("data"))
                until(lambda: nodes(one_node)["stream"]["connections"] == 1)
            names = {role: node["node"] for role, node in nodes(one_node).items()}
            page = other.http.get(CONNECTIONS).json()
            assert page["node"] == names["stream"] != names["all"]
        until(lambda: set(nodes(one_node)) == {"all"})


def wait_for_nodes(server: Server) -> None:
    """Wait until a node knows the other one."""
    until(lambda: len(server.http.get(NODES).json()["nodes"]) == 2)


@contextmanager
def two_nodes(folder: Path, redis_url: str, **env: str) -> Iterator[tuple[Server, Server]]:
    """Run two nodes that know each other."""
    env = {"ROUTECAST_REDIS_PREFIX": folder.name, **env}
    first = Server(folder / "one", redis_url=redis_url, env=env)
    second = Server(folder / "two", redis_url=redis_url, env=env, role="stream")
    with first, second:
        for node in (first, second):
            node.http.headers.update(bearer(token("read", "admin", sub="olga")))
            wait_for_nodes(node)
        yield first, second


async def test_one_node_answers_for_all(tmp_path: Path, redis_url: str) -> None:
    """Lists, pages, searches and what was closed have the connections of all nodes."""
    with two_nodes(tmp_path, redis_url) as (first, second):
        names = {node: node.http.get(CONNECTIONS).json()["node"] for node in (first, second)}
        agents = {f"wall/{number}" for number in range(6)}
        async with AsyncExitStack() as stack:
            for number in range(6):
                node = (first, second)[number % 2]
                await stack.enter_async_context(streaming(node, f"wall/{number}"))
            for node in (first, second):
                page = node.http.get(CONNECTIONS).json()
                assert (page["total"], page["next"], page["missing"]) == (6, None, None)
                rows = page["connections"]
                assert [row["id"] for row in rows] == sorted(row["id"] for row in rows)
                assert {row["client"] for row in rows} == agents
                assert {row["node"] for row in page["connections"]} == set(names.values())
                seen = pages_of(node, limit=4, sort="newest")
                assert seen == [row["client"] for row in reversed(rows)]
                only = listed(node, node=names[second])
                assert {row["client"] for row in only} == {"wall/1", "wall/3", "wall/5"}
                assert [row["client"] for row in listed(node, search="WALL/4")] == ["wall/4"]
                assert [row["client"] for row in listed(node, id=rows[5]["id"])] == [
                    rows[5]["client"]
                ]
            nowhere = first.http.get(CONNECTIONS, params={"node": "nowhere"}).json()
            assert (nowhere["total"], nowhere["missing"]) == (0, "there is no node 'nowhere'")
        until(lambda: len(listed(first, closed="true")) == 6)
        ended = [row["ended"] for row in listed(second, closed="true")]
        assert ended == sorted(ended, reverse=True)
        assert len(pages_of(second, limit=4, closed="true")) == 6
        assert len(listed(second, closed="true", code=1000)) == 6
        assert not listed(second, closed="true", code=4403)
        assert len(listed(second, closed="true", id=rows[5]["id"])) == 1


def pages_of(server: Server, **query: Any) -> list[str]:
    """Return what clients on all pages call themselves."""
    seen: list[str] = []
    after: dict[str, str] = {}
    while True:
        page = server.http.get(CONNECTIONS, params={**query, **after}).json()
        seen += [row["client"] for row in page["connections"]]
        if page["next"] is None:
            return seen
        after = {"after": page["next"]}


async def test_clients_of_another_node_are_disconnected(tmp_path: Path, redis_url: str) -> None:
    """One by its id, and all of a subject on all nodes."""
    with two_nodes(tmp_path, redis_url, **SIGNED) as (first, second):
        ann, bob = (bearer(token("read", sub=name)) for name in ("ann", "bob"))
        async with AsyncExitStack() as stack:
            streams = [
                await stack.enter_async_context(connect(node.ws_url, additional_headers=who))
                for node in (first, second)
                for who in (ann, bob)
            ]
            for stream in streams:
                await stream.recv()
            name = second.http.get(CONNECTIONS).json()["node"]
            (row,) = listed(first, subject="bob", node=name)
            assert first.http.delete(f"{CONNECTIONS}/{row['id']}").status_code == 204
            await read_to_the_end(streams[3])
            assert streams[3].close_code == 4403
            assert first.http.delete(f"{CONNECTIONS}/{'0' * 15}").status_code == 404
            answer = first.http.delete(CONNECTIONS, params={"subject": "ann"})
            assert answer.json() == {"closed": 2, "missing": None}
            for stream in (streams[0], streams[2]):
                await read_to_the_end(stream)
                assert stream.close_code == 4403
            await streams[1].recv()
            until(lambda: [row["subject"] for row in listed(second)] == ["bob"])


def test_a_node_that_does_not_answer_is_named(tmp_path: Path, redis_url: str) -> None:
    """The others answer in time."""
    with two_nodes(tmp_path, redis_url) as (first, second):
        name = second.http.get(CONNECTIONS).json()["node"]
        second.freeze()
        try:
            page = first.http.get(CONNECTIONS).json()
            answer = first.http.delete(f"{CONNECTIONS}/{'0' * 15}")
        finally:
            second.thaw()
        assert page["missing"] == f"these nodes do not answer: {name}"
        assert answer.status_code == 503
        assert name in answer.json()["detail"]
        until(lambda: first.http.get(CONNECTIONS).json()["missing"] is None)


def test_nodes_say_when_others_are_not_known(tmp_path: Path) -> None:
    """With Redis away, a node knows itself."""
    with Server(tmp_path, redis_url="redis://127.0.0.1:1") as alone:
        found = alone.http.get("/v1/admin/nodes").json()
    assert len(found["nodes"]) == 1
    assert "Redis" in found["missing"]


def test_the_answers_are_documented(server: Server) -> None:
    """`docs/protocol.md` names each member."""
    text = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text("utf-8")
    described = server.http.get("/openapi.json").json()["components"]["schemas"]
    for name in ("OpenConnection", "ClosedConnection", "NodeSummary", "FollowedView"):
        for member in described[name]["properties"]:
            assert f"`{member}`" in text, f"{name}.{member}"


async def test_whose_connection_it_is(tmp_path: Path) -> None:
    """With authentication: the subject, the credential and its end; also of closed ones."""
    end = int(time.time()) + 3_600

    def headers(subject: str, scope: str) -> dict[str, str]:
        claims = {"sub": subject, "scope": scope, "exp": end, "jti": f"{subject}-1"}
        return {"Authorization": f"Bearer {jwt.encode(claims, SECRET, 'HS256')}"}

    operator = headers("operator", "admin")
    with Server(tmp_path, env={"ROUTECAST_JWT_SECRET": SECRET}) as server:
        server.http.headers.update(operator)
        async with connect(server.ws_url, additional_headers=headers("ann", "read")) as stream:
            await stream.recv()
            (row,) = listed(server, subject="ann")
            assert (row["subject"], row["credential"]) == ("ann", "ann-1")
            assert datetime.fromisoformat(row["expires"]).timestamp() == end
            assert listed(server, subject="bob") == []
            for given, told in (("read", "scope `admin`"), ("admin", "ann")):
                key = headers("operator", given)["Authorization"].removeprefix("Bearer ")
                wide = {**os.environ, "ROUTECAST_API_KEY": key, "COLUMNS": "200"}
                done = routecast("top", "--server", server.url, env=wide)
                assert done.returncode == (given == "read")
                assert told in done.stdout + done.stderr
                assert key not in done.stdout + done.stderr
        until(lambda: listed(server, subject="ann", closed="true"))
        (row,) = listed(server, subject="ann", closed="true")
        assert (row["credential"], row["code"]) == ("ann-1", 1000)
