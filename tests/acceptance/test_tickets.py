"""Tickets: each opens one stream, and no more, on both HTTP paths and on every node."""

from collections.abc import Iterator
from contextlib import closing, suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Final, cast

import httpx2
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.support.credentials import SIGNED, bearer, signed_server, token
from tests.support.postgres import OwnPostgres
from tests.support.raw import RawConnection, upgrade_request
from tests.support.redis import RedisServer
from tests.support.secrets import keep
from tests.support.server import EDGES, Edge, Server

ELSEWHERE: Final = {"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "https"}


@pytest.fixture(scope="module", params=EDGES)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server that takes tokens."""
    edge = cast(Edge, request.param)
    with signed_server(tmp_path_factory.mktemp(edge), edge) as running:
        yield running


def make(server: Server, credential: str, **headers: str) -> str:
    """Return a ticket."""
    answer = httpx2.post(f"{server.url}/v1/tickets", headers={**bearer(credential), **headers})
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    body = answer.json()
    assert body["expires_in"] == 30
    return keep(cast(str, body["ticket"]))


def events(server: Server, query: str, **headers: str) -> tuple[int, bytes]:
    """Ask for server-sent events; return the status, and what comes first or all of an error."""
    with closing(HTTPConnection("127.0.0.1", server.port, timeout=30)) as connection:
        connection.request("GET", f"/sse/metrics{query}", headers=headers)
        answer = connection.getresponse()
        if answer.status != 200:
            return answer.status, answer.read()
        text = b""
        while b"data: " not in text:
            text += answer.readline()
        return answer.status, text


def upgrade(server: Server, query: str, **headers: str) -> int:
    """Ask for a WebSocket; return the status."""
    fields = {name.lower().replace("-", "_"): value for name, value in headers.items()}
    with RawConnection(server.port) as connection:
        connection.send(upgrade_request(f"/ws/metrics{query}", **fields))
        return connection.answer()[0]


def test_a_ticket_opens_one_stream(server: Server) -> None:
    """Of either kind. It has 128 random bits, and each is another one."""
    first, second = (make(server, token("read")) for _ in range(2))
    assert first != second
    assert len(first) == 22
    status, text = events(server, f"?ticket={first}&fields=total_decisions")
    assert status == 200
    assert b'"total_decisions":2' in text
    assert upgrade(server, f"?ticket={second}&fields=total_decisions") == 101
    for used in (first, second):
        assert events(server, f"?ticket={used}")[0] == 401
        assert upgrade(server, f"?ticket={used}") == 401


def test_a_ticket_allows_what_its_credential_does(server: Server) -> None:
    """No other projects, and no longer."""
    limited = make(server, token("read", projects=["ours"]))
    assert b'"total_decisions":1' in events(server, f"?ticket={limited}&fields=total_decisions")[1]
    foreign = make(server, token("read", projects=["ours"]))
    assert events(server, f"?ticket={foreign}&project=theirs")[0] == 403
    short = make(server, token("read", seconds=1))
    with connect(f"{server.ws_url}?ticket={short}") as stream:
        with suppress(ConnectionClosed):
            while True:
                stream.recv()
        assert stream.close_code == 4401


def test_a_ticket_is_bound_to_its_address(server: Server) -> None:
    """Whoever saw it elsewhere gets nothing, and it is used up."""
    ticket = make(server, token("read"))
    status, text = events(server, f"?ticket={ticket}", **ELSEWHERE)
    assert status == 401
    assert ticket.encode() not in text
    assert events(server, f"?ticket={ticket}")[0] == 401
    theirs = make(server, token("read"), **ELSEWHERE)
    assert upgrade(server, f"?ticket={theirs}", **ELSEWHERE) == 101


def test_a_ticket_is_for_streams_only(server: Server) -> None:
    """The answer names the parameter. A question about a stream does not use it up."""
    ticket = make(server, token("read"))
    for method, path in (
        ("GET", "/routing/metrics"),
        ("GET", "/v1/history"),
        ("GET", "/ws/metrics"),
        ("OPTIONS", "/ws/metrics"),
        ("POST", "/v1/tickets"),
        ("POST", "/v1/decisions"),
        ("GET", "/"),
    ):
        answer = httpx2.request(method, f"{server.url}{path}?ticket={ticket}")
        assert answer.status_code == 400, path
        assert answer.json()["parameter"] == "ticket"
        assert ticket not in answer.text
    assert upgrade(server, f"?ticket={ticket}") == 101


def test_a_ticket_beside_another_credential_is_refused(server: Server) -> None:
    """It would be unclear which one counts; the same with two tickets."""
    one, other = (make(server, token("read")) for _ in range(2))
    assert events(server, f"?ticket={one}", **bearer(token("read")))[0] == 400
    assert upgrade(server, f"?ticket={one}", **bearer(token("read"))) == 400
    assert events(server, f"?ticket={one}&ticket={other}")[0] == 400
    assert upgrade(server, f"?ticket={one}&ticket={other}") == 400


@pytest.mark.parametrize("wrong", ["", "x", "a" * 22, "a" * 5_000, "%00", "%C3%BC", "+", "a+b"])
def test_a_ticket_that_was_never_made_is_refused(server: Server, wrong: str) -> None:
    """Whatever it is."""
    assert events(server, f"?ticket={wrong}")[0] == 401
    assert upgrade(server, f"?ticket={wrong}") == 401


def test_a_ticket_needs_a_credential_that_may_read(server: Server) -> None:
    """Nobody gets one without."""
    url = f"{server.url}/v1/tickets"
    assert httpx2.post(url).status_code == 401
    assert httpx2.post(url, headers=bearer(token("write"))).status_code == 403


def test_tickets_are_in_no_log(server: Server) -> None:
    """Neither used nor unused, good nor bad; other servers log the URLs of upgrades."""
    used, unused = (make(server, token("read")) for _ in range(2))
    events(server, f"?ticket={used}")
    events(server, f"?ticket={used}")
    if server.edge == "native":
        upgrade(server, f"?ticket={used}")
        upgrade(server, f"?ticket={make(server, token('read'))}&window=bad")
    events(server, f"?ticket={unused}&window=bad")
    log = server.log.read_text()
    assert "Total connections" in log
    assert used not in log
    assert unused not in log


def test_without_authentication_a_ticket_changes_nothing(tmp_path: Path) -> None:
    """Clients that always fetch one work in both cases."""
    with Server(tmp_path / "open") as server:
        ticket = httpx2.post(f"{server.url}/v1/tickets").json()["ticket"]
        assert events(server, f"?ticket={ticket}")[0] == 200
        assert upgrade(server, f"?ticket={ticket}") == 101


def test_a_ticket_is_known_to_all_nodes(
    tmp_path: Path, own_postgres: OwnPostgres, own_redis: RedisServer
) -> None:
    """It is used on one of them, whichever that is."""
    url = own_postgres.create()
    nodes = [
        Server(
            tmp_path / name,
            database_url=url,
            redis_url=own_redis.url,
            env={**SIGNED, "ROUTECAST_REDIS_PREFIX": "tickets"},
        )
        for name in ("one", "two")
    ]
    with nodes[0], nodes[1]:
        ticket = make(nodes[0], token("read"))
        assert upgrade(nodes[1], f"?ticket={ticket}") == 101
        assert upgrade(nodes[0], f"?ticket={ticket}") == 401
