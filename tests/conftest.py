"""Fixtures and hooks of all tests."""

import os
import shutil
import subprocess
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.support.interrupts import children_react_to_ctrl_c
from tests.support.needs import list_skipped, skip_without
from tests.support.pgbouncer import PgBouncer, program
from tests.support.postgres import GIVEN, Postgres, available, running
from tests.support.redis import RedisServer, given_url
from tests.support.server import Edge, Server

# A busy machine is slow, not wrong: no deadlines. In CI each run tries the same examples.
settings.register_profile(
    "routecast",
    deadline=None,
    max_examples=60,
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("routecast")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--go-on-skipped`: `make test` runs pytest twice, and ends with one list."""
    told = "list at the end also the tests that the run before skipped"
    parser.addoption("--go-on-skipped", action="store_true", help=told)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> Generator[None]:
    """List skipped tests at the end, with how to enable them."""
    yield
    list_skipped(terminalreporter, config, go_on=config.getoption("--go-on-skipped"))


# Variables that a user may have set, and that commands would obey.
_OBEYED = {"FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"}
# With this variable, each started server would compile everything that it imports.
_SLOW = {"PYTHONDONTWRITEBYTECODE"}


@pytest.fixture(scope="session", autouse=True)
def _one_environment() -> Iterator[None]:
    """Give commands the same width, colours and settings on any terminal."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "80")
        patch.setenv("LINES", "24")
        for name in os.environ:
            if name.startswith("ROUTECAST_TEST_"):  # for the tests themselves
                continue
            if name in _OBEYED | _SLOW or name.startswith("ROUTECAST_"):
                patch.delenv(name)
        yield


@pytest.fixture(scope="session", autouse=True)
def _children_react_to_ctrl_c() -> Iterator[None]:
    """Let tests interrupt commands, also if they run in the background."""
    with children_react_to_ctrl_c():
        yield


@pytest.fixture(scope="session")
def edge() -> Edge:
    """The edge that serves WebSockets; tests of streams override this fixture and run with both."""
    return "native"


@pytest.fixture
def server(tmp_path: Path, edge: Edge) -> Iterator[Server]:
    """A running server with an empty database."""
    with Server(tmp_path, edge=edge) as running:
        yield running


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Redis that tests share, each with its own prefix."""
    if given := given_url():
        yield given
    else:
        with RedisServer(tmp_path_factory.mktemp("redis")) as server:
            yield server.url


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server, one for each process of the test run."""
    if not available():
        skip_without("PostgreSQL", f"make install, or set {GIVEN}")
    with running() as server:
        yield server


@pytest.fixture(scope="session")
def pgbouncer(postgres: Postgres) -> Iterator[PgBouncer]:
    """A pooler that gives each transaction any free session of the server."""
    if program() is None:
        skip_without("PgBouncer", "apt install pgbouncer")
    limits = {"default_pool_size": 2, "server_idle_timeout": 1}
    with PgBouncer(postgres.url, "transaction", **limits) as running:
        yield running


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A self-signed certificate for this machine, with its key."""
    if shutil.which("openssl") is None:
        skip_without("openssl", "apt install openssl")
    made = tmp_path / "both.pem"
    ask = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    out = ["-keyout", str(made), "-out", str(tmp_path / "cert.pem")]
    subprocess.run([*ask, *name, *out], check=True, capture_output=True)
    made.write_bytes(made.read_bytes() + (tmp_path / "cert.pem").read_bytes())
    return made
