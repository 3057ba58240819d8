"""What producers and streams do after each HTTP answer and close code: one table for all clients.

The table is `tests/wire/answers.json`, which the JavaScript client's tests read, too.
"""

import asyncio
import importlib.util
import json
import logging
import os
import queue
import re
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from select import select
from types import ModuleType
from typing import Any, Final

import pytest
from websockets.protocol import State

from routecast.cli.replay import sender as replay_sender
from routecast.cli.replay.sender import BatchSender
from routecast.cli.replay.sender import GivenUp as NotSent
from routecast.client import (
    BadParameter,
    BadRequest,
    Health,
    Recorder,
    Refused,
    Unauthenticated,
    Unavailable,
    connect,
    stream,
)
from routecast.client.auth import advice
from routecast.client.http_sender import HttpSender, NotOurs, Unreachable
from routecast.client.url import Server as Address
from routecast.retry import TOO_MANY_MESSAGES_DELAY, Backoff
from tests.support.command import routecast
from tests.support.scripted_server import ScriptedConnection, scripted, snapshot, until

WAIT_SECONDS = 60.0
EXAMPLES = Path(__file__).parents[2] / "examples"
TABLE: Final = json.loads((Path(__file__).parents[1] / "wire" / "answers.json").read_text())
POSTS: Final = [row for row in TABLE["http"] if row["producer"] not in (None, "done")]
UPGRADES: Final = [row for row in TABLE["http"] if row["stream"] is not None]
DECISION: dict[str, Any] = {"strategy": "hybrid", "provider": "gemini"}
PROBLEM: Final = "application/problem+json"
ADVICE: Final = advice(None)

Row = dict[str, Any]


def name(row: Row) -> str:
    """Return what a row is called."""
    return f"{row['status']} of {row['by']}"


def test_examples_follow_the_table() -> None:
    """The examples have the same close codes and statuses as the table."""
    final = {row["code"] for row in TABLE["close_codes"] if row["outcome"] != "retry"}
    assert final == example("default_stream").FINAL
    script = (EXAMPLES / "javascript" / "metrics-client.mjs").read_text()
    assert (listed := re.search(r"FINAL_CODES = new Set\(\[(.*)\]\)", script))
    assert {int(code) for code in listed[1].split(", ")} == final
    page = (EXAMPLES.parent / "docs" / "protocol.md").read_text()
    assert f"FINAL = {{{', '.join(map(str, sorted(final)))}}}" in page
    own = [row for row in TABLE["http"] if row["by"] == "routecast" and row["status"] < 500]
    passing = {row["status"] for row in own if row["stream"] == "retry"}
    assert example("default_stream").PASSING == example("send_decisions").PASSING == passing


def example(module: str) -> ModuleType:
    """Return an example as a module."""
    path = EXAMPLES / "python" / f"{module}.py"
    spec = importlib.util.spec_from_file_location(module, path)
    assert spec
    assert spec.loader
    found = importlib.util.module_from_spec(spec)
    sys.modules[module] = found
    spec.loader.exec_module(found)
    return found


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Come back at once, or when told: pauses have tests of their own."""
    monkeypatch.setattr(Backoff, "next", lambda _, least=0.0: least + 0.02)


# -- a server that says what a test has it say --------------------------------------------------


def http_answer(status: int, body: bytes, *fields: str) -> bytes:
    """Return a whole answer."""
    lines = [f"HTTP/1.1 {status} No", f"Content-Length: {len(body)}", *fields]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + (b"" if status == 204 else body)


def problem(status: int, **more: Any) -> bytes:
    """Return Routecast's own refusal."""
    body = {"title": "No", "status": status, "detail": "because", "later": 1, **more}
    return http_answer(status, json.dumps(body).encode(), f"Content-Type: {PROBLEM}")


def receipt(count: int) -> bytes:
    """Return Routecast's receipt, with members of a later version."""
    body = {"accepted": count, "duplicates": 0, "rejected": [], "rejected_count": 0}
    body |= {"position": {"epoch": "e", "seq": 1}, "warnings": [], "conflicts": 0}
    return http_answer(200, json.dumps(body).encode(), "Content-Type: application/json")


