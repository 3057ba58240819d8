"""The fast path of decisions past ASGI: which requests take it, byte by byte on the wire."""

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from tests.support.credentials import SIGNED, token
from tests.support.raw import RawConnection
from tests.support.server import Server

GOOD = b'{"strategy":"hybrid","provider":"gemini"}'
# What a browser's page at our own address sends: such a request takes the way through ASGI.
THROUGH_ASGI = "Origin: http://127.0.0.1:{port}\r\n"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for all tests of this file; each test looks only at what it added."""
    with Server(tmp_path_factory.mktemp("fast")) as running:
        yield running


def post(server: Server, body: bytes, more: str = "", length: int | None = None) -> bytes:
    head = (
        f"POST /v1/decisions HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n"
        f"Content-Length: {len(body) if length is None else length}\r\n{more}\r\n"
    )
    return head.encode() + body


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


def count(body: bytes) -> int:
    total: int = json.loads(body)["total_decisions"]
    return total


def test_requests_ahead_of_their_answers_are_answered_in_order(shared: Server) -> None:
    """Of pipelined decisions and reads, each read counts the decisions before it."""
    before = shared.metrics()["total_decisions"]
    requests = [post(shared, GOOD), get("/routing/metrics"), get("/health")] * 4
    with RawConnection(shared.port) as connection:
        connection.send(b"".join(requests))
        for number in range(1, 5):
            assert json.loads(connection.answer().body)["accepted"] == 1
            assert before + number <= count(connection.answer().body) <= before + 4
            assert "active_connections" in json.loads(connection.answer().body)
    assert shared.metrics()["total_decisions"] == before + 4


def test_a_request_may_come_in_pieces(shared: Server) -> None:
    """A request may be cut anywhere; the connection can be used again."""
    request = post(shared, GOOD)
    with RawConnection(shared.port) as connection:
        for cut in range(1, len(request), 7):
            connection.send(request[:cut])
            connection.send(request[cut:])
            assert json.loads(connection.answer().body)["accepted"] == 1


def test_a_body_has_its_own_time(shared: Server) -> None:
    """The time of a body begins with its request, not with the connection."""
    request = post(shared, GOOD)
    with RawConnection(shared.port) as connection:
        time.sleep(6)  # this is what the client does
        connection.send(request[:-10])
        time.sleep(6)  # and this
        connection.send(request[-10:])
        assert json.loads(connection.answer().body)["accepted"] == 1


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"[%s,{}]" % GOOD, ""),
        (b"[{},{}]", ""),
        (b"[]", ""),
        (b"", ""),
        (b'{"strategy"', ""),
        (b"%s\n%s\n" % (GOOD, GOOD), "Content-Type: application/x-ndjson\r\n"),
        (b"%s\n\xff" % GOOD, "Content-Type: application/jsonl\r\n"),
        (b"[" + b",".join([GOOD] * 1_500) + b"]", ""),
    ],
    ids=["some bad", "all bad", "none", "empty", "cut", "lines", "not UTF-8", "many"],
)
def test_both_ways_give_the_same_answer(shared: Server, body: bytes, kind: str) -> None:
    """The fast path and ASGI give the same status, headers and body, good or bad."""
    answers: list[Any] = []
    for more in ("", THROUGH_ASGI.format(port=shared.port)):
        with RawConnection(shared.port) as connection:
            connection.send(post(shared, body, kind + more))
            answer = connection.answer()
        document = json.loads(answer.body)
        document.get("position", {}).pop("seq", None)
        types = answer.headers["content-type"], "date" in answer.headers
        answers.append((answer.status, types, document))
    assert answers[0] == answers[1]


def test_a_line_to_be_closed_is_closed_after_the_answer(shared: Server) -> None:
    """HTTP/1.0 and `Connection: close` close the connection after the answer."""
    with RawConnection(shared.port) as connection:
        connection.send(post(shared, GOOD, "Connection: close\r\n"))
        assert connection.answer().status == 200
        assert connection.rest() == b""


def test_a_client_that_hangs_up_in_its_body_leaves_nothing(shared: Server) -> None:
    """Nothing of its request is stored, and its memory is free again."""
    before = shared.metrics()["total_decisions"]
    for _ in range(50):
        with RawConnection(shared.port) as connection:
            connection.send(post(shared, GOOD, length=60_000))
    assert shared.post([{"strategy": "a", "provider": "b"}])["accepted"] == 1
    assert shared.metrics()["total_decisions"] == before + 1


def test_an_answer_under_way_is_given_before_the_server_stops(server: Server) -> None:
    """A request that waits for a lock is answered, with `Connection: close`, before the end."""
    holder = sqlite3.connect(server.database, isolation_level=None)
    with RawConnection(server.port) as connection:
        holder.execute("BEGIN IMMEDIATE")
        connection.send(post(server, GOOD))
        while server.instrument("routecast_ingest_queue_decisions") < 1:
            pass
        server.terminate()
        with suppress(ConnectionError):  # that tells that it has begun
            while True:
                RawConnection(server.port).socket.close()
        holder.execute("ROLLBACK")
        answer = connection.answer()
        assert json.loads(answer.body)["accepted"] == 1
        assert answer.headers["connection"] == "close"
        assert connection.rest() == b""
    assert server.wait() == 0
    holder.close()


# -- credentials --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with authentication."""
    with Server(tmp_path_factory.mktemp("guarded"), env=SIGNED) as running:
        yield running


def test_a_request_with_a_credential_takes_the_fast_path(guarded: Server) -> None:
    """Its answer has one field less than that of the way through ASGI."""
    producer = f"Authorization: Bearer {token('write')}\r\n"
    through_asgi = THROUGH_ASGI.format(port=guarded.port)
    with RawConnection(guarded.port) as connection:
        for more in (producer, producer + through_asgi):
            connection.send(post(guarded, GOOD, more))
            answer = connection.answer()
            assert json.loads(answer.body)["accepted"] == 1
            assert ("vary" in answer.headers) is (through_asgi in more)


def test_a_refused_request_does_not_end_its_connection(guarded: Server) -> None:
    """Its body is read and dropped, and the next request is answered, in any order."""
    good, bad = (f"Authorization: Bearer {token(scope)}\r\n" for scope in ("write", "read"))
    requests = [("", 401), (good, 200), (bad, 403), ("Authorization: x\r\n", 401), (good, 200)]
    with RawConnection(guarded.port) as connection:
        connection.send(b"".join(post(guarded, GOOD, more) for more, _ in requests))
        for _, status in requests:
            assert connection.answer().status == status
        for more, status in requests:
            connection.send(post(guarded, GOOD, more))
            assert connection.answer().status == status


def test_two_fields_with_credentials_are_refused(guarded: Server) -> None:
    """It would be unclear which one counts."""
    producer = f"Authorization: Bearer {token('write')}\r\n"
    with RawConnection(guarded.port) as connection:
        connection.send(post(guarded, GOOD, producer + producer))
        assert connection.answer().status == 400
