"""Access to every route and stream, on both HTTP paths: who is let in, and what they then see.

The matrix has each entry of SCOPE_OF_ROUTE and each credential that must not be accepted.
"""

import asyncio
import hashlib
import hmac
import json
import re
import threading
import time
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import httpx2
import jwt
import pytest
from starlette.routing import BaseRoute
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from routecast.core.access import SCOPE_OF_ROUTE, Scope
from routecast.core.claims import LEEWAY
from routecast.server.app import create_app
from routecast.server.config import Settings
from tests.support.command import routecast
from tests.support.needs import skip_as_meant
from tests.support.raw import RawConnection, upgrade_request
from tests.support.server import EDGES, Edge, Server
from tests.support.stream import receive
from tests.support.tokens import jwk, private, public_pem
from tests.support.upstream import CLOSE, UNENDING, Upstream, upstream
from tests.support.v1 import JSON, MSGPACK, V1Client
from tests.support.waiting import until

AUDIENCE, ISSUER = "routecast", "https://login.example"
# The values of parameters in paths.
PARAMETERS: Final = {"{path:path}": "client/routecast.js", "{identity}": "0123456789abcdef"}
# Signing in has tests of its own (test_sessions.py): there a credential is what the route is about.
ROUTES: Final = [route for route in SCOPE_OF_ROUTE if not route[1].startswith("/auth/")]
# The answers to those who are let in, where it is not 200.
GOOD_STATUS: Final = {
    ("GET", "/ws/metrics"): 426,
    ("OPTIONS", "/ws/metrics"): 204,
    ("DELETE", "/v1/admin/connections"): 400,
    ("DELETE", "/v1/admin/connections/{identity}"): 404,
}
STREAM: Final = ("GET", "/ws/metrics")
# Projects with decisions from the start, and one for all decisions that tests send.
OURS, THEIRS, SENT = "alpha", "beta", "sent"
DECISION: Final = {"strategy": "s", "provider": "p", "project": SENT}
CANARY: Final = "canary: a secret that must be found nowhere"
# Other WebSocket libraries refuse longer lines themselves.
MAX_LINE: Final = 8_192


def token(
    scope: str = "read write admin decisions",
    *,
    key: Any = None,
    header: dict[str, Any] | None = None,
    **changed: Any,
) -> str:
    """Return a token; `changed` are claims, None for one that is left out."""
    claims = {
        "sub": "ana",
        "scope": scope,
        "aud": AUDIENCE,
        "iss": ISSUER,
        "exp": int(time.time()) + 3_600,
        **changed,
    }
    given = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode(given, key or private("RS256"), "RS256", headers=header)


def confused(secret: str) -> str:
    """Return a token that is signed with a form of the public key as if that were a secret."""
    head = urlsafe_b64encode(b'{"alg":"HS256","typ":"JWT"}').rstrip(b"=")
    body = token().split(".")[1].encode()
    signature = hmac.digest(secret.encode(), head + b"." + body, hashlib.sha256)
    return b".".join([head, body, urlsafe_b64encode(signature).rstrip(b"=")]).decode()


def unsigned() -> str:
    """Return a token that says that it needs no signature."""
    head = urlsafe_b64encode(b'{"alg":"none","typ":"JWT"}').rstrip(b"=").decode()
    return f"{head}.{token().split('.')[1]}."


def now() -> int:
    return int(time.time())


# Credentials that no route accepts.
BAD: Final = {
    "garbage": lambda: "garbage",
    "garbage like a token": lambda: "eyJhbGciOiJSUzI1NiJ9.e30.c2ln",
    "garbage like a key": lambda: f"rc_{'0' * 8}_{'0' * 43}",
    "no algorithm": unsigned,
    "expired": lambda: token(exp=now() - 60),
    "without an end": lambda: token(exp=None),
    "not yet valid": lambda: token(nbf=now() + 600),
    "wrong audience": lambda: token(aud="elsewhere"),
    "no audience": lambda: token(aud=None),
    "wrong issuer": lambda: token(iss="https://evil.example"),
    "another key": lambda: token(key=private("RS256", 1)),
    "a key of its own": lambda: token(
        key=private("RS256", 1), header={"jwk": jwk("RS256", "x", 1)}
    ),
    "an unknown key id": lambda: token(key=private("RS256", 1), header={"kid": "unknown"}),
    "the public key as a secret": lambda: confused(public_pem(private("RS256"))),
    "a JWK as a secret": lambda: confused(json.dumps(jwk("RS256", "x"))),
    "the modulus of a JWK as a secret": lambda: confused(jwk("RS256", "x")["n"]),
    "too many projects": lambda: token(projects=[str(number) for number in range(1_001)]),
    "too long": lambda: "a" * 20_000,
}


class Answer(NamedTuple):
    """What a server answers; a stream is ended after its head. Headers have lower-case names."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def problem(self) -> Any:
        """The problem document."""
        assert self.headers["content-type"] == "application/problem+json"
        document = json.loads(self.body)
        assert document["status"] == self.status
        return document

    @property
    def challenge(self) -> str | None:
        """The field `WWW-Authenticate`."""
        return self.headers.get("www-authenticate")


def ask(
    server: Server,
    route: tuple[str, str],
    credential: str | None = None,
    query: str = "",
    decisions: Any = DECISION,
    **headers: str,
) -> Answer:
    """Send a request to a route, with a path as it is."""
    method, path = route
    for name, value in PARAMETERS.items():
        path = path.replace(name, value)
    if credential is not None:
        headers["Authorization"] = f"Bearer {credential}"
    body = json.dumps(decisions) if method == "POST" else None
    with closing(HTTPConnection("127.0.0.1", server.port, timeout=30)) as connection:
        connection.request(method, path + query, body, headers)
        answer = connection.getresponse()
        fields = {name.lower(): value for name, value in answer.getheaders()}
        is_stream = fields.get("content-type", "").startswith("text/event-stream")
        return Answer(answer.status, fields, b"" if is_stream else answer.read())


def upgrade(server: Server, credential: str | None = None, query: str = "", **more: str) -> Answer:
    """Ask for an upgrade; return the answer, after which the connection is dropped."""
    if credential is not None:
        more["authorization"] = f"Bearer {credential}"
    with RawConnection(server.port) as connection:
        connection.send(upgrade_request(f"/ws/metrics{query}", **more))
        return Answer(*connection.answer())


def answers(
    server: Server, route: tuple[str, str], credential: str | None = None, query: str = ""
) -> list[Answer]:
    """Return the answers of a route: to a request, and if it is the stream's, to an upgrade."""
    given = [ask(server, route, credential, query)]
    too_long = server.edge == "portable" and len(credential or "") > MAX_LINE
    if route == ("GET", "/ws/metrics") and not too_long:
        given.append(upgrade(server, credential, query))
    return given


