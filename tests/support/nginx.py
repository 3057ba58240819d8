"""A real nginx on a free port, run from the very file that is deployed."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import httpx2
import pytest

from tests.support.server import free_port

SHIPPED = Path(__file__).parents[2] / "deploy/nginx"
START_SECONDS = 10.0
STOP_SECONDS = 10.0

# Where nginx was built to write to may be root's alone, and another nginx's.
_OWN_FOLDERS = "".join(
    f"{kind}_temp_path {kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
)


def executable() -> str:
    """Return the path of nginx; skips the test where there is none."""
    found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if found is None:
        pytest.skip("nginx is not installed")
    return found


class Nginx:
    """Nginx before some nodes, by their ports. Use as a context manager.

    `nginx.conf` is the deployed one. Of the two files beside it, which are there to be changed,
    one names the test's nodes, and the other its port.
    """

    def __init__(self, folder: Path, nodes: Sequence[int]) -> None:
        self.port = free_port()
        self.log = folder / "error.log"
        self._folder = folder
        folder.mkdir()
        shutil.copy(SHIPPED / "nginx.conf", folder)
        listen = (SHIPPED / "listen.conf").read_text()
        assert "\nlisten 80 " in listen
        listen = listen.replace("\nlisten 80 ", f"\nlisten 127.0.0.1:{self.port} ")
        (folder / "listen.conf").write_text(f"{listen}access_log access.log;\n{_OWN_FOLDERS}")
        shipped = (SHIPPED / "nodes.conf").read_text()
        assert "127.0.0.1:8000" in shipped
        lines = [shipped.replace("127.0.0.1:8000", f"127.0.0.1:{port}") for port in nodes]
        (folder / "nodes.conf").write_text("".join(lines))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def ws_url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/ws/metrics"

    def command(self, *words: str) -> list[str]:
        # Root's workers stay root: another user could not enter the test's folder.
        main = "daemon off; pid nginx.pid;" + " user root;" * (os.geteuid() == 0)
        place = ["-p", str(self._folder), "-c", str(self._folder / "nginx.conf")]
        return [executable(), *place, "-e", str(self.log), "-g", main, *words]

    def test(self) -> subprocess.CompletedProcess[str]:
        """Have nginx check its configuration."""
        return subprocess.run(
            self.command("-t"), capture_output=True, text=True, timeout=30, check=False
        )

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self.command(), start_new_session=True)
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                httpx2.get(f"{self.url}/metrics")
            except httpx2.TransportError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError(f"nginx did not start:\n{self.log.read_text()}") from None
                time.sleep(0.02)  # between two questions; the answer is the event
            else:
                return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGTERM)  # at once, streams and all
        self._process.wait(STOP_SECONDS)
