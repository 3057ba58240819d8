"""`routecast backup` and `restore`: beside a running server, and after a server was killed."""

import os
import shutil
import signal
from pathlib import Path

import pytest

from tests.support.command import routecast
from tests.support.server import Server

DECISIONS = [{"strategy": f"s{n % 7}", "provider": "p", "id": f"d{n}"} for n in range(500)]


def total(server: Server) -> int:
    found: int = server.http.get("/routing/metrics?fields=total_decisions").json()[
        "total_decisions"
    ]
    return found


def test_backup_of_a_running_server_is_restored_after_a_kill(tmp_path: Path) -> None:
    """A copy put there by hand is refused by name; `restore` works, with a new epoch."""
    backup = tmp_path / "backup.db"
    with Server(tmp_path) as server:
        epoch = server.post(DECISIONS)["position"]["epoch"]
        made = routecast("backup", backup, "--database", server.database_url)
        assert made.returncode == 0, made.stderr
        assert made.stdout.startswith("Backed up 500 decisions (")
        assert f" to {backup}: epoch {epoch}, seq 1." in made.stdout
        assert made.stderr == ""
        again = routecast("backup", backup, "--database", server.database_url)
        assert again.returncode == 2
        assert f"{backup} exists" in again.stderr
        for own in (server.database, f"{server.database}-wal"):
            itself = routecast("backup", own, "--force", "--database", server.database_url)
            assert itself.returncode == 2
            assert f"{own} is a file of the database itself" in itself.stderr
        refused = routecast("restore", backup, "--database", server.database_url)
        assert refused.returncode == 1
        assert "is in use: stop the server" in refused.stderr
        server.post([{**one, "id": f"more-{one['id']}"} for one in DECISIONS])
        assert total(server) == 1_000
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
        shutil.copyfile(backup, server.database)
        started = routecast("serve", "--port", 0, "--database", server.database_url)
        assert started.returncode == 2
        assert f"{server.database}-wal does not belong to {server.database}" in started.stderr
        verified = routecast("verify", "--database", server.database_url)
        assert verified.returncode == 2
        restored = routecast("restore", backup, "--database", server.database_url)
        assert restored.returncode == 0, restored.stderr
        assert restored.stdout.startswith(f"Restored 500 decisions from {backup}: epoch ")
        assert "The replaced database is kept in " in restored.stdout
        server.start()
        assert total(server) == 500
        assert server.http.get("/health").json()["position"]["epoch"] != epoch
        verified = routecast("verify", "--database", server.database_url)
        assert verified.returncode == 0
        assert "Rollups equal a recount of 500 decisions." in verified.stdout
        assert "It cannot detect:" in verified.stdout


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("backup", "{folder}"), "is a folder: name a file in it"),
        (("backup", "{folder}/no/such.db"), "is not a folder: make it first"),
        (("backup", "{folder}/new.db"), "there is no database"),
        (("restore", "{folder}/none.db"), "is not a file"),
        (("restore", "{folder}/text"), "is no backup of a SQLite database"),
    ],
)
def test_each_refusal_is_one_line(tmp_path: Path, words: tuple[str, ...], reason: str) -> None:
    """The exit code is 2, and no file is left behind."""
    (tmp_path / "text").write_text("strategy\n")
    before = sorted(os.listdir(tmp_path))
    url = f"sqlite:///{tmp_path}/routecast.db"
    done = routecast(*(word.format(folder=tmp_path) for word in words), "--database", url)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert reason in done.stderr
    assert sorted(os.listdir(tmp_path)) == before


def test_force_replaces_a_backup_only_by_a_whole_one(tmp_path: Path) -> None:
    """If the new backup fails, the old one is still there."""
    backup = tmp_path / "backup.db"
    backup.write_text("old")
    url = f"sqlite:///{tmp_path}/routecast.db"
    assert routecast("backup", backup, "--force", "--database", url).returncode == 2
    assert backup.read_text() == "old"
    with Server(tmp_path) as server:
        server.post(DECISIONS)
        done = routecast("backup", backup, "--force", "--database", server.database_url)
        assert done.returncode == 0, done.stderr
    assert backup.read_bytes().startswith(b"SQLite format 3\0")
    assert [name for name in os.listdir(tmp_path) if "partial" in name] == []
