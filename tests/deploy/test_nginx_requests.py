"""Requests to nginx of `deploy/`: which are accepted, and what a node gets of them."""

import select
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import httpx2
import pytest

from tests.support.nginx import SHIPPED, Nginx, executable
from tests.support.raw import WAIT_SECONDS, Answer, RawConnection
from tests.support.upstream import CLOSE, NOT_FOUND, OK, UNENDING, Received, Upstream, upstream

NAMES = ("metrics.example.org", "*.wild.example.org")
KIB = 1024


class Site(NamedTuple):
    """Nginx, and the server behind it."""

    nginx: Nginx
    node: Upstream


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """Nginx with two names in front of a server that records what it gets."""
    executable()
    with upstream() as node, Nginx(tmp_path / "nginx", [node.port], names=NAMES) as nginx:
        node.received.clear()
        yield Site(nginx, node)


def send(nginx: Nginx, first: str, *lines: str, body: bytes = b"") -> Answer:
    """Send a request on a new connection; return the answer."""
    length = [f"Content-Length: {len(body)}"] if body else []
    head = "\r\n".join([first, *lines, *length, "", ""])
    with RawConnection(nginx.port) as connection:
        connection.send(head.encode("latin-1") + body)
        return connection.answer()


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.0.0.1:8080", "203.0.113.9", "[::1]", "[2001:DB8::1]:8080"),
        *("[::ffff:192.0.2.1]", "localhost", "LOCALHOST:80", "gateway", "routecast.example"),
        *("metrics.example.org", "Metrics.Example.ORG:443", "metrics.example.org."),
        *("a.wild.example.org", "a.b.wild.example.org", "a.localhost"),
    ],
)
def test_known_hosts_are_answered(site: Site, host: str) -> None:
    """These are IP addresses, names without a dot and configured names, passed on unchanged."""
    assert send(site.nginx, "GET /health HTTP/1.1", f"Host: {host}").status == 200
    assert [request.fields["host"] for request in site.node.received] == [host]


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "rebind.test:8000", "example.org", "wild.example.org.evil.example"),
        *("a.metrics.example.org", "metrics.example.org.evil.example", "xrouteCast.example"),
        *("127.0.0.1.evil.example", "localhost.evil.example", "1.2.3.4a", "routecast-example.org"),
    ],
)
@pytest.mark.parametrize("path", ["/", "/v1/decisions", "/ws/metrics", "/sse/metrics", "/metrics"])
def test_other_hosts_get_421(site: Site, host: str, path: str) -> None:
    """No node gets the request, and the answer has the name of the file to change."""
    for method in ("GET", "POST"):
        answer = send(site.nginx, f"{method} {path} HTTP/1.1", f"Host: {host}")
        assert answer.status == 421
        assert b"names.conf" in answer.body
    assert site.node.received == []


def test_the_checked_host_is_the_one_that_a_node_gets(site: Site) -> None:
    """A request target with another host than the field does not avoid the check."""
    absolute = "GET http://127.0.0.1/health HTTP/1.1"
    assert send(site.nginx, absolute, "Host: evil.example").status == 421
    assert send(site.nginx, absolute, "Host: 127.0.0.1.evil.example").status == 421
    assert send(site.nginx, absolute, "Host: 127.0.0.1, evil.example").status in (400, 421)
    assert site.node.received == []
    assert send(site.nginx, absolute, "Host: 127.0.0.1:8080").status == 200
    twice = send(site.nginx, "GET / HTTP/1.1", "Host: 127.0.0.1", "Host: evil.example")
    assert twice.status == 400


SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n"


@pytest.mark.parametrize("token", ["websocket", "WebSocket"])
def test_a_handshake_is_passed_on(site: Site, token: str) -> None:
    """Nodes accept no other upgrade, and only on this path."""
    site.node.answer = lambda _: SWITCH
    lines = ("Host: localhost", f"Upgrade: {token}", "Connection: keep-alive, Upgrade")
    assert send(site.nginx, "GET /ws/metrics?interval=1 HTTP/1.1", *lines).status == 101
    (request,) = site.node.received
    assert request.fields["upgrade"] == "websocket"
    assert request.fields["connection"] == "upgrade"


@pytest.mark.parametrize(
    ("first", "token"),
    [
        ("POST /v1/decisions", "h2c"),
        ("POST /v1/decisions", "websocket"),
        ("POST /ws/metrics", "websocket"),
        ("GET /", "websocket"),
        ("GET /WS/metrics", "websocket"),
        ("GET /sse/metrics", "websocket"),
        ("GET /routing/metrics?a=/ws/metrics", "websocket"),
        ("GET /ws/../health", "websocket"),
        ("GET /health#/ws/metrics", "websocket"),
        ("GET /ws/metrics", "h2c"),
        ("GET /ws/metrics", "websocket, h2c"),
        ("GET /ws/metrics", "h2c, websocket"),
        ("GET /ws/metrics", "TLS/1.0"),
        ("GET /ws/metrics", "websocket/13"),
    ],
)
def test_other_upgrades_are_not_passed_on(site: Site, first: str, token: str) -> None:
    """A node gets neither the upgrade nor the other fields of the client's connection."""
    lines = (
        *("Host: localhost", "Connection: Upgrade, HTTP2-Settings", f"Upgrade: {token}"),
        *("HTTP2-Settings: AAMAAABkAAQ", "Keep-Alive: timeout=5", "TE: trailers", "Trailer: X"),
    )
    assert send(site.nginx, f"{first} HTTP/1.1", *lines).status == 200
    (request,) = site.node.received
    gone = {"upgrade", "connection", "http2-settings", "keep-alive", "te", "trailer"}
    # A stream's connection is not used again, so it may have `Connection: close`.
    assert request.fields.keys() & gone <= ({"connection"} if "/sse/" in first else set())


