"""`routecast watch`, `bench` and `demo`: on a terminal, in a pipe, and after errors."""

import asyncio
import json
import os
import re
import resource
import signal
import socket
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.acceptance.test_names import keep
from tests.support.command import COMMAND, WAIT_SECONDS, Terminal, routecast
from tests.support.decisions import kept
from tests.support.ports import free_port
from tests.support.scripted_server import ScriptedConnection, scripted, snapshot
from tests.support.server import Server

LEAVE_SCREEN = "\x1b[?1049l"
SHOW_CURSOR = "\x1b[?25h"
DECISIONS: list[dict[str, Any]] = [
    {"strategy": "hybrid", "provider": "gemini", "confidence": 0.9, "cost": 0.0023},
    {"strategy": "hybrid", "provider": "claude", "confidence": 0.6, "latency_ms": 1500},
    {"strategy": "cost", "provider": "gemini", "confidence": "low", "status": "error"},
]


def words_of(output: str) -> str:
    """Return output with each run of whitespace as one space."""
    return re.sub(r"[ \t]+", " ", output)


# -- watch --------------------------------------------------------------------------------------


def test_watch_once_prints_the_numbers_of_the_page(server: Server) -> None:
    """It prints totals, strategies, bands and providers, with a dash for unknown numbers."""
    server.post(DECISIONS)
    done = routecast("watch", "--once", "--server", server.url)
    assert done.returncode == 0, done.stderr
    shown = words_of(done.stdout)
    for words in (
        "3 0.750 $0.0023 1 1.5 s",
        "2 unpriced 33.3%",
        "hybrid 2 66.7% ████████ $0.0023 0.750",
        "cost 1 33.3% ████ – –",
        "high 1 33.3%",
        "gemini 2 66.7%",
    ):
        assert words in shown
    assert "\x1b" not in done.stdout


def test_watch_asks_for_window_and_filters(server: Server) -> None:
    """The window and filters reach the server, and are shown above the numbers."""
    server.post([*DECISIONS, {**DECISIONS[0], "timestamp": "2024-01-01T00:00:00Z"}])
    words = ("--window", "1h", "--strategy", "hybrid", "--provider", "gemini")
    done = routecast("watch", "--server", server.url, *words)
    assert "the last 1h, strategy hybrid, provider gemini" in done.stdout
    assert "hybrid 1 100.0%" in words_of(done.stdout)
    none = routecast("watch", "--server", server.url, "--model", "nobody's")
    assert "No decision matches." in none.stdout


def test_watch_fits_the_terminal(server: Server) -> None:
    """No line is wider than 80 columns, with any names; a wide terminal is used in full."""
    names = ["x" * 64, "名" * 64, "short"]
    server.post([{"strategy": name, "provider": name, "confidence": 0.5} for name in names])
    for columns in (60, 80, 160):
        done = routecast("watch", "--server", server.url, env={"COLUMNS": str(columns)})
        lines = [line.rstrip() for line in done.stdout.splitlines()]
        assert max(map(_cells, lines)) <= columns
        assert max(map(_cells, lines)) > columns * 0.9
        assert "short" in done.stdout


def test_watch_cuts_no_word_of_its_own(server: Server) -> None:
    """Headings and notes fit narrow terminals; bars give way to names."""
    server.post([*DECISIONS, {**DECISIONS[0], "strategy": "complexity", "provider": "openrouter"}])
    for columns in (44, 60, 80, 119, 120, 130, 150, 200):
        done = routecast("watch", "--server", server.url, env={"COLUMNS": str(columns)})
        assert "2 unpriced" in done.stdout
        assert "…" not in done.stdout


def _cells(line: str) -> int:
    return len(line) + line.count("名")


def test_watch_escapes_names(server: Server) -> None:
    """Markup in names is shown as text, and control characters never reach the terminal.

    Servers refuse such names now, but those that an earlier version stored are still there.
    """
    evil = "[red]\x1b]0;owned\x07\x1b[2J\u202e"
    keep(server, kept(strategy=evil, provider="p\r\np"))
    done = routecast("watch", "--once", "--server", server.url)
    assert done.returncode == 0
    assert "[red]" in done.stdout
    assert not set("\x1b\x07\r\u202e") & set(done.stdout)


