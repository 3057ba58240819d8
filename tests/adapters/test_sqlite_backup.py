"""Backups of a SQLite file: whole, checked, and restored in a new epoch."""

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from routecast.adapters.store.sqlite import SqliteBackups, SqliteStore
from routecast.adapters.store.sqlite import backup as module
from routecast.adapters.store.sqlite.marks import shm_of, wal_of
from routecast.errors import BadDatabase, BadSettings, Damaged, InUse, Unavailable
from routecast.ports import Checked, Difference
from routecast.server.databases import open_backups, open_store
from tests.support.decisions import NOW, assert_sums, kept
from tests.support.keys import a_revocation, an_api_key, put
from tests.support.needs import skip_without


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """The path of a backup, in an empty folder."""
    (tmp_path / "backups").mkdir()
    return tmp_path / "backups" / "routecast.db"


def size(file: Path) -> int:
    return file.stat().st_size


def content_of(file: Path) -> bytes:
    return file.read_bytes()


def write(file: Path, content: bytes) -> None:
    file.write_bytes(content)


def exists(file: Path) -> bool:
    return file.is_file()


def remove(file: Path) -> None:
    file.unlink(missing_ok=True)


def ignore(_: Checked) -> None:
    pass


async def filled(path: Path, count: int = 300) -> str:
    """Make a closed database of `count` decisions; return its epoch."""
    store = SqliteStore(path)
    await store.open()
    for n in range(0, count, 100):
        await store.commit([[kept(m, reason="r" * 200) for m in range(n, n + 100)]], NOW)
    epoch = (await store.position()).epoch
    await store.close()
    return epoch


async def assert_has(path: Path, count: int) -> str:
    """Assert that a valid database has `count` decisions; return its epoch."""
    store = SqliteStore(path)
    await store.open()
    assert [one async for one in store.verify() if isinstance(one, Difference)] == []
    assert_sums((await store.load(NOW)).total, [kept(n) for n in range(count)])
    epoch = (await store.position()).epoch
    await store.close()
    return epoch


