"""The OpenAPI document: each answer that it names is given, and is what it says."""

from collections.abc import Iterator
from typing import Any, Final

import apsw
import httpx2
import pytest
from jsonschema import Draft202012Validator

from routecast.protocol import FIELDS
from tests.support.server import Server

GOOD: Final = {"strategy": "hybrid", "provider": "gemini", "model": "flash", "confidence": 0.9}
FULL: Final = {**GOOD, "id": "one", "cost": 0.001, "latency_ms": 120, "status": "error"}
MANY: Final = b"[" + b",".join([b"{}"] * 50_001) + b"]"

Answers = dict[tuple[str, str], list[httpx2.Response]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a baseline, so that every field has a value."""
    env = {"ROUTECAST_BASELINE_MODEL": "gemini-2.5-pro"}
    with Server(tmp_path_factory.mktemp("server"), env=env) as running:
        yield running


@pytest.fixture(scope="module")
def answers(server: Server) -> Answers:
    """What the server says to requests of every kind, by path and status."""
    found: Answers = {}

    def ask(method: str, path: str, **options: Any) -> None:
        answer = server.http.request(method, path, **options)
        found.setdefault((path, str(answer.status_code)), []).append(answer)

    def post(content: bytes, **headers: str) -> None:
        ask("POST", "/v1/decisions", content=content, headers=headers)

    every = {"fields": ",".join(FIELDS)}
    ask("GET", "/routing/metrics", params=every)
    ask("POST", "/v1/decisions", json=FULL)
    ask("POST", "/v1/decisions", json=[FULL, GOOD, {"strategy": ""}])
    post(b"{")
    post(b"{}", Origin="https://elsewhere.example")
    post(MANY)
    post(b"{}", **{"Content-Encoding": "br"})
    post(b"{}")
    for path in ("/routing/metrics", "/v1/history"):
        ask("GET", path)
        ask("GET", path, params={"fields": "nonsense"})
    ask("GET", "/routing/metrics", params={**every, "window": "1h"})
    ask("GET", "/v1/history", params={"group_by": "strategy", "points": 3})
    for path in ("/health", "/ready", "/metrics"):
        ask("GET", path)
    return found


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that never could open its database."""
    server = Server(tmp_path_factory.mktemp("broken"))
    holder = apsw.Connection(str(server.database))
    holder.execute("BEGIN EXCLUSIVE")
    server.launch()
    server.wait_for("/health", 503)
    try:
        yield server
    finally:
        holder.execute("ROLLBACK")
        holder.close()
        server.stop()


def check(document: dict[str, Any], path: str, answer: httpx2.Response) -> None:
    """Assert that an answer is what the document says of its path and status."""
    method = answer.request.method.lower()
    described = document["paths"][path][method]["responses"][str(answer.status_code)]
    kind = answer.headers["content-type"].partition(";")[0]
    schema = described["content"][kind]["schema"]
    body = answer.json() if kind.endswith("json") else answer.text
    Draft202012Validator({**schema, "components": document["components"]}).validate(body)


def test_every_answer_is_as_described(server: Server, answers: Answers) -> None:
    """Statuses, media types and bodies."""
    document = server.http.get("/openapi.json").json()
    for (path, _), given in answers.items():
        for answer in given:
            check(document, path, answer)


def test_answers_without_a_database_are_as_described(broken: Server) -> None:
    """503 everywhere, but for what needs none."""
    document = broken.http.get("/openapi.json").json()
    for path in ("/routing/metrics", "/v1/history", "/health", "/ready"):
        answer = broken.http.get(path)
        assert answer.status_code == 503
        check(document, path, answer)
    refused = broken.http.post("/v1/decisions", json=GOOD)
    assert refused.status_code == 503
    check(document, "/v1/decisions", refused)


def test_every_answer_described_is_given(server: Server, answers: Answers) -> None:
    """No path and no status is there that nobody can get."""
    document = server.http.get("/openapi.json").json()
    for path, methods in document["paths"].items():
        for method in methods.values():
            for status in set(method["responses"]) - {"503"}:
                assert (path, status) in answers