@pytest.fixture(scope="module", params=EDGES)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server that accepts tokens of one issuer; its helper functions use an operator's."""
    edge = cast(Edge, request.param)
    env = {
        "ROUTECAST_JWT_PUBLIC_KEY": public_pem(private("RS256")),
        "ROUTECAST_JWT_AUDIENCE": AUDIENCE,
        "ROUTECAST_JWT_ISSUER": ISSUER,
    }
    with Server(tmp_path_factory.mktemp(edge), env=env, edge=edge) as running:
        running.http.headers["Authorization"] = f"Bearer {token()}"
        for project in (OURS, OURS, THEIRS):
            running.post(
                {"strategy": f"s-{project}", "provider": f"p-{project}", "project": project}
            )
        yield running


# -- the table ----------------------------------------------------------------------------------


def test_the_table_has_every_route(tmp_path: Path) -> None:
    """And no others: a route that is not in it would not be reached."""
    app = create_app(Settings(database_url=f"sqlite:///{tmp_path}/r.db"))
    found = {route for each in app.routes for route in routes_of(each)}
    assert found == set(SCOPE_OF_ROUTE)


def routes_of(route: BaseRoute) -> Iterator[tuple[str, str]]:
    """Yield the methods and the path of a route; an upgrade is a GET, and HEAD is one too."""
    if (router := getattr(route, "original_router", None)) is not None:
        for each in router.routes:
            yield from routes_of(each)
        return
    methods = getattr(route, "methods", None) or {"GET"}
    for method in sorted(methods - {"HEAD"}):
        yield method, getattr(route, "path", "")


@pytest.mark.parametrize("route", ROUTES, ids=" ".join)
def test_a_good_credential_is_let_in(server: Server, route: tuple[str, str]) -> None:
    """With its scope alone, on each route."""
    scope = SCOPE_OF_ROUTE[route]
    plain, *upgraded = answers(server, route, token(scope or ""))
    assert plain.status == GOOD_STATUS.get(route, 200)
    assert [each.status for each in upgraded] in ([], [101])


@pytest.mark.parametrize("route", ROUTES, ids=" ".join)
def test_without_a_credential_only_open_routes_answer(
    server: Server, route: tuple[str, str]
) -> None:
    """The answer says what is missing, and nothing is wrong with what was sent (RFC 6750, 3.1)."""
    for answer in answers(server, route):
        if SCOPE_OF_ROUTE[route] is None:
            assert answer.status == 200
        else:
            assert answer.status == 401
            assert answer.challenge == 'Bearer realm="routecast"'
            assert answer.problem["title"] == "Unauthorized"


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("route", ROUTES, ids=" ".join)
def test_a_bad_credential_is_refused(server: Server, route: tuple[str, str], kind: str) -> None:
    """Open routes answer with any. No answer contains the credential."""
    credential = BAD[kind]()
    for answer in answers(server, route, credential):
        if SCOPE_OF_ROUTE[route] is None:
            assert answer.status == 200
        else:
            assert answer.status == 401
            start = 'Bearer realm="routecast", error="invalid_token", error_description="'
            assert (answer.challenge or "").startswith(start)
            assert answer.problem["detail"]
        assert credential not in f"{answer.headers} {answer.body!r}" or kind == "garbage"


@pytest.mark.parametrize("route", ROUTES, ids=" ".join)
def test_a_missing_scope_is_refused(server: Server, route: tuple[str, str]) -> None:
    """All other scopes do not help; the answer names the one that is missing."""
    scope = SCOPE_OF_ROUTE[route]
    for answer in answers(server, route, token(" ".join({*Scope} - {scope}))):
        if scope is None:
            assert answer.status == 200
        else:
            assert answer.status == 403
            assert answer.challenge == (
                f'Bearer realm="routecast", error="insufficient_scope", scope="{scope}"'
            )
            assert f"`{scope}`" in answer.problem["detail"]


@pytest.mark.parametrize("route", ROUTES, ids=" ".join)
def test_another_project_is_refused(server: Server, route: tuple[str, str]) -> None:
    """The answer is the same whether the project exists or not."""
    limited = token(projects=["mine"])
    expected = {Scope.READ: 403, Scope.ADMIN: 403, Scope.WRITE: 422, None: 200}
    if route == ("POST", "/v1/tickets"):
        skip_as_meant("it asks for no project")
    given = [answers(server, route, limited, f"?project={name}") for name in (OURS, "nowhere")]
    for ours, nowhere in zip(*given, strict=True):
        assert ours.status == nowhere.status == expected[SCOPE_OF_ROUTE[route]]
        if ours.status != 200:
            assert ours.problem == nowhere.problem
            assert OURS not in ours.problem["detail"]


@pytest.mark.parametrize("name", ["token", "access_token", "key", "api_key", "%74oken"])
@pytest.mark.parametrize("route", ROUTES, ids=" ".join)
def test_a_credential_in_the_url_is_refused(
    server: Server, route: tuple[str, str], name: str
) -> None:
    """Also if it is a good one, beside a good one in the right place, and on open routes."""
    good = token()
    for credential in (None, good):
        for answer in answers(server, route, credential, f"?{name}={good}"):
            assert answer.status == 400
            assert answer.problem["parameter"] in ("token", "access_token", "key", "api_key")
            assert "Authorization" in answer.problem["detail"]
            assert good not in answer.body.decode()