def test_watch_json_is_one_document_a_line(server: Server) -> None:
    """With --json it prints a line for each change, and a closed pipe ends it without an error."""
    server.post(DECISIONS)
    command = [*COMMAND, "watch", "--json", "--interval", "0.1", "--server", server.url]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stderr
        documents = [json.loads(process.stdout.readline())]
        for _ in range(2):
            server.post(DECISIONS)
            documents.append(json.loads(process.stdout.readline()))
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(WAIT_SECONDS) == 0
    assert [document["total_decisions"] for document in documents] == [3, 6, 9]
    assert documents[0]["latency_ms"]["avg"] == 1500
    once = routecast("watch", "--json", "--once", "--server", server.url)
    assert json.loads(once.stdout)["total_decisions"] == 9


def test_watch_live_follows_and_comes_back(server: Server) -> None:
    """It shows changes, reports a lost server and reconnects; Ctrl-C restores the terminal."""
    command = (*COMMAND, "watch", "--interval", "0.1", "--server", server.url)
    with Terminal(*command) as terminal:
        terminal.wait_for("No decisions yet")
        server.post(DECISIONS)
        terminal.wait_for("hybrid")
        server.kill()
        terminal.wait_for("reconnecting in .* s: connection refused, numbers .* s old")
        server.start()
        terminal.wait_for("● live")
        server.post([{"strategy": "afterwards", "provider": "p"}])
        terminal.wait_for("afterwards")
        terminal.press_ctrl_c()
        assert terminal.end() == 0
    assert "Traceback" not in terminal.output
    assert terminal.output.rindex(LEAVE_SCREEN) > terminal.output.rindex("afterwards")
    assert SHOW_CURSOR in terminal.output[terminal.output.rindex("afterwards") :]


def test_watch_keys_change_what_is_shown(server: Server) -> None:
    """Keys change window, filters and interval; the last line lists the keys, and ? all."""
    server.post([*DECISIONS, {**DECISIONS[0], "timestamp": "2024-01-01T00:00:00Z"}])
    with Terminal(*COMMAND, "watch", "--interval", "0.5", "--server", server.url) as terminal:
        terminal.wait_for("hybrid +3 +75.0%")
        terminal.wait_for("q leave")
        terminal.press("w")
        terminal.wait_for("the last 5m")
        terminal.wait_for("hybrid +2 +66.7%")
        terminal.press("s")
        terminal.wait_for("the last 5m, strategy hybrid")
        terminal.wait_for("hybrid +2 +100.0%")
        terminal.press("s")
        terminal.wait_for("strategy cost")
        terminal.wait_for("cost +1 +100.0%")
        terminal.press("sp")
        terminal.wait_for("the last 5m, provider gemini")
        terminal.wait_for("gemini +2 +100.0%")
        terminal.press("-")
        terminal.wait_for("every 1 s")
        terminal.press("a+")
        terminal.wait_for(r"every 0.5 s")
        terminal.wait_for("claude +1 +25.0%")
        terminal.press("\x1b[A\x1bOP?")
        terminal.wait_for("next or previous window")
        terminal.press("?")
        terminal.wait_for("claude")
        terminal.press("q")
        assert terminal.end() == 0


@pytest.mark.parametrize("leave", ["q", "\x03", "\x04"], ids=["q", "Ctrl-C", "Ctrl-D"])
def test_watch_leaves_the_terminal_as_it_was(server: Server, leave: str) -> None:
    """Screen, cursor and modes are restored; typed keys do not reach the shell."""
    with Terminal(*COMMAND, "watch", "--server", server.url) as terminal:
        before = terminal.settings
        terminal.wait_for("No decisions yet")
        assert terminal.settings != before
        terminal.press(leave)
        assert terminal.end() == 0
        assert terminal.settings == before
    assert terminal.output.rindex(LEAVE_SCREEN) > terminal.output.rindex("No decisions yet")
    assert SHOW_CURSOR in terminal.output


async def test_watch_leaves_the_terminal_as_it_was_when_it_fails() -> None:
    """After an invalid message the terminal is restored before the error is printed."""

    async def script(connection: ScriptedConnection) -> None:
        await connection.hello()
        await connection.receive()
        await connection.send(snapshot(1, {"total_decisions": "many"}))
        await connection.wait_closed()

    def run(url: str) -> tuple[int, str]:
        with Terminal(*COMMAND, "watch", "--server", url) as terminal:
            before = terminal.settings
            code = terminal.end()
            assert terminal.settings == before
            return code, terminal.output

    async with scripted(script) as server:
        code, output = await asyncio.to_thread(run, server.url)
    assert code == 1
    assert "Traceback" not in output
    assert output.index("messages are not Routecast's") > output.rindex(LEAVE_SCREEN)


