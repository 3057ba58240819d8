"""The command `routecast` as a process: with output, on a terminal, with keys and signals."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

COMMAND = (sys.executable, "-m", "routecast")
WAIT_SECONDS = 60.0


def routecast(*words: object, **given: Any) -> subprocess.CompletedProcess[str]:
    """Run the command to its end; `given` goes to `subprocess.run`."""
    options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": WAIT_SECONDS}
    return subprocess.run([*COMMAND, *map(str, words)], check=False, **(options | given))


class Terminal:
    """A process on a terminal of its own: its output, and the keys it gets."""

    def __init__(
        self,
        *command: object,
        columns: int = 100,
        lines: int = 30,
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        plain = {"TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": str(lines)}
        self.process = subprocess.Popen(
            [str(word) for word in command],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, **plain, **(env or {})},
            cwd=cwd,
            start_new_session=True,
            # Only the session's own terminal turns Ctrl-C into a signal.
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(theirs)
        self.output = ""
        self._unread = ""

    def wait_for(self, pattern: str, seconds: float = WAIT_SECONDS) -> re.Match[str]:
        """Read until new output matches; output up to the match's end is not searched again."""
        deadline = time.monotonic() + seconds
        while True:
            if found := re.search(pattern, self._unread):
                self._unread = self._unread[found.end() :]
                return found
            piece = self._read(deadline)
            if not piece:
                raise AssertionError(f"no {pattern!r} in:\n{self._unread[-4000:]!r}")
            self._unread += piece

    def press(self, keys: str) -> None:
        """Press keys at the terminal."""
        os.write(self._ours, keys.encode())

    def press_ctrl_c(self) -> None:
        """Press Ctrl-C at the terminal."""
        self.press("\x03")

    @property
    def settings(self) -> list[Any]:
        """The terminal's settings, which a program must restore."""
        return termios.tcgetattr(self._ours)

    def end(self) -> int:
        """Read the rest until the process has ended; return its exit code."""
        deadline = time.monotonic() + WAIT_SECONDS
        while self._read(deadline):
            pass
        return self.process.wait(WAIT_SECONDS)

    def _read(self, deadline: float) -> str:
        ready, _, _ = select.select([self._ours], [], [], max(0, deadline - time.monotonic()))
        if not ready:
            return ""
        try:
            piece = os.read(self._ours, 65536).decode(errors="replace")
        except OSError:  # Linux reports the end of the last process on a terminal in this way.
            return ""
        self.output += piece
        return piece

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(WAIT_SECONDS)
        os.close(self._ours)
