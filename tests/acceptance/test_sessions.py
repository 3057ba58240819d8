"""Sessions: a browser signs in, and its cookie counts for pages of this server only."""

import asyncio
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any, Final, cast

import asyncpg
import httpx2
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.support.command import routecast
from tests.support.credentials import SIGNED, bearer, signed_server, token
from tests.support.postgres import OwnPostgres
from tests.support.raw import RawConnection, upgrade_request
from tests.support.redis import RedisServer
from tests.support.secrets import found_in, keep
from tests.support.server import EDGES, Edge, Server
from tests.support.waiting import until

SESSION: Final = "/auth/session"
COOKIE: Final = "routecast_session"
FOREIGN: Final = ["null", "https://evil.example", "http://127.0.0.1:1", "http://localhost:{port}"]


@pytest.fixture(scope="module", params=EDGES)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server that takes tokens."""
    edge = cast(Edge, request.param)
    with signed_server(tmp_path_factory.mktemp(edge), edge) as running:
        yield running


def ask(server: Server, method: str, path: str, **more: Any) -> httpx2.Response:
    """Send a request as a client without cookies of its own does."""
    return httpx2.request(method, f"{server.url}{path}", timeout=30, **more)


def sign_in(server: Server, credential: str, **headers: str) -> str:
    """Return the value of the field `Cookie` of a browser that has signed in."""
    answer = ask(
        server, "POST", SESSION, json={"credential": credential}, headers=own(server) | headers
    )
    assert answer.status_code == 200, answer.text
    return cookie_in(answer)


def cookie_in(answer: httpx2.Response) -> str:
    """Return the value of the field `Cookie` that follows from an answer."""
    ((name, morsel),) = SimpleCookie(answer.headers["set-cookie"]).items()
    return f"{name}={keep(morsel.value)}"


def own(server: Server) -> dict[str, str]:
    """Return the origin of the server's own page."""
    return {"Origin": server.url}


def stream(server: Server, cookie: str) -> ClientConnection:
    """Open a stream as the server's page does."""
    return connect(server.ws_url, additional_headers={"Cookie": cookie, **own(server)})


def upgrade(server: Server, cookie: str, origin: str | None, **more: str) -> int:
    """Ask for an upgrade from this machine's address; return the status."""
    fields = {"host": f"127.0.0.1:{server.port}", "cookie": cookie, **more}
    if origin is not None:
        fields["origin"] = origin
    with RawConnection(server.port) as connection:
        connection.send(upgrade_request(**fields))
        return connection.answer()[0]


def close_code(opened: ClientConnection) -> int | None:
    """Return the code with which the server closes a stream."""
    with suppress(ConnectionClosed):
        while True:
            opened.recv(timeout=30)
    return opened.close_code


# -- signing in -----------------------------------------------------------------------------------


def test_a_browser_signs_in(server: Server) -> None:
    """The cookie is random, short, for this server only, and no script can read it."""
    secret = token("read", projects=["ours"])
    answer = ask(server, "POST", SESSION, json={"credential": f" {secret}\n"}, headers=own(server))
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    person = answer.json()
    assert 3590 <= person.pop("expires_in") <= 3600
    assert person == {
        "subject": "ann",
        "scopes": ["read"],
        "projects": ["ours"],
        "renewable": False,
        "can_sign_out": True,
    }
    field = answer.headers["set-cookie"]
    assert re.fullmatch(
        r"routecast_session=[\w-]{43}; HttpOnly; Max-Age=(359\d|3600); Path=/; SameSite=strict",
        field,
    ), field
    assert secret not in f"{answer.headers} {answer.text}"
    other = ask(server, "POST", SESSION, headers=bearer(secret))
    assert cookie_in(other) != cookie_in(answer)


