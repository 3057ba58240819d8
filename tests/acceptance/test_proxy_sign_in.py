"""People whom a proxy has signed in: by a field of a trusted proxy, or a signed one."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final, cast

import httpx2
import jwt
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.support.command import routecast
from tests.support.credentials import SIGNED, bearer, token
from tests.support.raw import RawConnection, upgrade_request
from tests.support.server import EDGES, Edge, Server
from tests.support.tokens import jwk, private
from tests.support.upstream import upstream
from tests.support.waiting import until

RULES: Final = "ops=read,write,admin; search=read:search"
NAME, GROUPS = "X-Forwarded-User", "X-Forwarded-Groups"
AUDIENCE: Final = "the application"


@pytest.fixture(scope="module")
def keys() -> Iterator[str]:
    """The address of a team at Cloudflare Access."""
    with upstream() as site:
        body = json.dumps({"keys": [jwk("RS256", "one")]}).encode()
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        site.answer = lambda _: answer
        yield f"http://127.0.0.1:{site.port}"


@pytest.fixture(scope="module", params=EDGES)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, keys: str
) -> Iterator[Server]:
    """A server that believes proxies on this machine, and a team at Cloudflare."""
    edge = cast(Edge, request.param)
    env = {
        **SIGNED,
        "ROUTECAST_AUTH_HEADER": NAME,
        "ROUTECAST_AUTH_GROUPS_HEADER": GROUPS,
        "ROUTECAST_CLOUDFLARE_TEAM": keys,
        "ROUTECAST_CLOUDFLARE_AUDIENCE": AUDIENCE,
        "ROUTECAST_GROUP_RULES": RULES,
    }
    with Server(tmp_path_factory.mktemp(edge), env=env, edge=edge) as running:
        running.http.headers.update(bearer(token("read", "write", "admin")))
        running.post({"strategy": "s", "provider": "p", "project": "search"})
        running.post({"strategy": "s", "provider": "p"})
        yield running


def ask(server: Server, method: str, path: str, **headers: str) -> httpx2.Response:
    """Send a request without credentials of its own."""
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx2.request(method, f"{server.url}{path}", headers=fields, timeout=30)


def named(name: str = "ann", groups: str = "ops") -> dict[str, str]:
    """Return the fields that a proxy adds."""
    return {NAME: name, GROUPS: groups}


def upgrade(server: Server, origin: str | None, **headers: str) -> int:
    """Ask for an upgrade; return the status."""
    fields = {name.replace("-", "_").lower(): value for name, value in headers.items()}
    if origin is not None:
        fields["origin"] = origin
    with RawConnection(server.port) as connection:
        connection.send(upgrade_request(host=f"127.0.0.1:{server.port}", **fields))
        return connection.answer()[0]


def assertion(server_keys: str, **changed: Any) -> dict[str, str]:
    """Return the field that Cloudflare Access adds."""
    now = int(time.time())
    claims = {
        "sub": "7335d417",
        "email": "ann@corp.example",
        "aud": [AUDIENCE],
        "iss": server_keys,
        "iat": now,
        "exp": now + 3_600,
        "groups": ["ops"],
        **changed,
    }
    given = {name: value for name, value in claims.items() if value is not None}
    text = jwt.encode(given, private("RS256"), "RS256", headers={"kid": "one"})
    return {"Cf-Access-Jwt-Assertion": text}


# -- a field of a trusted proxy --------------------------------------------------------------------


def test_a_trusted_proxy_names_a_person(server: Server) -> None:
    """The rules say what the groups allow; the page learns who it is, and that it is no session."""
    state = ask(server, "GET", "/auth/session", **named("ann", "x, search")).json()
    assert state["person"] | {"expires_in": 0} == {
        "subject": "ann",
        "scopes": ["read"],
        "projects": ["search"],
        "expires_in": 0,
        "renewable": False,
        "can_sign_out": False,
    }
    query = "/routing/metrics?fields=total_decisions"
    assert ask(server, "GET", query, **named(groups="search")).json()["total_decisions"] == 1
    assert ask(server, "GET", query, **named()).json()["total_decisions"] == 2
    assert ask(server, "GET", "/metrics", **named()).status_code == 200
    assert ask(server, "GET", "/metrics", **named(groups="search")).status_code == 403
    with connect(server.ws_url, additional_headers={**named(), "Origin": server.url}) as stream:
        assert stream.recv()


def test_whoever_has_no_group_of_a_rule_may_do_nothing(server: Server) -> None:
    """The answer says what is missing."""
    for groups in ("", "others"):
        answer = ask(server, "GET", "/routing/metrics", **named(groups=groups))
        assert answer.status_code == 403
        assert "ROUTECAST_GROUP_RULES" in answer.json()["detail"]
    assert ask(server, "GET", "/routing/metrics", **named(name="")).status_code == 401


def test_a_client_that_no_proxy_speaks_for_cannot_name_itself(tmp_path: Any) -> None:
    """The connection's address decides, not what the request says."""
    env = {
        "ROUTECAST_AUTH_HEADER": NAME,
        "ROUTECAST_AUTH_GROUPS_HEADER": GROUPS,
        "ROUTECAST_GROUP_RULES": RULES,
        "ROUTECAST_TRUSTED_PROXIES": "10.9.8.7",
    }
    for edge in EDGES:
        with Server(tmp_path / edge, env=env, edge=edge) as server:
            forged = {**named(), "X-Forwarded-For": "10.9.8.7"}
            assert ask(server, "GET", "/routing/metrics", **forged).status_code == 401
            assert upgrade(server, server.url, **forged) == 401


