"""Servers: each in a process of its own, started on a free port and stopped at the end."""

import http.client
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Final

from benchmarks.cases import Broken
from benchmarks.load import HOST

START_SECONDS: Final = 30.0
STOP_SECONDS: Final = 15.0


@contextmanager
def routecast(database: Path, *options: str) -> Iterator[int]:
    """Run `routecast serve` on a SQLite file; gives its port."""
    command = ["routecast", "serve", "--database", f"sqlite:///{database}", *options]
    with _server([*command, "--log-level", "warning"], "/ready") as port:
        yield port


@contextmanager
def bare_route() -> Iterator[int]:
    """Run the floor of HTTP: a Starlette route that reads a body and answers; gives its port."""
    with _server(["benchmarks.bare_route"], "/") as port:
        yield port


@contextmanager
def _server(command: list[str], ready: str) -> Iterator[int]:
    port = _free_port()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *command, "--port", str(port)], stdout=log, stderr=log
        )
        try:
            _await_ready(process, port, ready, log)
            yield port
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _await_ready(process: subprocess.Popen[bytes], port: int, path: str, log: IO[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(OSError):
            connection = http.client.HTTPConnection(HOST, port, timeout=START_SECONDS)
            connection.request("GET", path)
            if connection.getresponse().status < 500:
                return
        time.sleep(0.05)
    log.seek(0)
    raise Broken(f"{process.args!r} did not start:\n{log.read().decode().strip()}")