def test_watch_may_be_suspended(server: Server) -> None:
    """Ctrl-Z restores the terminal; after `fg`, `watch` goes on."""
    with Terminal(*COMMAND, "watch", "--server", server.url) as terminal:
        before = terminal.settings
        terminal.wait_for("No decisions yet")
        terminal.process.send_signal(signal.SIGTSTP)
        terminal.wait_for(re.escape(LEAVE_SCREEN))
        assert os.waitpid(terminal.process.pid, os.WUNTRACED)[1] & 0xFF == 0x7F  # stopped
        assert terminal.settings == before
        terminal.process.send_signal(signal.SIGCONT)
        server.post(DECISIONS)
        terminal.wait_for("hybrid")
        terminal.press("q")
        assert terminal.end() == 0


def test_watch_shows_no_colour_where_none_is_wanted(server: Server) -> None:
    """With NO_COLOR it uses at most bold and dim."""
    server.post(DECISIONS)
    with Terminal(*COMMAND, "watch", "--server", server.url, env={"NO_COLOR": "1"}) as terminal:
        terminal.wait_for("hybrid")
        terminal.press("q")
        assert terminal.end() == 0
    assert not re.search(r"\x1b\[[\d;]*\b3\d", terminal.output)


def test_watch_leaves_the_terminal_as_it_was_on_sigterm(server: Server) -> None:
    """SIGTERM restores the terminal, too."""
    with Terminal(*COMMAND, "watch", "--server", server.url) as terminal:
        terminal.wait_for("No decisions yet")
        terminal.process.send_signal(signal.SIGTERM)
        assert terminal.end() == 143
    assert LEAVE_SCREEN in terminal.output
    assert SHOW_CURSOR in terminal.output


@pytest.mark.parametrize("words", [["--once"], [], ["--once", "--json"]], ids=" ".join)
def test_watch_without_a_server(words: list[str]) -> None:
    """With --once and no server it prints only an error, and ends with 1."""
    url = f"http://127.0.0.1:{free_port()}"
    done = routecast("watch", *words, "--server", url)
    assert done.returncode == 1
    assert f"cannot reach {url}: connection refused" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "words", [("--window", "3d"), ("--interval", "0.01"), ("--server", "http://")]
)
def test_watch_refuses_bad_options(words: tuple[str, ...]) -> None:
    """Values that the server would refuse are refused at once, with the name of the option."""
    done = routecast("watch", *words)
    assert done.returncode == 2
    assert words[0] in done.stderr


# -- bench --------------------------------------------------------------------------------------


def test_bench_measures_every_stream(server: Server) -> None:
    """All streams open and get frames, and the report has every figure."""
    server.post(DECISIONS)
    words = ("--connections", 50, "--seconds", 1.5, "--interval", 0.5, "--json")
    done = routecast("bench", "--server", server.url, *words)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["connections"], result["opened"], result["failures"]) == (50, 50, {})
    # In 1.5 s each stream sees two ticks at least, and four at most.
    assert 100 <= result["frames"] <= 200
    assert result["bytes"] > 100 * result["frames"]
    for name in ("connect_ms", "first_frame_ms", "latency_ms", "jitter_ms"):
        figures = result[name]
        assert 0 <= figures["p50"] <= figures["p95"] <= figures["p99"] <= figures["max"] < 10_000
    assert result["first_frame_ms"]["p50"] >= result["connect_ms"]["p50"]


def test_bench_says_it_in_words(server: Server) -> None:
    """The report for people is a table, and says that nothing failed."""
    words = ("--connections", 5, "--seconds", 0.3, "--interval", 0.1, "--fields", "rate")
    done = routecast("bench", "--server", server.url, *words)
    assert done.returncode == 0
    assert "5 of 5 streams opened" in done.stdout
    assert "from document to receipt" in done.stdout
    assert "No stream failed." in done.stdout


def test_bench_counts_failures_by_reason(server: Server) -> None:
    """If the server refuses a parameter, every stream fails with the server's words."""
    done = routecast("bench", "--server", server.url, "--connections", 3, "--fields", "nope")
    assert done.returncode == 1
    assert "3 failed: it answered 400: fields: 'nope'" in done.stdout