@pytest.mark.parametrize("field", [NAME, NAME.lower(), GROUPS])
def test_a_field_that_comes_twice_is_refused(server: Server, field: str) -> None:
    """The client may have added one of them."""
    head = (
        f"GET /routing/metrics HTTP/1.1\r\nHost: localhost\r\n{NAME}: ann\r\n{GROUPS}: search\r\n"
        f"{field}: ops\r\n\r\n"
    )
    with RawConnection(server.port) as connection:
        connection.send(head.encode())
        assert connection.answer()[0] == 400


@pytest.mark.parametrize("origin", [None, "null", "https://evil.example", "http://127.0.0.1:1"])
def test_another_page_cannot_use_the_proxy(server: Server, keys: str, origin: str | None) -> None:
    """A browser is signed in at the proxy whoever made the page: it is as with a cookie."""
    headers = {"Origin": origin} if origin else {}
    for who in (named(), assertion(keys)):
        assert upgrade(server, origin, **who) == 403
        for method, path in (("POST", "/v1/tickets"), ("POST", "/v1/decisions")):
            assert ask(server, method, path, **who, **headers).status_code == 403
        if origin:
            assert ask(server, "GET", "/routing/metrics", **who, **headers).status_code == 401
        own = {**who, "Origin": server.url}
        assert ask(server, "POST", "/v1/tickets", **own).status_code == 200


def test_a_token_counts_before_what_the_proxy_says(server: Server) -> None:
    """A program behind the same proxy has a credential of its own."""
    both = {**named(groups="search"), **bearer(token("admin"))}
    assert ask(server, "GET", "/metrics", **both).status_code == 200


def test_a_revoked_person_is_refused(server: Server) -> None:
    """By its name."""
    database = ("--database", f"sqlite:///{server.database}")
    assert ask(server, "GET", "/routing/metrics", **named("eve")).status_code == 200
    routecast("token", "revoke", "--subject", "eve", *database)
    until(lambda: ask(server, "GET", "/routing/metrics", **named("eve")).status_code == 401)
    assert ask(server, "GET", "/routing/metrics", **named("ann")).status_code == 200


# -- Cloudflare Access -----------------------------------------------------------------------------


def test_signing_out_ends_all_streams_of_a_person(server: Server) -> None:
    """With and without a session. Those of others go on, and the proxy's word counts as before."""
    own = {"Origin": server.url}

    def begun(name: str) -> dict[str, str]:
        answer = ask(server, "POST", "/auth/session", **named(name), **own)
        assert answer.status_code == 200, answer.text
        return {"Cookie": answer.headers["set-cookie"].partition(";")[0], **own}

    first, second, other = begun("eva"), begun("eva"), begun("max")
    with (
        connect(server.ws_url, additional_headers=first) as one,
        connect(server.ws_url, additional_headers=second) as two,
        connect(server.ws_url, additional_headers={**named("eva"), **own}) as three,
        connect(server.ws_url, additional_headers=other) as kept,
        connect(server.ws_url, additional_headers={**named("max"), **own}) as kept_too,
    ):
        assert ask(server, "DELETE", "/auth/session", **named("eva"), **own).status_code == 204
        for stream in (one, two, three):
            with suppress(ConnectionClosed):
                while True:
                    stream.recv(timeout=30)
            assert stream.close_code == 4401
        assert kept.recv(timeout=30)
        assert kept_too.recv(timeout=30)
    assert ask(server, "GET", "/routing/metrics", **second).status_code == 401
    for good in (other, named("eva")):
        assert ask(server, "GET", "/routing/metrics", **good).status_code == 200


