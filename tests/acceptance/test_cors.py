"""Pages of other sites: allowed sites can read every answer, all others can read none."""

from collections.abc import Iterator

import httpx2
import pytest

from tests.support.server import Edge, Server

GOOD = {"strategy": "hybrid", "provider": "gemini"}
ALLOWED = "https://grafana.example"
# By the rules of `Sites`: allowed by name, of this machine, of the server's own address.
MAY = [ALLOWED, "http://localhost:5173", "own"]
MAY_NOT = ["https://evil.example", "http://grafana.example", "null"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, edge: Edge) -> Iterator[Server]:
    env = {"ROUTECAST_ALLOWED_ORIGINS": ALLOWED}
    with Server(tmp_path_factory.mktemp("cors"), env=env, edge=edge) as running:
        yield running


def ask(server: Server, path: str, origin: str) -> httpx2.Response:
    """Send a request as a page of `origin` does; return the answer, with or without its body."""
    method = "POST" if path == "/v1/decisions" else "GET"
    body = GOOD if method == "POST" else None
    request = server.http.build_request(method, path, headers={"Origin": origin}, json=body)
    answer = server.http.send(request, stream=True)
    answer.close()
    return answer


def preflight(server: Server, path: str, origin: str, **asked: str) -> httpx2.Response:
    """Send the preflight request of a browser."""
    headers = {"Origin": origin, "Access-Control-Request-Method": "POST", **asked}
    return server.http.options(path, headers=headers)


def cors(answer: httpx2.Response) -> dict[str, str]:
    """Return the CORS headers of an answer, without their common prefix."""
    start = "access-control-"
    return {
        name.removeprefix(start): value
        for name, value in answer.headers.items()
        if name.startswith(start)
    }


PATHS = ["/routing/metrics", "/v1/history", "/sse/metrics", "/health", "/v1/decisions"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("origin", MAY)
def test_an_allowed_page_may_read(server: Server, path: str, origin: str) -> None:
    """The answer has the page's origin once, and `Vary: Origin`."""
    origin = server.url if origin == "own" else origin
    answer = ask(server, path, origin)
    assert answer.status_code == 200
    assert cors(answer) == {"allow-origin": origin, "expose-headers": "Retry-After"}
    assert answer.headers["vary"] == "Origin"


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("origin", MAY_NOT)
def test_another_page_may_not(server: Server, path: str, origin: str) -> None:
    """The browser may not pass the answer on, and nothing is stored."""
    before = server.metrics()["total_decisions"]
    assert cors(ask(server, path, origin)) == {}
    refused = preflight(server, path, origin)
    assert (refused.status_code, cors(refused)) == (403, {})
    assert "ROUTECAST_ALLOWED_ORIGINS" in refused.json()["detail"]
    assert server.metrics()["total_decisions"] == before


def test_no_page_no_headers(server: Server) -> None:
    """A client that is no browser gets no CORS headers."""
    assert cors(server.http.get("/routing/metrics")) == {}


@pytest.mark.parametrize("path", PATHS)
def test_an_allowed_page_may_ask_first(server: Server, path: str) -> None:
    """The preflight lists what may be sent, for how long it holds, and no cookies."""
    asked = {"Access-Control-Request-Headers": "content-encoding,content-type"}
    answer = preflight(server, path, ALLOWED, **asked)
    assert (answer.status_code, answer.content) == (204, b"")
    assert cors(answer) == {
        "allow-origin": ALLOWED,
        "allow-methods": "GET, POST, OPTIONS",
        "allow-headers": "Content-Type, Content-Encoding, Last-Event-ID",
        "max-age": "7200",
    }


@pytest.mark.parametrize(
    ("path", "status"), [("/routing/metrics?window=2h", 400), ("/sse/metrics?interval=0", 400)]
)
def test_an_allowed_page_may_read_what_is_wrong(server: Server, path: str, status: int) -> None:
    """Errors have CORS headers, too."""
    answer = ask(server, path, ALLOWED)
    assert answer.status_code == status
    assert cors(answer)["allow-origin"] == ALLOWED


def test_an_allowed_page_may_read_why_its_decision_is_bad(server: Server) -> None:
    """So have answers of the fast path, which bypasses other middleware."""
    answer = server.http.post("/v1/decisions", json={}, headers={"Origin": ALLOWED})
    assert answer.status_code == 422
    assert cors(answer)["allow-origin"] == ALLOWED
