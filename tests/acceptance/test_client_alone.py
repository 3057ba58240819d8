"""The Python client without the server package: msgspec and websockets are enough."""

import subprocess
import sys

from tests.support.server import Server

# An environment without the extra `server`, as an import sees it.
ALONE = """
import sys
from importlib.abc import MetaPathFinder

class Nothing(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        root = name.partition(".")[0]
        if root in sys.stdlib_module_names or root in {"routecast", "msgspec", "websockets"}:
            return None
        raise ModuleNotFoundError(f"No module named {root!r}", name=root)

sys.meta_path.insert(0, Nothing())
"""
USE = """
from routecast.client import Recorder, stream_sync

url = sys.argv[1]
with Recorder(url) as recorder:
    recorder.record(strategy="hybrid", provider="gemini", confidence=0.9)
    assert recorder.flush(30), recorder.counters
for metrics in stream_sync(url, interval=0.1):
    assert metrics.total_decisions == 1, metrics
    assert metrics.position.seq > 0
    break
"""
COMMAND = """
import runpy
sys.argv = ["routecast", "watch"]
runpy.run_module("routecast", run_name="__main__")
"""


def alone(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a program in an environment without the server."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", ALONE + code, *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_it_reads_and_records(server: Server) -> None:
    """The client streams and records there without a warning."""
    done = alone(USE, server.url)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_the_command_says_what_to_install() -> None:
    """It prints one line and no traceback."""
    done = alone(COMMAND)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert 'pip install "/path/to/checkout[server]"' in done.stderr
