"""Credentials over plain HTTP from other machines, origins by scheme, and the policies of pages.

A trusted proxy on this machine is what the tests stand for: its fields say where a client is.
"""

import json
import time
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection
from typing import Any, Final, cast

import jwt
import pytest

from tests.support.command import routecast
from tests.support.raw import RawConnection, upgrade_request
from tests.support.server import EDGES, Edge, Server

SECRET: Final = "a secret of thirty-two bytes, or more"
REMOTE: Final = {"X-Forwarded-For": "203.0.113.9"}
# What a proxy says, and whether a credential may come that way.
WAYS: Final[dict[str, tuple[dict[str, str], bool]]] = {
    "this machine": ({}, True),
    "this machine, through a proxy": ({"X-Forwarded-For": "127.0.0.1"}, True),
    "plain, through a proxy that says nothing of it": (REMOTE, False),
    "plain": ({**REMOTE, "X-Forwarded-Proto": "http"}, False),
    "two proxies, the nearer one plain": ({**REMOTE, "X-Forwarded-Proto": "https, http"}, False),
    "nonsense": ({**REMOTE, "X-Forwarded-Proto": "secure"}, False),
    "an IPv6 client": ({"X-Forwarded-For": "[2001:db8::9]:4711"}, False),
    "TLS": ({**REMOTE, "X-Forwarded-Proto": "https"}, True),
    "TLS, for a WebSocket": ({**REMOTE, "X-Forwarded-Proto": "wss"}, True),
}
DECISION: Final = {"strategy": "s", "provider": "p"}


@pytest.fixture(scope="module", params=EDGES)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server with tokens, behind a proxy on this machine."""
    edge = cast(Edge, request.param)
    with Server(tmp_path_factory.mktemp(edge), env={"ROUTECAST_JWT_SECRET": SECRET}, edge=edge) as (
        running
    ):
        yield running


def token() -> str:
    claims = {"sub": "ana", "scope": "read write", "exp": int(time.time()) + 3_600}
    return jwt.encode(claims, SECRET, "HS256")


def bearer() -> dict[str, str]:
    return {"Authorization": f"Bearer {token()}"}


def ask(
    server: Server, method: str, path: str, body: Any = None, **fields: str
) -> tuple[int, dict[str, str], str]:
    """Return the status, the fields and the text of an answer; of a stream, no text.

    A list is sent in chunks, which are not for the fast path.
    """
    sent: Any = None if body is None else json.dumps(body)
    if isinstance(body, list):
        sent = iter([sent.encode()])
    with closing(HTTPConnection("127.0.0.1", server.port, timeout=30)) as connection:
        connection.request(method, path, sent, fields)
        answer = connection.getresponse()
        got: dict[str, str] = {}
        for name, value in answer.getheaders():  # fields of one name are joined (RFC 9110, 5.2)
            got[name.lower()] = ", ".join(filter(None, (got.get(name.lower()), value)))
        is_stream = got.get("content-type", "").startswith("text/event-stream")
        return answer.status, got, "" if is_stream else answer.read().decode()


def upgrade(server: Server, **fields: str) -> tuple[int, str]:
    with RawConnection(server.port) as connection:
        connection.send(upgrade_request("/ws/metrics", **fields))
        answer = connection.answer()
        return answer[0], str(answer[2])


# -- plain HTTP -----------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_credentials_come_by_private_ways_only(server: Server, way: str) -> None:
    """On every path: documents, decisions (fast and not), event streams and upgrades."""
    fields, private = WAYS[way]
    given = {**fields, **bearer()}
    for status, _, text in (
        ask(server, "GET", "/routing/metrics", **given),
        ask(server, "POST", "/v1/decisions", DECISION, **given),
        ask(server, "POST", "/v1/decisions", [DECISION], **given),
        ask(server, "GET", "/sse/metrics", **given),
        ask(server, "OPTIONS", "/ws/metrics", **given),
        ask(server, "POST", "/auth/session", **given),
    ):
        assert (status in (200, 204)) == private, text
        if not private:
            assert status == 403
            assert "--insecure" in text
            assert "X-Forwarded-Proto" in text
    status, text = upgrade(server, **given)
    assert status == (101 if private else 403)
    assert private or "X-Forwarded-Proto" in text


def test_what_is_in_a_body_or_a_ticket_is_a_credential_too(server: Server) -> None:
    """Signing in, and the ticket that stands for a credential."""
    credential = {"credential": token()}
    assert ask(server, "POST", "/auth/session", credential, **REMOTE)[0] == 403
    _, _, text = ask(server, "POST", "/v1/tickets", **bearer())
    path = f"/sse/metrics?ticket={json.loads(text)['ticket']}"
    assert ask(server, "GET", path, **REMOTE)[0] == 403
    assert ask(server, "GET", path)[0] == 200  # it was not used up


def test_open_routes_answer_and_do_not_know_the_client(server: Server) -> None:
    """A probe of a load balancer has no credential; another one's does not count."""
    for fields in (REMOTE, {**REMOTE, **bearer()}):
        status, _, text = ask(server, "GET", "/health", **fields)
        assert (status, set(json.loads(text))) == (200, {"status", "version"})


