"""`GET /sse/metrics`: server-sent events have the same documents as the WebSocket stream."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx2
import pytest

from routecast.adapters.bus.memory import MemoryBus
from routecast.adapters.cache.memory import MemoryCache
from routecast.adapters.clock import SystemClock
from routecast.adapters.cluster.memory import MemoryCluster
from routecast.adapters.prices import GenaiPrices
from routecast.adapters.store.sqlite import SqliteStore
from routecast.edge import sse
from routecast.server.config import Settings
from routecast.server.engines import Engines
from tests.support.in_process_server import InProcessServer
from tests.support.raw import RawConnection
from tests.support.server import Server
from tests.support.stream import Document

GOOD = {"strategy": "hybrid", "provider": "gemini"}


class Event(NamedTuple):
    """One event, as a browser dispatches it."""

    id: str
    document: Document


def events(answer: httpx2.Response) -> Iterator[Event]:
    """Read a stream of events (WHATWG HTML, 9.2.6)."""
    identity, data = "", ""
    for line in answer.iter_lines():
        field, _, value = line.partition(": ")
        if field == "id":
            identity = value
        elif field == "data":
            data += value
        elif not line and data:
            yield Event(identity, json.loads(data))
            data = ""


def request(query: str) -> bytes:
    return f"GET /sse/metrics?{query} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


def test_whole_documents_with_their_position(server: Server) -> None:
    """A document comes at once and at each tick; the event's id is its position."""
    with server.http.stream("GET", "/sse/metrics?interval=0.1") as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert answer.headers["cache-control"] == "no-store"
        stream = events(answer)
        assert next(stream).document["total_decisions"] == 0
        position = server.post([GOOD, GOOD])["position"]
        found = next(event for event in stream if event.document["total_decisions"])
        assert found.id == f"{position['epoch']}:{position['seq']}"
        expected = server.metrics()
        for document in (found.document, expected):
            del document["timestamp"]
        assert list(found.document.items()) == list(expected.items())


def test_fields_and_filters(server: Server) -> None:
    """Fields and filters are those of the stream and of the HTTP request."""
    server.post([GOOD, {**GOOD, "provider": "claude"}])
    query = "/sse/metrics?fields=provider_usage&provider=claude"
    with server.http.stream("GET", query) as answer:
        document = next(events(answer)).document
    assert list(document) == ["provider_usage", "timestamp"]
    assert document["provider_usage"] == {"claude": 1}


def test_a_client_that_comes_back_gets_the_newest(server: Server) -> None:
    """The first event has the newest document, with or without `Last-Event-ID`."""
    with server.http.stream("GET", "/sse/metrics") as answer:
        last = next(events(answer)).id
    server.post(GOOD)
    headers = {"Last-Event-ID": last}
    with server.http.stream("GET", "/sse/metrics", headers=headers) as answer:
        event = next(events(answer))
    assert event.document["total_decisions"] == 1
    assert event.id != last


def test_clients_are_told_when_to_reconnect(server: Server) -> None:
    """Each client gets another delay, so that they do not reconnect at the same moment."""
    delays = set()
    for _ in range(8):
        with RawConnection(server.port) as connection:
            connection.send(request("interval=60"))
            found = None
            while found is None:
                found = re.search(rb"retry: (\d+)\n\n", connection.peek())
            delays.add(int(found[1]))
    assert len(delays) > 4
    assert all(3_000 <= delay < 7_000 for delay in delays)


def test_a_quiet_stream_has_comments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Comments between events show proxies that the connection lives."""
    monkeypatch.setattr(sse, "COMMENT_SECONDS", 0.05)
    clock = SystemClock()
    store = SqliteStore(tmp_path / "routecast.db")
    engines = Engines(
        store, MemoryCache(clock, 4), MemoryBus(), MemoryCluster(), clock, GenaiPrices()
    )
    with (
        InProcessServer(Settings(), engines) as server,
        httpx2.stream("GET", f"{server.url}/sse/metrics?interval=60") as answer,
    ):
        lines = answer.iter_lines()
        while not next(lines).startswith("data: "):
            pass
        assert [next(lines) for _ in range(5)] == ["", ": alive", "", ": alive", ""]


def test_a_client_that_went_is_forgotten(server: Server) -> None:
    """A client that disconnects is forgotten at once, whenever its next event is due."""
    with RawConnection(server.port) as connection:
        connection.send(request("interval=60"))
        server.wait_for_active(1, 5)
        connection.reset()
    server.wait_for_active(0, 5)
    server.wait_for_log(
        "SSE connected. Total connections: 1", "SSE disconnected. Total connections: 0"
    )
    assert not {"Traceback", "WebSocket"} & set(server.log.read_text().split())


def test_a_slow_reader_is_skipped_and_let_go(server: Server) -> None:
    """It delays no other client; after ten seconds it is closed with 4409."""
    server.post([{**GOOD, "strategy": f"{number:03}" + "x" * 60} for number in range(400)])
    before = server.memory()
    with RawConnection(server.port, receive_buffer=4096) as slow:
        slow.send(request("interval=0.1"))
        server.wait_for_active(1, 5)
        started = time.monotonic()
        with server.http.stream("GET", "/sse/metrics?interval=0.1") as answer:
            stream = events(answer)
            while not server.closed(4409):
                sent = time.monotonic()
                next(stream)
                assert time.monotonic() - sent < 2, "the healthy stream had to wait"
                assert time.monotonic() - started < 20
        assert server.instrument("routecast_frames_conflated_total") > 0
        slow.wait_for_end(10)
    assert server.memory() - before < 4 * 2**20
    assert "ASGI" not in server.log.read_text()


@pytest.mark.parametrize(
    ("query", "parameter"),
    [("interval=0", "interval"), ("fields=nonsense", "fields"), ("window=2h", "window")],
)
def test_a_bad_parameter_is_named(server: Server, query: str, parameter: str) -> None:
    """A bad parameter gets 400 before any event."""
    answer = server.http.get(f"/sse/metrics?{query}")
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["parameter"] == parameter
    assert server.active() == 0


def test_a_page_of_another_site_is_refused(server: Server) -> None:
    """A browser sends the page's origin, and an origin that is not allowed is refused."""
    headers = {"Origin": "https://evil.example"}
    assert server.http.get("/sse/metrics", headers=headers).status_code == 403
