"""A damaged SQLite file: which errors report it, what the check finds, and what is refused."""

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import apsw
import pytest

from routecast.adapters.store.sqlite import SqliteStore, integrity
from routecast.adapters.store.sqlite.integrity import Integrity
from routecast.core.history import history_query, plan
from routecast.errors import Unavailable
from tests.support.decisions import HOUR, NOW, kept
from tests.support.running_services import until
from tests.support.sqlite_pages import exchange_leaves

PAGE = 4096


async def filled(path: Path) -> None:
    """Make a database of some hundred pages, and close it cleanly."""
    store = SqliteStore(path)
    await store.open()
    for batch in range(4):
        numbers = range(500 * batch, 500 * (batch + 1))
        await store.commit([[kept(n, reason="r" * 300, strategy=f"s{n}") for n in numbers]], NOW)
    await store.close()


def cut(path: Path) -> None:
    """Truncate a file to half of its length."""
    os.truncate(path, path.stat().st_size // 2 // PAGE * PAGE)


def overwrite(path: Path, table: str) -> None:
    """Overwrite the first page of a table."""
    db = apsw.Connection(str(path))
    page = db.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (table,)).get
    db.close()
    with path.open("r+b") as file:
        file.seek((page - 1) * PAGE)
        file.write(os.urandom(PAGE))


async def assert_refuses(store: SqliteStore) -> None:
    works: Any = (
        store.commit([[kept(9999)]], NOW),
        store.check(),
        store.prune(decisions_before=0, minutes_before=0, limit=1),
    )
    for refused in works:
        with pytest.raises(Unavailable, match=r"the database file is corrupt \("):
            await refused


async def test_good_file_is_checked_when_it_is_opened(path: Path) -> None:
    """The check of a small file ends before anything else happens."""
    await filled(path)
    store = SqliteStore(path)
    await store.open()
    assert store.condition[:2] == ("ok", None)
    await store.close()


async def test_page_that_was_overwritten_is_found_at_the_start(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is written to the file, and the readable part can be read."""
    await filled(path)
    overwrite(path, "decisions")
    store = SqliteStore(path)
    await store.open()
    check, error = store.condition[:2]
    assert check == "failed"
    assert error
    await assert_refuses(store)
    assert len((await store.load(NOW)).total) == 2000
    assert caplog.text.count("The database file is corrupt") == 1
    await store.close()


async def test_leaf_pages_that_were_exchanged_are_found_at_the_start(path: Path) -> None:
    """Each page is correct by itself, but its rows are in the wrong order."""
    await filled(path)
    exchange_leaves(path, "decisions")
    store = SqliteStore(path)
    await store.open()
    assert store.condition.check == "failed"
    await assert_refuses(store)
    await store.close()


async def test_file_truncated_before_the_start_is_corrupt(path: Path) -> None:
    """Opening it may fail or not."""
    await filled(path)
    cut(path)
    store = SqliteStore(path)
    with suppress(Unavailable):
        await store.open()
    assert store.condition.error
    await assert_refuses(store)
    await store.close()


async def test_file_truncated_while_it_is_open_is_corrupt(path: Path) -> None:
    """From the next commit on, nothing is acknowledged."""
    await filled(path)
    store = SqliteStore(path)
    await store.open()
    await store.commit([[kept(9000)]], NOW)
    cut(path)
    with pytest.raises(Unavailable, match="shorter than it was"):
        await store.commit([[kept(9001)]], NOW)
    await until(lambda: store.condition.check == "failed")
    await assert_refuses(store)
    await store.close()


async def test_file_truncated_during_its_check_is_checked_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A check that began before does not count."""
    await filled(path)
    began, go_on = threading.Event(), threading.Event()
    look = Integrity._quick_check

    def looked_before(self: Integrity) -> str | None:
        found = look(self)
        began.set()
        go_on.wait()
        return found

    monkeypatch.setattr(Integrity, "_quick_check", looked_before)
    monkeypatch.setattr(integrity, "OPEN_CHECK_SECONDS", 0.0)
    store = SqliteStore(path)
    await store.open()
    await asyncio.to_thread(began.wait)
    await store.commit([[kept(9000)]], NOW)
    cut(path)
    with pytest.raises(Unavailable, match="shorter than it was"):
        await store.commit([[kept(9001)]], NOW)
    go_on.set()
    await until(lambda: store.condition.check == "failed")
    await assert_refuses(store)
    await store.close()


VACUUM = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
for statement in "DELETE FROM decisions", "VACUUM", "PRAGMA wal_checkpoint(TRUNCATE)":
    db.execute(statement).fetchall()
"""


async def test_file_that_a_vacuum_made_shorter_is_good(path: Path) -> None:
    """When it has been checked, commits go on."""
    await filled(path)
    store = SqliteStore(path)
    await store.open()
    # A second SQLite library in this process would release the locks of the first one.
    vacuum = [sys.executable, "-c", VACUUM, str(path)]
    await asyncio.to_thread(subprocess.run, vacuum, check=True)
    with pytest.raises(Unavailable, match="shorter than it was"):
        await store.check()
    await until(lambda: store.condition[:2] == ("ok", None))
    await store.commit([[kept(9001)]], NOW)
    await store.close()


READERS: dict[str, Callable[[SqliteStore], Awaitable[object]]] = {
    "history": lambda store: store.history(plan(history_query(start=NOW - HOUR, end=NOW), NOW)),
    "load": lambda store: store.load(NOW),
}


@pytest.mark.parametrize("reader", READERS)
async def test_store_refuses_after_a_reader_found_damage(path: Path, reader: str) -> None:
    """The writer has not read the damaged page."""
    await filled(path)
    store = SqliteStore(path)
    await store.open()
    assert store.condition.error is None
    overwrite(path, "rollups")
    with pytest.raises(Unavailable, match="SQLite: "):
        await READERS[reader](store)
    assert store.condition.error
    await assert_refuses(store)
    await store.close()


async def test_long_check_is_finished_in_the_background(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store is open meanwhile, and closing it stops the check at once."""
    await filled(path)
    overwrite(path, "decisions")
    monkeypatch.setattr(integrity, "OPEN_CHECK_SECONDS", 0.0)
    monkeypatch.setattr(integrity, "WORK_SECONDS", 0.0)
    monkeypatch.setattr(integrity, "CHECK_REST_SECONDS", 0.001)
    monkeypatch.setattr(integrity, "CHECK_STEPS", 100)
    store = SqliteStore(path)
    await store.open()
    assert store.condition.check == "running"
    await store.position()
    await until(lambda: store.condition.check == "failed")
    await store.close()
    monkeypatch.setattr(integrity, "CHECK_REST_SECONDS", 3600.0)
    again = SqliteStore(path)
    await again.open()
    async with asyncio.timeout(20):
        await again.close()
