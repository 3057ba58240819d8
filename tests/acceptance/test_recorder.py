"""`Recorder` against a real and a scripted server: no decision is lost or counted twice."""

import gzip
import json
import logging
import math
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec
import pytest

from routecast.client import Counters, Recorder
from routecast.protocol import DecisionIn
from tests.support.ports import free_port
from tests.support.proxies_and_sites import plain_proxy
from tests.support.server import Server
from tests.support.waiting import until

WAIT_SECONDS = 60.0
DECISION: dict[str, Any] = {"strategy": "hybrid", "provider": "gemini", "confidence": 0.9}


def total(server: Server) -> int:
    count: int = server.metrics()["total_decisions"]
    return count


def wait_for(recorder: Recorder, name: str, least: int = 1) -> Counters:
    """Wait until a counter reaches a value."""
    deadline = time.monotonic() + WAIT_SECONDS
    while getattr(counters := recorder.counters, name) < least:
        assert time.monotonic() < deadline, counters
        time.sleep(0.005)  # time between two checks; the answer is the event
    return counters


def in_flight(recorder: Recorder) -> int:
    """Return the number of decisions that were sent and are not answered; no counter has it."""
    ((_, sender),) = recorder._mine.values()
    return len(sender._in_flight.left)


# -- a server that plays a part -----------------------------------------------------------------


