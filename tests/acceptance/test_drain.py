"""How a server stops: each stream gets a time to reconnect, and no client can delay the stop."""

import re
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.raw import CLOSE, RawConnection, frame, open_stream
from tests.support.server import Server

GOOD = {"strategy": "hybrid", "provider": "gemini"}
COUNT = 200


def test_every_stream_is_told_when_to_reconnect(server: Server) -> None:
    """Each stream is closed with 1012 and its own delay; the delays spread over two seconds."""
    streams = [open_stream(server.port) for _ in range(COUNT)]
    server.wait_for_active(COUNT, 10)
    started = time.monotonic()
    server.terminate()
    delays = []
    for stream in streams:
        code, reason = stream.closing(answered=True)
        assert code == 1012
        told = re.fullmatch(r"reconnect_after_ms=(\d+)", reason)
        assert told is not None
        delays.append(int(told[1]))
        stream.socket.close()
    assert server.wait() == 0
    assert time.monotonic() - started < 10
    assert all(0 <= delay <= 2_000 for delay in delays)
    # Even: each half second has its quarter of them, give or take what chance allows.
    quarters = [sum(delay // 500 == quarter for delay in delays) for quarter in range(4)]
    assert all(COUNT / 4 - 30 < count < COUNT / 4 + 30 for count in quarters), quarters


def test_no_client_delays_the_end(server: Server) -> None:
    """The server ends within ten seconds despite stalled readers and half requests."""
    server.post([{**GOOD, "strategy": f"{number:03}" + "x" * 60} for number in range(400)])
    stalled = [open_stream(server.port, "?interval=0.1", receive_buffer=4096) for _ in range(20)]
    silent = [open_stream(server.port, "?interval=60") for _ in range(20)]
    halves = [RawConnection(server.port) for _ in range(20)]
    for connection in halves:
        connection.send(b"GET /hea")
    events = [RawConnection(server.port, receive_buffer=4096) for _ in range(20)]
    for connection in events:
        connection.send(b"GET /sse/metrics?interval=0.1 HTTP/1.1\r\nHost: x\r\n\r\n")
    server.wait_for_active(60, 5)
    while server.instrument("routecast_frames_conflated_total") < 40:
        assert server.active() == 60
    started = time.monotonic()
    server.terminate()
    for stream in silent:
        assert stream.close_code() == 1012
    assert server.wait() == 0
    assert time.monotonic() - started < 10
    for connection in (*stalled, *silent, *halves, *events):
        connection.socket.close()
    assert "Traceback" not in server.log.read_text()


def test_a_slow_reader_gets_the_close_code_too(server: Server) -> None:
    """A slow reader gets the rest of its frame and 1012, and nothing more."""
    server.post([{**GOOD, "strategy": f"{number:03}" + "x" * 60} for number in range(400)])
    with open_stream(server.port, "?interval=0.1", receive_buffer=4096) as stream:
        while not server.instrument("routecast_frames_conflated_total"):
            assert server.active() == 1
        server.terminate()
        with suppress(ConnectionError):  # that tells that it has begun
            while True:
                RawConnection(server.port).socket.close()
        seen = []
        while (read := stream.frame()) is not None:
            seen.append(read[0])
            if read[0] == CLOSE:
                assert read[1].startswith((1012).to_bytes(2) + b"reconnect_after_ms=")
        assert seen.count(CLOSE) == 1
        assert seen[-1] == CLOSE
    assert server.wait() == 0


def test_a_close_under_way_is_not_cut_off(server: Server) -> None:
    """A client that closes when the server stops gets its own close code back."""
    with open_stream(server.port) as stream:
        assert stream.frame() is not None
        stream.send(frame(CLOSE, (1000).to_bytes(2)))
        server.terminate()
        assert stream.close_code() == 1000
    assert server.wait() == 0


@pytest.mark.parametrize("pause", [0.0, 0.3, 0.6, 0.9])
def test_a_node_that_still_starts_stops_too(tmp_path: Path, pause: float) -> None:
    """A signal that comes during the start is not lost."""
    server = Server(tmp_path)
    server.launch()
    server.wait_for_log("Listening on")
    time.sleep(pause)  # so that the signal comes at different points of the start
    server.terminate()
    assert server.wait() in (0, -signal.SIGTERM)
    server.http.close()