def answer_of(row: Row) -> bytes:
    """Return the answer of a row of the table."""
    status = row["status"]
    if row["by"] == "routecast":
        return problem(status)
    fields = ["Content-Type: text/html"]
    if 300 <= status < 400:
        fields.append("Location: http://login.example/start?state=secret")
    return http_answer(status, b"<h1>Hello</h1>", *fields)


class Site:
    """The address of a server of its own, and the batches that it received."""

    def __init__(self) -> None:
        self.url = ""
        self.batches: list[list[dict[str, Any]]] = []


@contextmanager
def site(*answers: bytes | Callable[[socketserver.StreamRequestHandler], None]) -> Iterator[Site]:
    """Give each request one of these answers, and then receipts. Each answer ends its connection.

    A function is given the connection instead, and may keep it.
    """
    there, left = Site(), list(answers)

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            size, kind = 0, ""
            while line := self.rfile.readline().strip():
                field, _, value = line.decode().partition(": ")
                size = int(value) if field == "Content-Length" else size
                kind = value if field == "Content-Encoding" else kind
            body = self.rfile.read(size)
            if not body:
                return
            assert not kind, "a small batch is not compressed"
            batch = json.loads(body)
            there.batches.append(batch)
            answer = left.pop(0) if left else receipt(len(batch))
            if callable(answer):
                answer(self)
            else:
                self.wfile.write(answer)

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = True
        block_on_close = False

    with Server(("127.0.0.1", 0), Handler) as server:
        there.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield there
        finally:
            server.shutdown()
            thread.join()


# -- producers ----------------------------------------------------------------------------------

SENT: Final = {"retry": (2, 0), "final": (0, 2), "token": (0, 2), "halve": (2, 0)}


def together(task: Callable[[Row], Any], rows: list[Row]) -> dict[str, Any]:
    """Return what a task returns for each row. All tasks run at once, because they mostly wait."""
    found: dict[str, Any] = {}

    def run(row: Row) -> None:
        found[name(row)] = task(row)

    threads = [threading.Thread(target=run, args=(row,)) for row in rows]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_a_recorder_follows_the_table() -> None:
    """A recorder does with a batch what the table says for the first answer.

    The batch has two decisions. If the row says so, it is sent again in two halves.
    """

    def record(row: Row) -> Any:
        with site(answer_of(row)) as there, Recorder(there.url, linger=60) as recorder:
            recorder.record(DECISION)
            recorder.record(DECISION)
            assert recorder.flush(WAIT_SECONDS)
            counters = recorder.counters
            return counters.sent, counters.rejected, [len(batch) for batch in there.batches]

    sizes = {"retry": [2, 2], "final": [2], "token": [2], "halve": [2, 1, 1]}
    wanted = {name(row): (*SENT[row["producer"]], sizes[row["producer"]]) for row in POSTS}
    wanted["400 of routecast"] = (2, 0, [2, 1, 1])  # one of them may be what cannot be read
    assert together(record, POSTS) == wanted


def test_replay_follows_the_table() -> None:
    """The sender of `replay` stops at answers that the table calls final, and else sends all."""

    def send(row: Row) -> Any:
        with site(answer_of(row)) as there:
            server = Address.parse(there.url)
            with BatchSender(server, lambda *_: None) as sender:
                try:
                    tally = sender.send([{**DECISION, "id": "1"}, {**DECISION, "id": "2"}])
                except NotSent as error:
                    return 0, 2, str(error).removeprefix(there.url)
            return tally.accepted, tally.rejected, ""

    words = {"final": " answered {}: because", "token": f" answered {{}}: because; {ADVICE}"}
    assert together(send, POSTS) == {
        name(row): (*SENT[outcome], words.get(outcome, "").format(row["status"]))
        for row in POSTS
        for outcome in [row["producer"]]
    }