def test_cloudflare_signs_a_person_in(server: Server, keys: str) -> None:
    """By the email, wherever the request comes from."""
    until(
        lambda: ask(server, "GET", "/routing/metrics", **assertion(keys)).status_code == 200,
    )
    state = ask(server, "GET", "/auth/session", **assertion(keys)).json()
    assert state["person"]["subject"] == "ann@corp.example"
    assert state["person"]["scopes"] == ["admin", "read", "write"]
    behind_tls = {"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "https"}
    elsewhere = {**assertion(keys), **behind_tls}
    assert ask(server, "GET", "/routing/metrics", **elsewhere).status_code == 200
    assert upgrade(server, server.url, **assertion(keys)) == 101


@pytest.mark.parametrize(
    "changed",
    [
        {"aud": ["another"]},
        {"aud": None},
        {"iss": "https://evil.example"},
        {"exp": 1},
        {"exp": None},
        {"email": None},
        {"nbf": 4_000_000_000},
    ],
    ids=str,
)
def test_a_wrong_assertion_is_refused(server: Server, keys: str, changed: dict[str, Any]) -> None:
    """As any other token; nothing of it is in the answer."""
    wrong = assertion(keys, **changed)
    answer = ask(server, "GET", "/routing/metrics", **wrong)
    assert answer.status_code == 401
    assert wrong["Cf-Access-Jwt-Assertion"] not in answer.text
    assert upgrade(server, server.url, **wrong) == 401


def test_an_assertion_of_another_key_is_refused(server: Server, keys: str) -> None:
    """Also one that our own tokens are signed with."""
    claims = {"sub": "a", "email": "a", "aud": AUDIENCE, "iss": keys, "exp": time.time() + 600}
    others = [
        jwt.encode(claims, private("RS256", 1), "RS256", headers={"kid": "one"}),
        jwt.encode(claims, SIGNED["ROUTECAST_JWT_SECRET"], "HS256", headers={"kid": "one"}),
        token("read"),
        "x",
    ]
    for text in others:
        field = {"Cf-Access-Jwt-Assertion": text}
        assert ask(server, "GET", "/routing/metrics", **field).status_code == 401


def test_an_assertion_is_no_token(server: Server, keys: str) -> None:
    """It cannot be sent in its place."""
    text = assertion(keys)["Cf-Access-Jwt-Assertion"]
    assert ask(server, "GET", "/routing/metrics", **bearer(text)).status_code == 401


# -- settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "text"),
    [
        ({"ROUTECAST_AUTH_HEADER": NAME}, "ROUTECAST_GROUP_RULES"),
        (
            {
                "ROUTECAST_AUTH_HEADER": NAME,
                "ROUTECAST_GROUP_RULES": RULES,
                "ROUTECAST_TRUSTED_PROXIES": "*",
            },
            "anyone could say who they are",
        ),
        (
            {"ROUTECAST_CLOUDFLARE_TEAM": "https://a.example", "ROUTECAST_GROUP_RULES": RULES},
            "ROUTECAST_CLOUDFLARE_AUDIENCE",
        ),
        (
            {"ROUTECAST_OIDC_ISSUER": "https://a.example", "ROUTECAST_GROUP_RULES": RULES},
            "ROUTECAST_OIDC_CLIENT_ID",
        ),
        ({"ROUTECAST_GROUP_RULES": "a=raed"}, "the scopes are read"),
    ],
)
def test_settings_that_cannot_work_are_explained(env: dict[str, str], text: str) -> None:
    """Before the server listens."""
    done = routecast("serve", "--port", "0", env={**os.environ, **env})
    assert done.returncode != 0
    assert text in done.stderr
