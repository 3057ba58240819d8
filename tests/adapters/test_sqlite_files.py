"""The three files of a SQLite database, if another program removes, replaces or cuts them."""

import asyncio
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from routecast.adapters.store.sqlite import SqliteStore
from routecast.adapters.store.sqlite.marks import shm_of, wal_of
from routecast.core.decision import DecisionRecord
from routecast.errors import Unavailable
from routecast.ports import Difference
from routecast.retry import Backoff, no_jitter
from tests.support.decisions import NOW, assert_sums, kept
from tests.support.running_services import until


async def with_decisions(path: Path, count: int = 50) -> tuple[SqliteStore, list[DecisionRecord]]:
    """Return an open store whose decisions are in the write-ahead log."""
    store = SqliteStore(path)
    await store.open()
    decisions = [kept(n) for n in range(count)]
    for decision in decisions:
        await store.commit([[decision]], NOW)
    await store.load(NOW)  # so that readers are open, too
    return store, decisions


async def assert_ready(store: SqliteStore) -> None:
    """Wait until a commit would succeed."""

    async def is_ready() -> bool:
        try:
            await store.check()
        except Unavailable:
            return False
        return True

    async with asyncio.timeout(60):
        while not await is_ready():  # noqa: ASYNC110 -- the store has no event for it
            await asyncio.sleep(0.01)


async def after_a_kill(path: Path, decisions: list[DecisionRecord]) -> None:
    """Assert that the files on the disk are a valid database with these decisions."""
    folder = path.parent / "after"
    folder.mkdir()
    for file in (path, wal_of(path)):
        shutil.copy(file, folder)
    store = SqliteStore(folder / path.name)
    await store.open()
    assert [one async for one in store.verify() if isinstance(one, Difference)] == []
    assert_sums((await store.load(NOW)).total, decisions)
    await store.close()


def replace(file: Path) -> None:
    shutil.copy(file, f"{file}.copy")
    os.rename(f"{file}.copy", file)


