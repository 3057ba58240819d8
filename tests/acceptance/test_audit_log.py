"""The audit log of real servers: each event, on both WebSocket edges, and what is never in it."""

import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.support.command import routecast
from tests.support.credentials import SECRET, SIGNED, bearer, token
from tests.support.server import EDGES, Edge, Server
from tests.support.waiting import until

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACED = {
    "X-Request-Id": "request-7",
    "traceparent": f"00-{TRACE}-00f067aa0ba902b7-01",
}
OPERATOR = token("read", "admin", sub="olga", jti="o-1")
Event = dict[str, Any]


@pytest.fixture(scope="module", params=EDGES)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server with authentication, which logs JSON."""
    edge: Edge = request.param
    env = {**SIGNED, "ROUTECAST_LOG_FORMAT": "json", "ROUTECAST_LOG_LEVEL": "warning"}
    with Server(tmp_path_factory.mktemp(edge), edge=edge, env=env) as running:
        running.http.headers.update(bearer(OPERATOR))
        yield running
        running.stop()
        lines = running.log.read_text().splitlines()
        assert all(isinstance(json.loads(line), dict) for line in lines)
        for secret in (SECRET, OPERATOR.rpartition(".")[2], "canary"):
            assert secret not in running.log.read_text()


def events(server: Server, event: str, **fields: Any) -> list[Event]:
    """Return the events of a kind that have these fields."""
    lines = map(json.loads, server.log.read_text().splitlines())
    return [
        line
        for line in lines
        if line.get("event") == event
        and all(line.get(name) == value for name, value in fields.items())
    ]


def one(server: Server, event: str, **fields: Any) -> Event:
    """Return the event that has these fields, as soon as it is logged."""
    until(lambda: bool(events(server, event, **fields)))
    (found,) = events(server, event, **fields)
    return found


async def test_connections_are_logged(server: Server) -> None:
    """From the request to the close code, with whose they were."""
    signed = bearer(token("read", sub="ann", jti="a-1"))
    stream = await connect(
        server.ws_url,
        additional_headers={**signed, **TRACED},
        user_agent_header='wall/"1"',
    )
    await stream.recv()
    event = one(server, "connect", subject="ann")
    assert event["logger"] == "routecast.audit"
    assert abs(datetime.fromisoformat(event["time"]) - datetime.now(UTC)).total_seconds() < 30
    assert (event["credential"], event["address"]) == ("a-1", "127.0.0.1")
    assert (event["protocol"], event["request_id"]) == ("default", "request-7")
    assert event["trace_id"] == TRACE
    assert event["client"] == 'wall/"1"'
    await stream.close(1001)
    event = one(server, "disconnect", connection=event["connection"])
    assert (event["subject"], event["code"], event["by_operator"]) == ("ann", 1001, False)


async def test_an_operator_and_the_client_are_named(server: Server) -> None:
    """Who closed it, and which connection it was."""
    signed = bearer(token("read", sub="bob", jti="b-1"))
    async with connect(server.ws_url, additional_headers=signed) as stream:
        await stream.recv()
        identity = one(server, "connect", subject="bob")["connection"]
        path = f"/v1/admin/connections/{identity}"
        assert server.http.delete(path, headers=TRACED).status_code == 204
        with suppress(ConnectionClosed):
            async for _ in stream:
                pass
    event = one(server, "expel", connection=identity)
    assert (event["subject"], event["credential"], event["trace_id"]) == ("olga", "o-1", TRACE)
    event = one(server, "disconnect", connection=identity)
    assert (event["code"], event["by_operator"]) == (4403, True)


@pytest.mark.parametrize(
    ("headers", "query", "status", "why"),
    [
        ({}, "", 401, "a credential is required"),
        (bearer("canary"), "", 401, ""),
        (bearer(token("write")), "", 403, "scope `read`"),
        ({}, "?access_token=canary", 400, "must not be in a URL"),
        (bearer(token("read")), "?interval=canary", 400, "Bad Request"),
        ({**bearer(token("read")), "Origin": "https://evil.example"}, "", 403, "evil.example"),
    ],
    ids=["none", "bad", "scope", "in the URL", "parameter", "site"],
)
async def test_refused_upgrades_are_logged(
    server: Server, headers: dict[str, str], query: str, status: int, why: str
) -> None:
    """With the reason, and without anything that the client sent in its place."""
    name = f"r-{time.monotonic_ns()}"
    with pytest.raises(InvalidStatus) as refused:
        await connect(server.ws_url + query, additional_headers={**headers, "X-Request-Id": name})
    assert refused.value.response.status_code == status
    event = one(server, "refuse", request_id=name)
    assert (event["status"], event["route"]) == (status, "/ws/metrics")
    assert event["address"] == "127.0.0.1"
    assert why in event["why"]


def test_refused_requests_are_logged(server: Server) -> None:
    """A path that does not exist is not repeated, because it may contain anything."""
    for path, status, route in [
        ("/v1/admin/nodes", 403, "/v1/admin/nodes"),
        ("/v1/decisions", 403, "/v1/decisions"),
        ("/v1/admin/connections/canary", 403, "/v1/admin/connections/{identity}"),
        ("/sse/metrics", 403, "/sse/metrics"),
    ]:
        name = f"r-{time.monotonic_ns()}"
        method = {"/v1/decisions": "POST"}.get(path, "DELETE" if "canary" in path else "GET")
        given = {**bearer(token(sub="eve")), "X-Request-Id": name}
        assert server.http.request(method, path, headers=given).status_code == status
        event = one(server, "refuse", request_id=name)
        assert (event["status"], event["route"]) == (status, route)
    answer = server.http.get("/canary", headers={"Authorization": "Bearer x", "X-Request-Id": "n"})
    assert answer.status_code == 401
    assert one(server, "refuse", request_id="n")["route"] == ""


def test_request_ids_come_back(server: Server) -> None:
    """Only if the client sent one that may be used, once; on the fast path, too."""
    for method, path in (("GET", "/health"), ("POST", "/v1/decisions"), ("GET", "/nowhere")):
        for given, expected in (
            (["a-b/c"], "a-b/c"),
            (["x" * 65], None),
            (["a b"], None),
            (["a", "b"], None),
            ([], None),
        ):
            headers = [*bearer(token("read", "write")).items()]
            headers += [("X-Request-Id", each) for each in given]
            body = {"strategy": "s", "provider": "p"} if method == "POST" else None
            answer = server.http.request(method, path, json=body, headers=headers)
            assert answer.headers.get("x-request-id") == expected


def test_settings_are_logged_at_the_start(server: Server) -> None:
    """Without secrets."""
    (event,) = events(server, "settings")
    assert event["settings"]["jwt_secret"] == "***"
    assert event["settings"]["log_format"] == "json"
    assert re.fullmatch(r"\d+\.\d+.*", event["version"])


def test_keys_and_revocations_are_logged(server: Server) -> None:
    """By each node that learns of them, whichever command made them."""
    env = {**os.environ, "ROUTECAST_DATABASE_URL": server.database_url}
    made = routecast("keys", "create", "--name", "search", "--scope", "write", env=env)
    secret = re.search(r"rc_\w+", made.stdout)
    assert secret is not None, made.stderr
    event = one(server, "key_created", subject="search")
    assert event["scopes"] == ["write"]
    assert secret[0].startswith(f"rc_{event['credential']}")
    assert routecast("keys", "revoke", event["credential"], env=env).returncode == 0
    assert one(server, "revoke", kind="key")["credential"] == event["credential"]
    assert routecast("token", "revoke", "--subject", "mallory", env=env).returncode == 0
    assert one(server, "revoke", kind="subject")["value"] == "mallory"
    assert secret[0] not in server.log.read_text()


def test_a_renewal_is_no_sign_in(server: Server) -> None:
    """A screen on a wall renews its session every hour."""
    env = {**os.environ, "ROUTECAST_DATABASE_URL": server.database_url}
    made = routecast("keys", "create", "--name", "wall", "--scope", "read", env=env)
    (key,) = re.findall(r"rc_\w{8}_[\w-]{43}", made.stdout)
    one(server, "key_created", subject="wall")
    answer = httpx2.post(f"{server.url}/auth/session", headers=bearer(key), timeout=30)
    cookie = {"Cookie": answer.headers["set-cookie"].partition(";")[0], "Origin": server.url}
    for method in ("POST", "DELETE"):
        answer = httpx2.request(method, f"{server.url}/auth/session", headers=cookie, timeout=30)
        assert answer.is_success, answer.text
    one(server, "sign_out", subject="wall")
    one(server, "sign_in", subject="wall")


def test_a_flood_of_refusals_is_limited(server: Server) -> None:
    """And the number of those that were left out is logged."""

    def logged() -> tuple[int, int]:
        found = [one.get("left_out", 0) for one in events(server, "refuse")]
        return found.count(0), sum(found)

    before, sent = sum(logged()), 0
    while not logged()[1]:  # until there were enough for the limit in one of its periods
        for _ in range(50):
            assert server.http.get("/metrics", headers={"Authorization": "x"}).status_code == 401
            sent += 1
    until(lambda: sum(logged()) == before + sent)


def test_text_is_the_default(tmp_path: Path) -> None:
    """It has the lines that it always had, and no events."""
    with Server(tmp_path) as running:
        assert running.http.get("/health", headers={"X-Request-Id": "q"}).status_code == 200
        running.stop()
        text = running.log.read_text()
    assert "INFO routecast: Listening on http://127.0.0.1:" in text
    assert "routecast.audit" not in text
    assert "{" not in text
