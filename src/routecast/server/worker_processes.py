"""`WorkerProcesses`: the parent of several processes that serve one port.

All accept from one listening socket, so connections that wait there are not lost with a process.
Each worker is a node like any other: workers share only the database and Redis.
"""

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from typing import Final

from routecast.server.config import Settings, environment

log = logging.getLogger(__name__)

# A worker that fails sooner than this, in seconds, could not start; another one could not either.
STARTED_SECONDS: Final = 5.0


class WorkerProcesses:
    """Starts `settings.workers` processes; `run` replaces those that die, until a signal."""

    def __init__(self, settings: Settings, listener: socket.socket) -> None:
        self._count = settings.workers
        self._descriptor = listener.fileno()
        self._environment = environment(settings, workers="1", fd=str(self._descriptor))
        self._running: dict[int, tuple[subprocess.Popen[bytes], float]] = {}  # by process id
        self._stopping = False

    def run(self) -> int:
        """Serve until a signal; return the exit code. A worker that dies is replaced."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: self._stop())
        for _ in range(self._count):
            self._start()
        code = 0
        while self._running:
            process, status = os.wait()
            if process not in self._running:
                continue
            worker, started = self._running.pop(process)
            worker.returncode = os.waitstatus_to_exitcode(status)
            if self._stopping:
                continue
            # A worker that was killed did not fail to start, so it is replaced.
            if worker.returncode >= 0 and time.monotonic() - started < STARTED_SECONDS:
                code = worker.returncode or 1
                self._stop()
            else:
                log.error("Worker %d ended (%d); another is started", process, worker.returncode)
                self._start()
        return code

    def _start(self) -> None:
        worker = subprocess.Popen(
            [sys.executable, "-m", "routecast", "serve"],
            env=self._environment,
            pass_fds=[self._descriptor],
        )
        self._running[worker.pid] = (worker, time.monotonic())
        if self._stopping:  # the signal came before this worker was registered
            self._stop()

    def _stop(self) -> None:
        self._stopping = True
        for process in list(self._running):
            # Not Popen's method, which could reap a process that `run` is waiting for.
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGTERM)
