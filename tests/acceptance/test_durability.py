"""Acknowledged means on disk: after kill -9, at a stop, and on a full disk."""

import errno
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2
import pytest

from routecast.adapters.store.sqlite.folding import SQLITE_FOLD_COMMITS
from routecast.adapters.store.sqlite.marks import wal_of
from tests.support.disk import immutable, remount, small_disk
from tests.support.server import Server
from tests.support.waiting import until

KILLS = 50
BATCH = 40


def decisions(prefix: str, count: int = BATCH) -> list[dict[str, Any]]:
    return [
        {
            "id": f"{prefix}-{number}",
            "strategy": f"s{number % 3}",
            "provider": f"p{number % 2}",
            "confidence": number / count,
            "cost": number / 1000,
            "latency_ms": number + 0.5,
        }
        for number in range(count)
    ]


def verify(server: Server) -> subprocess.CompletedProcess[str]:
    """Run `routecast verify` on a server's database."""
    command = [sys.executable, "-m", "routecast", "verify", "--database", server.database_url]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def change(server: Server, sql: str) -> int:
    """Change a server's database directly; return the number of changed rows."""
    with closing(sqlite3.connect(server.database, timeout=20)) as database, database:
        return database.execute(sql).rowcount


class Producer(threading.Thread):
    """Sends batches until stopped; keeps the acknowledged ones, and those without an answer."""

    def __init__(self, server: Server, name: str) -> None:
        super().__init__(name=name)
        self.server = server
        self.acknowledged: set[str] = set()
        self.unknown: set[str] = set()
        self.stopping = threading.Event()
        self.first_ack = threading.Event()

    def run(self) -> None:
        with httpx2.Client(base_url=self.server.url, timeout=20) as http:
            number = 0
            while not self.stopping.is_set():
                prefix = f"{self.name}-{number}"
                number += 1
                # Every second time it is sent until it is acknowledged; else its fate is open.
                for _ in range(10_000 if number % 2 else 1):
                    if self._send(http, prefix) or self.stopping.is_set():
                        break

    def _send(self, http: httpx2.Client, prefix: str) -> bool:
        try:
            answer = http.post("/v1/decisions", json=decisions(prefix))
        except httpx2.TransportError:
            self.unknown.add(prefix)
            self.stopping.wait(0.05)  # or the tries take the time that the server needs to start
            return False
        if answer.status_code == 200:
            body = answer.json()
            assert body["accepted"] + body["duplicates"] == BATCH
            self.acknowledged.add(prefix)
            self.unknown.discard(prefix)
            self.first_ack.set()
            return True
        assert answer.status_code == 503
        return False


@pytest.mark.timeout(900)  # fifty starts, each of up to eight seconds on a busy machine
def test_kill_nine(tmp_path: Path) -> None:
    """Over fifty kills each acknowledged decision is stored once, and no batch in part."""
    server = Server(tmp_path)
    producers = [Producer(server, f"t{number}") for number in range(3)]
    chance = random.Random(7)
    server.start()
    for producer in producers:
        producer.start()
    for _ in range(KILLS):
        for producer in producers:
            producer.first_ack.clear()
        assert producers[0].first_ack.wait(30)
        # At any moment of what is going on, not only right after an answer.
        threading.Event().wait(chance.random() * 0.05)
        assert server.kill() == -signal.SIGKILL
        server.start()
    for producer in producers:
        producer.stopping.set()
    for producer in producers:
        producer.join(60)
    acknowledged = set().union(*(producer.acknowledged for producer in producers))
    unknown = set().union(*(producer.unknown for producer in producers))
    with sqlite3.connect(server.database) as database:
        stored = database.execute(
            "SELECT rtrim(rtrim(id, '0123456789'), '-') AS batch, count(*), count(DISTINCT id) "
            "FROM decisions GROUP BY batch"
        ).fetchall()
        (seq,) = database.execute("SELECT seq FROM history").fetchone()
        (last,) = database.execute("SELECT max(seq) FROM decisions").fetchone()
    assert len(acknowledged) > KILLS
    assert {(count, distinct) for _, count, distinct in stored} == {(BATCH, BATCH)}
    assert acknowledged <= {batch for batch, _, _ in stored} <= acknowledged | unknown
    assert seq == last
    assert server.metrics()["total_decisions"] == BATCH * len(stored)
    checked = verify(server)
    assert checked.returncode == 0, checked.stdout
    assert f"{BATCH * len(stored):,} decisions" in checked.stdout
    assert server.stop() == 0