async def test_backup_during_commits_is_of_one_position(
    path: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commits between its steps are not in it, and none of them is lost."""
    monkeypatch.setattr(module, "PAGES_PER_STEP", 5)
    store = SqliteStore(path)
    await store.open()
    await store.commit([[kept(n, reason="r" * 200) for n in range(300)]], NOW)
    loop = asyncio.get_running_loop()
    told: list[Checked] = []

    def on_progress(at: Checked) -> None:
        told.append(at)
        commit = store.commit([[kept(1000 + len(told))]], NOW)
        asyncio.run_coroutine_threadsafe(commit, loop).result(60)

    done = await SqliteBackups(path).backup(target, on_progress)
    assert (done.decisions, done.position.seq) == (300, 1)
    assert done.size == size(target)
    copying = [at.done for at in told if at.stage == "copying"]
    assert len(copying) > 3
    assert copying == sorted(copying)
    assert told[-1].stage == "checking"
    assert os.listdir(target.parent) == [target.name]
    assert (await store.position()).seq == 1 + len(told)
    await store.close()
    await assert_has(target, 300)


async def test_backup_is_one_file_that_reading_does_not_change(path: Path, target: Path) -> None:
    """`verify` does not change it either, so it may be on a read-only disk."""
    await filled(path)
    await SqliteBackups(path).backup(target, ignore)
    before = content_of(target)
    store = SqliteStore(target, create=False)
    await store.open()
    assert [one async for one in store.verify() if isinstance(one, Difference)] == []
    await store.close()
    assert content_of(target) == before
    assert os.listdir(target.parent) == [target.name]


async def test_restored_database_begins_a_new_epoch(path: Path, target: Path) -> None:
    """Each restore begins one, and so does a backup that was copied by hand."""
    epochs = [await filled(path)]
    await SqliteBackups(path).backup(target, ignore)
    for _ in range(2):
        done = await SqliteBackups(path).restore(target, ignore)
        assert (done.decisions, done.position.seq) == (300, 3)
        epochs.append(await assert_has(path, 300))
    for _ in range(2):
        shutil.copyfile(target, path)
        epochs.append(await assert_has(path, 300))
    epochs.append(await assert_has(path, 300))  # the same file again, which was not restored
    assert epochs[-1] == epochs[-2]
    assert len(set(epochs)) == 5


async def test_replaced_database_is_kept(path: Path, target: Path) -> None:
    """After a kill, its log is added to it first. An empty database is not kept."""
    await filled(path)
    await SqliteBackups(path).backup(target, ignore)
    kept_at = kill_a_writer(path)
    done = await SqliteBackups(path).restore(target, ignore)
    assert done.kept is not None
    assert kept_at.exists() is False
    await assert_has(Path(done.kept), 310)
    await assert_has(path, 300)
    fresh = path.with_name("fresh.db")
    assert (await SqliteBackups(fresh).restore(target, ignore)).kept is None
    await assert_has(fresh, 300)
    empty = path.with_name("empty.db")
    await filled(empty, 0)
    assert (await SqliteBackups(empty).restore(target, ignore)).kept is None


async def test_backup_has_keys_and_revocations(path: Path, target: Path) -> None:
    """A database that has keys alone is kept, too, when it is replaced."""
    store = SqliteStore(path)
    await store.open()
    await store.change_access(put(an_api_key(1), a_revocation()))
    held = await store.access()
    await SqliteBackups(path).backup(target, ignore)
    await store.change_access(put(an_api_key(2)))
    later = await store.access()
    await store.close()
    kept_at = (await SqliteBackups(path).restore(target, ignore)).kept
    assert kept_at is not None
    for file, expected in ((path, held), (Path(kept_at), later)):
        store = SqliteStore(file)
        await store.open()
        assert await store.access() == expected
        await store.close()


WRITER = """
import asyncio, os, sys
from pathlib import Path
from routecast.adapters.store.sqlite.commit import commit
from routecast.adapters.store.sqlite.writer import Writer
from tests.support.decisions import NOW, kept
writer = Writer(Path(sys.argv[1]), create=True)
writer.open()
for n in range(300, 310):
    commit(writer, [[kept(n)]], NOW)
if len(sys.argv) == 2:
    os.kill(os.getpid(), 9)
print("ready", flush=True)
sys.stdin.read()
"""


def kill_a_writer(path: Path) -> Path:
    """Make a process commit ten decisions and kill itself; return the path of its log."""
    done = subprocess.run([sys.executable, "-c", WRITER, str(path)], check=False)
    assert done.returncode == -9
    assert wal_of(path).exists()
    return wal_of(path)


async def test_damaged_database_and_foreign_log_are_replaced_and_kept(
    path: Path, target: Path
) -> None:
    """Operators restore in such a situation."""
    await filled(path)
    await SqliteBackups(path).backup(target, ignore)
    kill_a_writer(path)
    shutil.copyfile(target, path)
    with pytest.raises(BadDatabase, match="does not belong"):
        await assert_has(path, 300)
    with path.open("r+b") as file:
        file.seek(8192)
        file.write(os.urandom(40_000))
    done = await SqliteBackups(path).restore(target, ignore)
    assert done.kept is not None
    assert wal_of(Path(done.kept)).exists()
    assert not wal_of(path).exists()
    assert not shm_of(path).exists()
    await assert_has(path, 300)


async def test_log_of_a_removed_file_is_kept(path: Path, target: Path) -> None:
    """It belongs to no other file."""
    await filled(path)
    await SqliteBackups(path).backup(target, ignore)
    kill_a_writer(path)
    remove(path)
    done = await SqliteBackups(path).restore(target, ignore)
    assert done.kept is not None
    assert exists(Path(done.kept))
    assert not wal_of(path).exists()
    await assert_has(path, 300)


async def test_commands_do_not_change_the_log_of_a_killed_server(
    path: Path, target: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The next server finds all of it, and goes on in the same epoch."""
    epoch = await filled(path)
    kill_a_writer(path)
    await SqliteBackups(path).backup(target, ignore)
    looked = SqliteStore(path, create=False)
    await looked.open()
    assert [one async for one in looked.verify() if isinstance(one, Difference)] == []
    await looked.close()
    assert wal_of(path).exists()
    again = SqliteStore(path)
    await again.open()
    assert (await again.position()).epoch == epoch
    assert "last decisions are lost" not in caplog.text
    await again.close()


async def test_database_in_use_is_not_replaced(path: Path, target: Path) -> None:
    """A server or any other program has it open."""
    await filled(path)
    await SqliteBackups(path).backup(target, ignore)
    command = [sys.executable, "-c", WRITER, str(path), "stay"]
    process = await asyncio.create_subprocess_exec(
        *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"ready\n"
    before = sorted(os.listdir(path.parent))
    with pytest.raises(InUse, match=f"{path} is in use: stop the server"):
        await SqliteBackups(path).restore(target, ignore)
    assert sorted(os.listdir(path.parent)) == before
    await process.communicate(b"")
    await SqliteBackups(path).restore(target, ignore)
    await assert_has(path, 300)


async def test_damaged_backup_changes_nothing(path: Path, target: Path) -> None:
    """The backup is checked first. A damaged database is not backed up."""
    await filled(path)
    await SqliteBackups(path).backup(target, ignore)
    before = content_of(path)
    for file in (target, path):
        db = apsw.Connection(str(file))
        root = db.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'decisions_id'").get
        db.close()
        with file.open("r+b") as opened:
            opened.seek((root - 1) * 4096)
            opened.write(bytes(4096))
    with pytest.raises(Damaged, match=f"{target} is damaged"):
        await SqliteBackups(path).restore(target, ignore)
    assert content_of(path) != before
    with pytest.raises(Damaged, match=f"{path} is damaged"):
        await SqliteBackups(path).backup(target.with_name("other.db"), ignore)
    assert [name for name in os.listdir(path.parent) if "restoring" in name] == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"PK\x03\x04" + bytes(100), "is a backup of PostgreSQL"),
        (b"strategy,provider\n", "is no backup of a SQLite database"),
        (b"", "is no backup of a SQLite database"),
    ],
)
async def test_file_that_is_no_backup_is_refused(
    path: Path, target: Path, content: bytes, reason: str
) -> None:
    """The error says what it is, and the database stays."""
    await filled(path)
    write(target, content)
    with pytest.raises(BadDatabase, match=f"{target} {reason}"):
        await SqliteBackups(path).restore(target, ignore)
    await assert_has(path, 300)


