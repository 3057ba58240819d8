"""Health, readiness, Prometheus metrics, errors of the command, and other ASGI servers."""

import base64
import hashlib
import json
import os
import re
import socket
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2
import pytest
from websockets.asyncio.client import connect
from websockets.sync.client import connect as connect_sync

from tests.support.ports import free_port
from tests.support.server import Server
from tests.support.waiting import until

GOOD = {"strategy": "hybrid", "provider": "gemini"}


def routecast(
    *words: str, folder: Path | None = None, **given: Any
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end; `given` goes to `subprocess.run`."""
    command = [sys.executable, "-m", "routecast", *words]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, cwd=folder, **given
    )


def test_health_and_readiness(server: Server) -> None:
    """Both answer 200 on a healthy node, and `/health` has the documented members."""
    position = server.post(GOOD)["position"]
    health = server.http.get("/health")
    assert health.status_code == 200
    found = health.json()
    assert re.fullmatch(r"\d+\.\d+\.\d+", found.pop("version"))
    assert found.pop("database_wal_bytes") > 0
    services = found.pop("services")
    assert set(services) == {
        *("retention", "summaries", "bus", "live", "ingest", "renders", "channels"),
        *("histories", "keys", "sessions"),
    }
    for state in services.values():
        assert state == {"status": "ok", "failures": 0, "restarts": 0, "last_error": ""}
    assert found == {
        "status": "ok",
        "active_connections": 0,
        "position": position,
        "components": {"database": "ok", "cache": "ok", "bus": "ok", "census": "ok"},
        "source": "live",
        "full_names": {},
        "database_check": "ok",
    }
    assert server.http.get("/ready").json() == {"ready": True}


async def test_prometheus_counts_what_happened(server: Server) -> None:
    """The documented metrics exist, and change with what is done."""
    server.post([{**GOOD, "id": "one"}, {**GOOD, "id": "one"}, {}])
    async with connect(server.ws_url) as stream:
        frame = await stream.recv(decode=False)
        text = server.http.get("/metrics").text
    assert 'routecast_decisions_total{outcome="accepted"} 1.0' in text
    assert 'routecast_decisions_total{outcome="duplicate"} 1.0' in text
    assert 'routecast_decisions_total{outcome="rejected"} 1.0' in text
    assert "routecast_connections 1.0" in text
    assert "routecast_connections_opened_total 1.0" in text
    assert "routecast_frames_sent_total 1.0" in text
    assert f"routecast_bytes_sent_total {float(len(frame))}" in text
    assert "routecast_position_seq 1.0" in text
    assert "routecast_commit_seconds_count 1.0" in text
    for name in (
        "routecast_ingest_queue_decisions",
        "routecast_frames_conflated_total",
        "routecast_send_failures_total",
        "routecast_bus_lag_seconds",
        "routecast_broadcast_seconds_count",
        'routecast_snapshots_served_total{source="live"}',
    ):
        assert f"\n{name} " in text


SMALL_LOGS = """
import sys
from routecast.adapters.store.sqlite import store, wal
from routecast.server import run
from routecast.server.config import load_settings

wal.CHECKPOINT_PAGES, wal.PAGES_TO_NEXT_TRY = 20, 10
wal.CUT_BYTES, wal.WARN_BYTES = 200_000, 400_000
store.CUT_PAUSE = 0.05
sys.exit(run.run(load_settings(port={port}, database_url="{url}")))
"""


class SmallLogs(Server):
    """A server that warns at 400 kB of write-ahead log instead of 64 MiB."""

    def command(self) -> list[str]:
        return [sys.executable, "-c", SMALL_LOGS.format(port=self.port, url=self.database_url)]


def test_a_long_reader_shows_in_health_and_metrics(tmp_path: Path) -> None:
    """The log's length and its cause are shown until the long reader ends."""
    log = "routecast_database_wal_bytes"
    batch = [{**GOOD, "reason": "r" * 400} for _ in range(200)]
    with SmallLogs(tmp_path) as server, closing(sqlite3.connect(server.database)) as reader:
        server.post(GOOD)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM decisions").fetchall()
        assert "database_warning" not in server.http.get("/health").json()
        while server.instrument(log) < 500_000:
            server.post(batch)
        until(lambda: server.http.get("/health").json()["status"] == "degraded")
        health = server.http.get("/health").json()
        assert health["database_wal_bytes"] > 500_000
        assert f"{server.database}-wal" in health["database_warning"]
        assert "another program has been reading" in health["database_warning"]
        assert health["degraded"] == [f"database: {health['database_warning']}"]
        assert server.http.get("/ready").json()["degraded"] == health["degraded"]
        reader.rollback()
        until(lambda: server.http.get("/health").json()["status"] == "ok")
        until(lambda: server.instrument(log) <= 200_000)
        assert server.http.get("/ready").json() == {"ready": True}


class Confined(Server):
    """A server that a shell has given a limit of open files."""

    limit = ""

    def command(self) -> list[str]:
        return ["sh", "-c", f'ulimit {self.limit} && exec "$@"', "sh", *super().command()]


def test_the_limit_of_open_files_is_raised(tmp_path: Path) -> None:
    """The node raises the soft limit to what its streams need."""
    confined = Confined(tmp_path, env={"ROUTECAST_MAX_CONNECTIONS": "500"})
    confined.limit = "-S -n 300"
    with confined as server:
        assert server.process is not None
        limits = Path(f"/proc/{server.process.pid}/limits").read_text()
        found = re.search(r"Max open files +(\d+)", limits)
        assert found is not None
        assert int(found[1]) > 500
        assert "files" not in server.log.read_text()


def test_too_few_open_files_are_reported(tmp_path: Path) -> None:
    """If the hard limit is too low, one log line says so, and what to do."""
    confined = Confined(tmp_path)
    confined.limit = "-n 300"
    with confined as server:
        server.wait_for_log("300 files", "about 44 streams", "MAX_CONNECTIONS is 10000", "ulimit")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--port", "99999"], "port"),
        (["--interval", "0"], "interval"),
        (["--log-level", "loud"], "log_level"),
        (["--host", "0.0.0.0"], "--insecure"),
        (["--host", "nowhere.invalid", "--insecure"], "nowhere.invalid"),
        (["--database", "mysql://x"], "mysql://x"),
        (["--database", "sqlite://"], "name a file"),
        (["--database", "sqlite:////no/such/folder/x.db"], "/no/such/folder/x.db"),
        (["--database", "postgresql://u:secret@[::1/db"], "ROUTECAST_DATABASE_URL"),
        (["--database", "sqlite://user:secret@host/x"], "name a file"),
        (["--database", "postgresql://u:half/secret@host/db"], "%2F"),
        (["--database", "u:secret@host/db"], "postgresql://"),
        (["--redis", "http://localhost"], "redis"),
        (["--redis", "redis://:secret@[::1/0"], "ROUTECAST_REDIS_URL"),
        (["--redis", "redis://:secret\u2100@host/0"], "ROUTECAST_REDIS_URL"),
    ],
)
def test_wrong_settings_are_reported_in_a_line(
    tmp_path: Path, options: list[str], words: str
) -> None:
    """The line has the setting and the fix; the exit code is 2, and there is no traceback."""
    ended = routecast("serve", *options, folder=tmp_path)
    assert ended.returncode == 2
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr
    assert "secret" not in ended.stderr
    assert ended.stderr.startswith("routecast: ")
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("ALLOWED_ORIGINS", "https://a.example,grafana.example", "write https://grafana.example"),
        ("ALLOWED_ORIGINS", "https://grafana.example/d/abc", "write https://grafana.example"),
        ("ALLOWED_HOSTS", "https://routecast.example", "write routecast.example"),
        ("TRUSTED_PROXIES", "10.0.0.1/8", "write 10.0.0.0/8"),
        ("TRUSTED_PROXIES", "nginx", "not a name"),
    ],
)
def test_settings_that_never_match_are_reported_in_a_line(
    tmp_path: Path, variable: str, value: str, words: str
) -> None:
    """The line names the setting and says what to write instead."""
    env = {**os.environ, f"ROUTECAST_{variable}": value}
    ended = routecast("serve", "--port", "0", folder=tmp_path, env=env)
    assert ended.returncode == 2
    assert f"ROUTECAST_{variable}" in ended.stderr
    assert words in ended.stderr
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize("url", ["postgresql://u:secret@[::1/db", "sqlite://u:secret@host/x"])
def test_verify_shows_no_secret(url: str) -> None:
    """The error about a bad URL is one line without the password."""
    ended = routecast("verify", "--database", url)
    assert ended.returncode == 2
    assert "secret" not in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_a_port_in_use(tmp_path: Path) -> None:
    """The error names the port, and how to choose another."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = routecast("serve", "--port", str(port), folder=tmp_path)
    assert ended.returncode == 2
    assert f"port {port}" in ended.stderr
    assert "--port" in ended.stderr


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"plain text, and enough of it that nobody could think it is SQLite" * 20, "not a SQLite"),
        (None, "another program"),
        ("newer", "newer Routecast"),
    ],
)
def test_a_file_of_another_program(tmp_path: Path, content: bytes | str | None, words: str) -> None:
    """The file is refused with the reason, and not changed."""
    path = tmp_path / "other.db"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        with sqlite3.connect(path) as database:
            database.execute("CREATE TABLE theirs (x)")
            if content:
                database.execute(f"PRAGMA application_id = {0x52544341}")
                database.execute("PRAGMA user_version = 999")
    before = path.read_bytes()
    for command in ("serve", "verify"):
        ended = routecast(command, "--database", f"sqlite:///{path}")
        assert ended.returncode == 2
        assert words in ended.stderr
        assert "Traceback" not in ended.stderr
    assert path.read_bytes() == before


def test_verify_makes_no_database(tmp_path: Path) -> None:
    """A path without a file is an error, and no file is created."""
    ended = routecast("verify", "--database", f"sqlite:///{tmp_path}/none.db")
    assert ended.returncode == 2
    assert "there is no database" in ended.stderr
    assert not (tmp_path / "none.db").exists()


def test_any_asgi_server_serves_it(tmp_path: Path) -> None:
    """`python -m uvicorn routecast.asgi:app` is the same application."""
    port = free_port()
    env = {**os.environ, "ROUTECAST_DATABASE_URL": f"sqlite:///{tmp_path}/routecast.db"}
    command = [sys.executable, "-m", "uvicorn", "routecast.asgi:app", "--port", str(port)]
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "running on" in line:
                break
        try:
            url = f"http://127.0.0.1:{port}"
            assert httpx2.post(f"{url}/v1/decisions", json=GOOD).json()["accepted"] == 1
            with connect_sync(f"ws://127.0.0.1:{port}/ws/metrics") as stream:
                assert json.loads(stream.recv())["total_decisions"] == 1
        finally:
            process.terminate()
            process.stderr.read()


def test_the_page_is_served_with_a_policy(server: Server) -> None:
    """The page's files come from the server, and the policy lets it load nothing else."""
    page = server.http.get("/")
    assert page.status_code == 200
    assert "text/html" in page.headers["content-type"]
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "{{" not in page.text
    paths = re.findall(r'(?:src|href)="(/?dashboard/[^"]+)"', page.text)
    assert len(paths) == 5
    for path in paths:
        answer = server.http.get("/" + path.lstrip("/"))
        assert answer.status_code == 200, path
        assert "immutable" in answer.headers["cache-control"], path


def test_the_page_has_one_inline_script(server: Server) -> None:
    """The policy allows exactly that inline script."""
    page = server.http.get("/")
    (script,) = re.findall(r"<script data-files=[^>]*>(.*?)</script>", page.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = page.headers["content-security-policy"]
    assert f"script-src 'self' 'sha256-{digest}'" in policy
    assert "unsafe" not in policy
    assert page.text.count("<script") == 2


@pytest.mark.parametrize("path", ["/nowhere", "/dashboard/../ports.py", "/dashboard/none.js"])
def test_other_paths_are_problems(server: Server, path: str) -> None:
    """An unknown path gets a problem document, as every error does."""
    answer = server.http.get(path)
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