def overwrite(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.write(os.urandom(100_000))


def remove(file: Path) -> None:
    file.unlink()


def cut(file: Path) -> None:
    os.truncate(file, 0)


def cut_in_half(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def own(path: Path) -> Path:
    return path


HARM: list[tuple[Callable[[Path], Path], Callable[[Path], None], str]] = [
    (wal_of, remove, "-wal was removed"),
    (wal_of, replace, "-wal was replaced"),
    (wal_of, cut, "-wal was cut off"),
    (wal_of, cut_in_half, "-wal was cut off"),
    (wal_of, overwrite, "the content of .*-wal was replaced"),
    (shm_of, remove, "-shm was removed"),
    (shm_of, replace, "-shm was replaced"),
    (own, remove, "routecast.db was removed"),
]


@pytest.mark.parametrize(("which", "harm", "cause"), HARM)
async def test_harm_to_a_file_is_noticed_at_once_and_nothing_is_lost(
    path: Path, which: Callable[[Path], Path], harm: Callable[[Path], None], cause: str
) -> None:
    """The next commit is refused with the cause; then the file is opened again, complete."""
    store, decisions = await with_decisions(path)
    epoch = (await store.position()).epoch
    harm(which(path))
    with pytest.raises(Unavailable, match=cause):
        await store.commit([[kept(1000)]], NOW)
    await assert_ready(store)
    await store.commit([[kept(1001)]], NOW)
    assert (await store.position()).epoch == epoch
    await after_a_kill(path, [*decisions, kept(1001)])
    await store.close()
    assert not wal_of(path).exists()


async def test_removed_files_are_written_again(path: Path) -> None:
    """After `rm routecast.db*`, the open files still have all data."""
    store, decisions = await with_decisions(path)
    for file in (path, wal_of(path), shm_of(path)):
        file.unlink()
    with pytest.raises(Unavailable, match=f"{path} was removed"):
        await store.check()
    await assert_ready(store)
    await after_a_kill(path, decisions)
    await store.close()


async def test_truncated_log_with_lost_pages_is_damage(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No decision is accepted after that, and a restart begins a new epoch."""
    store, _ = await with_decisions(path)
    epoch = (await store.position()).epoch
    store._writer._db.execute("PRAGMA cache_size = 10; PRAGMA shrink_memory")  # type: ignore[union-attr]
    cut(wal_of(path))
    with pytest.raises(Unavailable, match="-wal was cut off"):
        await store.check()
    await until(lambda: store.condition.error is not None)
    with pytest.raises(Unavailable, match="lost commits that are nowhere else"):
        await store.commit([[kept(1)]], NOW)
    await store.close()
    again = SqliteStore(path)
    await again.open()
    assert (await again.position()).epoch != epoch
    assert "the last decisions are lost" in caplog.text
    await again.commit([[kept(1)]], NOW)
    await again.close()


async def test_file_with_replaced_content_refuses_commits(path: Path) -> None:
    """After `cp backup routecast.db` on an open file, commits are refused until it is undone."""
    store, decisions = await with_decisions(path)
    with path.open("r+b") as file:
        held = file.read(100)
    with path.open("r+b") as file:
        file.write(held[:24] + bytes(76))
    for _ in range(2):
        with pytest.raises(Unavailable, match=f"content of the database file {path} was replaced"):
            await store.check()
    with path.open("r+b") as file:
        file.write(held)
    await store.check()
    await store.commit([[kept(1000)]], NOW)
    await after_a_kill(path, [*decisions, kept(1000)])
    await store.close()


async def test_other_connections_may_checkpoint_and_write(path: Path) -> None:
    """Correct work of another program is no harm."""
    store, decisions = await with_decisions(path)
    other = SqliteStore(path, create=False)
    await other.open()
    for mode in ("PASSIVE", "FULL", "RESTART", "TRUNCATE"):
        other._writer._db.execute(f"PRAGMA wal_checkpoint({mode})")  # type: ignore[union-attr]
        await store.check()
        decisions.append(kept(len(decisions)))
        await store.commit([decisions[-1:]], NOW)
        decisions.append(kept(len(decisions)))
        await other.commit([decisions[-1:]], NOW)
    await other.close()
    await store.check()
    await after_a_kill(path, decisions)
    await store.close()


CHECKPOINTS = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], timeout=20)
print("ready", flush=True)
while True:
    db.execute("PRAGMA wal_checkpoint(FULL)").fetchall()
"""


async def test_another_process_may_checkpoint_all_the_time(path: Path) -> None:
    """It may do so at any moment, also between the check of the files and the transaction."""
    store, decisions = await with_decisions(path, 5)
    other = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", CHECKPOINTS, str(path)), stdout=asyncio.subprocess.PIPE
    )
    assert other.stdout is not None
    await other.stdout.readline()
    try:
        for number in range(100, 500):
            decisions.append(kept(number))
            await store.commit([decisions[-1:]], NOW)
    finally:
        other.kill()
        await other.wait()
    assert_sums((await store.load(NOW)).total, decisions)
    await store.close()


async def test_readers_create_no_file(path: Path) -> None:
    """An empty file would count as a replacement, and nothing would be saved."""
    store, decisions = await with_decisions(path)
    large = [kept(n) for n in range(1_000, 3_000)]
    await store.commit([large], NOW)
    stage = store._stage

    def removed_before(*args: Any) -> Any:
        for file in (path, wal_of(path), shm_of(path)):
            file.unlink(missing_ok=True)
        return stage(*args)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(store, "_stage", removed_before)
        with pytest.raises(Unavailable):
            await store.commit([[kept(n) for n in range(5_000, 7_000)]], NOW)
    await assert_ready(store)
    await after_a_kill(path, [*decisions, *large])
    await store.close()


async def test_file_is_opened_again_with_pauses(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each attempt may copy the whole database, so reads do not cause more attempts."""
    store, decisions = await with_decisions(path)
    tries = 0

    def fails() -> None:
        nonlocal tries
        tries += 1
        raise Unavailable("the disk is full")

    with monkeypatch.context() as broken:
        store._reopen_backoff = Backoff(1_000.0, 1_000.0, draw=no_jitter)
        broken.setattr(store._writer, "reopen", fails)
        wal_of(path).unlink()
        for _ in range(50):
            with pytest.raises(Unavailable):
                await store.load(NOW)
            await asyncio.sleep(0.001)
        await until(lambda: tries and store._reopening is not None and store._reopening.done())
        for _ in range(50):
            with pytest.raises(Unavailable):
                await store.load(NOW)
        assert tries == 1
        assert caplog.text.count("cannot be opened again yet: the disk is full") == 1
    store._reopen_from = 0.0
    await assert_ready(store)
    await after_a_kill(path, decisions)
    await store.close()


async def test_pauses_between_attempts_to_open_again_grow(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pauses grow from 0.5 to 30 seconds, and start again from 0.5 after a success."""
    store, _ = await with_decisions(path)

    def fails() -> None:
        raise Unavailable("the disk is full")

    async def attempt() -> tuple[float, float]:
        """Have the store try at once; return bounds of the pause that follows."""
        store._reopen_from, began = 0.0, time.monotonic()
        with pytest.raises(Unavailable):
            await store.load(NOW)
        await until(lambda: store._reopening is not None and store._reopening.done())
        return store._reopen_from - time.monotonic(), store._reopen_from - began

    with monkeypatch.context() as broken:
        broken.setattr(store._writer, "reopen", fails)
        wal_of(path).unlink()
        for pause in (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0):
            least, most = await attempt()
            assert least <= pause <= most
    store._reopen_from = 0.0
    await assert_ready(store)
    assert store._reopen_backoff.failures == 0
    await store.close()