async def test_database_of_another_program_is_no_backup(path: Path, target: Path) -> None:
    """It is refused although it is a SQLite file."""
    db = apsw.Connection(str(target))
    db.execute("CREATE TABLE notes (text)")
    db.close()
    with pytest.raises(BadDatabase, match="is a database of another program"):
        await SqliteBackups(path).restore(target, ignore)
    assert not exists(path)
    with pytest.raises(BadDatabase, match="there is no database"):
        await SqliteBackups(path).backup(target, ignore)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk that is too small for a backup."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        skip_without("a small disk to fill up", "run as root, where tmpfs may be mounted")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


async def test_full_disk_is_named(path: Path, small_disk: Path) -> None:
    """The error says that the disk is full."""
    await filled(path)
    with pytest.raises(Unavailable, match="full"):
        await SqliteBackups(path).backup(small_disk / "routecast.db", ignore)


async def test_path_is_used_unchanged(
    tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Characters with a meaning in other URLs have none in this one, for every kind of access."""
    monkeypatch.chdir(tmp_path)
    for name in ("100%.db", "a%20b.db", "what?.db", "no#1.db", "x?mode=ro#y%00.db", "file:z.db"):
        for path in (name, str(tmp_path / "absolute" / name)):
            Path(path).parent.mkdir(exist_ok=True)
            store = open_store(f"sqlite:///{path}")
            await store.open()
            await store.commit([[kept(n) for n in range(1_500)]], NOW)
            await store.close()
            assert exists(Path(path))
            remove(target)
            done = await open_backups(f"sqlite:///{path}").backup(target, ignore)
            assert done.decisions == 1_500
            await open_backups(f"sqlite:///{path}").restore(target, ignore)
    with pytest.raises(BadSettings, match="name a file"):
        open_backups("sqlite://host/routecast.db")