def test_behind_tls_the_cookie_is_secure(server: Server) -> None:
    """Its prefix keeps other hosts from setting it; a plain one does not count there."""
    secure = {"X-Forwarded-Proto": "https", "Host": "127.0.0.1"}
    page = {"Origin": "https://127.0.0.1"}
    answer = ask(
        server, "POST", SESSION, json={"credential": token("read")}, headers={**secure, **page}
    )
    field = answer.headers["set-cookie"]
    assert field.startswith("__Host-routecast_session=")
    assert "; Secure" in field
    assert "Domain" not in field
    cookie = cookie_in(answer)
    assert (
        ask(server, "GET", "/routing/metrics", headers={"Cookie": cookie, **secure}).status_code
        == 200
    )
    plain = cookie.removeprefix("__Host-")
    for wrong in ({"Cookie": plain, **secure}, {"Cookie": cookie}):
        assert ask(server, "GET", "/routing/metrics", headers=wrong).status_code == 401
    tls = {"x_forwarded_proto": "https", "host": "127.0.0.1"}
    assert upgrade(server, cookie, "https://127.0.0.1", **tls) == 101
    assert upgrade(server, plain, "https://127.0.0.1", **tls) == 401


@pytest.mark.parametrize(
    "body", [b"x", b"[]", b"{}", b'{"credential":1}', b'{"credential":"\xff"}']
)
def test_a_malformed_body_is_refused(server: Server, body: bytes) -> None:
    """Without anything of it in the answer."""
    answer = ask(server, "POST", SESSION, content=body)
    assert answer.status_code == 400
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("wrong", ["", "garbage", "x" * 16_385, f"rc_{'0' * 8}_{'0' * 43}"])
def test_a_wrong_credential_signs_nobody_in(server: Server, wrong: str) -> None:
    """The answer says why."""
    answer = ask(server, "POST", SESSION, json={"credential": wrong}, headers=own(server))
    assert answer.status_code == 401
    assert answer.json()["detail"]
    assert "set-cookie" not in answer.headers


def test_signing_in_needs_something(server: Server) -> None:
    """A long body is refused before it is read."""
    assert ask(server, "POST", SESSION).status_code == 401
    assert ask(server, "POST", SESSION, content=b"x" * 20_000).status_code == 413


def test_the_page_learns_who_is_signed_in(server: Server) -> None:
    """Whoever asks."""
    nobody = {"authentication": True, "provider": False, "person": None}
    assert ask(server, "GET", SESSION).json() == nobody
    assert ask(server, "GET", SESSION, headers={"Cookie": f"{COOKIE}=x"}).json() == nobody
    cookie = sign_in(server, token("read", "admin"))
    state = ask(server, "GET", SESSION, headers={"Cookie": f"a=b; {cookie}; c=d"}).json()
    assert state["person"]["subject"] == "ann"
    assert state["person"]["scopes"] == ["admin", "read"]


def test_without_authentication_nobody_signs_in(tmp_path: Path) -> None:
    """The page knows that from the state."""
    with Server(tmp_path / "open") as server:
        off = {"authentication": False, "provider": False, "person": None}
        assert ask(server, "GET", SESSION).json() == off
        assert ask(server, "POST", SESSION, headers=bearer("x")).status_code == 404
        assert ask(server, "DELETE", SESSION).status_code == 204
        with connect(server.ws_url, additional_headers={"Cookie": f"{COOKIE}=x"}) as opened:
            assert opened.recv()


# -- the cookie ------------------------------------------------------------------------------------


def test_the_cookie_is_a_credential(server: Server) -> None:
    """On every way in, with the projects of the one that it stands for."""
    cookie = {"Cookie": sign_in(server, token("read", "write", projects=["ours"]))}
    answer = ask(server, "GET", "/routing/metrics", headers=cookie)
    assert answer.status_code == 200
    assert ask(server, "GET", "/routing/metrics?project=theirs", headers=cookie).status_code == 403
    with stream(server, cookie["Cookie"]) as opened:
        assert opened.recv()
    written = ask(
        server,
        "POST",
        "/v1/decisions",
        json={"strategy": "s", "provider": "p", "project": "theirs"},
        headers=cookie | own(server),
    )
    assert written.status_code == 422
    ticket = ask(server, "POST", "/v1/tickets", headers=cookie | own(server)).json()["ticket"]
    with connect(f"{server.ws_url}?ticket={ticket}") as opened:
        assert opened.recv()