def test_a_stop_commits_what_waits(tmp_path: Path) -> None:
    """After SIGTERM during ingest each request is answered, and each answer is true."""
    server = Server(tmp_path).start()
    producers = [Producer(server, f"t{number}") for number in range(4)]
    for producer in producers:
        producer.start()
    for producer in producers:
        assert producer.first_ack.wait(30)
    assert server.stop() == 0
    for producer in producers:
        producer.stopping.set()
        producer.join(60)
    acknowledged = set().union(*(producer.acknowledged for producer in producers))
    with sqlite3.connect(server.database) as database:
        (count,) = database.execute("SELECT count(*) FROM decisions").fetchone()
    assert count >= BATCH * len(acknowledged)
    assert verify(server).returncode == 0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of eight megabytes."""
    with small_disk(tmp_path / "disk", 8 << 20) as folder:
        yield folder


def test_a_full_disk(disk: Path) -> None:
    """A decision without room is refused, not stored in part; with room it is accepted."""
    server = Server(disk).start()
    ballast = disk / "ballast"
    ballast.write_bytes(b"x" * 3_000_000)
    accepted = number = 0
    while True:
        answer = server.http.post("/v1/decisions", json=decisions(f"b{number}", 500))
        if answer.status_code != 200:
            break
        number += 1
        accepted += answer.json()["accepted"]
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1
    assert "full" in answer.json()["detail"]
    assert server.http.get("/ready").status_code == 503
    health = server.http.get("/health")
    assert health.status_code == 200
    assert health.json()["components"]["database"] == "failing"
    assert server.metrics()["total_decisions"] == accepted
    ballast.unlink()
    again = server.http.post("/v1/decisions", json=decisions(f"b{number}", 500))
    assert again.status_code == 200, again.text
    assert again.json()["accepted"] == 500
    assert server.http.get("/ready").status_code == 200
    assert server.metrics()["total_decisions"] == accepted + 500
    assert verify(server).returncode == 0
    assert "Traceback" not in server.log.read_text()
    assert server.stop() == 0


def test_a_file_that_takes_no_writes(server: Server) -> None:
    """`/ready` reports it before any decision comes, until the file can be written to."""
    server.post(decisions("kept"))
    with immutable(wal_of(server.database)):
        answer = server.http.get("/ready")
        assert answer.status_code == 503
        reason = f"SQLite: disk I/O error: {os.strerror(errno.EPERM)}"
        assert answer.json() == {"ready": False, "reason": reason}
        assert server.metrics()["total_decisions"] == BATCH
    server.wait_for("/ready", 200)
    assert server.post(decisions("kept again"))["accepted"] == BATCH
    assert verify(server).returncode == 0


def test_a_read_only_file_system(tmp_path: Path, disk: Path) -> None:
    """A node does not start on it and says why; it starts once the disk is writable."""
    server = Server(tmp_path / "node", database_url=f"sqlite:///{disk}/routecast.db")
    with server:
        server.post(decisions("kept"))
        server.stop()
        remount(disk, "ro")
        server.launch()
        assert server.process is not None
        assert server.process.wait(60) == 2
        assert f"cannot write to {disk}/routecast.db" in server.log.read_text()
        remount(disk, "rw")
        server.start()
        assert server.metrics()["total_decisions"] == BATCH


def test_a_removed_database_acknowledges_nothing(server: Server) -> None:
    """Decisions are refused, because they would be lost; streams continue."""
    server.post(decisions("kept"))
    moved = server.database.with_name("moved.db")
    server.database.rename(moved)
    answer = server.http.post("/v1/decisions", json=decisions("lost"))
    assert answer.status_code == 503
    assert "is gone" in answer.json()["detail"]
    assert server.http.get("/ready").status_code == 503
    assert server.metrics()["total_decisions"] == BATCH
    moved.rename(server.database)
    assert server.post(decisions("kept again"))["accepted"] == BATCH
    assert server.metrics()["total_decisions"] == 2 * BATCH


def test_verify_reports_what_differs(server: Server) -> None:
    """A changed sum is named with its right value; the exit code is 1."""
    for number in range(SQLITE_FOLD_COMMITS):
        server.post(decisions(f"v{number}"))
    more = "UPDATE rollups SET cost_sum = cost_sum + 1 WHERE period = 'total'"
    until(lambda: change(server, more))  # rollups are written a moment after these commits
    checked = verify(server)
    assert checked.returncode == 1
    assert "total" in checked.stdout
    assert "cost_sum" in checked.stdout
    assert json.dumps(checked.stdout).count("Traceback") == 0