def test_the_example_producer_follows_the_table() -> None:
    """The example producer does what the table says, and reports the counts at its end."""
    lines = b"".join(json.dumps(DECISION).encode() + b"\n" for _ in range(2))
    script = EXAMPLES / "python" / "send_decisions.py"

    def produce(row: Row) -> Any:
        with site(answer_of(row)) as there:
            words = [sys.executable, str(script), there.url, "--first-delay", "0.05"]
            done = subprocess.run(
                words, input=lines, capture_output=True, timeout=WAIT_SECONDS, check=False
            )
        assert b"Traceback" not in done.stderr
        assert b"secret" not in done.stderr
        return done.returncode, done.stdout.decode().strip()

    rows = [row for row in POSTS if row["status"] in (200, 301, 307, 401, 404, 413, 500, 520)]
    wanted = {}
    for row in rows:
        sent, _ = SENT[row["producer"]]
        wanted[name(row)] = (
            (0, "accepted 2, duplicates 0, rejected 0, refused 0, conflicts 0")
            if sent
            else (1, "accepted 0, duplicates 0, rejected 0, refused 2, conflicts 0")
        )
    assert together(produce, rows) == wanted


@pytest.mark.parametrize("whole", [receipt(1), problem(403), problem(422), http_answer(404, b"")])
def test_a_truncated_answer_is_retried(whole: bytes) -> None:
    """A batch is sent again if its answer ends within the status line, the head or the body."""
    body = whole.index(b"\r\n\r\n") + 4
    cuts = {5, 12, 16, 30, body - 2, body, body + 1, len(whole) - 1}
    cut = [whole[:at] for at in sorted(cuts) if at < len(whole)]
    with site(*cut) as there:
        delivery = HttpSender(Address.parse(there.url))
        for _ in cut:
            with pytest.raises(Unavailable):
                delivery.send(b"[{}]", 1)
        assert delivery.send(b"[{}]", 1).accepted == 1
        delivery.close()


def test_a_problem_document_of_others_is_not_routecasts() -> None:
    """A problem document with another status or type, or without one, is not final."""
    others = [
        http_answer(403, b'{"title":"No","status":404,"detail":"x"}', f"Content-Type: {PROBLEM}"),
        http_answer(
            403, b'{"title":"No","status":403,"detail":"x"}', "Content-Type: application/json"
        ),
        http_answer(403, b"[" * 100_000, f"Content-Type: {PROBLEM}"),
        http_answer(200, b'{"accepted":-1,"duplicates":0,"rejected":[],"rejected_count":0}'),
        http_answer(200, b"[" * 100_000, "Content-Type: application/json"),
    ]
    with site(*others) as there:
        delivery = HttpSender(Address.parse(there.url))
        for _ in others:
            with pytest.raises(NotOurs, match="not as Routecast does"):
                delivery.send(b"[{}]", 1)
        assert delivery.send(b"[{}]", 1).accepted == 1
        delivery.close()


