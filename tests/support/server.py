"""A real server as a process, on a free port, with a database in a temporary folder."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import httpx2

from tests.support.ports import free_port
from tests.support.secrets import found_in_files

START_SECONDS = 30.0
STOP_SECONDS = 15.0


# How WebSockets are served: by the protocol class of `routecast serve`, or by the ASGI route under
# plain uvicorn.
Edge = Literal["native", "portable"]
EDGES: tuple[Edge, ...] = ("native", "portable")

# The logging of `routecast serve`; uvicorn by itself shows only its own lines.
_LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"log": {"class": "logging.StreamHandler"}},
    "root": {"level": "INFO", "handlers": ["log"]},
}


class Server:
    """The server as a process. Use as a context manager, or `start` and `stop`.

    `options` are those of `routecast serve`, and need its edge. Without a `database_url`, decisions
    are stored in a file in the folder; a node of role `stream` stores none. That file and the log
    are searched for secrets at the end.
    """

    def __init__(
        self,
        folder: Path,
        *options: str,
        env: dict[str, str] | None = None,
        edge: Edge = "native",
        database_url: str | None = None,
        redis_url: str | None = None,
        role: str = "all",
    ) -> None:
        assert edge == "native" or not options
        folder.mkdir(exist_ok=True)
        self.port = free_port()
        self.database = folder / "routecast.db"
        self.log = folder / "server.log"
        self.log.touch()
        self.edge = edge
        self._logging = folder / "logging.json"
        self._logging.write_text(json.dumps(_LOGGING))
        self._options = options
        self.database_url = database_url or f"sqlite:///{self.database}"
        # Tests that send wrong credentials need not wait; those of limits set it.
        patient = {"ROUTECAST_FAILED_SIGN_INS": "0"}
        self.env = {**os.environ, "ROUTECAST_ROLE": role, **patient, **(env or {})}
        if role == "all":
            self.env["ROUTECAST_DATABASE_URL"] = self.database_url
        if redis_url:
            self.env["ROUTECAST_REDIS_URL"] = redis_url
        # Only a node that stores decisions is ever ready for them.
        self._started = "/ready" if role == "all" else "/health"
        self.process: subprocess.Popen[bytes] | None = None
        self.http = httpx2.Client(base_url=self.url, timeout=30)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def ws_url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/ws/metrics"

    def command(self) -> list[str]:
        port = ["--port", str(self.port)]
        if self.edge == "native":
            return [sys.executable, "-m", "routecast", "serve", *port, *self._options]
        pings = ["--ws-ping-interval", "10", "--ws-ping-timeout", "10"]
        log = ["--log-config", str(self._logging), "--no-access-log"]
        uvicorn = [sys.executable, "-m", "uvicorn", "routecast.asgi:app", "--no-proxy-headers"]
        return [*uvicorn, *port, "--ws", "websockets-sansio", *pings, *log]

    def start(self) -> Self:
        """Start on the same port and database as before; return when it is ready."""
        self.launch()
        self.wait_until_started()
        return self

    def wait_until_started(self) -> None:
        """Wait until it is ready or, without a database, until it serves streams."""
        self.wait_for(self._started, 200)

    def launch(self) -> None:
        """Start the process without waiting."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(), stdout=log, stderr=log, env=self.env, start_new_session=True
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
            time.sleep(0.02)  # time between two checks; the answer is the event

    def wait_for_log(self, *lines: str) -> None:
        """Wait until the server has logged all these texts, in this order."""
        pattern = re.compile(".*".join(re.escape(line) for line in lines), re.DOTALL)
        deadline = time.monotonic() + START_SECONDS
        while not pattern.search(self.log.read_text()):
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)

    def stop(self) -> int:
        """Stop with SIGTERM; return the exit code, 0 after a normal stop."""
        self.terminate()
        return self.wait()

    def terminate(self) -> None:
        """Send SIGTERM without waiting."""
        self._signal(signal.SIGTERM)

    def wait(self) -> int:
        """Wait until the process has ended; return the exit code, 0 after a normal stop."""
        assert self.process is not None
        code = self.process.wait(STOP_SECONDS)
        # uvicorn stops normally, and then raises the signal again.
        return 0 if self.edge == "portable" and code == -signal.SIGTERM else code

    def kill(self) -> int:
        """Stop with SIGKILL; return the exit code."""
        self._signal(signal.SIGKILL)
        return self.wait()

    def freeze(self) -> None:
        """Send SIGSTOP: connections stay open, and nothing answers."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Send SIGCONT: it continues."""
        self._signal(signal.SIGCONT)

    @property
    def runs(self) -> bool:
        """Whether the process runs."""
        return self.process is not None and self.process.poll() is None

    def _signal(self, number: int) -> None:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)

    def post(self, decisions: Sequence[dict[str, Any]] | dict[str, Any]) -> dict[str, Any]:
        """Send decisions; return the answer, which must be 200."""
        answer = self.http.post("/v1/decisions", json=decisions)
        assert answer.status_code == 200, answer.text
        receipt: dict[str, Any] = answer.json()
        return receipt

    def active(self) -> int:
        """Return the number of open streams."""
        count: int = self.http.get("/health").json()["active_connections"]
        return count

    def wait_for_active(self, count: int, seconds: float) -> float:
        """Wait until this number of streams is open; return the seconds that it took."""
        started = time.monotonic()
        while (active := self.active()) != count:
            assert time.monotonic() - started < seconds, f"{active} are still open"
            time.sleep(0.05)  # time between two checks; the answer is the event
        return time.monotonic() - started

    def instrument(self, name: str) -> float:
        """Return one number of `GET /metrics`."""
        text = self.http.get("/metrics").text
        found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    def closed(self, code: int) -> int:
        """Return the number of streams closed with a code."""
        return round(self.instrument(f'routecast_connections_closed_total{{code="{code}"}}'))

    def memory(self) -> int:
        """Return the bytes of memory that the process has in use."""
        assert self.process is not None
        command = ["ps", "-o", "rss=", "-p", str(self.process.pid)]
        return 1024 * int(subprocess.run(command, capture_output=True, check=True).stdout)

    def metrics(self, **query: Any) -> dict[str, Any]:
        """Return the document of `GET /routing/metrics`."""
        answer = self.http.get("/routing/metrics", params=query)
        assert answer.status_code == 200, answer.text
        document: dict[str, Any] = answer.json()
        return document

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.__exit__(AssertionError)
            raise

    def __exit__(self, failed: type[BaseException] | None = None, *_: object) -> None:
        self.http.close()
        if self.runs:
            self.stop()
        if failed is None:
            files = (self.log, self.database, self.database.with_name(f"{self.database.name}-wal"))
            assert found_in_files(files, self.env) == []
