"""`routecast top`: on a terminal, in a pipe, and after errors."""

import json
import os
import subprocess

import pytest
from websockets.sync.client import connect

from tests.support.command import COMMAND, Terminal, routecast
from tests.support.ports import free_port
from tests.support.server import Server

GOOD = {"strategy": "hybrid", "provider": "gemini"}
WIDE = {**os.environ, "COLUMNS": "250"}


def test_top_once_prints_nodes_and_connections(server: Server) -> None:
    """All of them; in a pipe also without the option."""
    server.post(GOOD)
    with connect(server.ws_url, user_agent_header="wall/1") as stream:
        stream.recv()
        for words in ([], ["--once"]):
            done = routecast("top", *words, "--server", server.url, env=WIDE)
            assert (done.returncode, done.stderr) == (0, "")
            assert "1 node, 1 stream" in done.stdout
            assert "wall/1" in done.stdout
        none = routecast("top", "--protocol", "sse", "--server", server.url, env=WIDE)
        assert "only sse: 0 of 0" in none.stdout
    done = routecast("top", "--closed", "--server", server.url, env=WIDE)
    assert "1000" in done.stdout
    assert "wall/1" in done.stdout


def test_top_json_is_one_line_a_second(server: Server) -> None:
    """Each with the answers of the server."""
    command = [*COMMAND, "top", "--json", "--server", server.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        first, second = (json.loads(running.stdout.readline()) for _ in range(2))
        running.terminate()
    assert first["nodes"]["node"] == second["nodes"]["node"]
    assert second["nodes"]["nodes"][0]["at"] > first["nodes"]["nodes"][0]["at"]
    once = routecast("top", "--json", "--once", "--server", server.url)
    assert json.loads(once.stdout)["connections"]["connections"] == []


def test_top_live_follows_and_obeys_keys(server: Server) -> None:
    """The screen of the next second has what has changed; q leaves the terminal as it was."""
    with Terminal(*COMMAND, "top", "--server", server.url, columns=160) as terminal:
        before = terminal.settings
        terminal.wait_for("1 node, 0 streams")
        with connect(server.ws_url) as stream:
            stream.recv()
            terminal.wait_for("1 node, 1 stream")
            terminal.press("s")
            terminal.wait_for("most bytes first")
            terminal.press("?")
            terminal.wait_for("code and reason")
            terminal.press("?p")
            terminal.wait_for("only default")
        terminal.press("c")
        terminal.wait_for("closed connections")
        terminal.wait_for("1000")
        server.stop()
        terminal.wait_for("cannot reach")
        terminal.press("q")
        assert terminal.end() == 0
        assert terminal.settings == before


def test_top_says_what_is_wrong() -> None:
    """One line, and an exit code."""
    done = routecast("top", "--server", f"127.0.0.1:{free_port()}")
    assert done.returncode == 1
    assert done.stderr.startswith("routecast: cannot reach http://127.0.0.1:")
    assert "routecast serve" in done.stderr
    assert routecast("top", "--server", "ftp://x").returncode == 2


@pytest.mark.parametrize("words", [["--sort", "age"], ["--limit", "0"], ["--protocol", "ws"]])
def test_top_refuses_what_it_does_not_know(words: list[str]) -> None:
    """Before it asks the server."""
    assert routecast("top", *words).returncode == 2
