"""A real nginx on a free port, with the configuration of `deploy/`."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import httpx2

from tests.support.needs import skip_without
from tests.support.ports import free_port

SHIPPED = Path(__file__).parents[2] / "deploy/nginx"
START_SECONDS = 10.0
STOP_SECONDS = 10.0

# nginx's default folders may be writable by root only, or in use by another nginx.
_OWN_FOLDERS = "".join(
    f"{kind}_temp_path {kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
)


def executable() -> str:
    """Return the path of nginx; skip the test if it is not installed."""
    found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if found is None:
        skip_without("nginx", "apt install nginx")
    return found


class CustomNginx:
    """nginx with a test's own servers, given as the content of `http { }`; waits for `port`.

    Use as a context manager. `serve` gives it other servers, and returns when they answer.
    """

    def __init__(self, folder: Path, port: int, servers: str) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir()
        self._write(servers)

    def _write(self, servers: str) -> None:
        (self._folder / "nginx.conf").write_text(
            "worker_processes 1; events { worker_connections 256; }\n"
            f"http {{ access_log off; {_OWN_FOLDERS} {servers} }}\n"
        )

    def serve(self, servers: str) -> None:
        """Stop, and start with other servers on the same ports."""
        self.__exit__()
        self._write(servers)
        self.__enter__()

    def __enter__(self) -> Self:
        main = "daemon off; pid nginx.pid;" + " user root;" * (os.geteuid() == 0)
        place = ["-p", str(self._folder), "-c", str(self._folder / "nginx.conf")]
        log = self._folder / "error.log"
        command = [executable(), *place, "-e", str(log), "-g", main]
        self._process = subprocess.Popen(command, start_new_session=True)
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                httpx2.get(self.url)
            except httpx2.TransportError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError(f"nginx did not start:\n{log.read_text()}") from None
                time.sleep(0.02)  # time between two checks; the answer is the event
            else:
                return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGTERM)
        self._process.wait(STOP_SECONDS)


class Nginx:
    """nginx in front of nodes, given by their ports. Use as a context manager.

    `nginx.conf` is the one of `deploy/`. The files beside it, which operators change, have the
    test's nodes, its port, the `names` that nginx answers to, and further lines of `listen.conf`.
    `replaced` are replacements of texts in nginx.conf, such as a shorter time; each text must be
    there.
    """

    def __init__(
        self,
        folder: Path,
        nodes: Sequence[int],
        *,
        names: Sequence[str] = (),
        listen: str = "",
        replaced: Mapping[str, str] | None = None,
    ) -> None:
        self.port = free_port()
        self.log = folder / "error.log"
        self._folder = folder
        folder.mkdir()
        text = (SHIPPED / "nginx.conf").read_text()
        for old, new in (replaced or {}).items():
            assert old in text, old
            text = text.replace(old, new)
        (folder / "nginx.conf").write_text(text)
        lines = "".join(f"{name} 1;\n" for name in names)
        (folder / "names.conf").write_text((SHIPPED / "names.conf").read_text() + lines)
        shipped = (SHIPPED / "listen.conf").read_text()
        assert "\nlisten 80 " in shipped
        shipped = shipped.replace("\nlisten 80 ", f"\nlisten 127.0.0.1:{self.port} ")
        own = f"access_log access.log;\n{_OWN_FOLDERS}{listen}"
        (folder / "listen.conf").write_text(f"{shipped}{own}")
        self.list_nodes(nodes)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def ws_url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/ws/metrics"

    def list_nodes(self, ports: Sequence[int]) -> None:
        """Write nodes.conf; a running nginx reads it at `reload`."""
        shipped = (SHIPPED / "nodes.conf").read_text()
        assert "127.0.0.1:8000" in shipped
        lines = [shipped.replace("127.0.0.1:8000", f"127.0.0.1:{port}") for port in ports]
        (self._folder / "nodes.conf").write_text("".join(lines))

    def reload(self) -> set[int]:
        """Make nginx read its files again; return the pids of the old workers when new ones run."""
        assert self._process is not None
        old = self.workers()
        os.kill(self._process.pid, signal.SIGHUP)
        deadline = time.monotonic() + START_SECONDS
        while not self.workers() - old:
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)
        return old

    def workers(self) -> set[int]:
        """Return the pids of all worker processes, old ones included."""
        assert self._process is not None
        command = ["ps", "--ppid", str(self._process.pid), "-o", "pid="]
        listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        return {int(pid) for pid in listed.split()}

    def command(self, *words: str) -> list[str]:
        # As root, workers stay root: another user cannot enter the test's folder.
        main = "daemon off; pid nginx.pid;" + " user root;" * (os.geteuid() == 0)
        place = ["-p", str(self._folder), "-c", str(self._folder / "nginx.conf")]
        return [executable(), *place, "-e", str(self.log), "-g", main, *words]

    def test(self) -> subprocess.CompletedProcess[str]:
        """Make nginx check its configuration."""
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
                time.sleep(0.02)  # time between two checks; the answer is the event
            else:
                return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGTERM)  # at once, with all streams
        self._process.wait(STOP_SECONDS)
