"""Tests that press Ctrl-C work in a test run that ignores SIGINT, such as under `nohup`."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.command import Terminal

ROOT = Path(__file__).parents[2]
WAIT_SECONDS = 240.0
# Says when it can be interrupted, and waits for that: in short steps, since a signal that comes
# just before a call blocks is seen when the call returns.
CHILD = """
import time
print("ready", flush=True)
for _ in range(6_000):
    time.sleep(0.05)
"""


def ignore_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def test_ctrl_c_at_a_terminal_ends_a_child() -> None:
    """Ctrl-C ends a child however this test run was started."""
    with Terminal(sys.executable, "-c", CHILD) as terminal:
        terminal.wait_for("ready")
        terminal.press_ctrl_c()
        assert terminal.end() == -signal.SIGINT


def test_a_signal_ends_a_child() -> None:
    """SIGINT ends a child without a terminal."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", CHILD], stdin=pipe, stdout=pipe, stderr=pipe, text=True
    ) as child:
        assert child.stdout
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGINT)
        assert child.wait(WAIT_SECONDS) == -signal.SIGINT


@pytest.mark.parametrize("workers", [[], ["-n", "1"]], ids=["alone", "a worker"])
def test_a_run_in_the_background_has_children_that_heed_ctrl_c(workers: list[str]) -> None:
    """The two tests above pass in a test run that ignores SIGINT."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *workers]
    env = {name: text for name, text in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [*command, __file__, "-k", "ends_a_child"],
        cwd=ROOT,
        env=env,
        preexec_fn=ignore_ctrl_c,
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
