"""Streams under network faults and load: vanished, stalled and many clients, and server stops."""

import asyncio
import json
import time
from collections.abc import Iterator
from typing import cast

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedError, InvalidStatus

from tests.support.raw import RawConnection, open_stream
from tests.support.server import EDGES, Edge, Server
from tests.support.stream import receive, receive_until

GOOD = {"strategy": "hybrid", "provider": "gemini"}


@pytest.fixture(scope="module", params=EDGES)
def edge(request: pytest.FixtureRequest) -> Edge:
    """Each edge in turn."""
    return cast("Edge", request.param)


def test_a_reset_connection_is_gone_at_once(server: Server) -> None:
    """A client that resets its connection is forgotten."""
    connection = open_stream(server.port)
    server.wait_for_active(1, 5)
    connection.reset()
    server.wait_for_active(0, 5)


def test_a_silent_client_is_gone_within_thirty_seconds(server: Server) -> None:
    """A client that answers no ping is forgotten, though its connection looks open."""
    with open_stream(server.port) as slow, open_stream(server.port, "?interval=1") as quick:
        server.wait_for_active(2, 5)
        assert server.wait_for_active(0, 30) > 1
        # Uvicorn's own pings know no other code.
        expected = {"native": 4408, "portable": 1011}[server.edge]
        assert [slow.close_code(), quick.close_code()] == [expected, expected]


async def test_a_client_that_does_not_read_is_skipped(server: Server) -> None:
    """It delays no other client, nothing is queued for it, and it is disconnected in the end."""
    server.post([{**GOOD, "strategy": f"{number:03}" + "x" * 60} for number in range(400)])
    stalled = open_stream(server.port, "?interval=0.1", receive_buffer=4096)
    started = time.monotonic()
    async with connect(f"{server.ws_url}?interval=0.1", max_size=None) as healthy:
        while server.active() > 1:
            sent = time.monotonic()
            await receive(healthy)
            assert time.monotonic() - sent < 2, "the healthy stream had to wait"
            assert time.monotonic() - started < 60
        assert server.instrument("routecast_frames_conflated_total") > 0
        # Uvicorn's own pings may find it out first.
        assert server.closed(4409) + (server.edge == "portable" and server.closed(1006)) == 1
    stalled.socket.close()


async def test_a_slow_reader_gets_the_newest(server: Server) -> None:
    """When a client reads again, its next frame is a whole new document."""
    server.post([{**GOOD, "strategy": f"{number:03}" + "x" * 60} for number in range(400)])
    async with connect(
        f"{server.ws_url}?interval=0.1",
        sock=RawConnection(server.port, receive_buffer=65_536).socket,
        compression=None,  # or it takes long until the line is full
        max_size=None,
        max_queue=1,
        ping_interval=None,
    ) as stream:
        await receive(stream)
        stream.transport.pause_reading()
        deadline = time.monotonic() + 30
        while not server.instrument("routecast_frames_conflated_total"):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        final = server.post(GOOD)["accepted"] + 400
        stream.transport.resume_reading()
        await receive_until(stream, lambda document: document["total_decisions"] == final)


async def test_a_stop_says_restart_and_is_quick(server: Server) -> None:
    """SIGTERM closes every stream with 1012, and the process ends within ten seconds."""
    streams = [await connect(server.ws_url) for _ in range(20)]
    stalled = open_stream(server.port)
    for stream in streams:
        await receive(stream)
    started = time.monotonic()
    assert await asyncio.to_thread(server.stop) == 0
    assert time.monotonic() - started < 10
    for stream in streams:
        with pytest.raises(ConnectionClosedError) as closed:
            await receive_until(stream, lambda _: False)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012
    stalled.socket.close()


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("interval=0", "interval"),
        ("interval=61", "interval"),
        ("interval=nan", "interval"),
        ("interval=x", "interval"),
        ("interval=1&interval=2", "interval"),
        ("fields=total_decisions,nonsense", "fields"),
        ("fields=", "fields"),
        ("window=2h", "window"),
        ("strategy=", "strategy"),
        ("provider=" + "x" * 129, "provider"),
        ("&".join(f"model=m{number}" for number in range(101)), "model"),
        ("project=%ff", "query"),
    ],
)
async def test_a_bad_parameter_is_named(tiny: Server, query: str, parameter: str) -> None:
    """The upgrade and the HTTP request get the same 400, with the parameter's name."""
    with pytest.raises(InvalidStatus) as refused:
        await connect(f"{tiny.ws_url}?{query}")
    assert refused.value.response.status_code == 400
    problem = json.loads(refused.value.response.body)
    assert problem["parameter"] == parameter
    if parameter != "interval":
        answer = tiny.http.get(f"/routing/metrics?{query}")
        assert (answer.status_code, answer.json()) == (400, problem)


async def test_too_many_are_refused(tiny: Server) -> None:
    """Over the limit a stream gets 503 with `Retry-After`; the others continue."""
    streams = [await connect(tiny.ws_url) for _ in range(3)]
    try:
        with pytest.raises(InvalidStatus) as refused:
            await connect(tiny.ws_url)
        assert refused.value.response.status_code == 503
        assert int(refused.value.response.headers["retry-after"]) >= 1
        await receive(streams[0])
    finally:
        for stream in streams:
            await stream.close()


async def test_another_site_may_not_listen(tiny: Server) -> None:
    """A page of another site is refused; local pages and allowed sites are not."""
    with pytest.raises(InvalidStatus) as refused:
        await connect(tiny.ws_url, origin="https://evil.example")
    assert refused.value.response.status_code == 403
    for origin in ("http://localhost:3000", tiny.url, "https://grafana.example"):
        async with connect(tiny.ws_url, origin=origin) as stream:
            await receive(stream)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, edge: Edge) -> Iterator[Server]:
    """A server that allows three streams."""
    env = {
        "ROUTECAST_MAX_CONNECTIONS": "3",
        "ROUTECAST_ALLOWED_ORIGINS": "https://grafana.example/, https://other.example",
    }
    with Server(tmp_path_factory.mktemp("tiny"), env=env, edge=edge) as running:
        yield running
