"""A real server in a process of its own, on a free port, with a database in a temporary folder."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import httpx2

START_SECONDS = 30.0
STOP_SECONDS = 15.0


def free_port() -> int:
    """Return a port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Server:
    """`routecast serve` as a process. Use as a context manager, or `start` and `stop`."""

    def __init__(self, folder: Path, *options: str, env: dict[str, str] | None = None) -> None:
        self.port = free_port()
        self.database = folder / "routecast.db"
        self.log = folder / "server.log"
        self.log.touch()
        self._options = options
        self._env = {**os.environ, **(env or {})}
        self.process: subprocess.Popen[bytes] | None = None
        self.http = httpx2.Client(base_url=self.url, timeout=30)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def ws_url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/ws/metrics"

    @property
    def database_url(self) -> str:
        return f"sqlite:///{self.database}"

    def command(self) -> list[str]:
        serve = [sys.executable, "-m", "routecast", "serve", "--port", str(self.port)]
        return [*serve, "--database", self.database_url, *self._options]

    def start(self) -> Self:
        """Start, or start again on the same port and database; returns when it is ready."""
        self.launch()
        self.wait_for("/ready", 200)
        return self

    def launch(self) -> None:
        """Start the process, and no more."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(), stdout=log, stderr=log, env=self._env, start_new_session=True
            )

    def wait_for(self, path: str, status: int) -> None:
        """Wait until a path answers with a status."""
        assert self.process is not None
        deadline = time.monotonic() + START_SECONDS
        while True:
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended:\n{self.log.read_text()}")
            try:
                if self.http.get(path).status_code == status:
                    return
            except httpx2.TransportError:
                pass
            if time.monotonic() > deadline:
                raise AssertionError(f"no {status} of {path}:\n{self.log.read_text()}")
            time.sleep(0.02)  # between two questions; the answer is the event

    def wait_for_log(self, *lines: str) -> None:
        """Wait until the server has logged all these texts, in this order."""
        pattern = re.compile(".*".join(re.escape(line) for line in lines), re.DOTALL)
        deadline = time.monotonic() + START_SECONDS
        while not pattern.search(self.log.read_text()):
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)

    def stop(self) -> int:
        """Stop with SIGTERM; return the exit code."""
        return self.signal(signal.SIGTERM)

    def kill(self) -> int:
        """Stop with SIGKILL; return the exit code."""
        return self.signal(signal.SIGKILL)

    def signal(self, number: int) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(STOP_SECONDS)

    def post(self, decisions: Sequence[dict[str, Any]] | dict[str, Any]) -> dict[str, Any]:
        """Send decisions; return the answer, which must be 200."""
        answer = self.http.post("/v1/decisions", json=decisions)
        assert answer.status_code == 200, answer.text
        receipt: dict[str, Any] = answer.json()
        return receipt

    def metrics(self, **query: Any) -> dict[str, Any]:
        """Return the document of `GET /routing/metrics`."""
        answer = self.http.get("/routing/metrics", params=query)
        assert answer.status_code == 200, answer.text
        document: dict[str, Any] = answer.json()
        return document

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.http.close()
        if self.process is not None and self.process.poll() is None:
            self.stop()
