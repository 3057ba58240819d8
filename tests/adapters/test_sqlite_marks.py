"""Marks: a write-ahead log of another file is always found, and its own log is never refused."""

import asyncio
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import apsw
import pytest

from routecast.adapters.store.sqlite import SqliteBackups, SqliteStore, wal
from routecast.adapters.store.sqlite.commit import commit
from routecast.adapters.store.sqlite.marks import read_log, require_own_log, shm_of, wal_of
from routecast.adapters.store.sqlite.writer import Writer
from routecast.errors import BadDatabase
from routecast.ports import Difference
from tests.support.decisions import MINUTE, NOW, kept

KILLS = int(os.environ.get("ROUTECAST_TEST_KILLS", "25"))


@pytest.fixture(autouse=True)
def short_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restart the log after every few commits."""
    monkeypatch.setattr(wal, "CHECKPOINT_PAGES", 25)
    monkeypatch.setattr(wal, "CUT_BYTES", 150_000)


def run_and_kill(path: Path, first: int, commits: int, pause: float) -> int:
    """Run a process that commits, and kill it; return the number of acknowledged commits."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            writer = Writer(path, create=True)
            writer.open()
            for n in range(first, first + 10_000):
                commit(writer, [[kept(n, decided=NOW - n % 300 * MINUTE, reason="r" * 300)]], NOW)
                writer.fold()
                os.write(write, b".")
        finally:
            os._exit(1)
    os.close(write)
    done = 0
    while done < commits:
        got = len(os.read(read, 4096))
        assert got, "the process ended by itself"
        done += got
    time.sleep(pause)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while got := len(os.read(read, 4096)):
        done += got
    os.close(read)
    return done


async def differences(path: Path) -> list[Difference]:
    store = SqliteStore(path)
    await store.open()
    try:
        return [one async for one in store.verify() if isinstance(one, Difference)]
    finally:
        await store.close()


def test_no_false_alarm_after_any_kill(path: Path) -> None:
    """All acknowledged decisions are there, and each older file is refused with the log."""
    chance = random.Random(7)
    acknowledged, old, refused = 0, path.with_name("old.db"), 0
    for kill in range(KILLS):
        done = run_and_kill(path, acknowledged, chance.randrange(1, 40), chance.random() * 0.005)
        acknowledged += done + 1  # the commit under way may be stored
        require_own_log(path)
        log = read_log(wal_of(path))
        # A log that was just restarted may have no commit yet, and then SQLite adds nothing of it.
        if old.exists() and log is not None and log.committed:
            shutil.copy(path, f"{path}.right")
            shutil.copyfile(old, path)
            with pytest.raises(BadDatabase, match=f"{wal_of(path)} does not belong to {path}"):
                require_own_log(path)
            refused += 1
            os.replace(f"{path}.right", path)
        if kill % 10 == 0:
            shutil.copyfile(path, old)
    assert refused > KILLS // 2
    assert asyncio.run(differences(path)) == []
    db = apsw.Connection(str(path))
    seq, decisions = (
        db.execute(f"SELECT {what}").get
        for what in ("max(seq) FROM history", "count(*) FROM decisions")
    )
    db.close()
    assert acknowledged - KILLS <= decisions <= acknowledged
    assert seq == decisions


# -- a restored file ----------------------------------------------------------------------------


def vacuum(path: Path, target: Path) -> None:
    db = apsw.Connection(str(path))
    db.execute("VACUUM INTO ?", (str(target),))
    db.close()


def online(path: Path, target: Path) -> None:
    db, copy = apsw.Connection(str(path)), apsw.Connection(str(target))
    with copy.backup("main", db, "main") as backup:
        backup.step()
    copy.close()
    db.close()


def command(path: Path, target: Path) -> None:
    asyncio.run(SqliteBackups(path).backup(target, lambda _: None))