@pytest.mark.parametrize("path", ["/routing/metrics", "/v1/decisions", "/sse/metrics"])
def test_a_huge_token_is_refused(server: Server, path: str) -> None:
    """Of 100 KB, as one with 10,000 projects has. Nothing but its head is read, or its length."""
    huge = token(projects=[f"p{number:06}" for number in range(10_000)])
    assert len(huge) > 100_000
    with RawConnection(server.port) as connection:
        method = "POST" if path == "/v1/decisions" else "GET"
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {huge}\r\n\r\n"
        )
        with suppress(OSError):  # it may end the connection before it has read all
            connection.send(head.encode())
        refused = connection.answer()
        assert refused.status == (400 if server.edge == "native" else 401)
        assert huge[:50] not in f"{refused.headers} {refused.body!r}"
    assert ask(server, ("GET", "/routing/metrics"), token()).status == 200


def test_unknown_claims_change_nothing(server: Server) -> None:
    """Neither what other servers call a scope, nor what is nested deep, long or of any type."""
    deep: Any = []
    for _ in range(200):
        deep = [deep]
    other_names = ("scp", "scopes", "roles", "permissions", "groups")
    unknown = {
        **{name: ["admin", "read"] for name in other_names},
        "project": OURS,
        "admin": True,
        "is_key": False,
        "session": "x",
        "expires": 2**70,
        "realm_access": {"roles": ["admin"]},
        "deep": deep,
        "long": "x" * 2_000,
        "": {},
    }
    for route in (route for route in ROUTES if SCOPE_OF_ROUTE[route] is not None):
        assert {each.status for each in answers(server, route, token("", **unknown))} == {403}
    assert {each.status for each in answers(server, STREAM, token("read", **unknown))} == {426, 101}
    assert document(server, **unknown)["total_decisions"] >= 3


def test_clocks_may_differ_by_the_leeway(server: Server) -> None:
    """Of 10 s: also for streams, which end with their token at once if that has ended."""
    ahead = int(LEEWAY) - 4  # a busy machine takes a part of it
    for good in ({"exp": now() - ahead}, {"nbf": now() + ahead}, {"iat": now() + ahead}):
        assert ask(server, ("GET", "/routing/metrics"), token(**good)).status == 200
        assert upgrade(server, token(**good)).status == 101
    far = int(LEEWAY) + 60
    for bad in ({"exp": now() - far}, {"nbf": now() + far}, {"iat": now() + far}):
        for answer in answers(server, STREAM, token(**bad)):
            assert answer.status == 401


def test_a_token_that_expires_is_refused_from_then_on(server: Server) -> None:
    """On every route. Clocks that differ by less than the leeway do not matter."""
    guarded = [route for route in ROUTES if SCOPE_OF_ROUTE[route] is not None]
    short = token(exp=now() - int(LEEWAY) + 3)
    for route in guarded:
        assert ask(server, route, short).status == GOOD_STATUS.get(route, 200)
    until(lambda: ask(server, guarded[0], short).status == 401)
    for route in guarded:
        assert {answer.status for answer in answers(server, route, short)} == {401}


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "DELETE"])
@pytest.mark.parametrize(
    "path",
    [
        "/nowhere",
        "/v1/history/",
        "//v1/history",
        "/v1/history%0A",
        "/v1/history%0a",
        "/V1/history",
        "/v1/%68istory/x",
        "/routing/metrics%0A",
        "/metrics%0A",
        "/dashboard",
    ],
)
def test_no_other_spelling_leads_to_a_route(server: Server, method: str, path: str) -> None:
    """Without a credential nobody learns what exists; a credential without scopes gets nowhere."""
    assert ask(server, (method, path)).status == 401
    assert ask(server, (method, path), token("")).status == 404


def test_an_escaped_path_is_the_same_route(server: Server) -> None:
    """The router compares decoded paths, and so does the table."""
    for path in ("/v1/%68istory", "/routing%2Fmetrics", "/%6Detrics"):
        assert ask(server, ("GET", path), token("")).status == 403
        assert ask(server, ("GET", path)).status == 401


def test_another_method_needs_a_credential(server: Server) -> None:
    """With one, the answer is 405, whatever its scopes, and names all methods of the path."""
    for method, path, allowed in (
        ("DELETE", "/v1/history", "GET, HEAD"),
        ("POST", "/health", "GET, HEAD"),
        ("GET", "/v1/decisions", "POST"),
        ("PUT", "/auth/session", "DELETE, GET, HEAD, POST"),
        ("POST", "/v1/admin/connections", "DELETE, GET, HEAD"),
        ("GET", "/v1/admin/connections/0123456789abcdef", "DELETE"),
        ("PUT", "/ws/metrics", "GET, HEAD, OPTIONS"),
    ):
        assert ask(server, (method, path)).status == 401
        answer = ask(server, (method, path), token(""))
        assert (answer.status, answer.headers["allow"]) == (405, allowed)


@pytest.mark.parametrize("path", ["/routing/metrics", "/v1/history", "/metrics", "/sse/metrics"])
def test_head_needs_what_get_needs(server: Server, path: str) -> None:
    """Its answer has the same status and fields."""
    for credential in (None, token(""), token()):
        head = ask(server, ("HEAD", path), credential)
        get = ask(server, ("GET", path), credential)
        assert (head.status, head.challenge) == (get.status, get.challenge)
        assert head.body == b""


# -- where a credential may be --------------------------------------------------------------------


def protocol(credential: str) -> str:
    """Return the subprotocol that carries a credential, as the JavaScript client makes it."""
    return f"routecast.bearer.{urlsafe_b64encode(credential.encode()).decode().rstrip('=')}"


@pytest.mark.parametrize("subprotocol", [JSON, MSGPACK])
def test_a_browser_sends_its_token_as_a_subprotocol(server: Server, subprotocol: str) -> None:
    """The answer names the other one only."""
    for offer in (
        f"{subprotocol}, {protocol(token())}",
        f"{protocol(token())},{subprotocol}",
    ):
        answer = upgrade(server, sec_websocket_protocol=offer)
        assert answer.status == 101
        assert answer.headers["sec-websocket-protocol"] == subprotocol
        assert "bearer" not in str(answer.headers)


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_token_in_a_subprotocol_is_refused(server: Server, kind: str) -> None:
    """Before the upgrade, as one in `Authorization`."""
    credential = BAD[kind]()
    if server.edge == "portable" and len(credential) > MAX_LINE:
        skip_as_meant("the library of this server refuses so long a line")
    answer = upgrade(server, sec_websocket_protocol=f"{JSON}, {protocol(credential)}")
    assert answer.status == 401
    assert protocol(credential) not in f"{answer.headers} {answer.body!r}"


