"""Clients that break the rules: each is limited in memory and time, and gets its close code."""

import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from tests.support.raw import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    RawConnection,
    deflate,
    frame,
    open_stream,
    upgrade_request,
)
from tests.support.server import Server

GOOD = {"strategy": "hybrid", "provider": "gemini"}
MIB = 2**20
LIMIT = 65_536  # bytes in a message

DEFLATE = "permessage-deflate"
SMALL_WINDOW = "permessage-deflate; server_max_window_bits=10"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for tests that leave nothing behind on it."""
    with Server(tmp_path_factory.mktemp("shared")) as running:
        yield running


# -- frames -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        pytest.param(frame(TEXT, b"x", masked=False), 1002, id="unmasked"),
        pytest.param(frame(TEXT, b"x", reserved=1), 1002, id="reserved bit 3"),
        pytest.param(frame(TEXT, b"x", reserved=2), 1002, id="reserved bit 2"),
        pytest.param(frame(TEXT, b"x", reserved=4), 1002, id="reserved bit 1, nothing agreed"),
        pytest.param(frame(3, b"x"), 1002, id="reserved opcode"),
        pytest.param(frame(11, b"x"), 1002, id="reserved control opcode"),
        pytest.param(frame(PING, b"x" * 126), 1002, id="ping over 125 bytes"),
        pytest.param(frame(CLOSE, b"\x03\xe8" + b"x" * 124), 1002, id="close over 125 bytes"),
        pytest.param(frame(PING, b"x", fin=False), 1002, id="fragmented ping"),
        pytest.param(frame(CONTINUATION, b"x"), 1002, id="nothing to continue"),
        pytest.param(frame(TEXT, b"x", fin=False) + frame(TEXT), 1002, id="not a continuation"),
        pytest.param(frame(CLOSE, b"\x03"), 1002, id="close with one byte"),
        pytest.param(frame(CLOSE, (999).to_bytes(2)), 1002, id="close code 999"),
        pytest.param(frame(CLOSE, (1005).to_bytes(2)), 1002, id="close code 1005"),
        pytest.param(frame(CLOSE, (1006).to_bytes(2)), 1002, id="close code 1006"),
        pytest.param(frame(CLOSE, (1016).to_bytes(2)), 1002, id="close code 1016"),
        pytest.param(frame(CLOSE, (5000).to_bytes(2)), 1002, id="close code 5000"),
        pytest.param(frame(CLOSE, b"\x03\xe8\xff"), 1007, id="close reason not UTF-8"),
        pytest.param(frame(TEXT, b"\xff"), 1007, id="not UTF-8"),
        pytest.param(frame(TEXT, b"\xc3"), 1007, id="half a character"),
        pytest.param(frame(TEXT, b"\xed\xa0\x80"), 1007, id="a surrogate"),
        pytest.param(frame(TEXT, b"\xff") + frame(CLOSE), 1007, id="not UTF-8, and a close"),
        pytest.param(frame(TEXT, b"\xff", fin=False), 1007, id="not UTF-8, in a first part"),
        pytest.param(
            frame(TEXT, b"\xe2\x82", fin=False) + frame(CONTINUATION, b"\xff", fin=False),
            1007,
            id="not UTF-8, over two parts",
        ),
        pytest.param(frame(TEXT, b"x" * (LIMIT + 1)), 1009, id="over the limit"),
        pytest.param(frame(BINARY, b"x" * (4 * MIB)), 1009, id="far over the limit"),
        pytest.param(
            frame(TEXT, b"x" * LIMIT, fin=False) + frame(CONTINUATION, b"x"),
            1009,
            id="over the limit in two parts",
        ),
    ],
)
def test_a_broken_rule_has_its_code(shared: Server, sent: bytes, code: int) -> None:
    """The close code says which rule the client broke, and the server ends the connection."""
    before = shared.closed(code)
    with open_stream(shared.port, "?interval=60") as stream:
        started = time.monotonic()
        stream.send(sent)
        assert stream.close_code() == code
        assert time.monotonic() - started < 2
    shared.wait_for_active(0, 5)
    assert shared.closed(code) == before + 1


@pytest.mark.parametrize("extensions", [DEFLATE, SMALL_WINDOW])
@pytest.mark.parametrize(
    ("sent", "code"),
    [
        pytest.param(frame(TEXT, deflate(b"0" * 10 * MIB), reserved=4), 1009, id="at once"),
        pytest.param(
            frame(TEXT, deflate(b"0" * LIMIT), reserved=4, fin=False)
            + frame(CONTINUATION, deflate(b"0")),
            1009,
            id="in parts",
        ),
        pytest.param(frame(TEXT, deflate(b"\xff"), reserved=4), 1007, id="to what is not UTF-8"),
        pytest.param(frame(TEXT, b"\xff\xff", reserved=4), 1002, id="to nothing"),
        pytest.param(
            frame(TEXT, deflate(b"x"), reserved=4, fin=False)
            + frame(CONTINUATION, deflate(b"x"), reserved=4),
            1002,
            id="with a mark on the second part",
        ),
    ],
)
def test_a_message_that_inflates_over_the_limit(
    shared: Server, extensions: str, sent: bytes, code: int
) -> None:
    """A small compressed message is stopped when its decompressed size reaches the limit."""
    before = shared.memory()
    with open_stream(shared.port, "?interval=60", extensions=extensions) as stream:
        stream.send(sent)
        assert stream.close_code() == code
    assert shared.memory() - before < 4 * MIB


@pytest.mark.parametrize("extensions", [None, DEFLATE, SMALL_WINDOW])
def test_allowed_messages_are_ignored(shared: Server, extensions: str | None) -> None:
    """Messages up to the limit, whole, fragmented or compressed, do nothing; a ping gets a pong."""
    euro = "€".encode()
    allowed = [
        frame(TEXT, b"x" * LIMIT),
        frame(BINARY, b"\xff" * LIMIT),
        frame(TEXT, euro[:1], fin=False) + frame(PING, b"1") + frame(CONTINUATION, euro[1:]),
        frame(TEXT, fin=False) + frame(CONTINUATION, fin=False) * 99 + frame(CONTINUATION),
        frame(PONG, b"nobody asked"),
    ]
    if extensions is not None:
        allowed.append(frame(TEXT, deflate(b"0" * LIMIT), reserved=4))
    with open_stream(shared.port, "?interval=60", extensions=extensions) as stream:
        first = stream.frame()
        assert first is not None
        assert first[0] == TEXT
        stream.send(b"".join(allowed) + frame(PING, b"2"))
        assert [stream.frame(), stream.frame()] == [(PONG, b"1"), (PONG, b"2")]
        stream.send(frame(CLOSE, (1000).to_bytes(2)))
        assert stream.close_code() == 1000


def test_unknown_close_codes_are_counted_together(server: Server) -> None:
    """A client cannot add metrics by sending close codes of its own."""
    for code in range(3_000, 3_020):
        with open_stream(server.port) as stream:
            stream.send(frame(CLOSE, code.to_bytes(2)))
            assert stream.close_code() == code
    server.wait_for_active(0, 5)
    assert server.instrument('routecast_connections_closed_total{code="other"}') == 20
    assert 'code="3000"' not in server.http.get("/metrics").text


# -- floods -------------------------------------------------------------------------------------


def flood(stream: RawConnection, data: bytes, seconds: float) -> int:
    """Send data repeatedly, without reading, until the connection ends; return its length."""
    deadline, sent = time.monotonic() + seconds, 0
    stream.socket.settimeout(seconds)
    try:
        while time.monotonic() < deadline:
            sent += stream.socket.send(data)
    except OSError:
        return sent
    raise AssertionError(f"after {seconds} s and {sent} bytes the line was still open")


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(frame(PING) * 10_000, id="pings"),
        pytest.param(frame(PONG) * 10_000, id="pongs"),
        pytest.param(frame(TEXT) * 10_000, id="empty messages"),
        pytest.param(
            frame(TEXT, fin=False) + frame(CONTINUATION, fin=False) * 10_000, id="empty parts"
        ),
    ],
)
def test_a_flood_is_cut_off(shared: Server, data: bytes) -> None:
    """A flood of frames from a client that does not read ends with 4429, and keeps no memory."""
    memory, before = shared.memory(), shared.closed(4429)
    with open_stream(shared.port, "?interval=60", receive_buffer=4096) as stream:
        flood(stream, data, 5)
    shared.wait_for_active(0, 5)
    assert shared.closed(4429) == before + 1
    assert shared.memory() - memory < 4 * MIB


def test_a_flood_of_large_pings_is_cut_off(shared: Server) -> None:
    """It ends with 4429, or with 4409 if the unread pongs fill the socket first."""
    memory, before = shared.memory(), shared.closed(4429) + shared.closed(4409)
    with open_stream(shared.port, "?interval=60", receive_buffer=4096) as stream:
        flood(stream, frame(PING, b"x" * 125) * 1_000, 15)
    shared.wait_for_active(0, 5)
    assert shared.closed(4429) + shared.closed(4409) == before + 1
    assert shared.memory() - memory < 4 * MIB


def test_one_frame_over_the_limit_closes_the_connection(shared: Server) -> None:
    """Each ping up to the limit has a pong; the next one closes the connection with 4429."""
    with open_stream(shared.port, "?interval=60") as stream:
        assert stream.frame() is not None
        for _ in range(2):
            stream.send(frame(PING, b"x") * 500)
            assert [stream.frame() for _ in range(500)] == [(PONG, b"x")] * 500
        stream.send(frame(PING, b"x") * 500)
        assert stream.close_code() == 4429


def test_a_flood_does_not_stop_others(shared: Server) -> None:
    """While clients flood the server again and again, others are answered in time."""
    over = threading.Event()

    def attack() -> None:
        while not over.is_set():
            with open_stream(shared.port, "?interval=60") as stream:
                flood(stream, frame(PING) * 40_000, 5)

    with ThreadPoolExecutor() as pool:
        attacks = [pool.submit(attack) for _ in range(2)]
        try:
            waits = []
            for _ in range(50):
                started = time.monotonic()
                with open_stream(shared.port, "?interval=60") as stream:
                    assert stream.frame() is not None
                waits.append(time.monotonic() - started)
        finally:
            over.set()
        for attacked in attacks:
            attacked.result()
    assert sorted(waits)[25] < 0.5, waits
    shared.wait_for_active(0, 5)


def test_endless_fragments_are_cut_off(shared: Server) -> None:
    """A message of very many fragments closes the connection with 4429."""
    with open_stream(shared.port, "?interval=60") as stream:
        stream.send(frame(TEXT, b"x", fin=False))
        stream.send(frame(CONTINUATION, b"x", fin=False) * 2_000)
        assert stream.close_code() == 4429


# -- readers ------------------------------------------------------------------------------------


def fill(server: Server) -> None:
    """Give the server enough names that a document has about 50 kB."""
    server.post([{**GOOD, "strategy": f"{number:03}" + "x" * 60} for number in range(400)])


def test_a_reader_of_a_byte_a_second_is_disconnected(server: Server) -> None:
    """A client that reads a byte a second is closed with 4409 after ten seconds."""
    fill(server)
    before = server.memory()
    with open_stream(server.port, "?interval=0.1", receive_buffer=4096) as stream:
        started = time.monotonic()
        while server.active():
            assert time.monotonic() - started < 20
            stream.socket.recv(1)
            time.sleep(1)  # this is what the client does
        assert time.monotonic() - started > 9
    assert server.closed(4409) == 1
    assert server.instrument("routecast_send_failures_total") == 1
    assert server.memory() - before < 4 * MIB


def test_stalled_readers_hold_little_memory(server: Server) -> None:
    """A hundred clients that read nothing hold a limited memory, and are all disconnected."""
    fill(server)
    before = server.memory()
    stalled = [open_stream(server.port, "?interval=0.1", receive_buffer=4096) for _ in range(100)]
    server.wait_for_active(100, 5)
    most = 0
    started = time.monotonic()
    while server.active():
        assert time.monotonic() - started < 20
        most = max(most, server.memory())
    for stream in stalled:
        stream.socket.close()
    assert server.closed(4409) == 100
    assert (most - before) / 100 < 128 * 1024


# -- handshakes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("replaced", "status"),
    [
        ({"sec_websocket_key": None}, 400),
        ({"sec_websocket_key": "c2hvcnQ="}, 400),
        ({"sec_websocket_key": "not base64"}, 400),
        ({"content_length": "5"}, 400),
        ({"x": "y" * 40_000}, 400),
        ({"host": None}, 400),
    ],
)
def test_a_bad_upgrade_is_refused(
    shared: Server, replaced: dict[str, str | None], status: int
) -> None:
    """An upgrade that breaks a rule gets an answer that says so, and the connection ends."""
    with RawConnection(shared.port) as connection:
        connection.send(upgrade_request(**replaced))
        assert connection.answer().status == status
        assert connection.rest() == b""


@pytest.mark.parametrize("version", [None, "8", "12"])
def test_an_upgrade_of_another_version(shared: Server, version: str | None) -> None:
    """The answer names the supported version (RFC 6455, 4.4)."""
    with RawConnection(shared.port) as connection:
        connection.send(upgrade_request(sec_websocket_version=version))
        answer = connection.answer()
        assert (answer.status, answer.headers["sec-websocket-version"]) == (400, "13")


def test_an_upgrade_by_another_method(shared: Server) -> None:
    """Only a GET is upgraded (RFC 6455, 4.1); the `Upgrade` of another method is ignored."""
    with RawConnection(shared.port) as connection:
        connection.send(upgrade_request().replace(b"GET ", b"POST ", 1))
        assert connection.answer().status == 405
        connection.send(WHOLE)
        assert connection.answer().status == 200


def test_an_upgrade_with_a_field_twice(shared: Server) -> None:
    """A field that the handshake does not use may come any number of times."""
    with RawConnection(shared.port) as connection:
        connection.send(upgrade_request().removesuffix(b"\r\n") + b"X: 1\r\nX: 2\r\n\r\n")
        assert connection.answer().status == 101


@pytest.mark.parametrize(
    "extra",
    [
        {"sec_websocket_key": "dGhlIHNhbXBsZSBub25jZQ== \t"},
        {"sec_websocket_version": "13 "},
        {"upgrade": "websocket "},
        {"connection": "Upgrade\r\nConnection: keep-alive"},
        {"connection": "keep-alive, Upgrade"},
        {"upgrade": "WebSocket"},
    ],
)
def test_an_upgrade_with_spaces_and_lists(shared: Server, extra: dict[str, str]) -> None:
    """Trailing space and a list in two fields are accepted (RFC 9112, 5.1; RFC 9110, 5.3)."""
    with RawConnection(shared.port) as connection:
        connection.send(upgrade_request(**extra))
        assert connection.answer().status == 101


@pytest.mark.parametrize("name", ["Host", "Origin", "Sec-WebSocket-Key", "Sec-WebSocket-Version"])
def test_an_upgrade_with_a_field_of_the_handshake_twice(shared: Server, name: str) -> None:
    """Such an upgrade is refused, because it is unclear which field counts (RFC 9112, 3.2)."""
    twice = f"{name}: example\r\n{name}: example\r\n\r\n".encode()
    with RawConnection(shared.port) as connection:
        connection.send(upgrade_request().removesuffix(b"\r\n") + twice)
        assert connection.answer().status == 400
        assert connection.rest() == b""


def test_an_upgrade_with_bytes_beyond_ascii(shared: Server) -> None:
    """It is accepted: some browsers send such bytes in cookies and referrers (RFC 9110, 5.5)."""
    with RawConnection(shared.port) as connection:
        connection.send(upgrade_request().removesuffix(b"\r\n") + "Cookie: né\r\n\r\n".encode())
        assert connection.answer().status == 101


def test_an_upgrade_at_another_path(shared: Server) -> None:
    """The upgrade is ignored, and the request is answered as any other."""
    with RawConnection(shared.port) as connection:
        connection.send(upgrade_request("/ws/nowhere"))
        answer = connection.answer()
        assert (answer.status, answer.headers["content-type"]) == (404, "application/problem+json")
        connection.send(upgrade_request("/health"))
        assert connection.answer().status == 200


def test_a_plain_request_at_the_stream(shared: Server) -> None:
    """A request without an upgrade gets 426, or the error of its query or method."""
    answer = shared.http.get("/ws/metrics")
    assert answer.status_code == 426
    assert answer.headers["upgrade"] == "websocket"
    assert answer.headers["content-type"] == "application/problem+json"
    assert shared.http.get("/ws/metrics?window=2h").json()["parameter"] == "window"
    assert shared.http.post("/ws/metrics").status_code == 405
    assert shared.active() == 0


@pytest.mark.parametrize(
    "head",
    [
        b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 40_000 + b"\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 300_000,
        b"GET /" + b"y" * 40_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
        upgrade_request(x="y" * 40_000),
        b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03",
    ],
    ids=["one header", "one without end", "address", "many headers", "upgrade", "TLS"],
)
def test_heads_over_the_limit(shared: Server, head: bytes) -> None:
    """A head that is no HTTP, or has more than 32 KiB, is refused at once with 400."""
    with RawConnection(shared.port) as connection:
        connection.send(head)
        assert connection.answer().status == 400
        assert connection.rest() == b""


WHOLE = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /v1/decisions HTTP/1.1\r\nHost: x\r\n"
# What a client sends of a request that it never ends, and the statuses of all answers to that.
SLOW_HEADS = {
    "nothing": (b"", [408]),
    "a blank line": (b"\r\n", [408]),
    "half a request line": (b"GET /hea", [408]),
    "half a head": (b"GET /ws/metrics HTTP/1.1\r\nHost: x\r\n", [408]),
    "half of a second head": (WHOLE + b"GET /health HTTP/1.1\r\nHost:", [200, 408]),
}
SLOW_BODIES = {
    "half a decision": (POST + b"Content-Length: 999\r\n\r\n{", [400]),
    "half a decision, chunked": (POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{", [400]),
    "half of many": (POST + b"Content-Length: 99999\r\n\r\n[", [400]),
    "one through ASGI": (
        POST + b"Content-Encoding: identity\r\nContent-Length: 99\r\n\r\n{",
        [400],
    ),
    "an upgrade's": (
        POST + b"Upgrade: h2c\r\nConnection: upgrade\r\nContent-Length: 99\r\n\r\n{",
        [400],
    ),
    "none of it": (POST + b"Content-Length: 999\r\n\r\n", [400]),
    "one to nothing": (b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 999\r\n\r\n", [404]),
    "trailers": (POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: ", [400]),
}


@pytest.mark.parametrize(("slow", "seconds"), [(SLOW_HEADS, 10), (SLOW_BODIES, 30)])
def test_a_request_that_does_not_end(
    shared: Server, slow: dict[str, tuple[bytes, list[int]]], seconds: float
) -> None:
    """A head that takes ten seconds or a body that takes thirty is answered with an error."""
    connections = {name: RawConnection(shared.port) for name in slow}
    dripping = {name: RawConnection(shared.port) for name in slow if slow[name][0].strip()}
    started = time.monotonic()
    for name, connection in [*connections.items(), *dripping.items()]:
        connection.send(slow[name][0])
    while dripping:
        assert time.monotonic() - started < seconds + 10, f"still open: {sorted(dripping)}"
        for name in [name for name, connection in dripping.items() if connection.ended]:
            dripping.pop(name).socket.close()
        for connection in dripping.values():
            with suppress(OSError):
                connection.send(b"1")
        time.sleep(0.5)  # this is what the client does
    for name, connection in connections.items():
        assert [connection.answer().status for _ in slow[name][1]] == slow[name][1], name
        assert connection.rest() == b""
        connection.socket.close()
    assert seconds - 1 < time.monotonic() - started < seconds + 10
    assert "Traceback" not in shared.log.read_text()


def test_an_upgrade_before_the_last_answer(shared: Server) -> None:
    """An upgrade behind an unanswered request is refused after that request's answer."""
    with RawConnection(shared.port) as connection:
        connection.send(WHOLE + upgrade_request())
        assert [connection.answer().status for _ in range(2)] == [200, 400]
        assert connection.rest() == b""
    assert "Traceback" not in shared.log.read_text()