def test_an_upgrade_over_http_1_0_is_not_passed_on(site: Site) -> None:
    """A node could not refuse it, because nginx always sends HTTP/1.1 to a node."""
    lines = ("Host: localhost", "Upgrade: websocket", "Connection: Upgrade")
    assert send(site.nginx, "GET /ws/metrics HTTP/1.0", *lines).status == 200
    (request,) = site.node.received
    assert "upgrade" not in request.fields


def test_forged_addresses_of_a_client_are_replaced(site: Site) -> None:
    """Its own fields about its address are replaced or removed in any spelling."""
    lines = ("X-Forwarded-For: 198.51.100.7", "X_Forwarded_For: 198.51.100.7")
    send(site.nginx, "GET / HTTP/1.1", "Host: localhost", *lines, "X-Forwarded-Proto: https")
    (request,) = site.node.received
    assert request.fields["x-forwarded-for"] == "127.0.0.1"
    assert request.fields["x-forwarded-proto"] == "http"
    assert "x_forwarded_for" not in request.fields


@pytest.mark.parametrize("path", ["/", "/ws/metrics", "/sse/metrics"])
def test_a_proxy_in_front_may_speak_tls(tmp_path: Path, path: str) -> None:
    """If `listen.conf` says so, nodes are told `https`, and take credentials."""
    executable()
    listen = "set $client_scheme https;\n"
    assert f"\n# {listen}" in (SHIPPED / "listen.conf").read_text()
    with upstream() as node, Nginx(tmp_path / "nginx", [node.port], listen=listen) as nginx:
        node.received.clear()
        send(nginx, f"GET {path} HTTP/1.1", "Host: localhost", "X-Forwarded-Proto: http")
        (request,) = node.received
    assert request.fields["x-forwarded-proto"] == "https"


@pytest.mark.parametrize("path", ["/ws/metrics", "/sse/metrics"])
def test_requests_for_streams_with_a_body_are_refused(site: Site, path: str) -> None:
    """A body could be read as a request behind an upgrade."""
    upgrade = ("Connection: Upgrade", "Upgrade: websocket")
    lines = ("Host: localhost", *upgrade)
    assert send(site.nginx, f"GET {path} HTTP/1.1", *lines, body=b"GET / HTTP/1.1").status == 413
    chunked = b"e\r\nGET / HTTP/1.1\r\n0\r\n\r\n"
    with RawConnection(site.nginx.port) as connection:
        head = [f"GET {path} HTTP/1.1", *lines, "Transfer-Encoding: chunked", "", ""]
        connection.send("\r\n".join(head).encode() + chunked)
        assert connection.answer().status == 413
    assert site.node.received == []


@pytest.mark.parametrize("path", ["/ws", "/sse", "/dashboard", "/metrics/", "//metrics"])
def test_nginx_never_redirects(site: Site, path: str) -> None:
    """A redirect would repeat the host and turn a POST into a GET."""
    assert send(site.nginx, f"POST {path} HTTP/1.1", "Host: localhost").status in (200, 404)


def test_prometheus_metrics_are_not_public(site: Site) -> None:
    """No spelling of the path reaches a node."""
    for path in (
        *("/metrics", "//metrics", "/./metrics", "/a/../metrics", "/%6detrics", "/metrics?a"),
        *("/a/..%2fmetrics", "/metrics#a", "http://localhost/metrics", "/%2e/metrics"),
    ):
        assert send(site.nginx, f"GET {path} HTTP/1.1", "Host: localhost").status == 404, path
    assert site.node.received == []