class Stand:
    """A server that gives each batch the next answer: status, headers and, with 200, a receipt."""

    def __init__(self, *answers: tuple[int, dict[str, str]]) -> None:
        self.answers = list(answers)
        self.batches: list[list[dict[str, Any]]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.url = ""
        self.answering = threading.Event()
        self.answering.set()

    def take(self, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        assert self.answering.wait(WAIT_SECONDS)
        if headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.times.append(time.monotonic())
        self.headers.append(headers)
        self.batches.append(json.loads(body))
        status, more = self.answers.pop(0) if self.answers else (200, {})
        receipt = {"accepted": len(self.batches[-1]), "duplicates": 0, "rejected": []}
        receipt |= {"rejected_count": 0, "position": {"epoch": "e", "seq": 1}}
        if status == 200:
            return status, more, json.dumps(receipt).encode()
        problem = {"title": "no", "status": status, "detail": "because"}
        kind = {"Content-Type": "application/problem+json"}
        return status, kind | more, json.dumps(problem).encode()


@contextmanager
def stand(*answers: tuple[int, dict[str, str]]) -> Iterator[Stand]:
    """Run a server that gives these answers, and then 200."""
    there = Stand(*answers)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # one packet, or the client's kernel takes its time to acknowledge the first

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status, headers, answer = there.take(dict(self.headers), body)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(answer))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        there.url = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield there
        finally:
            server.shutdown()
            thread.join()


# -- what is recorded ---------------------------------------------------------------------------


def test_decisions_arrive(server: Server) -> None:
    """Decisions arrive from every form of call, without fields that are None; totals are exact."""
    with Recorder(server.url) as recorder:
        recorder.record(strategy="hybrid", provider="gemini", confidence=0.9, cost=None)
        recorder.record(DECISION)
        recorder.record(DECISION, provider="claude", cost=0.5)
        recorder.record(DecisionIn("hybrid", "gemini", confidence=0.9))
        assert recorder.flush(WAIT_SECONDS)
        assert recorder.counters == Counters(sent=4)
    metrics = server.metrics(fields="total_decisions,avg_confidence,provider_usage,cost")
    del metrics["timestamp"]
    assert metrics == {
        "total_decisions": 4,
        "avg_confidence": 0.9,
        "provider_usage": {"gemini": 3, "claude": 1},
        "cost": {"total": 0.5, "priced": 1, "unpriced": 3},
    }


def test_ids_and_times_are_those_of_the_call() -> None:
    """Each decision has its own id and the time of the call; later changes have no effect."""
    with stand() as there, Recorder(there.url, linger=60) as recorder:
        given = dict(DECISION)
        before = time.time()
        recorder.record(given)
        recorder.record(given, id="mine", timestamp="2026-01-31T12:34:56Z")
        after = time.time()
        given["strategy"] = "changed"
        recorder.flush(WAIT_SECONDS)
        first, second = there.batches[0]
    assert before <= first["timestamp"] <= after
    assert len(first["id"]) > 16
    assert (second["id"], second["timestamp"]) == ("mine", "2026-01-31T12:34:56Z")
    assert first["strategy"] == "hybrid"


def test_large_batches_are_compressed_and_split() -> None:
    """A body has at most 1 MB and at most `batch` decisions."""
    with stand() as there, Recorder(there.url, batch=700, linger=60) as recorder:
        for _ in range(1000):
            recorder.record(DECISION, reason="x" * 5000)
        recorder.flush(WAIT_SECONDS)
        for _ in range(800):
            recorder.record(DECISION)
        recorder.flush(WAIT_SECONDS)
    sizes = [len(json.dumps(batch)) for batch in there.batches]
    assert sum(map(len, there.batches)) == 1800
    assert max(sizes) < 1_100_000
    assert max(map(len, there.batches)) == 700
    assert there.headers[0]["Content-Encoding"] == "gzip"


def test_one_connection_serves_many_batches(server: Server) -> None:
    """Batches share a connection; if the server closes it between two batches, nothing is lost."""
    with Recorder(server.url, linger=0) as recorder:
        for _ in range(3):
            recorder.record(DECISION)
            assert recorder.flush(WAIT_SECONDS)
        server.stop()
        server.start()
        recorder.record(DECISION)
        assert recorder.flush(WAIT_SECONDS)
        assert recorder.counters == Counters(sent=4)


# -- what goes wrong ----------------------------------------------------------------------------


def test_a_dead_server_loses_nothing(server: Server) -> None:
    """Decisions recorded while the server is down arrive once when it is back."""
    with Recorder(server.url) as recorder:
        recorder.record(DECISION)
        assert recorder.flush(WAIT_SECONDS)
        server.kill()
        for _ in range(500):
            recorder.record(DECISION)
        assert not recorder.flush(0.1)
        wait_for(recorder, "retried")
        server.start()
        for _ in range(500):
            recorder.record(DECISION)
        assert recorder.flush(WAIT_SECONDS)
        counters = recorder.counters
    assert (counters.sent, counters.dropped, counters.waiting) == (1001, 0, 0)
    assert total(server) == 1001


def test_a_lost_answer_counts_nothing_twice(server: Server) -> None:
    """A batch whose answer was lost is sent again with the same ids, and counts once."""
    with plain_proxy(server, lose=2) as url, Recorder(url) as recorder:
        for _ in range(10):
            recorder.record(DECISION)
        assert recorder.flush(WAIT_SECONDS)
        counters = recorder.counters
    assert (counters.sent, counters.duplicates) == (0, 10)
    assert counters.retried >= 10
    assert total(server) == 10


def test_a_recorder_waits_for_retry_after() -> None:
    """After 503 and 429 the same ids are sent again when `Retry-After` has passed."""
    with stand((503, {"Retry-After": "1"}), (429, {})) as there, Recorder(there.url) as recorder:
        recorder.record(DECISION)
        assert recorder.flush(WAIT_SECONDS)
        assert recorder.counters == Counters(sent=1, retried=2)
    assert there.times[1] - there.times[0] >= 1
    assert there.batches[0] == there.batches[1] == there.batches[2]


def test_a_full_server_is_waited_for(server: Server) -> None:
    """A recorder sends again after a real 503, of a server whose database is locked."""
    lock = sqlite3.connect(server.database, isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    with Recorder(server.url) as recorder:
        recorder.record(DECISION)
        wait_for(recorder, "retried")
        lock.execute("ROLLBACK")
        assert recorder.flush(WAIT_SECONDS)
        assert recorder.counters.sent == 1
    lock.close()


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413])
def test_refused_batches_are_not_sent_again(status: int, caplog: pytest.LogCaptureFixture) -> None:
    """Refused decisions are counted and logged once, and later decisions are sent."""
    with stand((status, {}), (status, {})) as there, Recorder(there.url) as recorder:
        for _ in range(3):
            recorder.record(DECISION)
            recorder.flush(WAIT_SECONDS)
        assert recorder.counters == Counters(sent=1, rejected=2)
        assert len(there.batches) == 3
    told = [record for record in caplog.records if "because" in record.getMessage()]
    assert len(told) == 1