def test_insecure_allows_it_and_says_so(server: Server) -> None:
    """In the log at the start, and on the page."""
    env = {"ROUTECAST_JWT_SECRET": SECRET, "ROUTECAST_INSECURE": "true"}
    folder = server.database.parent / "insecure"
    with Server(folder, env=env, edge=server.edge) as open_one:
        given = {**REMOTE, **bearer()}
        assert ask(open_one, "GET", "/routing/metrics", **given)[0] == 200
        assert ask(open_one, "POST", "/v1/decisions", DECISION, **given)[0] == 200
        assert upgrade(open_one, **given)[0] == 101
        assert "runs with --insecure" in ask(open_one, "GET", "/")[2]
        if server.edge == "native":
            assert "--insecure" in open_one.log.read_text()
    assert "--insecure" not in ask(server, "GET", "/")[2]


# -- origins --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheme", "origin", "allowed"),
    [
        ("http", "http://{host}", True),
        ("http", "https://{host}", False),
        ("http", "http://127.0.0.1", False),
        ("http", "http://127.0.0.1:1", False),
        ("http", "http://localhost:{port}", False),
        ("http", "http://{host}.evil.example", False),
        ("http", "http://evil127.0.0.1:{port}", False),
        ("http", "null", False),
        ("http", "file://", False),
        ("http", "ws://{host}", False),
        ("https", "https://{host}", True),
        ("https", "http://{host}", False),
    ],
)
def test_only_pages_of_this_very_server_are_allowed(
    server: Server, scheme: str, origin: str, allowed: bool
) -> None:
    """The scheme counts, too: on a network, anyone can make a page of the same host over http."""
    host = f"127.0.0.1:{server.port}"
    site = origin.format(host=host, port=server.port)
    given = {**bearer(), "X-Forwarded-Proto": scheme, "Host": host, "Origin": site}
    assert upgrade(server, **{k.lower(): v for k, v in given.items()})[0] == (
        101 if allowed else 403
    )
    assert ask(server, "POST", "/v1/decisions", DECISION, **given)[0] == (200 if allowed else 403)
    _, fields, _ = ask(server, "GET", "/routing/metrics", **given)
    assert fields.get("access-control-allow-origin") == (site if allowed else None)


# -- policies of pages ----------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/admin", "/docs"])
def test_pages_allow_only_what_they_need(server: Server, path: str) -> None:
    """Nothing by default, no inline code without a hash, and no code of other sites."""
    status, fields, _ = ask(server, "GET", path)
    assert status == 200
    policy = dict(part.split(" ", 1) for part in fields["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["frame-ancestors"] == ("'none'" if path == "/docs" else "'self'")
    assert policy["base-uri"] == policy["form-action"] == "'none'"
    assert not {"'unsafe-inline'", "'unsafe-eval'", "*", "https:"} & set(
        " ".join(policy.values()).split()
    )
    assert fields["cross-origin-opener-policy"] == "same-origin"


@pytest.mark.parametrize(
    "path", ["/", "/health", "/nowhere", "/routing/metrics", "/dashboard/client/routecast.js"]
)
def test_no_answer_is_guessed_or_embedded(server: Server, path: str) -> None:
    """Errors too. Pages of allowed sites load the client by CORS, which this does not touch."""
    for given in ({}, bearer()):
        _, fields, _ = ask(server, "GET", path, **given)
        assert fields["x-content-type-options"] == "nosniff"
        assert fields["cross-origin-resource-policy"] == "same-origin"


def test_sites_that_may_frame_the_page_are_a_setting(server: Server) -> None:
    """What is no site is refused at the start."""
    env = {"ROUTECAST_FRAME_ANCESTORS": "'self'  https://portal.example"}
    folder = server.database.parent / "framed"
    with Server(folder, env=env, edge=server.edge) as framed:
        policy = ask(framed, "GET", "/")[1]["content-security-policy"]
        assert policy.endswith("; frame-ancestors 'self' https://portal.example")


@pytest.mark.parametrize("wrong", ["", "self", "'none' 'self'", "x; script-src *", "https://a/b"])
def test_wrong_sites_for_frames_are_refused(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the form that is meant."""
    monkeypatch.setenv("ROUTECAST_FRAME_ANCESTORS", wrong)
    done = routecast("serve", "--port", "0")
    assert done.returncode == 2
    assert "ROUTECAST_FRAME_ANCESTORS" in done.stderr