@pytest.mark.parametrize("content", ["", "!", "a", "w6k", "YSBi", "eyJ hbGc", "="])
def test_a_malformed_subprotocol_is_refused(server: Server, content: str) -> None:
    """The answer does not contain it, if it is the server's own and not that of a library."""
    answer = upgrade(server, sec_websocket_protocol=f"{JSON}, routecast.bearer.{content}")
    if server.edge == "native":
        assert answer.status == 401
        assert not content or f"bearer.{content}" not in f"{answer.headers} {answer.body!r}"
    else:
        assert answer.status in (400, 401)


def test_two_credentials_are_refused(server: Server) -> None:
    """Also if they are the same."""
    good = token()
    for more in (
        {"authorization": f"Bearer {good}", "sec_websocket_protocol": f"{JSON}, {protocol(good)}"},
        {"sec_websocket_protocol": f"{JSON}, {protocol(good)}, {protocol(good)}"},
    ):
        assert upgrade(server, **more).status == 400


def test_a_credential_in_trailers_is_none(server: Server) -> None:
    """A proxy that checks header fields may pass them on as they are."""
    if server.edge == "portable":
        skip_as_meant("uvicorn by itself takes trailers for header fields: docs/deploy.md")
    body = json.dumps(DECISION).encode()
    with RawConnection(server.port) as connection:
        connection.send(
            b"POST /v1/decisions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
            + b"%x\r\n%s\r\n0\r\nAuthorization: Bearer %s\r\n\r\n"
            % (len(body), body, token().encode())
        )
        assert connection.answer().status == 401


def test_a_subprotocol_is_no_credential_of_a_plain_request(server: Server) -> None:
    """No browser sends one there."""
    offer = {"Sec-WebSocket-Protocol": f"{JSON}, {protocol(token())}"}
    assert ask(server, ("GET", "/routing/metrics"), **offer).status == 401
    assert ask(server, ("OPTIONS", "/ws/metrics"), **offer).status == 401


@pytest.mark.parametrize("field", ["Basic YTpi", "Bearer", "Bearer a b", "Token abc", ""])
def test_another_scheme_is_refused(server: Server, field: str) -> None:
    """The answer says how a credential is sent."""
    answer = ask(server, ("GET", "/routing/metrics"), Authorization=field)
    assert answer.status == 401
    assert "Bearer" in answer.problem["detail"]


# -- what they then see ---------------------------------------------------------------------------


def document(server: Server, query: str = "", **claims: Any) -> Any:
    answer = ask(server, ("GET", "/routing/metrics"), token("read", **claims), query)
    assert answer.status == 200
    return json.loads(answer.body)


def test_a_document_has_nothing_of_other_projects(server: Server) -> None:
    """It is the one that everyone gets who asks for these projects."""
    limited = document(server, projects=[OURS])
    assert limited["total_decisions"] == 2
    assert set(limited["strategy_performance"]) == {f"s-{OURS}"}
    assert set(limited["provider_usage"]) == {f"p-{OURS}"}
    both = document(server, projects=[OURS, THEIRS])
    assert both["total_decisions"] == 3
    assert document(server, f"?project={THEIRS}", projects=[OURS, THEIRS])["total_decisions"] == 1
    everything = document(server, f"?project={OURS}")
    assert {**limited, "timestamp": ""} == {**everything, "timestamp": ""}


def test_a_history_has_nothing_of_other_projects(server: Server) -> None:
    """In total and by group."""
    for query in ("", "?group_by=strategy", "?group_by=provider", "?group_by=band"):
        answer = ask(server, ("GET", "/v1/history"), token("read", projects=[OURS]), query)
        series = json.loads(answer.body)["series"]
        assert sum(sum(each["count"]) for each in series) == 2
        assert {each["key"] for each in series} <= {"all", f"s-{OURS}", f"p-{OURS}", "none"}


def test_a_producer_writes_to_its_projects_only(server: Server) -> None:
    """Over both paths: the fast path takes plain requests, and a page's pass through ASGI."""
    batch = [{**DECISION, "project": name} for name in ("mine", OURS, "other")]
    batch += [{"strategy": "s", "provider": "p"}]
    producer = token("write", projects=["mine"])
    for origin in ({}, {"Origin": server.url}):
        answer = ask(server, ("POST", "/v1/decisions"), producer, decisions=batch, **origin)
        receipt = json.loads(answer.body)
        assert (answer.status, receipt["accepted"], receipt["rejected_count"]) == (200, 2, 2)
        assert [each["index"] for each in receipt["rejected"]] == [1, 2]
        assert all(each["error"].startswith("project: ") for each in receipt["rejected"])
    assert document(server, projects=["mine"])["total_decisions"] == 4


def test_a_producer_of_several_projects_must_name_one(server: Server) -> None:
    """Otherwise the decision is rejected."""
    producer = token("write", projects=["mine", "yours"])
    answer = ask(
        server, ("POST", "/v1/decisions"), producer, decisions={"strategy": "s", "provider": "p"}
    )
    assert answer.status == 422
    assert "project: is required" in answer.problem["detail"]
    named = {**DECISION, "project": "yours"}
    assert ask(server, ("POST", "/v1/decisions"), producer, decisions=named).status == 200


@pytest.mark.parametrize("path", ["/routing/metrics", "/v1/history", "/sse/metrics", "/ws/metrics"])
def test_a_credential_without_projects_sees_nothing(server: Server, path: str) -> None:
    """An empty list is not all of them."""
    assert ask(server, ("GET", path), token(projects=[])).status == 403
    assert ask(server, ("POST", "/v1/decisions"), token(projects=[])).status == 403


def test_the_metrics_of_an_operator_are_kept_nowhere(server: Server) -> None:
    """A cache could give them to others."""
    answer = ask(server, ("GET", "/metrics"), token())
    assert (answer.status, answer.headers["cache-control"]) == (200, "no-store")