@pytest.mark.parametrize("origin", [None, *FOREIGN])
def test_another_page_cannot_use_the_cookie(server: Server, origin: str | None) -> None:
    """It opens no stream and writes nothing, and neither does a client without an origin."""
    cookie = sign_in(server, token("read", "write", "admin"))
    site = origin and origin.format(port=server.port)
    headers = {"Cookie": cookie} | ({"Origin": site} if site else {})
    assert upgrade(server, cookie, site) == 403
    decision = {"strategy": "s", "provider": "p"}
    for method, path, more in (
        ("POST", "/v1/decisions", {"json": decision}),
        ("POST", "/v1/tickets", {}),
        ("DELETE", "/v1/admin/connections/0123456789abcdef", {}),
        ("DELETE", SESSION, {}),
    ):
        answer = ask(server, method, path, headers=headers, **more)
        assert answer.status_code == 403, path
        assert "set-cookie" not in answer.headers
    if site:
        for path in ("/routing/metrics", "/sse/metrics"):
            assert ask(server, "GET", path, headers=headers).status_code == 401
    assert ask(server, "GET", "/routing/metrics", headers={"Cookie": cookie}).status_code == 200


def test_a_request_of_another_page_without_an_origin_is_known(server: Server) -> None:
    """Browsers say which page asks, for example for an image."""
    cookie = sign_in(server, token("read"))
    for site, status in (("same-origin", 200), ("none", 200), ("same-site", 401), ("x", 401)):
        headers = {"Cookie": cookie, "Sec-Fetch-Site": site}
        assert ask(server, "GET", "/routing/metrics", headers=headers).status_code == status


def test_another_page_cannot_sign_in(server: Server) -> None:
    """It could show its visitor the numbers of another account."""
    answer = ask(
        server,
        "POST",
        SESSION,
        json={"credential": token("read")},
        headers={"Origin": "https://evil.example"},
    )
    assert answer.status_code == 403


def test_a_credential_in_the_request_counts_before_the_cookie(server: Server) -> None:
    """Then the origin does not matter: a page of another site cannot send one."""
    cookie = sign_in(server, token("read"))
    headers = {"Cookie": cookie, **bearer(token("read", "admin"))}
    assert ask(server, "GET", "/metrics", headers=headers).status_code == 200
    assert upgrade(server, cookie, None, authorization=f"Bearer {token('read')}") == 101


@pytest.mark.parametrize("text", ["x", "a" * 43, "a" * 7_000, "%00", "ü", '"quoted"'])
def test_an_unknown_cookie_is_refused(server: Server, text: str) -> None:
    """Whatever it is; an empty one counts as none."""
    headers = {"Cookie": f"{COOKIE}={text}".encode("latin-1")}
    answer = ask(server, "GET", "/routing/metrics", headers=headers)
    assert answer.status_code == 401
    assert "session" in answer.json()["detail"]


# -- the end of a session --------------------------------------------------------------------------


def test_signing_out_ends_all_streams_of_the_person(server: Server) -> None:
    """Also of other sessions, and those that tickets opened. Those of others go on."""
    cookie, other = sign_in(server, token("read")), sign_in(server, token("read", "write"))
    cookie_of_bob = sign_in(server, token("read", sub="bob"))
    headers = {"Cookie": cookie, **own(server)}
    ticket = ask(server, "POST", "/v1/tickets", headers=headers).json()["ticket"]
    with (
        stream(server, cookie) as first,
        stream(server, cookie) as second,
        connect(f"{server.ws_url}?ticket={ticket}") as third,
        stream(server, other) as fourth,
        stream(server, cookie_of_bob) as kept,
    ):
        unused = ask(server, "POST", "/v1/tickets", headers=headers).json()["ticket"]
        answer = ask(server, "DELETE", SESSION, headers=headers)
        assert answer.status_code == 204
        assert "Max-Age=0" in answer.headers["set-cookie"]
        assert [close_code(each) for each in (first, second, third, fourth)] == [4401] * 4
        kept.recv()
        kept.recv()
    assert upgrade(server, cookie, server.url) == 401
    assert ask(server, "GET", f"/sse/metrics?ticket={unused}").status_code == 401
    for gone in (cookie, other):
        assert ask(server, "GET", "/routing/metrics", headers={"Cookie": gone}).status_code == 401
    assert ask(server, "DELETE", SESSION, headers=headers).status_code == 204
    again = {"Cookie": sign_in(server, token("read"))}
    assert ask(server, "GET", "/routing/metrics", headers=again).status_code == 200


