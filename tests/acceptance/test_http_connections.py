"""HTTP connections: keep-alive, deadlines, limits by address, and the count of refusals."""

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx2
import pytest

from routecast.adapters.bus.memory import MemoryBus
from routecast.adapters.cache.memory import MemoryCache
from routecast.adapters.clock import SystemClock
from routecast.adapters.cluster.memory import MemoryCluster
from routecast.adapters.prices import GenaiPrices
from routecast.adapters.store.sqlite import SqliteStore
from routecast.edge.http import http_edge
from routecast.server.config import Settings
from routecast.server.engines import Engines
from tests.support.in_process_server import InProcessServer
from tests.support.raw import RawConnection
from tests.support.server import Server

GOOD = b'{"strategy":"hybrid","provider":"gemini"}'
MIB = 2**20
# A node that takes the word of no proxy that tests could be: each address counts by itself.
NO_PROXIES = {"ROUTECAST_TRUSTED_PROXIES": "192.0.2.7"}
ROUTES = (
    *("/", "/health", "/ready", "/metrics", "/routing/metrics", "/v1/history", "/asyncapi.json"),
    *("/openapi.json", "/docs", "/dashboard/main.js", "/dashboard/favicon.svg"),
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for tests that leave nothing behind on it."""
    with Server(tmp_path_factory.mktemp("shared")) as running:
        yield running
        assert "Traceback" not in running.log.read_text()


def engines(folder: Path) -> Engines:
    clock = SystemClock()
    store = SqliteStore(folder / "routecast.db")
    return Engines(store, MemoryCache(clock, 4), MemoryBus(), MemoryCluster(), clock, GenaiPrices())


def request(method: str, path: str, *lines: str, version: str = "1.1") -> bytes:
    fields = "".join(f"{line}\r\n" for line in lines)
    return f"{method} {path} HTTP/{version}\r\nHost: 127.0.0.1\r\n{fields}\r\n".encode()


def post(length: int, body: bytes = b"", *lines: str) -> bytes:
    return request("POST", "/v1/decisions", f"Content-Length: {length}", *lines) + body


def refused(port: int) -> float:
    """Return the number of refused requests, for all causes."""
    text = httpx2.get(f"http://127.0.0.1:{port}/metrics", timeout=30).text
    counts = re.findall(r"^routecast_requests_refused_total\{.*\} (\S+)$", text, re.MULTILINE)
    return sum(map(float, counts))


# -- HEAD ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ROUTES)
def test_head_has_the_headers_of_get(shared: Server, path: str) -> None:
    """HEAD has no body, so the next answer follows at once (RFC 9110, 9.3.2)."""
    varies = {"date", "content-length", "etag"}
    with RawConnection(shared.port) as connection:
        connection.send(request("GET", path))
        got = connection.answer()
        assert got.status == 200
        connection.send(request("HEAD", path) + request("HEAD", path) + request("GET", "/ready"))
        for _ in range(2):
            head = connection.head()
            assert head.status == 200
            assert {name: value for name, value in head.headers.items() if name not in varies} == {
                name: value for name, value in got.headers.items() if name not in varies
            }
        assert connection.answer().body == b'{"ready":true}'


def test_head_of_a_stream_takes_no_place(tmp_path: Path) -> None:
    """A HEAD request of a stream does not count towards the limit of streams."""
    with (
        Server(tmp_path, env={"ROUTECAST_MAX_CONNECTIONS": "3"}) as server,
        ExitStack() as connections,
    ):
        for _ in range(10):
            connection = connections.enter_context(RawConnection(server.port))
            connection.send(request("HEAD", "/sse/metrics") + request("GET", "/health"))
            answer = connection.head()
            assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert server.active() == 0
        with server.http.stream("GET", "/sse/metrics") as stream:
            assert stream.status_code == 200
            server.wait_for_log("SSE connected")
        assert server.log.read_text().count("SSE connected") == 1


# -- the end of a connection --------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [1, 2])
def test_an_idle_connection_is_kept_as_announced(tmp_path: Path, seconds: int) -> None:
    """`Keep-Alive` has the setting on both paths, and the connection ends cleanly after it."""
    with Server(tmp_path, env={"ROUTECAST_KEEP_ALIVE": str(seconds)}) as server:
        for sent in (request("GET", "/health"), post(len(GOOD), GOOD)):
            with RawConnection(server.port) as connection:
                connection.send(sent)
                assert connection.answer().headers["keep-alive"] == f"timeout={seconds}"
                connection.wait_for_end(20)
                assert connection.rest() == b""


def test_the_default_is_75_seconds(shared: Server) -> None:
    """It is longer than the 60 s of proxies, so that the server does not close first."""
    for sent in (request("GET", "/health"), post(len(GOOD), GOOD), post(2, b"[]")):
        with RawConnection(shared.port) as connection:
            connection.send(sent)
            assert connection.answer().headers["keep-alive"] == "timeout=75"
    with RawConnection(shared.port) as connection:
        connection.send(request("GET", "/health", "Connection: close"))
        answer = connection.answer()
        assert "keep-alive" not in answer.headers
        assert answer.headers["connection"] == "close"


def test_a_connection_is_idle_after_the_rest_of_a_body(tmp_path: Path) -> None:
    """The rest of a body after its answer is dropped; then the connection counts as idle."""
    with (
        Server(tmp_path, env={"ROUTECAST_KEEP_ALIVE": "1"}) as server,
        RawConnection(server.port) as connection,
    ):
        connection.send(request("POST", "/nowhere", "Content-Length: 9"))
        assert connection.answer().status == 404
        connection.send(b"x" * 9 + request("GET", "/health"))
        assert connection.answer().status == 200
        connection.send(request("POST", "/nowhere", "Content-Length: 9"))
        assert connection.answer().status == 404
        connection.send(b"x" * 9)
        connection.wait_for_end(20)
        assert connection.rest() == b""


@pytest.mark.parametrize("target", [b"/%", b"//[", b"/a?b#c", b"/\x7f", b"/..//./", b"/%00%ff"])
def test_strange_targets(shared: Server, target: bytes) -> None:
    """A strange request target gets 400 or 404."""
    with RawConnection(shared.port) as connection:
        connection.send(b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % target)
        assert connection.answer().status in (400, 404)


@pytest.mark.parametrize("behind", ["GET", "HEAD"])
def test_a_stream_ends_with_its_client_whatever_is_behind_it(server: Server, behind: str) -> None:
    """A stream ends with its client, also if requests were sent behind it."""
    for _ in range(5):
        connection = RawConnection(server.port)
        connection.send(request("GET", "/sse/metrics?interval=60") + request(behind, "/health") * 3)
        server.wait_for_active(1, 5)
        connection.send(request("GET", "/health"))
        connection.socket.close()
        server.wait_for_active(0, 5)
    assert "Traceback" not in server.log.read_text()


def test_nothing_is_written_to_a_client_that_has_gone(server: Server) -> None:
    """A client that leaves in the middle of pipelined requests causes no traceback."""
    mix = post(len(GOOD), GOOD) + request("GET", "/v1/history") + post(2, b"[]")
    for _ in range(30):
        connection = RawConnection(server.port)
        connection.send(mix * 5)
        connection.reset()
    assert server.http.get("/health").status_code == 200
    assert "Traceback" not in server.log.read_text()


def test_a_stream_over_http_1_0(shared: Server) -> None:
    """It uses no chunks, which HTTP/1.0 does not have, and ends with the connection."""
    with RawConnection(shared.port) as connection:
        connection.send(request("GET", "/sse/metrics?interval=60", version="1.0"))
        answer = connection.head()
        assert answer.headers["connection"] == "close"
        assert "transfer-encoding" not in answer.headers
        assert connection.peek().startswith(b"retry: ")


# -- bytes without end --------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/sse/metrics?interval=60", "/health", "/v1/decisions"])
@pytest.mark.parametrize("endless", [b"a:\r\n", b"X: " + b"y" * 60], ids=["many", "long"])
def test_endless_trailers_cost_nothing(server: Server, path: str, endless: bytes) -> None:
    """Endless trailers end the connection soon, and are not kept."""
    before = server.memory()
    method = "POST" if path == "/v1/decisions" else "GET"
    with RawConnection(server.port) as connection:
        connection.send(request(method, path, "Transfer-Encoding: chunked") + b"0\r\n")
        with pytest.raises(OSError):  # noqa: PT012 -- the line ends at some time
            for _ in range(60 * MIB // len(endless * 10_000)):
                connection.send(endless * 10_000)
            raise AssertionError("60 MiB were taken")
    assert server.memory() - before < 8 * MIB
    server.wait_for_active(0, 5)
    assert "Traceback" not in server.log.read_text()


def test_bytes_behind_a_stream_are_not_kept(server: Server) -> None:
    """A client that goes on sending behind its stream is disconnected, and nothing is kept."""
    before = server.memory()
    with RawConnection(server.port) as connection:
        connection.send(request("GET", "/sse/metrics?interval=60"))
        server.wait_for_active(1, 5)
        with pytest.raises(OSError):  # noqa: PT012 -- as above
            for _ in range(60):
                connection.send(b"x" * MIB)
            raise AssertionError("60 MiB were taken")
    server.wait_for_active(0, 5)
    assert server.memory() - before < 8 * MIB


# -- crowds -------------------------------------------------------------------------------------


def test_announced_bytes_are_no_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections that announce bodies and send none take no room from others."""
    monkeypatch.setattr(http_edge, "MAX_SMALL_BYTES", 200_000)
    with (
        InProcessServer(Settings(), engines(tmp_path), "native") as server,
        ExitStack() as connections,
    ):
        for _ in range(50):
            connections.enter_context(RawConnection(server.port)).send(post(65_536))
        for _ in range(10):
            answer = httpx2.post(f"{server.url}/v1/decisions", content=GOOD, timeout=30)
            assert answer.json()["accepted"] == 1
        assert refused(server.port) == 0


@pytest.mark.parametrize("more", ["X: y", "Content-Encoding: identity"], ids=["fast", "asgi"])
def test_unfinished_bodies_make_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: str
) -> None:
    """Over the limit of bytes, the oldest unfinished body is refused; whole bodies are accepted."""
    monkeypatch.setattr(http_edge, "MAX_SMALL_BYTES", 200_000)
    with InProcessServer(Settings(), engines(tmp_path), "native") as server, ExitStack() as stack:
        connections = [stack.enter_context(RawConnection(server.port)) for _ in range(10)]
        for connection in connections:
            connection.send(post(60_000, b" " * 50_000, more))
            answer = httpx2.post(f"{server.url}/v1/decisions", content=GOOD, timeout=30)
            assert answer.json()["accepted"] == 1
        for connection in connections[:6]:
            answer = connection.answer()
            assert (answer.status, answer.headers["retry-after"]) == (503, "1")
            assert connection.rest() == b""
        for connection in connections[6:]:
            connection.send(b" " * (10_000 - len(GOOD)) + GOOD)
            assert connection.answer().status == 200