def test_health_says_little_to_everyone_else(server: Server) -> None:
    """An operator must be allowed to see all projects, because health is about all of them."""
    for credential in (None, "garbage", token("read"), token(projects=[OURS]), token(exp=1)):
        health = json.loads(ask(server, ("GET", "/health"), credential).body)
        assert health == {"status": "ok", "version": health["version"]}
        assert json.loads(ask(server, ("GET", "/ready"), credential).body) == {"ready": True}
    assert "components" in json.loads(ask(server, ("GET", "/health"), token("admin")).body)


async def first_message(server: Server, credential: str, query: str = "") -> Any:
    async with connect(
        server.ws_url + query, additional_headers={"Authorization": f"Bearer {credential}"}
    ) as stream:
        return await receive(stream)


async def test_the_default_stream_has_nothing_of_other_projects(server: Server) -> None:
    """Each client gets the documents of its projects."""
    assert (await first_message(server, token(projects=[THEIRS])))["total_decisions"] == 1
    assert (await first_message(server, token(projects=[OURS])))["total_decisions"] == 2
    with pytest.raises(InvalidStatus, match="403"):
        await first_message(server, token(projects=[OURS]), f"?project={THEIRS}")


async def test_events_have_nothing_of_other_projects(server: Server) -> None:
    """As the default stream."""
    fields = {"Authorization": f"Bearer {token(projects=[THEIRS])}"}
    async with (
        httpx2.AsyncClient(base_url=server.url, headers=fields) as client,
        client.stream("GET", "/sse/metrics") as answer,
    ):
        async for line in answer.aiter_lines():
            if line.startswith("data: "):
                assert json.loads(line.removeprefix("data: "))["total_decisions"] == 1
                break


@pytest.mark.parametrize("subprotocol", [JSON, MSGPACK])
async def test_v1_has_nothing_of_other_projects(server: Server, subprotocol: str) -> None:
    """In subscriptions, histories, and histories that follow; other projects are an error."""
    async with v1(server, token(projects=[THEIRS]), subprotocol) as client:
        snapshot = await client.subscribe("a")
        assert snapshot["data"]["total_decisions"] == 1
        assert set(snapshot["data"]["strategy_performance"]) == {f"s-{THEIRS}"}
        for follow in (False, True):
            identity = f"h-{follow}"
            await client.send(
                {"type": "history", "id": identity, "group_by": "strategy", "follow": follow}
            )
            history = await client.receive_until(partial(has_id, identity))
            assert [each["key"] for each in history["series"]] == [f"s-{THEIRS}"]
        for kind in ("subscribe", "history"):
            await client.send({"type": kind, "id": "b", "filter": {"project": [OURS]}})
            error = await client.receive_until(lambda message: message.get("id") == "b")
            assert (error["type"], error["code"]) == ("error", "forbidden")
            assert OURS not in error["message"]


async def test_clients_of_equal_projects_share_documents(server: Server) -> None:
    """A commit is rendered once for all of them, and for everyone who asks for these projects."""
    limited = [token(sub=name, projects=["shared"]) for name in ("ana", "bob")]
    async with (
        v1(server, limited[0]) as ana,
        v1(server, limited[1]) as bob,
        v1(server, token()) as everyone,
    ):
        for client in (ana, bob):
            await client.subscribe("a", interval=0.1)
        await everyone.subscribe("a", interval=0.1, filter={"project": ["shared"]})
        before = await asyncio.to_thread(server.instrument, "routecast_renders_total")
        receipt = await asyncio.to_thread(server.post, {**DECISION, "project": "shared"})
        for client in (ana, bob, everyone):
            held = await client.follow_to("a", receipt["position"]["seq"])
            assert held.document["total_decisions"] == 1
        after = await asyncio.to_thread(server.instrument, "routecast_renders_total")
        assert after - before == 1


# -- the end of a credential ----------------------------------------------------------------------


class v1:  # noqa: N801  # -- used as a function
    """A connection of routecast.v1 with a credential, after its `hello`."""

    def __init__(self, server: Server, credential: str, subprotocol: str = JSON) -> None:
        self._opening = connect(
            server.ws_url,
            subprotocols=[subprotocol],  # type: ignore[list-item]  # -- a NewType of str
            additional_headers={"Authorization": f"Bearer {credential}"},
        )

    async def __aenter__(self) -> V1Client:
        client = V1Client(await self._opening.__aenter__())
        assert (await client.receive())["type"] == "hello"
        return client

    async def __aexit__(self, *given: Any) -> None:
        await self._opening.__aexit__(*given)


def has_id(identity: str, message: Any) -> bool:
    """Whether a message of routecast.v1 has this id."""
    return bool(message.get("id") == identity)


def key_in(output: str) -> str:
    """Return the API key that a command printed."""
    assert re.fullmatch(r"rc_[\w-]+\n", output), output
    return output.strip()


async def close_code(stream: Any) -> int | None:
    """Read to the end of a stream; return its close code."""
    with suppress(ConnectionClosed):
        async with asyncio.timeout(20):
            while True:
                await stream.recv()
    return cast(int | None, stream.close_code)


async def end_of_events(server: Server, credential: str) -> None:
    """Read server-sent events until the server ends them."""
    fields = {"Authorization": f"Bearer {credential}"}
    async with (
        asyncio.timeout(20),
        httpx2.AsyncClient(base_url=server.url, headers=fields, timeout=30) as client,
        client.stream("GET", "/sse/metrics") as answer,
    ):
        assert answer.status_code == 200
        async for _ in answer.aiter_bytes():
            pass


async def test_streams_end_when_their_token_expires(server: Server) -> None:
    """Of all kinds, with 4401 or the end of the answer, within a second and not before it."""
    expires = now() + 3
    short = token(exp=expires)
    fields = {"Authorization": f"Bearer {short}"}

    async def ended(ending: Any) -> tuple[Any, float]:
        return await ending, time.time()

    async with (
        connect(server.ws_url, additional_headers=fields) as plain,
        v1(server, short) as client,
    ):
        expiring = await client.receive()
        assert expiring["type"] == "token_expiring"
        assert 0 < expiring["expires_in_ms"] <= 3_000
        results = await asyncio.gather(
            ended(close_code(plain)),
            ended(close_code(client.stream)),
            ended(end_of_events(server, short)),
        )
    assert [code for code, _ in results] == [4401, 4401, None]
    for _, at in results:
        assert expires <= at < expires + 2  # a busy machine takes a part of it


