"""Checks of `Host` and of the client's address: the same on every path into a server."""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

import httpx2
import pytest

from tests.support.raw import Answer, RawConnection, upgrade_request
from tests.support.server import EDGES, Edge, Server

GOOD: Final = b'{"strategy":"hybrid","provider":"gemini"}'
PATHS: Final = [
    *("/", "/health", "/ready", "/metrics", "/routing/metrics", "/v1/history", "/sse/metrics"),
    *("/openapi.json", "/asyncapi.json", "/dashboard/main.js", "/ws/metrics", "/nowhere"),
]
OURS: Final = ["127.0.0.1:1", "[::1]:8000", "localhost", "routecast", "RC.example.", "a.svc.local"]
THEIRS: Final = ["evil.example", "rc.example.evil.example", "svc.local", "host.docker.internal"]


@pytest.fixture(scope="module", params=EDGES)
def edge(request: pytest.FixtureRequest) -> Edge:
    """Both edges."""
    found: Edge = request.param
    return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, edge: Edge) -> Iterator[Server]:
    env = {"ROUTECAST_ALLOWED_HOSTS": "rc.example,*.svc.local"}
    with Server(tmp_path_factory.mktemp("hosts"), env=env, edge=edge) as running:
        yield running


def get(server: Server, path: str, host: str) -> httpx2.Response:
    """Request a path under a host name; of a stream, only the head."""
    request = server.http.build_request("GET", path, headers={"Host": host})
    answer = server.http.send(request, stream=True)
    if "event-stream" not in answer.headers.get("content-type", ""):
        answer.read()
    answer.close()
    return answer


def post(server: Server, *lines: str) -> Answer:
    """Send a small decision on the fast path."""
    head = ["POST /v1/decisions HTTP/1.1", *lines, "Content-Type: application/json"]
    with RawConnection(server.port) as connection:
        connection.send(
            "\r\n".join([*head, f"Content-Length: {len(GOOD)}", "", ""]).encode() + GOOD
        )
        return connection.answer()


def upgrade(server: Server, **headers: str) -> Answer:
    with RawConnection(server.port) as connection:
        connection.send(upgrade_request(**headers))
        return connection.answer()


def check_refused(status: int, kind: str, body: bytes) -> None:
    """Assert that an answer is a problem that names the setting."""
    assert (status, kind) == (421, "application/problem+json")
    assert "ROUTECAST_ALLOWED_HOSTS" in json.loads(body)["detail"]


@pytest.mark.parametrize("path", PATHS)
def test_no_route_answers_under_a_strange_name(server: Server, path: str) -> None:
    """A page whose name was pointed at this server reads nothing (DNS rebinding)."""
    for host in THEIRS:
        answer = get(server, path, host)
        check_refused(answer.status_code, answer.headers["content-type"], answer.content)
    for host in OURS:
        assert get(server, path, host).status_code not in (400, 421)


@pytest.mark.parametrize("host", THEIRS)
def test_nothing_is_written_or_streamed_under_a_strange_name(server: Server, host: str) -> None:
    """This holds on the fast path for decisions and for WebSockets."""
    before = server.metrics()["total_decisions"]
    for answer in (post(server, f"Host: {host}"), upgrade(server, host=host)):
        check_refused(answer.status, answer.headers["content-type"], answer.body)
    assert server.metrics()["total_decisions"] == before


@pytest.mark.parametrize("host", OURS)
def test_decisions_and_streams_are_taken_under_own_names(server: Server, host: str) -> None:
    """The host may have any port and any case, in every request of a connection."""
    for _ in range(2):
        assert post(server, f"Host: {host}").status == 200
        assert upgrade(server, host=host).status == 101


@pytest.mark.parametrize(
    "lines",
    [
        *([], ["Host: localhost", "Host: localhost"], ["Host: localhost", "Host: evil.example"]),
        *(["Host: evil.example", "Host: localhost"], ["Host: a b"], ["Host:"], ["Host: x:port"]),
    ],
    ids=str,
)
def test_a_request_has_one_host(server: Server, lines: list[str]) -> None:
    """A request without exactly one valid `Host` is refused (RFC 9112, 3.2)."""
    assert post(server, *lines).status == 400


def test_all_answers_have_nosniff(server: Server) -> None:
    """No browser treats an answer as a page or script that it is not."""
    answers = [get(server, path, host).headers for path in PATHS for host in ("localhost", "e.vil")]
    answers.append(server.http.post("/v1/decisions", content=b"{}").headers)
    answers.append(server.http.post("/v1/decisions", content=b"{").headers)
    assert [headers.get_list("x-content-type-options") for headers in answers] == [
        ["nosniff"]
    ] * len(answers)
    for answer in (post(server, "Host: localhost"), upgrade(server, origin="https://evil.example")):
        assert answer.headers["x-content-type-options"] == "nosniff"