def test_a_session_ends_with_its_token(server: Server) -> None:
    """The streams, too."""
    cookie = sign_in(server, token("read", seconds=2))
    with stream(server, cookie) as opened:
        assert close_code(opened) == 4401
    until(lambda: upgrade(server, cookie, server.url) == 401)


def test_revoking_the_credential_ends_the_session(server: Server) -> None:
    """A key or a token."""
    database = ("--database", f"sqlite:///{server.database}")
    made = routecast("keys", "create", "--name", "wall", "--scope", "read", *database)
    (key,) = re.findall(r"rc_\w{8}_[\w-]{43}", made.stdout)
    until(lambda: ask(server, "GET", "/routing/metrics", headers=bearer(key)).status_code == 200)
    of_key = sign_in(server, key)
    of_token = sign_in(server, token("read", jti="lost"))
    with stream(server, of_key) as first, stream(server, of_token) as second:
        routecast("keys", "revoke", "wall", *database)
        routecast("token", "revoke", "--jti", "lost", *database)
        assert close_code(first) == 4401
        assert close_code(second) == 4401
    for cookie in (of_key, of_token):
        assert upgrade(server, cookie, server.url) == 401


def test_only_a_session_of_a_key_is_renewed(server: Server) -> None:
    """A screen on a wall is signed in for longer than 12 hours. A token has its own end.

    Other screens may have the same key, so signing out ends one session alone.
    """
    database = ("--database", f"sqlite:///{server.database}")
    made = routecast("keys", "create", "--name", "hall", "--scope", "read", *database)
    (key,) = re.findall(r"rc_\w{8}_[\w-]{43}", made.stdout)
    until(lambda: ask(server, "GET", "/routing/metrics", headers=bearer(key)).status_code == 200)
    answer = ask(server, "POST", SESSION, json={"credential": key})
    assert answer.json()["renewable"]
    assert answer.json()["expires_in"] == 12 * 60 * 60
    headers = {"Cookie": cookie_in(answer), **own(server)}
    renewed = ask(server, "POST", SESSION, headers=headers)
    assert renewed.status_code == 200
    assert renewed.json()["expires_in"] == 12 * 60 * 60
    assert cookie_in(renewed) == cookie_in(answer)
    second = sign_in(server, key)
    with stream(server, second) as kept:
        assert ask(server, "DELETE", SESSION, headers=headers).status_code == 204
        assert ask(server, "GET", "/routing/metrics", headers=headers).status_code == 401
        assert ask(server, "GET", SESSION, headers={"Cookie": second}).json()["person"]
        assert kept.recv()
    headers = {"Cookie": sign_in(server, token("read")), **own(server)}
    assert ask(server, "POST", SESSION, headers=headers).status_code == 401


def test_the_cookie_is_in_no_log(server: Server) -> None:
    """Nor is the credential."""
    secret = token("read")
    cookie = sign_in(server, secret)
    with stream(server, cookie) as opened:
        opened.recv()
    upgrade(server, cookie, "https://evil.example")
    log = (
        server.log.read_text() + ask(server, "GET", "/metrics", headers=bearer(token("admin"))).text
    )
    assert "Total connections" in log
    for text in (cookie.partition("=")[2], secret):
        assert text not in log