async def test_a_refresh_keeps_a_connection_open(server: Server) -> None:
    """Beyond the end of its first token; what it was subscribed to goes on."""
    short = token(exp=now() + 3)
    async with v1(server, short) as client, v1(server, short) as other:
        assert (await client.subscribe("a", interval=0.1))["type"] == "snapshot"
        await client.send({"type": "refresh", "token": token("read", jti="second")})
        await client.send({"type": "ping", "id": "after"})
        pong = await client.receive_until(lambda message: message["type"] in ("pong", "error"))
        assert pong["type"] == "pong"
        assert await close_code(other.stream) == 4401
        await client.send({"type": "ping", "id": "later"})
        await client.receive_until(lambda message: message == {"type": "pong", "id": "later"})
        assert [m["type"] for m in client.messages].count("token_expiring") <= 1


@pytest.mark.parametrize(
    "changed",
    [
        {"sub": "bob"},
        {"projects": [OURS]},
        {"scope": "write"},
        {"exp": 1},
        {"aud": "elsewhere"},
    ],
    ids=str,
)
async def test_a_token_that_does_not_renew(server: Server, changed: dict[str, Any]) -> None:
    """It gets an error, and the connection goes on with the old one."""
    async with v1(server, token()) as client:
        await client.send({"type": "refresh", "token": token(**changed)})
        error = await client.receive()
        assert (error["type"], error["code"], error["retryable"]) == ("error", "bad_request", False)
        assert "id" not in error
        assert error["message"].startswith("token: ")
        await client.send({"type": "ping", "id": "x"})
        assert await client.receive() == {"type": "pong", "id": "x"}


async def test_revoking_ends_requests_and_streams(server: Server) -> None:
    """Within two seconds, and those of others go on."""
    revoked, kept = token(jti="revoked", sub="eve"), token(jti="kept", sub="eve")
    fields = {"Authorization": f"Bearer {revoked}"}
    async with (
        connect(server.ws_url, additional_headers=fields) as plain,
        v1(server, revoked) as client,
        v1(server, kept) as other,
    ):
        events = asyncio.create_task(end_of_events(server, revoked))
        await asyncio.to_thread(until, lambda: server.active() >= 4)
        database = ("--database", f"sqlite:///{server.database}")
        done = await asyncio.to_thread(routecast, "token", "revoke", "--jti", "revoked", *database)
        assert done.returncode == 0, done.stderr
        told = time.monotonic()
        assert await close_code(plain) == 4401
        assert await close_code(client.stream) == 4401
        await events
        assert time.monotonic() - told < 4  # a busy machine takes a part of it
        await other.send({"type": "ping", "id": "x"})
        assert await other.receive() == {"type": "pong", "id": "x"}
    for route in (route for route in ROUTES if SCOPE_OF_ROUTE[route] is not None):
        for answer in await asyncio.to_thread(answers, server, route, revoked):
            assert answer.status == 401
            assert "revoked" in answer.problem["detail"]
        answer = await asyncio.to_thread(ask, server, route, kept)
        assert answer.status == GOOD_STATUS.get(route, 200)


@pytest.mark.parametrize("way", ["plain", "from a page", "chunked"])
def test_a_credential_that_is_revoked_while_the_body_comes(server: Server, way: str) -> None:
    """Its decisions are not taken. A body may take half a minute."""
    identity = way.replace(" ", "-")
    credential = token("write", jti=f"late-{identity}")
    body = json.dumps(DECISION).encode()
    fields = {
        "plain": f"Content-Length: {len(body)}",
        "from a page": f"Content-Length: {len(body)}\r\nOrigin: {server.url}",
        "chunked": "Transfer-Encoding: chunked",
    }
    head = (
        f"POST /v1/decisions HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n"
        f"Authorization: Bearer {credential}\r\n{fields[way]}\r\n\r\n"
    )
    whole = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if way == "chunked" else body
    route = ("POST", "/v1/decisions")
    before = document(server, f"?project={SENT}")["total_decisions"]
    with RawConnection(server.port) as connection:
        connection.send(head.encode() + whole[:8])
        assert ask(server, route, credential).status == 200  # so the head was read before
        database = ("--database", f"sqlite:///{server.database}")
        assert not routecast("token", "revoke", "--jti", f"late-{identity}", *database).returncode
        until(lambda: ask(server, route, credential).status == 401)
        taken = document(server, f"?project={SENT}")["total_decisions"]
        connection.send(whole[8:])
        answer = connection.answer()
    assert answer.status == 401
    assert b"revoked" in answer.body
    assert before < taken == document(server, f"?project={SENT}")["total_decisions"]


@pytest.fixture(params=EDGES)
def plain_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """A server without authentication."""
    with Server(tmp_path / "plain", edge=cast(Edge, request.param)) as running:
        yield running


async def test_the_first_key_turns_authentication_on(plain_server: Server) -> None:
    """Streams without a credential end then. The key works at once, and its end is an end."""
    server = plain_server
    database = ("--database", f"sqlite:///{server.database}")
    ignored = {"Authorization": "Bearer garbage"}  # nothing is verified while it is off
    async with (
        connect(server.ws_url, additional_headers=ignored) as plain,
        connect(
            server.ws_url,
            subprotocols=[JSON, protocol("garbage")],  # type: ignore[list-item]  # -- a NewType of str
        ) as v1_stream,
    ):
        assert v1_stream.subprotocol == JSON
        made = await asyncio.to_thread(
            routecast, "keys", "create", "--name", "wall", "--scope", "read", *database
        )
        assert made.returncode == 0, made.stderr
        assert await close_code(plain) == 4401
        assert await close_code(v1_stream) == 4401
    key = key_in(made.stdout)
    assert ask(server, ("GET", "/routing/metrics")).status == 401
    assert ask(server, ("GET", "/routing/metrics"), key).status == 200
    assert ask(server, ("POST", "/v1/decisions"), key).status == 403
    async with v1(server, key) as client:
        await asyncio.to_thread(routecast, "keys", "revoke", "wall", *database)
        assert await close_code(client.stream) == 4401
    assert ask(server, ("GET", "/routing/metrics"), key).status == 401