# What proxies write for one client, and for another.
ONE: Final = [
    *("203.0.113.7", "203.0.113.7:4711", '"203.0.113.7"', "::ffff:203.0.113.7"),
    *("[::FFFF:203.0.113.7]:80", "1.2.3.4, 203.0.113.7"),
]
SITE: Final = ["2001:db8::1", "[2001:DB8::2]", "[2001:db8::3]:80", "2001:db8:0:0:ffff::%eth0"]
NOBODY: Final = ["unknown", "_hidden", "a" * 5_000]


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory, edge: Edge) -> Iterator[Server]:
    """A server that allows two streams of an address."""
    env = {"ROUTECAST_MAX_PER_ADDRESS": "2"}
    with Server(tmp_path_factory.mktemp("strict"), env=env, edge=edge) as running:
        yield running


@pytest.mark.parametrize("spellings", [ONE, SITE, NOBODY], ids=["IPv4", "IPv6", "none"])
@pytest.mark.parametrize("first", ["SSE", "WebSocket"])
def test_streams_of_one_client_are_counted_together(
    strict: Server, first: str, spellings: list[str]
) -> None:
    """The limit counts a client's streams of all kinds, in any form of its address."""
    kinds = ["SSE", "WebSocket"] if first == "SSE" else ["WebSocket", "SSE"]
    with ExitStack() as stack:
        statuses = []
        for turn, spelling in enumerate(spellings):
            connection = stack.enter_context(RawConnection(strict.port))
            if kinds[turn % 2] == "SSE":
                head = "GET /sse/metrics HTTP/1.1\r\nHost: localhost\r\n"
                connection.send(f"{head}X-Forwarded-For: {spelling}\r\n\r\n".encode())
            else:
                connection.send(upgrade_request(x_forwarded_for=spelling))
            statuses.append(connection.answer().status)
        assert [status in (101, 200) for status in statuses] == [
            turn < 2 for turn in range(len(spellings))
        ]
        with RawConnection(strict.port) as other:
            other.send(upgrade_request(x_forwarded_for="198.51.100.4"))
            assert other.answer().status == 101
    strict.wait_for_active(0, 30)


# -- sockets that are handed over ---------------------------------------------------------------


def serve(descriptor: int, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the command to its end on a descriptor that it refuses."""
    command = [sys.executable, "-m", "routecast", "serve", "--fd", str(descriptor)]
    return subprocess.run(
        command,
        pass_fds=[descriptor],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=folder,
    )


@pytest.mark.parametrize(
    ("family", "kind", "words"),
    [
        (socket.AF_UNIX, socket.SOCK_STREAM, "Unix socket"),
        (socket.AF_INET, socket.SOCK_DGRAM, "no TCP socket"),
        (socket.AF_INET, socket.SOCK_STREAM, "bound to no port"),
    ],
)
def test_a_socket_that_cannot_be_listened_on_is_refused(
    tmp_path: Path, family: int, kind: int, words: str
) -> None:
    """One line says what is wrong with the socket."""
    with socket.socket(family, kind) as given:
        if words != "bound to no port":
            given.bind(str(tmp_path / "s") if family == socket.AF_UNIX else ("127.0.0.1", 0))
        ended = serve(given.fileno(), tmp_path)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended.stderr
    assert words in ended.stderr


def test_a_connected_socket_is_refused(tmp_path: Path) -> None:
    """A connected socket cannot be listened on."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
    ):
        ended = serve(client.fileno(), tmp_path)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended.stderr
    assert "connected" in ended.stderr


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "::ffff:0.0.0.0"])
def test_a_socket_that_others_reach_needs_insecure(tmp_path: Path, address: str) -> None:
    """A public socket needs --insecure, as a public --host does."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as given:
        given.bind((address, 0))
        ended = serve(given.fileno(), tmp_path)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended.stderr
    assert "--insecure" in ended.stderr


def test_a_bound_socket_is_served(tmp_path: Path) -> None:
    """A socket of systemd or of a parent process is served."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    command = [sys.executable, "-m", "routecast", "serve", "--fd", str(listener.fileno())]
    with (
        listener,
        subprocess.Popen(
            command, pass_fds=[listener.fileno()], cwd=tmp_path, stderr=subprocess.DEVNULL
        ) as process,
    ):
        try:
            status = 0
            while not status:
                with suppress(httpx2.TransportError):
                    status = httpx2.get(f"http://127.0.0.1:{port}/health", timeout=30).status_code
                assert process.poll() is None
        finally:
            process.terminate()
    assert status == 200
    assert process.returncode == 0