def test_a_session_is_known_to_all_nodes(
    tmp_path: Path, own_postgres: OwnPostgres, own_redis: RedisServer
) -> None:
    """Signing out on one of them closes the streams on the others within two seconds."""
    url = own_postgres.create()
    one, two = (
        Server(
            tmp_path / name,
            database_url=url,
            redis_url=own_redis.url,
            env={**SIGNED, "ROUTECAST_REDIS_PREFIX": "sessions"},
        )
        for name in ("one", "two")
    )
    with one, two:
        cookie = sign_in(one, token("read"))
        kept = sign_in(one, token("read", sub="bob"))
        elsewhere = sign_in(two, token("read"))
        with (
            stream(two, cookie) as opened,
            stream(two, elsewhere) as second,
            stream(two, kept) as other,
        ):
            headers = {"Cookie": cookie, **own(one)}
            assert ask(one, "DELETE", SESSION, headers=headers).status_code == 204
            told = time.monotonic()
            assert close_code(opened) == 4401
            assert close_code(second) == 4401
            assert time.monotonic() - told < 4  # a busy machine takes a part of it
            other.recv()
        for gone in (cookie, elsewhere):
            assert upgrade(two, gone, two.url) == 401


def test_no_secret_is_in_redis_or_postgresql(
    tmp_path: Path, own_postgres: OwnPostgres, own_redis: RedisServer
) -> None:
    """Of tokens, keys, sessions and tickets they have hashes, or nothing."""
    own_redis.ask("FLUSHALL")
    env = {**SIGNED, "ROUTECAST_REDIS_PREFIX": "secrets"}
    url = own_postgres.create()
    with Server(tmp_path, database_url=url, redis_url=own_redis.url, env=env) as server:
        made = routecast("keys", "create", "--name", "wall", "--scope", "read", "--database", url)
        key = made.stdout.strip()
        until(
            lambda: ask(server, "GET", "/routing/metrics", headers=bearer(key)).status_code == 200
        )
        signed = token("read", jti="lost")
        sign_in(server, signed)
        sign_in(server, key)
        unused, used = (
            keep(ask(server, "POST", "/v1/tickets", headers=bearer(signed)).json()["ticket"])
            for _ in range(2)
        )
        with connect(f"{server.ws_url}?ticket={used}") as opened:
            opened.recv()
        routecast("token", "revoke", "--jti", "lost", "--database", url)
        assert ask(server, "GET", "/routing/metrics", headers=bearer(f"{key}x")).status_code == 401
        sent = [part for text in (signed, key) for part in re.split(r"[._]", text) if len(part) > 9]
        for where, text in (("Redis", contents(own_redis)), ("PostgreSQL", rows(url))):
            assert b"ann" in text or b"wall" in text, where  # so much was read
            assert found_in(where, text, env) == []
            for secret in (*sent, unused):
                for form in (secret.encode(), secret.encode().hex().encode()):
                    assert form not in text, where


def contents(redis: RedisServer) -> bytes:
    """Return all names and values in a Redis."""
    whole = {
        b"string": ("GET", "{}"),
        b"hash": ("HGETALL", "{}"),
        b"set": ("SMEMBERS", "{}"),
        b"zset": ("ZRANGE", "{} 0 -1"),
        b"list": ("LRANGE", "{} 0 -1"),
        b"stream": ("XRANGE", "{} - +"),
    }
    found = []
    for name in redis.ask("KEYS", "*"):
        command, words = whole[redis.ask("TYPE", name)]
        given = [name if word == "{}" else word for word in words.split()]
        found += [name, _flat(redis.ask(command, *given))]
    return b"\n".join(found)


def _flat(value: Any) -> bytes:
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list | tuple | set):
        return b" ".join(map(_flat, value))
    return value if isinstance(value, bytes) else str(value).encode()


def rows(url: str) -> bytes:
    """Return all rows of a PostgreSQL database as text; bytes are in hexadecimal digits."""

    async def read() -> list[str]:
        session = await asyncpg.connect(url)
        try:
            tables = await session.fetch(
                "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables"
                " WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
            )
            return [
                line
                for (table,) in tables
                for (line,) in await session.fetch(f"SELECT t::text FROM {table} t")
            ]
        finally:
            await session.close()

    return "\n".join(asyncio.run(read())).encode()