# -- credentials that are verified with a key from elsewhere --------------------------------------


class Provider:
    """An identity provider that answers when the test lets it."""

    def __init__(self, site: Upstream) -> None:
        self.asked, self.lets_go = threading.Event(), threading.Event()
        body = json.dumps({"keys": [jwk("RS256", "new")]}).encode()
        self._answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        self.url = f"http://127.0.0.1:{site.port}/jwks.json"
        site.answer = self._give

    def _give(self, _: object) -> bytes:
        self.asked.set()
        assert self.lets_go.wait(30)
        return self._answer


@pytest.fixture
def provider() -> Iterator[Provider]:
    """An identity provider that has not answered yet."""
    with upstream() as site:
        made = Provider(site)
        yield made
        made.lets_go.set()


@pytest.mark.parametrize("edge", EDGES)
def test_requests_wait_for_the_key_of_their_token(
    tmp_path: Path, provider: Provider, edge: Edge
) -> None:
    """On the fast path, in handshakes and on all other routes; open routes answer meanwhile."""
    signed = jwt.encode(
        {"sub": "ana", "scope": "read write", "exp": now() + 600},
        private("RS256"),
        "RS256",
        headers={"kid": "new"},
    )
    asked = [("POST", "/v1/decisions"), ("GET", "/routing/metrics"), ("GET", "/sse/metrics")]
    env = {"ROUTECAST_JWKS_URL": provider.url}
    with (
        Server(tmp_path / "server", env=env, edge=edge) as server,
        ThreadPoolExecutor(8) as pool,
        RawConnection(server.port) as leaving,
    ):
        assert provider.asked.wait(30)
        leaving.send(upgrade_request(authorization=f"Bearer {signed}"))
        waiting = [pool.submit(ask, server, route, signed) for route in asked]
        waiting.append(pool.submit(upgrade, server, signed))
        assert ask(server, ("GET", "/health"), signed).status == 200
        assert ask(server, ("GET", "/routing/metrics")).status == 401
        assert not any(each.done() for each in waiting)
        leaving.reset()
        provider.lets_go.set()
        assert [each.result(30).status for each in waiting] == [200, 200, 200, 101]
        garbage = jwt.encode({"sub": "a"}, private("RS256", 1), "RS256", headers={"kid": "no"})
        assert ask(server, ("GET", "/routing/metrics"), garbage).status == 401
        assert upgrade(server, garbage).status == 401


# Answers of a broken identity provider, and what `/health` then says of it.
BROKEN_ANSWERS: Final[dict[bytes, str]] = {
    CLOSE: "closed|cannot be read",
    b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>": "not JSON",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2000000\r\n\r\n" + b" " * 2_000_000: "over 1,048,576",
    UNENDING: "did not come",
}


def of_provider(kid: str, number: int = 0) -> str:
    """Return a token that the identity provider has signed."""
    claims = {"sub": "ana", "scope": "read", "exp": now() + 600}
    return jwt.encode(claims, private("RS256", number), "RS256", headers={"kid": kid})


@pytest.mark.parametrize("edge", EDGES)
def test_a_broken_provider_stops_nothing_else(tmp_path: Path, edge: Edge) -> None:
    """The server starts, and says what is wrong; its tokens are 503 until their keys are there.

    A flood of unknown key ids then causes at most one request a minute, and delays no good token.
    """
    body = json.dumps({"keys": [jwk("RS256", "new")]}).encode()
    good = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    operator = jwt.encode({"sub": "o", "scope": "admin", "exp": now() + 600}, CANARY, "HS256")
    route = ("GET", "/routing/metrics")
    with upstream() as site, ThreadPoolExecutor(16) as pool:
        site.answer = lambda _: CLOSE
        env = {
            "ROUTECAST_JWKS_URL": f"http://127.0.0.1:{site.port}/jwks.json",
            "ROUTECAST_JWT_SECRET": CANARY,
        }
        with Server(tmp_path / "server", env=env, edge=edge) as server:

            def said() -> str:
                return ask(server, ("GET", "/health"), operator).body.decode()

            for broken, words in BROKEN_ANSWERS.items():
                site.answer = lambda _, given=broken: given  # type: ignore[misc]  # -- its default
                until(lambda wanted=words: re.search(wanted, said()))  # type: ignore[misc]  # -- its default
                refused = ask(server, route, of_provider("new"))
                assert refused.status == 503
                assert int(refused.headers["retry-after"]) >= 1
                assert re.search("cannot be fetched now|not .* in time", refused.problem["detail"])
            site.answer = lambda _: good
            until(lambda: ask(server, route, of_provider("new")).status == 200)

            asked, began = len(site.received), time.monotonic()
            flood = [
                pool.submit(answers, server, STREAM, of_provider(f"unknown {number}", 1))
                for number in range(100)
            ]
            known = [pool.submit(ask, server, route, of_provider("new")) for _ in range(20)]
            assert {each.status for done in flood for each in done.result(60)} == {401}
            assert {done.result(60).status for done in known} == {200}
            minutes = (time.monotonic() - began) // 60
            assert len(site.received) - asked <= 1 + minutes


# -- pages of other sites -------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/decisions", "/routing/metrics", "/ws/metrics"])
def test_an_allowed_page_may_send_authorization(server: Server, path: str) -> None:
    """A browser asks first, and sends no credential with that question (Fetch, 3.2.2)."""
    fields = {"Origin": server.url, "Access-Control-Request-Method": "POST"}
    answer = ask(server, ("OPTIONS", path), **fields)
    assert answer.status == 204
    allowed = answer.headers["access-control-allow-headers"]
    assert "Authorization" in allowed.split(", ")


