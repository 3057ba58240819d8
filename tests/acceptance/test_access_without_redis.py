"""Redis is stopped under two nodes: what is known of credentials holds, and what is new is refused.

Revocations are in the database. Redis has sessions and tickets, and brings revocations to the nodes
that only stream.
"""

from collections.abc import Iterator
from typing import Any, Final

import httpx2
import pytest
from websockets.sync.client import connect

from tests.support.command import routecast
from tests.support.credentials import SIGNED, bearer, token
from tests.support.raw import RawConnection, upgrade_request
from tests.support.redis import RedisServer
from tests.support.server import Server
from tests.support.waiting import until

SESSION: Final = "/auth/session"
OPERATOR: Final = token("admin", sub="olga")


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis that the tests stop."""
    with RedisServer(tmp_path_factory.mktemp("redis")) as running:
        yield running


@pytest.fixture(scope="module")
def nodes(
    tmp_path_factory: pytest.TempPathFactory, redis: RedisServer
) -> Iterator[tuple[Server, Server]]:
    """A node with a database, and one that only streams."""
    shared: dict[str, Any] = {"redis_url": redis.url, "env": SIGNED}
    with (
        Server(tmp_path_factory.mktemp("stored"), **shared) as stored,
        Server(tmp_path_factory.mktemp("streaming"), role="stream", **shared) as streaming,
    ):
        yield stored, streaming


def ask(server: Server, method: str, path: str, **more: Any) -> httpx2.Response:
    """Send a request as a client without cookies of its own does."""
    return httpx2.request(method, f"{server.url}{path}", timeout=30, **more)


def status(server: Server, credential: str) -> int:
    """Return the answer to a plain request for the stream: 426 to a client that is let in."""
    return ask(server, "GET", "/ws/metrics", headers=bearer(credential)).status_code


def upgrade(server: Server, query: str = "", **fields: str) -> int:
    """Ask for a stream; return the status."""
    with RawConnection(server.port) as connection:
        connection.send(upgrade_request(f"/ws/metrics{query}", **fields))
        return connection.answer()[0]


def revoke(server: Server, identity: str) -> None:
    """Revoke a token by its id."""
    given = ("--jti", identity, "--database", server.database_url)
    done = routecast("token", "revoke", *given)
    assert done.returncode == 0, done.stderr


def refused(answer: httpx2.Response) -> None:
    """Assert that a request was refused for now, with a reason and a time to come back."""
    assert answer.status_code == 503, answer.text
    assert "Redis" in answer.json()["detail"]
    assert int(answer.headers["retry-after"]) >= 1
    assert "set-cookie" not in answer.headers


def problems(server: Server) -> str:
    """Return what an operator reads of the health of a node."""
    return ask(server, "GET", "/health", headers=bearer(OPERATOR)).text


def test_known_revocations_hold_and_new_sign_ins_are_refused(
    nodes: tuple[Server, Server], redis: RedisServer
) -> None:
    """Nothing is ignored in silence; all goes on when Redis is back."""
    stored, streaming = nodes
    before, during, kept = (token("read", jti=name) for name in ("before", "during", "kept"))
    own = {"Origin": stored.url}
    signed = ask(stored, "POST", SESSION, json={"credential": kept}, headers=own)
    cookie = {"Cookie": signed.headers["set-cookie"].partition(";")[0], **own}
    page = {"host": f"127.0.0.1:{stored.port}", "origin": stored.url, "cookie": cookie["Cookie"]}
    ticket = ask(stored, "POST", "/v1/tickets", headers=bearer(kept)).json()["ticket"]
    for node in nodes:
        assert [status(node, each) for each in (before, during, kept)] == [426] * 3
    revoke(stored, "before")
    for node in nodes:
        until(lambda asked=node: status(asked, before) == 401)

    with connect(stored.ws_url, additional_headers=cookie) as stream:
        stream.recv()
        redis.kill()
        for node in nodes:
            until(lambda asked=node: "sessions: " in problems(asked))
        # Known credentials and revocations hold.
        assert [status(node, before) for node in nodes] == [401, 401]
        assert [status(node, kept) for node in nodes] == [426, 426]
        assert upgrade(stored, **page) == 101
        # A new revocation holds on the node that reads the database. The other node says that it
        # does not know of new ones.
        revoke(stored, "during")
        until(lambda: status(stored, during) == 401)
        assert "keys: " in problems(streaming)
        # Requests that need Redis are refused.
        refused(ask(stored, "POST", SESSION, json={"credential": kept}, headers=own))
        refused(ask(stored, "POST", "/v1/tickets", headers=bearer(kept)))
        refused(ask(stored, "GET", f"/sse/metrics?ticket={ticket}"))
        refused(ask(stored, "GET", "/routing/metrics", headers={"Cookie": "routecast_session=x"}))
        assert upgrade(stored, f"?ticket={ticket}") == 503
        # A session that could not be ended everywhere has not ended: the page must say so.
        refused(ask(stored, "DELETE", SESSION, headers=cookie))
        assert ask(stored, "GET", SESSION, headers=cookie).json()["person"]["subject"] == "ann"
        assert upgrade(stored, **page) == 101

    redis.start()
    until(lambda: status(streaming, during) == 401)
    assert [status(node, before) for node in nodes] == [401, 401]
    for node in nodes:
        until(lambda asked=node: "sessions: " not in problems(asked))
    assert ask(stored, "DELETE", SESSION, headers=cookie).status_code == 204
    assert upgrade(stored, **page) == 401
    assert ask(stored, "GET", f"/sse/metrics?ticket={ticket}").status_code == 401
    again = ask(stored, "POST", SESSION, json={"credential": kept}, headers=own)
    assert again.status_code == 200
