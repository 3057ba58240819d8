"""Servers of WSGI applications that record decisions: gunicorn and uWSGI."""

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.needs import skip_without
from tests.support.ports import free_port
from tests.support.waiting import until

WAIT_SECONDS = 60.0
APPLICATION = """
import logging, os
logging.basicConfig(level="WARNING")
from routecast.client import Recorder
recorder = Recorder(os.environ["URL"], exit_timeout=20)
if "BEFORE" in os.environ:
    recorder.record(strategy="before", provider="p")
def app(environ, start_response):
    recorder.record(strategy="request", provider="p")
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""
UWSGI = "import pyuwsgi, sys; pyuwsgi.run(sys.argv[1:])"


def needs(*packages: str) -> None:
    """Skip a test if a package of this name is missing."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            skip_without(f"the Python package {package}", "make install")


def gunicorn(*options: str) -> list[str]:
    """Return the command that serves the application; its last argument is the address."""
    needs("gunicorn")
    return [sys.executable, "-m", "gunicorn", "app:app", "--log-level", "warning", *options, "-b"]


def uwsgi(*options: str) -> list[str]:
    """Return the command that serves the application; its last argument is the address."""
    needs("pyuwsgi")
    fixed = ["--master", "--wsgi-file", "app.py", "--callable", "app", "--die-on-term"]
    return [sys.executable, "-c", UWSGI, *fixed, *options, "--http-socket"]


@contextmanager
def application(command: list[str], folder: Path, **environment: str) -> Iterator[str]:
    """Serve the application; yield its address. At the end it is stopped with SIGTERM."""
    (folder / "app.py").write_text(APPLICATION)
    address = f"127.0.0.1:{free_port()}"
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, address],
            cwd=folder,
            env={**os.environ, **environment},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield f"http://{address}/"
            process.terminate()
            process.wait(WAIT_SECONDS)
            until(lambda: not _lives(process.pid))  # workers may end after their master
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def ask(url: str) -> bytes:
    """Ask the application once. Raises OSError while it does not listen."""
    with urllib.request.urlopen(url, timeout=WAIT_SECONDS) as answer:
        body: bytes = answer.read()
    return body
