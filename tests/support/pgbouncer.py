"""A real PgBouncer in front of a PostgreSQL of the tests."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import parse_qs, urlsplit, urlunsplit

from tests.support.ports import free_port
from tests.support.postgres import USER

START_SECONDS: Final = 60.0


def program() -> str | None:
    """Return the path of PgBouncer; None if it is not installed."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"])
    return shutil.which("pgbouncer", path=path)


class PgBouncer:
    """A pooler in front of the server of a URL. Use as a context manager.

    Its settings are the installed defaults, except for its address and the given ones.
    """

    def __init__(self, url: str, mode: str, **settings: object) -> None:
        self._parts = urlsplit(url)
        self._settings = {"pool_mode": mode, **settings}

    def through(self, url: str) -> str:
        """Return the URL that leads to a database of the server through the pooler."""
        place = f"{self._parts.username}@127.0.0.1:{self.port}"
        return urlunsplit(urlsplit(url)._replace(netloc=place, query="sslmode=disable"))

    def __enter__(self) -> Self:
        self._folder = Path(tempfile.mkdtemp(prefix="bouncer"))
        self.port = free_port()
        query = parse_qs(self._parts.query)
        host = query.get("host", [self._parts.hostname])[0]
        port = query.get("port", [str(self._parts.port or 5432)])[0]
        settings: dict[str, object] = {
            "listen_addr": "127.0.0.1",
            "listen_port": self.port,
            "unix_socket_dir": "",
            "auth_type": "trust",
            "auth_file": self._folder / "users",
            "logfile": self._folder / "log",
            "pidfile": self._folder / "pid",
            **self._settings,
        }
        lines = [f"{name} = {value}" for name, value in settings.items()]
        server = f"* = host={host} port={port}"
        (self._folder / "users").write_text(f'"{self._parts.username}" ""\n')
        (self._folder / "ini").write_text(
            "\n".join(["[databases]", server, "[pgbouncer]", *lines, ""])
        )
        if USER:
            for path in (self._folder, *self._folder.iterdir()):
                shutil.chown(path, USER)
        self.start()
        return self

    def start(self) -> None:
        """Start it, and wait until it accepts connections."""
        found = program()
        assert found is not None, "PgBouncer is not installed"
        as_user: dict[str, Any] = {"user": USER} if USER else {}
        self._process = subprocess.Popen(
            [found, "-q", str(self._folder / "ini")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **as_user,
        )
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
            except OSError:
                log = self._folder / "log"
                said = log.read_text() if log.exists() else "nothing"
                assert self._process.poll() is None, said
                assert time.monotonic() < deadline, said
                time.sleep(0.02)
            else:
                return

    def kill(self) -> None:
        """Kill it, with all its connections."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def __exit__(self, *_: object) -> None:
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)