def test_an_upgrade_on_a_full_connection(server: Server) -> None:
    """A stream whose socket is full from the start is closed with 4409 in time."""
    fill(server)
    served = 'routecast_snapshots_served_total{source="live"}'
    before, count = server.memory(), server.instrument(served)
    with RawConnection(server.port, receive_buffer=4096) as connection:
        for answered in range(1, 4):  # more than the kernel takes, less than makes uvicorn wait
            connection.send(b"GET /routing/metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            while server.instrument(served) < count + answered:
                assert not connection.ended
        connection.send(upgrade_request("/ws/metrics?interval=0.1"))
        server.wait_for_active(1, 5)
        server.wait_for_active(0, 20)
    assert server.closed(4409) == 1
    assert server.memory() - before < 2 * MIB


def test_an_upgrade_on_a_connection_that_drains(server: Server) -> None:
    """A client that reads the earlier answers stays connected after its upgrade."""
    fill(server)
    with RawConnection(server.port, receive_buffer=4096) as connection:
        served = 'routecast_snapshots_served_total{source="live"}'
        count = server.instrument(served)
        connection.send(b"GET /routing/metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 3)
        while server.instrument(served) < count + 3:
            assert not connection.ended
        connection.send(upgrade_request(sec_websocket_protocol="routecast.v1.json"))
        server.wait_for_active(1, 5)
        assert [connection.answer().status for _ in range(4)] == [200, 200, 200, 101]
        until = time.monotonic() + 11  # a second more than who reads nothing would have
        while time.monotonic() < until:
            connection.send(frame(PING, b"here"))
            while (read := connection.frame()) != (PONG, b"here"):
                assert read is not None
            time.sleep(0.2)  # this is what the client does
    server.wait_for_active(0, 5)
    assert server.instrument("routecast_send_failures_total") == 0


def test_a_reader_of_nothing_over_http(server: Server) -> None:
    """An HTTP client that reads no answer is disconnected in time, too."""
    fill(server)
    with RawConnection(server.port, receive_buffer=4096) as connection:
        connection.send(b"GET /routing/metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 10)
        connection.wait_for_end(25)


def test_requests_ahead_of_their_answers(shared: Server) -> None:
    """A few pipelined requests are answered; a flood of them is refused, and keeps no memory."""
    with RawConnection(shared.port) as connection:
        connection.send(WHOLE * 10)
        assert [connection.answer().status for _ in range(10)] == [200] * 10
    before = shared.memory()
    connections = [RawConnection(shared.port, receive_buffer=4096) for _ in range(20)]
    for connection in connections:
        connection.socket.setblocking(False)
        with suppress(BlockingIOError):
            connection.socket.send(WHOLE * 50_000)
    for connection in connections:
        connection.wait_for_end(15)
        connection.socket.close()
    assert shared.memory() - before < 8 * MIB
    assert "Traceback" not in shared.log.read_text()


# -- crowds -------------------------------------------------------------------------------------


def come_and_go(server: Server, count: int) -> None:
    """Connect and disconnect at once, in every possible way."""
    for number in range(count):
        connection = RawConnection(server.port)
        if number % 4:
            connection.send(upgrade_request())
        if number % 4 > 1:
            assert connection.answer().status == 101
        if number % 4 > 2:
            connection.frame()
        if number % 8 > 3:
            connection.reset()
        else:
            connection.socket.close()


def test_thousands_come_and_go(server: Server) -> None:
    """No connection and no memory is left of thousands of short connections."""
    come_and_go(server, 1_000)  # to warm up
    server.wait_for_active(0, 5)
    before = server.memory()
    come_and_go(server, 4_000)
    server.wait_for_active(0, 5)
    assert server.instrument("routecast_connections") == 0
    opened = server.instrument("routecast_connections_opened_total")
    text = server.http.get("/metrics").text
    closed = re.findall(
        r'^routecast_connections_closed_total{code="\w+"} (\S+)$', text, re.MULTILINE
    )
    assert sum(map(float, closed)) == opened
    assert server.memory() - before < 2 * MIB
    assert "Traceback" not in server.log.read_text()