def test_an_allowed_page_can_read_why_it_was_refused(server: Server) -> None:
    """Otherwise it could not ask for another credential."""
    for credential in (None, "garbage", token("")):
        answer = ask(server, ("GET", "/routing/metrics"), credential, Origin=server.url)
        assert answer.headers["access-control-allow-origin"] == server.url
        assert "WWW-Authenticate" in answer.headers["access-control-expose-headers"]


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "http://127.0.0.1:1",
        "http://localhost:{port}",
        "http://127.0.0.1.evil.example:{port}",
        "https://evil.example",
    ],
)
def test_pages_of_other_sites_are_refused(server: Server, origin: str) -> None:
    """With a good credential, before any upgrade: not even other ports of this machine."""
    site = origin.format(port=server.port)
    assert upgrade(server, token(), host=f"127.0.0.1:{server.port}", origin=site).status == 403
    assert ask(server, ("POST", "/v1/decisions"), token(), Origin=site).status == 403
    own = {"host": f"127.0.0.1:{server.port}", "origin": server.url}
    assert upgrade(server, token(), **own).status == 101


# -- secrets --------------------------------------------------------------------------------------


def canary(secret: str, **claims: Any) -> str:
    """Return a token that is signed with a secret."""
    return jwt.encode({"sub": "ana", "scope": "admin read", **claims}, secret, "HS256")


@pytest.mark.parametrize(
    ("edge", "log_format"), [("native", "text"), ("native", "json"), ("portable", "text")]
)
def test_no_secret_is_in_logs_metrics_errors_or_the_database(
    tmp_path: Path, edge: Edge, log_format: str
) -> None:
    """Whatever way it is sent; neither whole nor in the form that a page sends."""
    env = {
        "ROUTECAST_JWT_SECRET": CANARY,
        "ROUTECAST_LOG_LEVEL": "debug",
        "ROUTECAST_LOG_FORMAT": log_format,
    }
    with Server(tmp_path / "server", env=env, edge=edge) as server:
        database = ("--database", f"sqlite:///{server.database}")
        key = key_in(
            routecast("keys", "create", "--name", "wall", "--scope", "read", *database).stdout
        )
        secrets = {
            "secret": CANARY.replace(" ", ""),
            "good": canary(CANARY, exp=now() + 3_600),
            "expired": canary(CANARY, exp=1),
            "bad": canary("not " + CANARY, exp=now() + 3_600),
            "key": key,
            "bad key": key[:-5] + key[:4:-1][:5],
            "basic": "Y2FuYXJ5OmNhbmFyeQ",
        }
        server.http.headers["Authorization"] = f"Bearer {secrets['good']}"
        signed_in = server.http.post("/auth/session", headers={"Origin": server.url})
        secrets["session"] = signed_in.cookies["routecast_session"]
        for name in ("used ticket", "ticket"):
            secrets[name] = server.http.post("/v1/tickets").json()["ticket"]
        server.http.cookies.clear()
        seen = list(shown_by(server, secrets))
        asyncio.run(refresh_with(server, secrets))
        paths = ("/metrics", "/health", "/ready", "/v1/admin/connections?closed=true")
        seen += [(path, server.http.get(path).content) for path in paths]
    seen += [(file.name, file.read_bytes()) for file in (tmp_path / "server").iterdir()]
    logged = b"connected. Total connections" if log_format == "text" else b'"event":"connect"'
    for proof in (b"routecast_connections", logged, b"wall"):
        assert any(proof in text for _, text in seen)  # so much was read
    for name, secret in {**secrets, "secret as it is": CANARY}.items():
        for form in forms_of(secret):
            for where, text in seen:
                assert form not in text, (name, where)


def shown_by(server: Server, secrets: dict[str, str]) -> Iterator[tuple[str, bytes]]:
    """Send secrets in all ways; yield where, and what the server answers."""

    def shown(where: object, *given: Answer) -> Iterator[tuple[str, bytes]]:
        for answer in given:
            yield f"{where}: {answer.status}", f"{answer.headers}".encode() + answer.body

    for secret in secrets.values():
        for route in ROUTES:
            yield from shown(route, *answers(server, route, secret))
            for name in ("token", "api_key"):
                yield from shown(name, ask(server, route, None, f"?{name}={secret}"))
        if server.edge == "native":  # other servers log the URLs of upgrades, which is why
            yield from shown("upgrade", upgrade(server, query=f"?token={secret}"))
        offers = [protocol(secret)]
        if server.edge == "native":  # another server's library answers what is malformed itself
            offers += [f"x {protocol(secret)}", f'"{protocol(secret)}']
        for offer in offers:
            answer = upgrade(server, sec_websocket_protocol=f"{JSON}, {offer}")
            yield from shown(f"subprotocol {offer[:3]}", answer)
        cookie = {"Cookie": f"routecast_session={secret}"}
        yield from shown("cookie", upgrade(server, cookie=cookie["Cookie"], origin=server.url))
        yield from shown("page", ask(server, ("GET", "/auth/session"), **cookie))
        yield from shown("ticket", ask(server, ("GET", "/sse/metrics"), None, f"?ticket={secret}"))
        content = {"decisions": {"credential": secret}, "Origin": server.url}
        yield from shown("sign-in", ask(server, ("POST", "/auth/session"), None, **content))
        for field in (f"Basic {secret}", f"Bearer {secret} x", f"Bearer {secret}\x7f"):
            answer = ask(server, ("GET", "/routing/metrics"), Authorization=field)
            yield from shown(field[:6], answer)


async def refresh_with(server: Server, secrets: dict[str, str]) -> None:
    """Send secrets as new tokens; check what comes back."""
    async with v1(server, secrets["good"]) as client:
        for secret in secrets.values():
            await client.send({"type": "refresh", "token": secret})
        await client.send({"type": "ping", "id": "x"})
        await client.receive_until(lambda message: message["type"] == "pong")
        for secret in secrets.values():
            assert secret not in json.dumps(client.messages)


def forms_of(secret: str) -> list[bytes]:
    """Return a secret as it is, its last part, and as base64."""
    encoded = urlsafe_b64encode(secret.encode()).rstrip(b"=")
    last = secret.rpartition(".")[2] if "." in secret else secret[-30:]
    return [secret.encode(), last.encode(), encoded[:-2]]
