"""The nginx configuration of `deploy/`, run in front of two real nodes on PostgreSQL and Redis."""

import asyncio
import itertools
import json
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, suppress
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import httpx2
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.support.nginx import Nginx, executable
from tests.support.postgres import Postgres
from tests.support.raw import open_stream
from tests.support.server import Server
from tests.support.stream import WAIT_SECONDS, receive, receive_until

GOOD = {"strategy": "hybrid", "provider": "gemini"}
MIB = 2**20


class Site(NamedTuple):
    """Two nodes, and nginx in front of them."""

    nginx: Nginx
    nodes: tuple[Server, Server]
    http: httpx2.Client


@pytest.fixture
def site(tmp_path: Path, postgres: Postgres, redis_url: str) -> Iterator[Site]:
    """Nginx in front of two nodes that share a PostgreSQL and a Redis."""
    executable()
    database, prefix = postgres.create(), {"ROUTECAST_REDIS_PREFIX": uuid4().hex}
    one, two = (
        Server(tmp_path / name, database_url=database, redis_url=redis_url, env=prefix)
        for name in ("one", "two")
    )
    with ExitStack() as stack:
        for node in (one, two):
            node.launch()
            stack.push(node)
        for node in (one, two):
            node.wait_until_started()
        nginx = stack.enter_context(Nginx(tmp_path / "nginx", [one.port, two.port]))
        http = stack.enter_context(httpx2.Client(base_url=nginx.url, timeout=30))
        yield Site(nginx, (one, two), http)


def streams_of(node: Server) -> float:
    """Return the number of open streams of this node; its health has those of all nodes."""
    return node.instrument("routecast_connections")


def test_the_configuration_is_valid(tmp_path: Path) -> None:
    """Nginx reports no errors and no warnings."""
    nginx = Nginx(tmp_path / "nginx", [8000])
    found = nginx.test()
    assert found.returncode == 0, found.stderr
    assert "[warn]" not in found.stderr + nginx.log.read_text()


async def test_a_websocket_passes_nginx(site: Site) -> None:
    """It gets documents with the decisions that either node accepted."""
    async with connect(site.nginx.ws_url + "?interval=0.1") as stream:
        assert (await receive(stream))["total_decisions"] == 0
        for count, node in enumerate(site.nodes, 1):
            node.post(GOOD)
            await receive_until(stream, lambda document, n=count: document["total_decisions"] == n)


def test_events_pass_without_delay(site: Site) -> None:
    """nginx does not buffer server-sent events."""
    with site.http.stream("GET", "/sse/metrics?interval=0.1") as answer:
        documents = (
            json.loads(line.removeprefix("data: "))
            for line in answer.iter_lines()
            if line.startswith("data: ")
        )
        assert next(documents)["total_decisions"] == 0
        assert site.http.post("/v1/decisions", json=GOOD).status_code == 200
        some = itertools.islice(documents, round(WAIT_SECONDS / 0.1))
        assert any(document["total_decisions"] == 1 for document in some)


def test_the_largest_batches_pass_nginx(site: Site) -> None:
    """A batch of many MiB is accepted, and one over the limit refused, as without nginx."""
    wide = {**GOOD, "reason": "x" * 500}
    batch = json.dumps([wide] * 25_000).encode()
    assert 12 * MIB < len(batch) < 16 * MIB
    answer = site.http.post("/v1/decisions", content=batch)
    assert answer.status_code == 200
    assert answer.json()["accepted"] == 25_000
    assert site.http.post("/v1/decisions", content=b" " * (16 * MIB + 1)).status_code == 413


def test_all_paths_pass_except_prometheus_metrics(site: Site) -> None:
    """The page, plain metrics and health pass; `/metrics` of a single node does not."""
    for path in ("/", "/dashboard/main.js", "/routing/metrics", "/health", "/ready"):
        assert site.http.get(path).status_code == 200, path
    assert site.http.get("/metrics").status_code == 404


def test_the_page_behind_nginx_may_open_streams(site: Site) -> None:
    """Nodes get the host and port that the browser used, to compare them with the origin."""
    headers = {"Origin": "http://203.0.113.9:8080", "Host": "203.0.113.9:8080"}
    assert site.http.options("/ws/metrics", headers=headers).status_code == 204
    headers["Host"] = "203.0.113.9"
    assert site.http.options("/ws/metrics", headers=headers).status_code == 403