def test_bench_notices_lost_streams(server: Server) -> None:
    """If the server goes away during the measurement, each lost stream is a failure."""
    words = ("--connections", "20", "--seconds", "60", "--interval", "0.1")
    with Terminal(*COMMAND, "bench", "--server", server.url, *words) as terminal:
        terminal.wait_for("listening")
        server.kill()
        assert terminal.end() == 1
    assert "20 failed: the connection broke" in terminal.output


def test_bench_says_what_to_do_about_too_few_files() -> None:
    """The limit of open files is raised; if that is not enough, the message says what to do."""

    def few_files() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))

    done = routecast("bench", "--connections", 1000, preexec_fn=few_files)
    assert done.returncode == 2
    assert "256 open files" in done.stderr
    assert "ulimit -n 1064" in done.stderr


# -- demo ---------------------------------------------------------------------------------------


def test_demo_shows_moving_labelled_numbers(tmp_path: Path) -> None:
    """It prints its address, labels all traffic as simulated, and leaves no file behind."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    command = (*COMMAND, "demo", "--port", free_port(), "--rate", 200, "--seed", 1)
    with Terminal(*command, env={"TMPDIR": str(temporary)}, cwd=tmp_path) as terminal:
        url = terminal.wait_for(r"in a browser\s+(http://127\.0\.0\.1:\d+)/")[1]
        assert terminal.wait_for(rf"in a terminal\s+.* watch --server {re.escape(url)}")
        watching = routecast("watch", "--json", "--once", "--server", url)
        first = json.loads(watching.stdout)["total_decisions"]
        with Terminal(*COMMAND, "watch", "--server", url, "--project", "demo") as other:
            other.wait_for("complexity")
            other.press_ctrl_c()
            assert other.end() == 0
        total = httpx2.get(f"{url}/routing/metrics").json()["total_decisions"]
        labelled = httpx2.get(f"{url}/routing/metrics?project=demo").json()["total_decisions"]
        assert first < total <= labelled
        assert "Simulated traffic" in httpx2.get(f"{url}/").text
        assert list(temporary.iterdir())
        terminal.press_ctrl_c()
        assert terminal.end() == 0
    assert "Traceback" not in terminal.output
    assert list(temporary.iterdir()) == []


def test_demo_takes_the_next_free_port(tmp_path: Path) -> None:
    """If no port was given, it takes a free one and says which."""
    with socket.socket() as occupant:
        # Where another program has the port already, that is as good.
        with suppress(OSError):
            occupant.bind(("127.0.0.1", 8000))
            occupant.listen()
        with Terminal(*COMMAND, "demo", cwd=tmp_path) as terminal:
            taken = terminal.wait_for(r"Port 8000 is in use; using (\d+)")[1]
            terminal.wait_for(rf"http://127\.0\.0\.1:{taken}/")
            terminal.press_ctrl_c()
            assert terminal.end() == 0
        asked = routecast("demo", "--port", 8000, cwd=tmp_path)
        assert asked.returncode == 2
        assert "port 8000" in asked.stderr


def test_demo_keeps_a_database_that_was_asked_for(tmp_path: Path) -> None:
    """With --database the simulated decisions are kept."""
    database = tmp_path / "kept.db"
    command = (*COMMAND, "demo", "--port", free_port(), "--rate", 200)
    with Terminal(*command, "--database", f"sqlite:///{database}") as terminal:
        url = terminal.wait_for(r"(http://127\.0\.0\.1:\d+)/")[1]
        with Terminal(*COMMAND, "watch", "--server", url) as other:
            other.wait_for("hybrid")
        terminal.press_ctrl_c()
        assert terminal.end() == 0
    verified = routecast("verify", "--database", f"sqlite:///{database}")
    assert verified.returncode == 0, verified.stderr


# -- all of them --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    ["replay", "watch", "bench", "demo", "names", "keys", "keys create", "token", "token revoke"],
)
def test_help_fits_and_helps(command: str) -> None:
    """--help says what a command is for, in 80 columns, and shows options as they are written."""
    done = routecast(*command.split(), "--help", env={"COLUMNS": "80", "PATH": ""})
    assert done.returncode == 0
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "--" in done.stdout
    assert re.search(r"--help +Show this message", done.stdout)
