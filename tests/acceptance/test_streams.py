"""Streams under what networks and clients do: vanish, stall, come in crowds, and servers stop."""

import asyncio
import base64
import json
import os
import re
import socket
import struct
import time
from collections.abc import Iterator

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedError, InvalidStatus

from tests.support.server import Server
from tests.support.stream import receive, receive_until

GOOD = {"strategy": "hybrid", "provider": "gemini"}


def raw_stream(server: Server, query: str = "", receive_buffer: int | None = None) -> socket.socket:
    """Open a stream by hand: a client that does just what a test wants."""
    line = socket.socket()
    if receive_buffer is not None:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    line.connect(("127.0.0.1", server.port))
    key = base64.b64encode(os.urandom(16)).decode()
    line.sendall(
        f"GET /ws/metrics{query} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n"
        f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
        "Sec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    assert b" 101 " in line.recv(4096)
    return line


def active(server: Server) -> int:
    count: int = server.http.get("/health").json()["active_connections"]
    return count


def instrument(server: Server, name: str) -> float:
    """Return one number of `GET /metrics`."""
    found = re.search(rf"^{re.escape(name)} (\S+)$", server.http.get("/metrics").text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def wait_for_active(server: Server, count: int, seconds: float) -> float:
    """Wait until so many streams are open; return how long that took."""
    started = time.monotonic()
    while active(server) != count:
        assert time.monotonic() - started < seconds, f"{active(server)} are still open"
        time.sleep(0.05)
    return time.monotonic() - started


def test_a_reset_connection_is_gone_at_once(server: Server) -> None:
    """A client whose machine resets the connection is forgotten."""
    line = raw_stream(server)
    wait_for_active(server, 1, 5)
    line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    line.close()
    wait_for_active(server, 0, 5)


def test_a_silent_client_is_gone_within_thirty_seconds(server: Server) -> None:
    """A client that answers no ping is forgotten in time, though its line looks open."""
    line = raw_stream(server)
    wait_for_active(server, 1, 5)
    assert wait_for_active(server, 0, 30) > 1
    line.close()


async def test_a_client_that_does_not_read_is_skipped(server: Server) -> None:
    """It costs the others nothing, nothing queues for it, and in the end it is let go."""
    server.post([{**GOOD, "strategy": f"{number:03}" + "x" * 60} for number in range(400)])
    stalled = raw_stream(server, "?interval=0.1", receive_buffer=4096)
    started = time.monotonic()
    async with connect(f"{server.ws_url}?interval=0.1", max_size=None) as healthy:
        while active(server) > 1:
            sent = time.monotonic()
            await receive(healthy)
            assert time.monotonic() - sent < 2, "the healthy stream had to wait"
            assert time.monotonic() - started < 60
        assert instrument(server, "routecast_frames_conflated_total") > 0
        closed = 'routecast_connections_closed_total{code="%s"}'
        gone = sum(instrument(server, closed % code) for code in ("4409", "1005", "1006", "1011"))
        assert gone == 1
    stalled.close()


async def test_a_slow_reader_gets_the_newest(server: Server) -> None:
    """When a client reads again, what it gets next is new: whole frames, never an old queue."""
    server.post([{**GOOD, "strategy": f"{number:03}" + "x" * 60} for number in range(400)])
    async with connect(
        f"{server.ws_url}?interval=0.1", max_size=None, max_queue=1, ping_interval=None
    ) as stream:
        await receive(stream)
        stream.transport.pause_reading()
        deadline = time.monotonic() + 30
        while not instrument(server, "routecast_frames_conflated_total"):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        final = server.post(GOOD)["accepted"] + 400
        stream.transport.resume_reading()
        await receive_until(stream, lambda document: document["total_decisions"] == final)


async def test_a_stop_says_restart_and_is_quick(server: Server) -> None:
    """SIGTERM: every stream is closed with 1012, and the process is gone within ten seconds."""
    streams = [await connect(server.ws_url) for _ in range(20)]
    stalled = raw_stream(server)
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
    stalled.close()


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
    """The upgrade and the plain request are refused alike: 400, and the parameter's name."""
    with pytest.raises(InvalidStatus) as refused:
        await connect(f"{tiny.ws_url}?{query}")
    assert refused.value.response.status_code == 400
    problem = json.loads(refused.value.response.body)
    assert problem["parameter"] == parameter
    if parameter != "interval":
        answer = tiny.http.get(f"/routing/metrics?{query}")
        assert (answer.status_code, answer.json()) == (400, problem)


async def test_too_many_are_refused(tiny: Server) -> None:
    """Over the limit a stream is refused with 503 and when to come back; the others go on."""
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
    """A page of another site is refused; one on this machine and one allowed are not."""
    with pytest.raises(InvalidStatus) as refused:
        await connect(tiny.ws_url, origin="https://evil.example")
    assert refused.value.response.status_code == 403
    for origin in ("http://localhost:3000", tiny.url, "https://grafana.example"):
        async with connect(tiny.ws_url, origin=origin) as stream:
            await receive(stream)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with room for three streams."""
    env = {
        "ROUTECAST_MAX_CONNECTIONS": "3",
        "ROUTECAST_ALLOWED_ORIGINS": "https://grafana.example/, https://other.example",
    }
    with Server(tmp_path_factory.mktemp("tiny"), env=env) as running:
        yield running