def test_bad_decisions_are_counted_and_reported_once(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """Decisions that the server rejects or that cannot be encoded are counted and logged once.

    Good decisions are not affected. A field that cannot be used costs only itself, and is logged
    too.
    """
    with Recorder(server.url) as recorder:
        for _ in range(3):
            recorder.record(DECISION, timestamp=-1)
            recorder.record(DECISION, provider=object())
            recorder.record(5)  # type: ignore[arg-type]  # -- the point
            recorder.record(DECISION, reason="x" * 100_000)
            recorder.record(DECISION)
            assert recorder.flush(WAIT_SECONDS)
        assert recorder.counters == Counters(sent=6, rejected=9)
    assert len(caplog.records) == 4
    assert total(server) == 6


def test_each_reason_in_a_batch_is_reported(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """Each different reason of rejection is logged, in any order and number of decisions."""
    with Recorder(server.url, linger=60) as recorder:
        recorder.record(DECISION)
        for _ in range(3):
            recorder.record(DECISION, timestamp=-1)
            recorder.record(DECISION, strategy="")
            recorder.record(DECISION, provider="")
        assert recorder.flush(WAIT_SECONDS)
        assert recorder.counters == Counters(sent=1, rejected=9)
    told = [record.getMessage() for record in caplog.records]
    assert [message.split(": ")[1] for message in told] == ["timestamp", "strategy", "provider"]


def test_a_bad_optional_field_costs_only_itself(server: Server) -> None:
    """The server counts the decision without the field, and counts the warning in `/metrics`."""
    with Recorder(server.url, linger=60) as recorder:
        recorder.record(DECISION, cost=-1, id="i" * 200)
        recorder.record(DECISION, confidence=1.0000000002, id="i" * 200 + "j")
        recorder.record(DECISION, input_tokens=374.0, model="m" * 200)
        assert recorder.flush(WAIT_SECONDS)
        assert recorder.counters == Counters(sent=3)
    assert total(server) == 3
    causes = [("cost", "negative", 1), ("confidence", "too_large", 1), ("id", "hashed", 2)]
    for field, code, count in (*causes, ("model", "truncated", 1)):
        name = f'routecast_field_warnings_total{{code="{code}",field="{field}"}}'
        assert server.instrument(name) == count


@pytest.mark.parametrize(
    "odd",
    [
        pytest.param({"strategy": None}, id="no strategy"),
        pytest.param({"strategy": b"hybrid"}, id="bytes"),
        pytest.param({"provider": "\ud800"}, id="surrogate"),
        pytest.param({"provider": msgspec.Raw(b"}")}, id="no JSON"),
        pytest.param({"strategy": 7}, id="no text"),
        pytest.param({"project": "x" * 70_000}, id="too long"),
    ],
)
def test_an_odd_decision_costs_its_neighbours_nothing(
    server: Server, odd: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Only the odd decision is rejected, and the log says why."""
    with Recorder(server.url, linger=60) as recorder:
        for _ in range(10):
            recorder.record(DECISION)
        recorder.record({**DECISION, **odd})
        for _ in range(10):
            recorder.record(DECISION)
        assert recorder.flush(WAIT_SECONDS)
        assert recorder.counters == Counters(sent=20, rejected=1)
    assert len(caplog.records) == 1
    assert total(server) == 20


@pytest.mark.parametrize("name", ["strategy", "provider"])
def test_bytes_are_no_name(server: Server, caplog: pytest.LogCaptureFixture, name: str) -> None:
    """A strategy or provider of bytes raises nothing; the decision is rejected and logged once."""
    with Recorder(server.url, linger=60) as recorder:
        for value in (b"hybrid", bytearray(b"hybrid"), memoryview(b"hybrid")):
            recorder.record({**DECISION, name: value})
        recorder.record(DECISION)
        assert recorder.flush(WAIT_SECONDS)
        assert recorder.counters == Counters(sent=1, rejected=3)
    (told,) = (record.getMessage() for record in caplog.records)
    assert f"{name}: bytes are not text: decode them" in told
    assert total(server) == 1


def test_bytes_leave_an_optional_text_unknown(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """A decision counts without an optional text of bytes; each field is logged once."""
    fields = ("id", "model", "project", "reason", "status", "timestamp", "confidence")
    with Recorder(server.url, linger=60) as recorder:
        for _ in range(2):
            recorder.record({**DECISION, **dict.fromkeys(fields, b"success")})
        assert recorder.flush(WAIT_SECONDS)
        assert recorder.counters == Counters(sent=2)
    told = [record.getMessage() for record in caplog.records]
    assert sorted(fields) == sorted(
        name for line in told for name in fields if f" {name}: " in line
    )
    found = server.metrics(fields="total_decisions,models,avg_confidence,errors")
    assert (found["total_decisions"], found["models"], found["avg_confidence"]) == (2, {}, None)
    assert found["errors"]["count"] == 0


@pytest.mark.parametrize("provider", [7, object()], ids=["by the server", "before it is sent"])
def test_the_log_is_complete_when_flush_returns(server: Server, provider: object) -> None:
    """A log line is written before its decision is counted, and `flush` waits for the count."""
    counted: list[int] = []

    class Watch(logging.Handler):
        def emit(self, _: logging.LogRecord) -> None:
            counted.append(recorder.counters.rejected)

    watch = Watch(logging.WARNING)
    logging.getLogger("routecast").addHandler(watch)
    try:
        with Recorder(server.url) as recorder:
            recorder.record(DECISION, provider=provider)  # type: ignore[arg-type]  # -- the point
            assert recorder.flush(WAIT_SECONDS)
            assert recorder.counters.rejected == 1
    finally:
        logging.getLogger("routecast").removeHandler(watch)
    assert counted == [0]


def test_a_batch_that_is_refused_is_sent_in_parts(caplog: pytest.LogCaptureFixture) -> None:
    """A refused batch is split until only the decisions that the server refuses are rejected."""
    refusals: list[tuple[int, dict[str, str]]] = [(400, {}), (200, {}), (413, {}), (400, {})]
    with stand(*refusals) as there, Recorder(there.url, linger=60) as recorder:
        for number in range(4):
            recorder.record(DECISION, latency_ms=number)
        assert recorder.flush(WAIT_SECONDS)
        assert recorder.counters == Counters(sent=3, rejected=1)
    sent = [[decision["latency_ms"] for decision in batch] for batch in there.batches]
    assert sent == [[0, 1, 2, 3], [0, 1], [2, 3], [2], [3]]
    assert len(caplog.records) == 1


def test_a_server_that_refuses_all_is_not_asked_for_each() -> None:
    """A limited number of requests is enough to reject all decisions of a large batch."""
    with stand(*[(400, {})] * 1000) as there, Recorder(there.url, linger=60) as recorder:
        for _ in range(1000):
            recorder.record(DECISION)
        assert recorder.flush(WAIT_SECONDS)
        assert recorder.counters == Counters(rejected=1000)
        assert len(there.batches) < 150


def test_a_batch_without_a_good_decision_is_not_sent_again(server: Server) -> None:
    """After 422 each decision is counted as rejected, and none is sent again."""
    with Recorder(server.url) as recorder:
        recorder.record(DECISION, timestamp=-1)
        recorder.record(DECISION, timestamp=-2)
        assert recorder.flush(WAIT_SECONDS)
        assert recorder.counters == Counters(rejected=2)


def test_the_oldest_are_dropped() -> None:
    """A full queue drops its oldest decisions; the counters add up, and the newest are sent."""
    url = f"http://127.0.0.1:{free_port()}"
    with Recorder(url, capacity=100, batch=10) as recorder:
        recorder.record(DECISION)
        wait_for(recorder, "retried")
        for number in range(1000):
            recorder.record(DECISION, cost=number)
        counters = recorder.counters
        assert counters.dropped == 901
        assert counters.waiting == 100
        assert recorder.close(0.1) is False
        counters = recorder.counters
        assert (counters.dropped, counters.waiting) == (1001, 0)


def test_the_newest_are_kept() -> None:
    """The decisions that arrive after an outage are the newest ones."""
    with stand() as there:
        recorder = Recorder(there.url, capacity=100, linger=0)
        there.answering.clear()
        recorder.record(DECISION, latency_ms=0)
        until(lambda: in_flight(recorder) == 1)
        for number in range(1, 1000):
            recorder.record(DECISION, latency_ms=number)
        there.answering.set()
        assert recorder.close(WAIT_SECONDS)
        sent = [decision["latency_ms"] for batch in there.batches for decision in batch]
        assert sent == [0, *range(901, 1000)]
        assert recorder.counters == Counters(sent=100, dropped=900)


@contextmanager
def silence() -> Iterator[str]:
    """Run a server that accepts connections and never answers; yield its address."""
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        yield f"http://127.0.0.1:{deaf.getsockname()[1]}"


def test_decisions_in_flight_count_towards_the_capacity() -> None:
    """At most `capacity` decisions wait or are in flight, and the counters add up."""
    with silence() as url:
        recorder = Recorder(url, capacity=100, batch=40, linger=0.01)
        for _ in range(40):
            recorder.record(DECISION)
        wait_for(recorder, "waiting", 40)
        until(lambda: in_flight(recorder) == 40)
        for _ in range(100):
            recorder.record(DECISION)
        assert recorder.counters == Counters(dropped=40, waiting=100)
        assert not recorder.close(0)


@pytest.mark.parametrize("silent", [True, False], ids=["says nothing", "not there"])
def test_flush_is_false_for_decisions_that_close_gave_up(silent: bool) -> None:
    """`flush` returns False if `close` in another thread gave up; the counters show it."""
    with silence() as url:
        recorder = Recorder(url if silent else f"http://127.0.0.1:{free_port()}", linger=0.01)
        recorder.record(DECISION)
        until(lambda: in_flight(recorder) == 1)
        flushed: list[bool] = []
        flush = threading.Thread(target=lambda: flushed.append(recorder.flush()))
        flush.start()
        assert recorder.close(0.2) is False
        assert (recorder.counters.dropped, recorder.counters.waiting) == (1, 0)
    # The deaf server is gone by now, so that the request in flight comes to its end.
    flush.join(WAIT_SECONDS)
    assert flushed == [False]
    assert (recorder.counters.dropped, recorder.counters.waiting) == (1, 0)
    assert recorder.flush(0) is False


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("capacity", 0),
        ("capacity", -1),
        ("batch", 0),
        ("linger", -0.1),
        ("linger", math.nan),
        ("linger", math.inf),
        ("exit_timeout", -1),
    ],
)
def test_a_number_that_cannot_work_is_refused(name: str, number: Any) -> None:
    """The constructor raises an error that names the argument."""
    with pytest.raises(ValueError, match=f"^{name}: "):
        Recorder(**{name: number})


def test_decisions_recorded_after_close_are_dropped() -> None:
    """Decisions recorded after `close` are counted as dropped, and the caller gets no error."""
    with stand() as there:
        recorder = Recorder(there.url)
        recorder.record(DECISION)
        assert recorder.close(WAIT_SECONDS)
        recorder.record(DECISION)
        assert not recorder.flush(0)
        assert recorder.counters == Counters(sent=1, dropped=1)


def test_a_failing_token_function_is_called_again(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is lost if the token function fails for a time."""
    before = total(server)
    tries = iter([ConnectionError("away"), KeyError("token"), "secret"])

    def token() -> str:
        found = next(tries, "secret")
        if isinstance(found, Exception):
            raise found
        return found

    with Recorder(server.url, token=token) as recorder:
        recorder.record(DECISION)
        assert recorder.flush(30)
        assert recorder.counters.sent == 1
    assert total(server) == before + 1
    assert "there is no token: ConnectionError: away" in caplog.text


def test_a_token_is_never_logged(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """No token is logged, whether it ends with a newline or cannot be sent at all."""
    with Recorder(server.url, token="secret\n") as recorder:
        recorder.record(DECISION)
        assert recorder.flush(30)
        assert recorder.counters.sent == 1
    with Recorder(server.url, token="se\ncret") as recorder:
        recorder.record(DECISION)
        assert recorder.flush(30)
        assert recorder.counters.rejected == 1
    assert "the token must be a text of visible ASCII characters" in caplog.text
    assert "cret" not in caplog.text


def test_a_token_is_sent_and_renewed(server: Server) -> None:
    """The token function is called for each batch, and its next token is tried after a 401."""
    tokens = iter(["old", "new"])
    with stand((401, {})) as there, Recorder(there.url, token=lambda: next(tokens)) as recorder:
        recorder.record(DECISION)
        assert recorder.flush(WAIT_SECONDS)
        assert recorder.counters == Counters(sent=1, retried=1)
    assert [headers["Authorization"] for headers in there.headers] == ["Bearer old", "Bearer new"]


# -- threads, forks, exits ----------------------------------------------------------------------


def test_many_threads_record_at_once(server: Server) -> None:
    """Decisions recorded by many threads all arrive, each with its own id."""
    with Recorder(server.url, linger=0.01) as recorder:

        def record() -> None:
            for _ in range(2_000):
                recorder.record(DECISION)

        threads = [threading.Thread(target=record) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert recorder.flush(WAIT_SECONDS)
        assert recorder.counters == Counters(sent=16_000)
    assert total(server) == 16_000


def run(code: str, url: str, options: str = "") -> subprocess.CompletedProcess[str]:
    """Run a program that uses a recorder."""
    begin = (
        "import os, sys, time\n"
        "from routecast.client import Recorder\n"
        f"recorder = Recorder({url!r}, {options})\n"
        f"decision = {DECISION!r}\n"
    )
    return subprocess.run(
        [sys.executable, "-c", begin + code],
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        check=False,
    )


@pytest.mark.parametrize("end", ["", "sys.exit(3)", "raise ValueError"])
def test_waiting_decisions_are_sent_at_exit(server: Server, end: str) -> None:
    """Waiting decisions are sent however the program ends, also without `close`."""
    done = run(f"for _ in range(100): recorder.record(decision)\n{end}", server.url)
    assert done.returncode == {"": 0, "sys.exit(3)": 3}.get(end, 1), done.stderr
    assert total(server) == 100


def test_an_exit_takes_no_longer_than_allowed() -> None:
    """An unreachable or silent server delays the exit by at most the exit timeout."""
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        began = time.monotonic()
        done = run("recorder.record(decision)", url, "exit_timeout=0.5")
        assert done.returncode == 0, done.stderr
        assert time.monotonic() - began < 10


@pytest.mark.parametrize("deaf", [True, False], ids=["says nothing", "not there"])
def test_an_exit_logs_unsent_decisions(deaf: bool) -> None:
    """Decisions that could not be sent in time are logged once, with their number."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1] if deaf else free_port()
        code = "for _ in range(1234): recorder.record(decision)\nwith recorder: pass"
        done = run(code, f"http://127.0.0.1:{port}", "exit_timeout=0.5, batch=1000")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("1,234 decisions not sent") == 1, done.stderr


def test_a_forked_child_records_for_itself(server: Server) -> None:
    """A forked child has its own ids and thread, and sends no decisions of its parent."""
    code = """
for _ in range(50):
    recorder.record(decision)
child = os.fork()
for _ in range(100 if child else 7):
    recorder.record(decision)
if not child:
    assert recorder.close(), recorder.counters
    assert recorder.counters.sent == 7, recorder.counters
    os._exit(0)
_, status = os.waitpid(child, 0)
assert status == 0
recorder.close()
assert (recorder.counters.sent, recorder.counters.duplicates) == (150, 0), recorder.counters
"""
    done = run(code, server.url)
    assert done.returncode == 0, done.stderr
    assert total(server) == 157


def test_a_child_forked_while_the_parent_connects_can_connect() -> None:
    """Connecting imports nothing, because a fork in the middle of an import would break it."""
    code = "before = set(sys.modules); recorder.record(decision); recorder.flush()\n"
    code += "assert 'encodings.idna' in before"
    with stand() as there:
        done = run(code, there.url)
    assert done.returncode == 0, done.stderr


def test_it_may_be_called_from_a_signal_handler(server: Server) -> None:
    """`record` may be called by a signal handler that interrupts another `record`."""
    code = """
import signal
mine = handlers = 0
def handle(*_):
    global handlers
    recorder.record(decision)
    handlers += 1
signal.signal(signal.SIGALRM, handle)
signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
while handlers < 1000:
    recorder.record(decision)
    mine += 1
signal.setitimer(signal.ITIMER_REAL, 0)
assert recorder.flush(30)
counters = recorder.counters
assert counters.sent + counters.dropped == mine + handlers, (mine, handlers, counters)
"""
    done = run(code, server.url)
    assert done.returncode == 0, done.stderr