def test_large_bodies_leave_room_for_small_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large bodies have a limit of their own."""
    monkeypatch.setattr(http_edge, "MAX_LARGE_BYTES", MIB)
    with InProcessServer(Settings(), engines(tmp_path), "native") as server, ExitStack() as stack:
        connections = [stack.enter_context(RawConnection(server.port)) for _ in range(3)]
        small = stack.enter_context(RawConnection(server.port))
        small.send(post(60_000, b" " * 50_000))
        for connection in connections:
            connection.send(post(MIB, b" " * (MIB // 2)))
        assert connections[0].answer().status == 503
        small.send(b" " * (10_000 - len(GOOD)) + GOOD)
        assert small.answer().status == 200


def test_an_address_has_its_own_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a trusted proxy the client's address counts; its oldest body makes room."""
    monkeypatch.setattr(http_edge, "MAX_SMALL_BYTES_OF_ADDRESS", 100_000)
    with InProcessServer(Settings(), engines(tmp_path), "native") as server, ExitStack() as stack:

        def send(client: str) -> RawConnection:
            connection = stack.enter_context(RawConnection(server.port))
            connection.send(post(60_000, b" " * 50_000, f"X-Forwarded-For: {client}"))
            return connection

        honest = send("198.51.100.1")
        first, *others = [send("203.0.113.9") for _ in range(3)]
        assert first.answer().status == 503
        for connection in (honest, *others):
            connection.send(b" " * (10_000 - len(GOOD)) + GOOD)
            assert connection.answer().status == 200