async def test_streams_go_to_the_node_with_the_fewest(site: Site) -> None:
    """Each node gets half of them, and a restarted node gets all new ones."""
    one, two = site.nodes
    async with AsyncExitStack() as stack:

        async def join(count: int) -> None:
            for _ in range(count):
                await stack.enter_async_context(connect(site.nginx.ws_url))

        await join(10)
        assert (streams_of(one), streams_of(two)) == (5, 5)
        two.kill()
        await asyncio.to_thread(two.start)  # clients answer pings meanwhile
        await join(5)
        assert (streams_of(one), streams_of(two)) == (5, 5)


@pytest.mark.parametrize("path", ["/ws/metrics", "/sse/metrics"])
async def test_nodes_know_the_address_of_a_client(tmp_path: Path, path: str) -> None:
    """Limits count the client's real address, and neither a forged one nor nginx's own."""
    with (
        Server(tmp_path, env={"ROUTECAST_MAX_PER_ADDRESS": "1"}) as node,
        Nginx(tmp_path / "nginx", [node.port]) as nginx,
    ):

        async def status(address: str) -> int:
            forged = {"X-Forwarded-For": "198.51.100.7"}
            line = await stack.enter_async_context(
                httpx2.AsyncClient(
                    transport=httpx2.AsyncHTTPTransport(local_address=address), headers=forged
                )
            )
            if path.startswith("/sse"):
                answer = await stack.enter_async_context(line.stream("GET", nginx.url + path))
                return answer.status_code
            try:
                await stack.enter_async_context(
                    connect(nginx.ws_url, local_addr=(address, 0), additional_headers=forged)
                )
            except InvalidStatus as refused:
                return refused.response.status_code
            return 200

        async with AsyncExitStack() as stack:
            assert await status("127.0.0.2") == 200
            assert await status("127.0.0.3") == 200
            assert await status("127.0.0.2") == 429


async def read_to_end(stream: ClientConnection) -> None:
    """Read until the end, because a client that does not read does not notice the end."""
    with suppress(ConnectionClosed):
        while True:
            await stream.recv()


async def test_clients_of_a_killed_node_reconnect_to_the_other(site: Site) -> None:
    """Numbers go on from those that they had."""
    one, two = site.nodes
    site.http.post("/v1/decisions", json=[GOOD] * 3)
    url = site.nginx.ws_url + "?interval=0.1"
    async with AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(connect(url)) for _ in range(10)]
        for stream in streams:
            await receive_until(stream, lambda document: document["total_decisions"] == 3)
        one.kill()
        ends = [asyncio.create_task(read_to_end(stream)) for stream in streams]
        for end in itertools.islice(asyncio.as_completed(ends, timeout=WAIT_SECONDS), 5):
            await end
        lost = [stream for stream, end in zip(streams, ends, strict=True) if end.done()]
        assert [stream.close_code for stream in lost] == [1006] * 5
        again = [await stack.enter_async_context(connect(url)) for _ in lost]
        assert streams_of(two) == 10
        for stream in again:
            assert (await receive(stream))["total_decisions"] == 3
        for _ in range(10):
            assert site.http.post("/v1/decisions", json=GOOD).status_code == 200
        for stream in again:
            await receive_until(stream, lambda document: document["total_decisions"] == 13)


async def test_a_restarting_node_closes_its_streams_with_a_delay(site: Site) -> None:
    """The close code and the delay reach its client, and decisions are accepted meanwhile."""
    one, two = site.nodes
    async with connect(site.nginx.ws_url) as first, connect(site.nginx.ws_url) as second:
        assert (streams_of(one), streams_of(two)) == (1, 1)
        one.terminate()
        waits = [asyncio.create_task(stream.wait_closed()) for stream in (first, second)]
        done, _ = await asyncio.wait(waits, timeout=WAIT_SECONDS, return_when="FIRST_COMPLETED")
        told = (first, second)[waits.index(done.pop())]
        assert told.close_code == 1012
        assert (told.close_reason or "").startswith("reconnect_after_ms=")
    for count in range(1, 11):
        receipt = site.http.post("/v1/decisions", json={**GOOD, "id": str(count)})
        assert receipt.json()["accepted"] == 1
    assert one.wait() == 0
    one.start()
    assert one.metrics()["total_decisions"] == 10


def test_slow_readers_are_skipped_through_nginx(site: Site) -> None:
    """The buffers of nginx fill up, and then the node skips frames."""
    site.http.post(
        "/v1/decisions",
        json=[{**GOOD, "strategy": f"{number:03}" + "x" * 60} for number in range(400)],
    )
    with open_stream(site.nginx.port, "?interval=0.1", receive_buffer=4096):
        node = next(node for node in site.nodes if streams_of(node))
        while not node.instrument("routecast_frames_conflated_total"):
            assert streams_of(node) == 1, "it was let go before it was skipped"