def backup_of_a_killed_run(path: Path, make: Callable[[Path, Path], None], after: int) -> Path:
    """Make a process commit, back up its database, let it commit more and kill it."""
    target = path.with_name("backup.db")
    ready, go_on = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        try:
            writer = Writer(path, create=True)
            writer.open()
            for n in range(20):
                commit(writer, [[kept(n)]], NOW)
            os.write(ready[1], b".")
            os.read(go_on[0], 1)
            for n in range(20, 20 + after):
                commit(writer, [[kept(n)]], NOW)
            os.write(ready[1], b".")
            os.read(go_on[0], 1)
        finally:
            os._exit(1)
    assert os.read(ready[0], 1)
    make(path, target)
    os.write(go_on[1], b".")
    assert os.read(ready[0], 1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    for end in (*ready, *go_on):
        os.close(end)
    return target


@pytest.mark.parametrize("after", [0, 1, 100])
@pytest.mark.parametrize("make", [vacuum, online, command])
def test_backup_with_the_log_of_its_own_run_is_refused(
    path: Path, make: Callable[[Path, Path], None], after: int
) -> None:
    """Every command refuses it; without the log, it is the backup in a new epoch."""
    target = backup_of_a_killed_run(path, make, after)
    before = apsw.Connection(str(target)).execute("SELECT epoch FROM history").get
    shutil.copyfile(target, path)
    held = path.read_bytes()
    for create in (True, False):
        with pytest.raises(BadDatabase, match=f"{wal_of(path)} does not belong to {path}"):
            asyncio.run(opened(path, create=create))
    assert path.read_bytes() == held
    wal_of(path).rename(f"{path}.log")
    shm_of(path).unlink()
    epoch, decisions = asyncio.run(opened(path))
    assert epoch != before
    assert decisions == 20


async def opened(path: Path, *, create: bool = True) -> tuple[str, int]:
    store = SqliteStore(path, create=create)
    try:
        await store.open()
        total = (await store.load(NOW)).total
        return (await store.position()).epoch, sum(sums.count for sums in total.values())
    finally:
        await store.close()


def test_copy_of_a_stopped_database_is_refused_with_a_later_log(path: Path) -> None:
    """Without the mark of the start, the copy would equal the file when the log began."""
    assert asyncio.run(opened(path))[1] == 0
    cold = path.with_name("cold.db")
    shutil.copy(path, cold)
    run_and_kill(path, 0, 1, 0)
    require_own_log(path)
    shutil.copyfile(cold, path)
    with pytest.raises(BadDatabase, match="does not belong"):
        require_own_log(path)


@pytest.mark.parametrize("left", [None, b""], ids=["absent", "empty"])
def test_log_without_its_database_is_refused(path: Path, left: bytes | None) -> None:
    """SQLite would delete the log and begin a new database, and decisions would be lost."""
    run_and_kill(path, 0, 5, 0)
    path.unlink()
    if left is not None:
        path.write_bytes(left)
    with pytest.raises(BadDatabase, match=f"{wal_of(path)} is there, but its database {path}"):
        asyncio.run(opened(path))
    assert wal_of(path).exists()


def test_log_of_an_older_version_is_accepted(path: Path) -> None:
    """It has no marks."""
    asyncio.run(opened(path))
    db = apsw.Connection(str(path))
    for table in ("marks", "api_keys", "revocations", "access_version"):
        db.execute(f"DROP TABLE {table}")
    db.execute("PRAGMA user_version = 7")
    shutil.copy(wal_of(path), f"{path}.log")
    db.close()
    shutil.copy(f"{path}.log", wal_of(path))
    require_own_log(path)
    assert asyncio.run(opened(path))[1] == 0


LOOK = (
    "import sys, pathlib; from routecast.adapters.store.sqlite import marks; "
    "marks.require_own_log(pathlib.Path(sys.argv[1]))"
)


async def test_log_that_another_program_keeps_open_is_accepted(path: Path) -> None:
    """It stays after a clean stop, and belongs to the file."""
    other = None
    for number in range(4):
        store = SqliteStore(path)
        await store.open()
        other = other or apsw.Connection(str(path))
        other.execute("SELECT count(*) FROM decisions").fetchall()
        if number % 2:
            await store.commit([[kept(number)]], NOW)
        await store.close()
        assert wal_of(path).exists()
        # It is checked in another process, because this one has the file open.
        look = await asyncio.create_subprocess_exec(sys.executable, "-c", LOOK, str(path))
        assert await look.wait() == 0
    assert other is not None
    other.close()
