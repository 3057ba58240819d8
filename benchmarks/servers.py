"""Starting servers for benchmarks: each in a process of its own, on a free port."""

import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Final, NamedTuple

from benchmarks.cases import Broken
from benchmarks.load import HOST

START_SECONDS: Final = 30.0
STOP_SECONDS: Final = 15.0


class Running(NamedTuple):
    """A running server: its port and process."""

    port: int
    pid: int


@contextmanager
def routecast(database: Path | str, *options: str) -> Iterator[int]:
    """Run `routecast serve` on a SQLite file, or on a database by its URL; yield its port."""
    port = free_port()
    with running(serve(database, port, *options), port, "/ready"):
        yield port


@contextmanager
def bare_route() -> Iterator[int]:
    """Run the floor of HTTP, a Starlette route that reads a body and answers; yield its port."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.bare_route", "--port", str(port)]
    with running(command, port, "/"):
        yield port


def serve(database: Path | str, port: int, *options: str) -> list[str]:
    """Return the command that serves a SQLite file, or a database by its URL."""
    url = f"sqlite:///{database}" if isinstance(database, Path) else database
    command = [sys.executable, "-m", "routecast", "serve", "--database", url]
    return [*command, "--port", str(port), *options, "--log-level", "warning"]


@contextmanager
def running(
    command: list[str],
    port: int,
    ready: str,
    *,
    environment: Mapping[str, str] | None = None,
    core: int | None = None,
) -> Iterator[Running]:
    """Run a server until the end of the context; it has started once it answers a GET of `ready`.

    `core` is the only processor that it may use. Raises Broken if it does not start.
    """
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env={**os.environ, **(environment or {})}
        )
        if core is not None:
            os.sched_setaffinity(process.pid, {core})
        try:
            _await_ready(process, port, ready, log)
            yield Running(port, process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def free_port() -> int:
    """Return a free port."""
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
