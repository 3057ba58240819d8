"""The examples, run as their readers run them, over the loss of a real server."""

import queue
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.support.server import Server

EXAMPLES = Path(__file__).parents[2] / "examples"
WAIT_SECONDS = 60.0
DECISION = {"strategy": "hybrid", "provider": "gemini", "confidence": 0.9}


def javascript() -> list[str]:
    """Return the words that run the JavaScript example, or skip where it cannot run."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True)
    major = int(version.stdout.lstrip("v").partition(".")[0])
    if major < 20:
        pytest.skip(f"node {version.stdout.strip()} has no WebSocket; 20 is needed")
    flags = ["--experimental-websocket"] if major < 22 else []
    return [node, *flags, str(EXAMPLES / "javascript" / "watch.mjs")]


def python() -> list[str]:
    """Return the words that run the Python example."""
    return [sys.executable, str(EXAMPLES / "python" / "watch_metrics.py")]


@pytest.fixture(params=[python, javascript])
def example(request: pytest.FixtureRequest) -> list[str]:
    """The words that run one of the examples."""
    words: list[str] = request.param()
    return words


class Running:
    """An example under way, and the lines it has printed."""

    def __init__(self, *words: str) -> None:
        self.process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self._lines.put(line)

    def wait_for(self, pattern: str) -> str:
        """Return the next line that matches."""
        seen = []
        while True:
            try:
                seen.append(self._lines.get(timeout=WAIT_SECONDS))
            except queue.Empty:
                raise AssertionError(f"no {pattern!r} in {seen}") from None
            if re.search(pattern, seen[-1]):
                return seen[-1]

    def __enter__(self) -> "Running":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(WAIT_SECONDS)
        self._reader.join(WAIT_SECONDS)
        assert self.process.stdout
        self.process.stdout.close()


@pytest.fixture
def stream_url(server: Server) -> str:
    """The address of a quick stream."""
    return f"{server.ws_url}?interval=0.1"


def test_an_example_prints_documents_and_ends(
    server: Server, stream_url: str, example: list[str]
) -> None:
    """A line for each document, as many as asked for."""
    server.post(DECISION)
    done = subprocess.run(
        [*example, stream_url, "--count", "3"],
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    for line in lines:
        assert re.search(r"1 decisions, confidence 0\.900: .hybrid. 1$", line)


def test_an_example_comes_back_by_itself(
    server: Server, stream_url: str, example: list[str]
) -> None:
    """Killed and started again, the server is found again, and the numbers go on."""
    server.post(DECISION)
    with Running(*example, stream_url, "--first-delay", "0.1") as running:
        running.wait_for("1 decisions")
        server.kill()
        running.wait_for("trying again in")
        server.start()
        server.post(DECISION)
        running.wait_for("2 decisions")
        server.stop()
        running.wait_for("1012.*trying again in")


def test_the_python_example_stays_away_when_it_is_not_wanted(server: Server) -> None:
    """A refused parameter is no reason to try again."""
    done = subprocess.run(
        [*python(), f"{server.ws_url}?interval=nonsense"],
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        check=False,
    )
    assert done.returncode == 1
    assert "HTTP 400" in done.stderr