def test_batches_are_halved_down_to_one_decision(caplog: pytest.LogCaptureFixture) -> None:
    """Batches are halved until a proxy with a small body limit accepts them; the log says why."""

    class Small(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while True:
                size = 0
                if not self.rfile.readline():
                    return
                while line := self.rfile.readline().strip():
                    if line.startswith(b"Content-Length: "):
                        size = int(line.split()[1])
                count = self.rfile.read(size).count(b'"strategy"')
                self.wfile.write(http_answer(413, b"<h1>") if size > 300 else receipt(count))

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False

    with Server(("127.0.0.1", 0), Small) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        with Recorder(url, linger=5) as recorder:
            for number in range(600):
                recorder.record(DECISION, reason="x" * (400 if number == 333 else 0))
            assert recorder.flush(WAIT_SECONDS)
            assert (recorder.counters.sent, recorder.counters.rejected) == (599, 1)
        server.shutdown()
    assert [record.getMessage() for record in caplog.records] == [
        f"rejected, for the first time: {url} answered 413 No: too large for a proxy in between"
    ]


@pytest.mark.parametrize(
    ("status", "location", "words"),
    [
        (301, "https://other.example/v1/decisions", "301 to https://other.example: use that"),
        (302, "http://u:pw@login.example/a?b=pw", "302 to http://login.example/a: a proxy may ask"),
        (303, "/login", "303 to {url}/login: a proxy may ask for a sign-in"),
        (307, "{tls}/v1/decisions", r"307 to {tls}: use that address \(there: "),
        (308, "{tls}/elsewhere", "308 to {tls}/elsewhere: a proxy may ask"),
        (308, "http://[broken", "answered 308 No, not as Routecast does"),
    ],
)
def test_a_redirect_is_explained(
    status: int, location: str, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One log line names the new address and no secret; the decision waits."""
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        tls = f"https://127.0.0.1:{nobody.getsockname()[1]}"
    with site(*[http_answer(status, b"", f"Location: {location.format(tls=tls)}")] * 2) as there:
        with Recorder(there.url, linger=0) as recorder:
            recorder.record(DECISION)
            assert recorder.flush(WAIT_SECONDS)
            assert (recorder.counters.sent, recorder.counters.retried) == (1, 2)
        (told_once,) = [r for r in caplog.records if r.levelno == logging.WARNING]
        assert re.search(words.format(url=there.url, tls=tls), told_once.getMessage())
        assert "pw" not in told_once.getMessage()


def test_each_cause_of_an_outage_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    """The log has one line for each cause, so that none hides behind the first one."""
    page, redirect = (
        http_answer(404, b""),
        http_answer(301, b"", "Location: https://other.example/v1/decisions"),
    )
    with site(page, redirect, page, redirect) as there, Recorder(there.url, linger=0) as recorder:
        recorder.record(DECISION)
        assert recorder.flush(WAIT_SECONDS)
    warned = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert [re.sub(r".* answered (\d+).*", r"\1", line) for line in warned] == ["404", "301"]


def drip(handler: socketserver.StreamRequestHandler) -> None:
    """Begin an answer, and send a little of it at intervals, until the client closes."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    with suppress(OSError):
        while not select([handler.connection], [], [], 0.05)[0]:
            handler.wfile.write(b"a: b\r\n")


def endless(handler: socketserver.StreamRequestHandler) -> None:
    """Send an endless answer."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n[")
    try:
        while True:
            handler.wfile.write(b" " * 65_536)
    except OSError:
        return


def chatty(handler: socketserver.StreamRequestHandler) -> None:
    """Send informational answers (1xx) without end."""
    try:
        while True:
            handler.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)
    except OSError:
        return


@pytest.mark.parametrize("answer", [drip, endless, chatty])
def test_an_answer_is_limited_in_bytes_and_in_total_time(
    answer: Callable[[socketserver.StreamRequestHandler], None],
) -> None:
    """An endless or very slow answer is given up, and the batch may be sent again."""
    with site(answer) as there:
        delivery = HttpSender(Address.parse(there.url), timeout=0.5)
        with pytest.raises(Unreachable, match=r"in time|more than 1024 KiB"):
            delivery.send(b"[{}]", 1)
        assert delivery.send(b"[{}]", 1).accepted == 1
        delivery.close()


def test_a_request_body_that_is_not_read_is_given_up() -> None:
    """The time limit of an exchange also covers sending the request."""
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        delivery = HttpSender(Address.parse(f"127.0.0.1:{deaf.getsockname()[1]}"), timeout=0.5)
        with pytest.raises(Unreachable, match="no answer in time"):
            delivery.send(os.urandom(32 * 1024 * 1024), 1)
        delivery.close()


# -- streams ------------------------------------------------------------------------------------


@asynccontextmanager
async def refusing_server(*refusals: bytes) -> AsyncIterator[tuple[str, list[str]]]:
    """Give these answers to upgrades, and then play a server; yield its address and the requests.

    Answers are written by hand, because no library writes all of them.
    """
    left, requests = list(refusals), []
    async with scripted(steady) as behind:
        port = int(behind.url.rpartition(":")[2])

        async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with suppress(ConnectionError):
                while data := await reader.read(65_536):
                    writer.write(data)
            writer.close()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head = await reader.readuntil(b"\r\n\r\n")
            requests.append(head.decode())
            if left:
                writer.write(left.pop(0))
                writer.close()
                return
            back, forth = await asyncio.open_connection("127.0.0.1", port)
            forth.write(head)
            await asyncio.gather(relay(reader, forth), relay(back, writer))

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", requests
            server.close()


async def steady(connection: ScriptedConnection) -> None:
    """Send one document and keep the connection open."""
    await connection.hello()
    await connection.receive()
    await connection.send(snapshot(1, {"total_decisions": 1}))
    await connection.wait_closed()


async def test_a_stream_follows_the_table() -> None:
    """A stream reconnects after a temporary answer; else it raises the status and the reason."""

    async def follow(row: Row) -> tuple[str, tuple[str, int, str]]:
        async with refusing_server(answer_of(row)) as (url, _), asyncio.timeout(WAIT_SECONDS):
            try:
                async with aclosing(stream(url)) as metrics:
                    await anext(metrics)
                return name(row), ("retry", 0, "")
            except BadRequest as error:
                return name(row), ("final", 400, str(error))
            except Refused as error:
                kind = "token" if isinstance(error, Unauthenticated) else "final"
                return name(row), (kind, error.code, str(error))

    def wanted(row: Row) -> tuple[str, int, str]:
        if row["stream"] == "retry":
            return "retry", 0, ""
        status = row["status"]
        words = "because" if status == 400 else f"it answered {status}: because"
        words += f"; {ADVICE}" if row["stream"] == "token" else ""
        return row["stream"], status, words

    found = dict(await asyncio.gather(*map(follow, UPGRADES)))
    assert found == {name(row): wanted(row) for row in UPGRADES}


async def test_a_stream_follows_the_table_of_close_codes() -> None:
    """A stream does what the table says for each close code; after 4429 it waits a minute."""

    async def follow(row: Row) -> tuple[int, str]:
        async def close(connection: ScriptedConnection) -> None:
            await connection.hello()
            await connection.receive()
            await connection.close(row["code"])

        healths: list[Health] = []
        async with (
            scripted(close, steady) as there,
            connect(there.url, on_change=healths.append) as client,
            asyncio.timeout(WAIT_SECONDS),
        ):
            feed = await client.subscribe()
            if row["code"] == 4429:
                await until(lambda: bool(healths and healths[-1].retry_in))
                assert (healths[-1].retry_in or 0) > TOO_MANY_MESSAGES_DELAY - WAIT_SECONDS / 2
                return row["code"], "retry"
            try:
                await anext(feed)
            except Refused as error:
                return error.code, "token" if isinstance(error, Unauthenticated) else "final"
        return row["code"], "retry"

    rows = [*TABLE["close_codes"], {"code": 4999, "outcome": "retry"}]  # the last is not in it
    found = dict(await asyncio.gather(*map(follow, rows)))
    assert found == {row["code"]: row["outcome"] for row in rows}


async def test_a_stream_does_not_follow_a_redirect_to_another_host(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A stream does not send its token to another host, and logs the address to use once."""
    async with refusing_server() as (elsewhere, asked):
        away = http_answer(302, b"", f"Location: {elsewhere}/ws/metrics?state=secret")
        async with refusing_server(away, away) as (url, requests):
            url = url.replace("127.0.0.1", "localhost")
            async with aclosing(stream(url, token="t")) as metrics:
                await anext(metrics)
            assert len(requests) == 3
        assert not asked
    (warned,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert f"it answered 302 to {elsewhere}: use that address; trying again in" in warned


async def test_a_redirect_to_tls_on_the_same_host_is_believed_while_it_works(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """If nothing listens there, the stream says so and tries the first address again."""
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        tls = f"https://127.0.0.1:{nobody.getsockname()[1]}"
    async with refusing_server(http_answer(301, b"", f"Location: {tls}/ws/metrics")) as (
        url,
        requests,
    ):
        async with aclosing(stream(url)) as metrics:
            await anext(metrics)
        assert len(requests) == 2
    words = [record.getMessage() for record in caplog.records]
    assert len(words) == 1
    assert f"it answered 301 to {tls}: use that address (there: connection refused)" in words[0]


async def test_an_endless_answer_in_place_of_an_upgrade_is_given_up() -> None:
    """At most 1 MiB of an answer to an upgrade is read; then the stream connects again."""
    endless = http_answer(403, b"x" * (2 * 1024 * 1024), f"Content-Type: {PROBLEM}")
    async with refusing_server(endless) as (url, requests), aclosing(stream(url)) as metrics:
        await anext(metrics)
        assert len(requests) == 2


async def test_a_deeply_nested_message_ends_only_the_connection() -> None:
    """The stream reconnects after a message that is nested too deeply to be decoded."""

    async def deep(connection: ScriptedConnection) -> None:
        await connection.hello()
        await connection.receive()
        data = '{"a":' * 5000 + "1" + "}" * 5000
        await connection.send(json.dumps(snapshot(1, {"x": 0})).replace('{"x": 0}', data))
        await connection.wait_closed()

    async with scripted(deep, steady) as there, aclosing(stream(there.url)) as metrics:
        assert (await anext(metrics)).total_decisions == 1


@pytest.mark.parametrize(
    "odd",
    [
        {"from": "soon"},
        {"from": "2026-01-31T12:00:00"},
        {"step": 0},
        {"step": 10**15},
        {"points": 10**15},
        {"points": -1},
        {"points": 7},
    ],
)
async def test_a_contradictory_history_ends_only_the_connection(
    odd: dict[str, Any],
) -> None:
    """The client reconnects and shows the next history."""

    def past(connection: ScriptedConnection, **more: Any) -> Any:
        message = {"type": "history", "id": "h1", "position": {"epoch": "e", "seq": 1}, "step": 60}
        message |= {"from": "2026-01-31T12:00:00+00:00", "points": 2}
        return connection.send(
            {**message, "series": [{"key": "all", "count": [1, 2], "v": 9}], **more}
        )

    async def wrong(connection: ScriptedConnection) -> None:
        await connection.hello()
        await connection.receive()
        await past(connection, **odd)
        await connection.wait_closed()

    async def right(connection: ScriptedConnection) -> None:
        await connection.hello()
        await connection.receive()
        await past(connection)
        await connection.wait_closed()

    async with scripted(wrong, right) as there, connect(there.url) as client:
        found = await anext(await client.history(timedelta(hours=1)))
        assert found.series == {"all": {"count": [1, 2]}}


# -- commands -----------------------------------------------------------------------------------


@contextmanager
def playing(
    *scripts: Callable[[ScriptedConnection], Awaitable[None]], **given: Any
) -> Iterator[str]:
    """Run a scripted server beside a command; yield its address."""
    started: queue.Queue[str] = queue.Queue()
    loop = asyncio.new_event_loop()

    async def play() -> None:
        async with scripted(*scripts, **given) as there:
            started.put(there.url)
            await asyncio.Future()

    def run() -> None:
        with suppress(asyncio.CancelledError):
            loop.run_until_complete(task)
        loop.close()

    task = loop.create_task(play())
    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield started.get(timeout=WAIT_SECONDS)
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join()


def showing(data: dict[str, Any] | str) -> Callable[[ScriptedConnection], Awaitable[None]]:
    """Return a script that sends one document."""
    text = data if isinstance(data, str) else json.dumps(data)

    async def script(connection: ScriptedConnection) -> None:
        await connection.hello()
        await connection.receive()
        await connection.send(json.dumps(snapshot(1, {"x": 0})).replace('{"x": 0}', text))
        await connection.wait_closed()

    return script


LARGE: Final = 10**12
DOCUMENT: Final = {
    "total_decisions": 3,
    "strategy_performance": {"s": {"count": LARGE, "avg_cost": 1, "avg_confidence": 1}},
    "confidence_distribution": {"high": LARGE, "medium": -LARGE, "low": 0},
    "provider_usage": {"p": LARGE},
    "cost": {"total": 1e300, "priced": LARGE, "unpriced": 0},
    "latency_ms": {"avg": 1, "p50": 1e300, "p95": 2, "p99": 3},
    "errors": {"count": LARGE, "rate": 1e300},
    "fallbacks": -1,
    "rate": -1,
}


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(DOCUMENT, id="more than all"),
        pytest.param({**DOCUMENT, "total_decisions": 10**400}, id="huge"),
        pytest.param({**DOCUMENT, "provider_usage": {"p": -1}}, id="negative"),
        pytest.param({**DOCUMENT, "provider_usage": []}, id="no document"),
        pytest.param('{"a":' * 900 + "1" + "}" * 900, id="deep"),
    ],
)
@pytest.mark.parametrize("options", [(), ("--json",)])
def test_watch_shows_no_traceback_whatever_it_is_sent(
    data: dict[str, Any] | str, options: tuple[str, ...]
) -> None:
    """`watch` prints a line or wrong numbers, and never a traceback, for any message."""
    with playing(showing(data)) as url:
        done = routecast("watch", "--once", *options, "--server", url)
    assert "Traceback" not in done.stderr
    assert done.returncode == 0 or done.stderr.startswith("routecast: ")


def test_watch_json_escapes_control_characters() -> None:
    """C1 controls and direction marks are written as JSON escapes, and decode to the same text."""
    name = "a\x9b31m\x85\u202e\u2066\u200f\ufeffb"
    with playing(showing({"total_decisions": 1, "provider_usage": {name: 1}})) as url:
        done = routecast("watch", "--once", "--json", "--server", url)
    assert done.stdout.strip().isprintable()
    assert "\\u009b31m\\u0085\\u202e\\u2066" in done.stdout
    assert json.loads(done.stdout)["provider_usage"] == {name: 1}


@pytest.mark.parametrize("text", ['{"timestamp":"2026-99-31T12:34:56.789123+00:00"}', "x"])
def test_bench_reports_messages_that_are_no_documents(text: str) -> None:
    """`bench` counts such a stream as failed once, and its exit code says so."""

    async def script(connection: ScriptedConnection) -> None:
        while connection.socket.state is State.OPEN:
            connection.send_at_once(text, text, text)
            await asyncio.sleep(0.05)

    with playing(script, protocols=()) as url:
        done = routecast("bench", "--connections", 2, "--seconds", 1, "--server", url)
    assert "Traceback" not in done.stderr
    assert "2 failed: a message without a timestamp" in done.stdout
    assert done.returncode == 1


@pytest.mark.parametrize("index", [-1, 2, 10**15])
def test_replay_takes_no_receipt_for_rows_it_did_not_send(tmp_path: Path, index: int) -> None:
    """`replay` accepts a receipt only if all its indexes are of rows that it sent."""
    rejected = [{"index": index, "error": "cost: \x1b[31m"}]
    body = {"accepted": 1, "duplicates": 0, "rejected": rejected, "rejected_count": 1}
    body |= {"position": {"epoch": "e", "seq": 1}}
    path = tmp_path / "x.csv"
    path.write_text("strategy,provider\ns,p\ns,p\n")
    with site(http_answer(200, json.dumps(body).encode()), receipt(3), receipt(2)) as there:
        done = routecast("replay", path, "--server", there.url)
    assert done.returncode == 0, done.stderr
    assert "named decisions that were not sent: it is not a Routecast server" in done.stdout
    assert "answered for 3 decisions of 2: it is not a Routecast server" in done.stdout
    assert "accepted 2" in done.stdout


def test_replay_names_the_target_of_a_redirect(tmp_path: Path, monkeypatch: Any) -> None:
    """`replay` names a redirect's address while it tries again and when it gives up."""
    monkeypatch.setattr(replay_sender, "GIVE_UP_AT_FIRST", 0.2)
    moved = http_answer(301, b"", "Location: https://other.example/v1/decisions")
    words: list[str] = []
    with site(*[moved] * 20) as there:
        with (
            BatchSender(Address.parse(there.url), lambda why, _: words.append(why)) as sender,
            pytest.raises(NotSent, match=r"301 to https://other.example: use that address; no"),
        ):
            sender.send([DECISION])
        assert set(words) == {
            f"{there.url} answered 301 to https://other.example: use that address"
        }


def test_replay_uses_the_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """`replay` uses the proxy of the environment, and names a proxy that it cannot use."""
    with site() as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        with BatchSender(Address.parse("http://metrics.example:1"), lambda *_: None) as sender:
            assert sender.send([DECISION]).accepted == 1
    monkeypatch.setenv("http_proxy", "socks5://127.0.0.1:1080")
    with pytest.raises(BadParameter, match="HTTP_PROXY: only an HTTP proxy"):
        BatchSender(Address.parse("http://metrics.example:1"), lambda *_: None)
