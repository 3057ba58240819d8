"""The write-ahead log: its size is limited, and a reader that keeps it large is reported."""

import asyncio
import errno
import logging
import os
from pathlib import Path

import apsw
import pytest

from routecast.adapters.store.sqlite import SqliteStore, store, wal
from routecast.adapters.store.sqlite.marks import wal_of
from tests.support.decisions import NOW, kept
from tests.support.disk import immutable
from tests.support.running_services import until


@pytest.fixture(autouse=True)
def small_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits of megabytes are kilobytes in these tests."""
    monkeypatch.setattr(wal, "CHECKPOINT_PAGES", 20)
    monkeypatch.setattr(wal, "PAGES_TO_NEXT_TRY", 10)
    monkeypatch.setattr(wal, "CUT_BYTES", 200_000)
    monkeypatch.setattr(wal, "WARN_BYTES", 400_000)
    monkeypatch.setattr(store, "CUT_PAUSE", 0.05)


async def grow(opened: SqliteStore, path: Path, first: int, size: int) -> int:
    """Commit until the log has this size; return the number of the next decision."""
    while wal_of(path).stat().st_size < size:
        await opened.commit([[kept(first, reason="r" * 400)]], NOW)
        first += 1
    return first


async def test_long_reader_is_reported_and_the_log_cut_after_it(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The log is cut without another commit or a restart, and the warning ends."""
    caplog.set_level(logging.WARNING)
    opened = SqliteStore(path)
    await opened.open()
    await opened.commit([[kept(0)]], NOW)
    reader = apsw.Connection(str(path))
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM decisions").fetchall()
    after = await grow(opened, path, 1, 300_000)
    assert opened.condition.warning is None
    after = await grow(opened, path, after, 500_000)
    warning = opened.condition.warning or ""
    assert str(wal_of(path)) in warning
    assert "another program has been reading" in warning
    assert caplog.text.count("another program has been reading") == 1
    assert (opened.condition.wal_bytes or 0) >= 500_000
    reader.execute("COMMIT")
    reader.close()
    await until(lambda: wal_of(path).stat().st_size <= 200_000)
    await until(lambda: opened.condition.warning is None)
    await until(lambda: "was cut off" in caplog.text)
    await opened.commit([[kept(after)]], NOW)
    total = (await opened.load(NOW)).total
    assert sum(sums.count for sums in total.values()) == after + 1
    await opened.close()


async def test_file_that_cannot_be_written_is_named_as_the_cause(path: Path) -> None:
    """Decisions stay in the log meanwhile, and are added to the file later."""
    opened = SqliteStore(path)
    await opened.open()
    with immutable(path):
        after = await grow(opened, path, 0, 500_000)
        warning = opened.condition.warning or ""
        cause = f"disk I/O error: {os.strerror(errno.EPERM)}"
        assert warning.endswith(f"cannot be added to the database: {cause}")
    async with asyncio.timeout(60):
        await opened.commit([[kept(after)]], NOW)
        await until(lambda: wal_of(path).stat().st_size <= 200_000)
    assert opened.condition.warning is None
    await opened.close()


async def test_log_stays_short_without_readers(path: Path) -> None:
    """It restarts whenever all of it is in the file."""
    opened = SqliteStore(path)
    await opened.open()
    sizes = []
    for n in range(200):
        await opened.commit([[kept(n, reason="r" * 400)]], NOW)
        sizes.append(wal_of(path).stat().st_size)
    await opened.close()
    assert max(sizes) < 400_000
    assert not wal_of(path).exists()


async def test_a_large_log_alone_causes_no_warning(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One large batch makes such a log, which is cut afterwards."""
    opened = SqliteStore(path)
    await opened.open()
    await opened.commit([[kept(n, reason="r" * 400) for n in range(3_000)]], NOW)
    assert opened.condition.warning is None
    async with asyncio.timeout(60):
        await until(lambda: wal_of(path).stat().st_size <= 200_000)
    assert "another program" not in caplog.text
    await opened.close()