def test_connections_of_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An address that opens very many loses its oldest connections, and is still served."""
    monkeypatch.setattr(http_edge, "MAX_WAITING_OF_ADDRESS", 5)
    settings = Settings(trusted_proxies="192.0.2.7")
    with InProcessServer(settings, engines(tmp_path), "native") as server, ExitStack() as stack:
        connections = [stack.enter_context(RawConnection(server.port)) for _ in range(8)]
        assert [connection.answer().status for connection in connections[:3]] == [503] * 3
        for connection in connections[3:]:
            connection.send(request("GET", "/health"))
            assert connection.answer().status == 200


def test_a_trusted_proxy_may_open_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy's connections are those of all its clients, so it has no limit."""
    monkeypatch.setattr(http_edge, "MAX_WAITING_OF_ADDRESS", 5)
    with InProcessServer(Settings(), engines(tmp_path), "native") as server, ExitStack() as stack:
        for connection in [stack.enter_context(RawConnection(server.port)) for _ in range(20)]:
            connection.send(request("GET", "/health"))
            assert connection.answer().status == 200


def test_open_files_run_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before files run out, the longest waiting connections are closed and counted."""
    monkeypatch.setattr(http_edge, "RESERVED_FILES", 0)
    probe = os.dup(0)
    os.close(probe)
    with (
        InProcessServer(Settings(), engines(tmp_path), "native", files=probe + 100) as server,
        ExitStack() as stack,
    ):
        connections = [stack.enter_context(RawConnection(server.port)) for _ in range(60)]
        connections[0].wait_for_end(10)
        for _ in range(10):
            assert httpx2.get(f"{server.url}/health", timeout=30).status_code == 200
        text = httpx2.get(f"{server.url}/metrics", timeout=30).text
        assert f'cause="{http_edge.FILES_USED_UP}"' in text


# -- what is told -------------------------------------------------------------------------------


def test_bad_requests_are_a_few_lines(server: Server) -> None:
    """Each cause has one log line in ten seconds and a count, however many requests come."""
    bad = {
        b"GET /health HTTP/1.1\r\n\r\n": 100,
        b"GET /health HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n": 100,
        b"GET / HTTP/1.1\r\nX: " + b"y" * 40_000: 50,
        b"\x16\x03\x01\x00": 100,
    }
    before = server.log.read_text().count("\n")
    for sent, count in bad.items():
        for _ in range(count):
            with RawConnection(server.port) as connection:
                connection.send(sent)
                assert connection.answer().status == 400
    assert refused(server.port) == sum(bad.values())
    assert server.log.read_text().count("\n") - before < 20
    server.wait_for_log("Refused a request: the request's headers are too large")
    server.wait_for_log("requests in 10 s: the request is not valid HTTP/1.1")


def test_docs_load_nothing_from_elsewhere(shared: Server) -> None:
    """/docs is one file, and tells the browser to load no other."""
    answer = shared.http.get("/docs")
    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "script-src" not in policy
    assert "frame-ancestors 'none'" in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "<script" not in answer.text
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', answer.text)
    for path, methods in shared.http.get("/openapi.json").json()["paths"].items():
        for method in methods:
            assert f"<code>{method.upper()} {path}</code>" in answer.text
    assert shared.http.get("/redoc").status_code == 404


@pytest.mark.parametrize("path", ["/health/", "/metrics/", "/v1/decisions/", "/docs/"])
def test_paths_are_exact(shared: Server, path: str) -> None:
    """No path is redirected, because a redirect would contain the client's `Host`."""
    answer = shared.http.get(path)
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert "location" not in answer.headers


@pytest.mark.parametrize(
    "line",
    ["Content-Type: a\r\nContent-Type: b", "Origin: a\r\nOrigin: a", "Authorization: a\r\n" * 2],
)
def test_other_asgi_servers_refuse_fields_that_come_twice(tmp_path: Path, line: str) -> None:
    """Under other ASGI servers the same fields may come only once."""
    with Server(tmp_path, edge="portable") as server, RawConnection(server.port) as connection:
        connection.send(post(len(GOOD), GOOD, line.removesuffix("\r\n")))
        answer = connection.answer()
        assert answer.status == 400
        assert b"more than once" in answer.body