@pytest.mark.parametrize("path", ["/sse/metrics", "/ws/metrics"])
def test_a_stream_for_head_delays_no_other_request(site: Site, path: str) -> None:
    """If a node streams after HEAD, its connection gets no other request."""
    site.node.answer = lambda request: UNENDING if request.first.startswith("HEAD") else OK
    for _ in range(8):
        with RawConnection(site.nginx.port) as connection:
            connection.send(f"HEAD {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            assert connection.peek().startswith(b"HTTP/1.1 200 ")
        for first in ("GET /routing/metrics HTTP/1.1", "POST /v1/decisions HTTP/1.1"):
            assert send(site.nginx, first, "Host: localhost").status == 200
    streams = {request.connection for request in site.node.received if path in request.first}
    others = {request.connection for request in site.node.received if path not in request.first}
    assert not streams & others


def test_connections_to_nodes_are_used_again(site: Site) -> None:
    """These are connections of requests; each worker process of nginx keeps its own."""
    for _ in range(20):
        assert send(site.nginx, "GET /health HTTP/1.1", "Host: localhost").status == 200
    connections = [request.connection for request in site.node.received]
    assert len(connections) == 20
    assert len(set(connections)) < 20


def test_large_heads_do_not_reach_a_node(site: Site) -> None:
    """A node closes the connection at a head over 32 KiB, which nginx would count as a failure."""
    long = [f"X-{n}: {'y' * 7_000}" for n in range(3)]
    assert send(site.nginx, "GET / HTTP/1.1", "Host: localhost", *long).status == 200
    assert sum(map(len, site.node.received[0].fields.values())) < 30 * KIB
    for lines in ([*long, f"X: {'y' * 7_000}"], [f"X: {'y' * 9_000}"], ["X: y"] * 10_000):
        assert send(site.nginx, "GET / HTTP/1.1", "Host: localhost", *lines).status == 400
    assert send(site.nginx, f"GET /{'y' * 9_000} HTTP/1.1", "Host: localhost").status == 414
    assert len(site.node.received) == 1


def test_a_decision_is_not_sent_twice(tmp_path: Path) -> None:
    """If a node has read a POST and did not answer, only the producer sends it again."""
    executable()
    with ExitStack() as stack:
        nodes = [stack.enter_context(upstream()) for _ in range(2)]
        nginx = stack.enter_context(Nginx(tmp_path / "nginx", [node.port for node in nodes]))
        for node in nodes:
            node.received.clear()
            node.answer = lambda _: CLOSE
        answer = send(nginx, "POST /v1/decisions HTTP/1.1", "Host: localhost", body=b"{}")
        assert answer.status in (502, 504)
        assert sum(len(node.received) for node in nodes) == 1


def test_files_come_from_the_node_that_has_them(tmp_path: Path) -> None:
    """Nodes have different versions, and nginx asks until one has the file."""
    executable()

    def version(name: str) -> bytes:
        return b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n" + name.encode()

    def files_of(name: str, request: Received) -> bytes:
        return version(name) if f"/dashboard/{name}/" in request.first else NOT_FOUND

    with ExitStack() as stack:
        nodes = {name: stack.enter_context(upstream()) for name in "abcdef"}
        for name, node in nodes.items():
            node.answer = lambda request, name=name: files_of(name, request)
        ports = [node.port for node in nodes.values()]
        nginx = stack.enter_context(Nginx(tmp_path / "nginx", ports))
        for _ in range(5):
            for name in nodes:
                answer = send(nginx, f"GET /dashboard/{name}/main.js HTTP/1.1", "Host: localhost")
                assert (answer.status, answer.body) == (200, name.encode())
        # Such a 404 does not count as a failure of a node; if all have it, it is the answer.
        answer = send(nginx, "GET /dashboard/x/main.js HTTP/1.1", "Host: localhost")
        assert answer.status == 404
        assert send(nginx, "GET /nowhere HTTP/1.1", "Host: localhost").status == 404


def test_slow_clients_are_disconnected(tmp_path: Path) -> None:
    """They send no byte of a head or body for a time, which is short in this test."""
    executable()
    shorter = {
        f"client_{part}_timeout 10s;": f"client_{part}_timeout 1s;" for part in ("header", "body")
    }
    with upstream() as node, Nginx(tmp_path / "nginx", [node.port], replaced=shorter) as nginx:
        node.received.clear()
        head = b"POST /v1/decisions HTTP/1.1\r\nHost: localhost\r\n"
        for sent in (head, head + b"Content-Length: 5\r\n\r\n12"):
            with RawConnection(nginx.port) as connection:
                connection.send(sent)
                connection.rest()
        assert node.received == []


def test_requests_of_one_address_are_limited(tmp_path: Path) -> None:
    """The limit of simultaneous requests is low in this test."""
    executable()
    fewer = {"limit_conn addresses 1000;": "limit_conn addresses 2;"}
    begun = b"POST /v1/decisions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\n1"
    with (
        upstream() as node,
        Nginx(tmp_path / "nginx", [node.port], replaced=fewer) as nginx,
        ExitStack() as stack,
    ):
        connections = [stack.enter_context(RawConnection(nginx.port)) for _ in range(3)]
        for connection in connections:
            connection.send(begun)
        # Any of the three may be refused, because nginx has several worker processes.
        ready, _, _ = select.select(
            [connection.socket for connection in connections], [], [], WAIT_SECONDS
        )
        (refused,) = [connection for connection in connections if connection.socket in ready]
        assert refused.answer().status == 503
        elsewhere = httpx2.HTTPTransport(local_address="127.0.0.2")
        with httpx2.Client(transport=elsewhere) as other:
            assert other.get(nginx.url).status_code == 200
