"""Backups of PostgreSQL: made while nodes run, checked, and restored with a new epoch."""

import asyncio
import os
import stat
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from routecast.adapters.store.postgres import PostgresStore, backup, schema
from routecast.adapters.store.postgres.backup import PostgresBackups
from routecast.core.decision import DecisionRecord
from routecast.errors import BadDatabase, Damaged, InUse, Unavailable
from routecast.ports import Checked, Difference, Restored
from tests.support.decisions import DAY, HOUR, NOW, assert_sums, kept
from tests.support.keys import a_revocation, an_api_key, put
from tests.support.needs import lacks, skip_without
from tests.support.pgbouncer import PgBouncer, program
from tests.support.postgres import Postgres
from tests.support.summaries import sum_up

FULL = Path("/dev/full")


def silent(_: Checked) -> None:
    """Ignore progress."""


@pytest.fixture
def url(postgres: Postgres) -> str:
    """The URL of an empty database."""
    return postgres.create()


@pytest.fixture
def elsewhere(postgres: Postgres) -> str:
    """The URL of another empty database."""
    return postgres.create()


@pytest.fixture
async def store(url: str) -> AsyncIterator[PostgresStore]:
    """An open store on an empty database."""
    opened = PostgresStore(url)
    await opened.open()
    yield opened
    await opened.close()


async def fill(store: PostgresStore) -> list[DecisionRecord]:
    """Commit decisions: some are pruned, some folded and summed up, and some are neither."""
    sent = [
        kept(n, decided=NOW - n * HOUR, model=f"m{n % 3}", reason="a\tb\n\\c") for n in range(9)
    ]
    await store.commit([sent[6:]], NOW - 3 * DAY)
    await store.prune(decisions_before=NOW - DAY, minutes_before=0, limit=2)
    await store.prune(decisions_before=NOW - 2 * DAY, minutes_before=0, limit=1)
    await store.commit([sent[3:6]], NOW)
    await store.prune(decisions_before=0, minutes_before=0, limit=1)
    await sum_up(store, NOW)
    await store.fold_names("model", ["m2"], remember=True)
    await store.commit([sent[:3]], NOW)
    return [kept_as_other(one) for one in sent]


def kept_as_other(one: DecisionRecord) -> DecisionRecord:
    return one._replace(model="other") if one.model == "m2" else one


async def assert_same(restored: str, sent: list[DecisionRecord], done: Restored) -> None:
    """Assert that a database has these decisions, and accepts more."""
    again = PostgresStore(restored)
    await again.open()
    assert await again.position() == done.position
    assert_sums((await again.load(NOW)).total, sent)
    assert [one async for one in again.verify() if isinstance(one, Difference)] == []
    more = [kept(100), *sent[:3]]
    assert (await again.commit([more], NOW)).inserted == [1]
    assert (await again.position()).seq == done.position.seq + 1
    assert_sums((await again.load(NOW)).total, [*sent, kept(100)])
    await again.prune(decisions_before=NOW + 1, minutes_before=0, limit=100)
    assert [one async for one in again.verify() if isinstance(one, Difference)] == []
    await again.close()


async def test_backup_is_restored_into_another_database(
    store: PostgresStore, url: str, elsewhere: str, tmp_path: Path
) -> None:
    """The database has all decisions and a new epoch, and a node can go on with it."""
    sent = await fill(store)
    before = await store.position()
    made = await PostgresBackups(url).backup(tmp_path / "it", silent)
    assert (made.position, made.decisions) == (before, 6)
    assert made.size == (tmp_path / "it").stat().st_size
    done = await PostgresBackups(elsewhere).restore(tmp_path / "it", silent)
    assert (done.position.seq, done.decisions, done.kept) == (before.seq, 6, None)
    assert done.position.epoch != before.epoch
    await assert_same(elsewhere, sent, done)


async def test_database_of_many_generations_is_restored(
    store: PostgresStore, url: str, elsewhere: str, tmp_path: Path
) -> None:
    """Only existing generations are restored, because the server could not lock thousands."""
    connection = await asyncpg.connect(url)
    await connection.execute(
        "UPDATE routecast.retention SET generation = 5000;"
        "SELECT routecast.begin_generation(5000);"
        "UPDATE routecast.retention SET oldest = 5001;"
        "DROP TABLE routecast.decisions_1, routecast.commits_1"
    )
    sent = await fill(store)
    await PostgresBackups(url).backup(tmp_path / "it", silent)
    done = await PostgresBackups(elsewhere).restore(tmp_path / "it", silent)
    there = await asyncpg.connect(elsewhere)
    assert await partitions(there) == await partitions(connection)
    await there.close()
    await connection.close()
    await assert_same(elsewhere, sent, done)


async def partitions(connection: Any) -> list[str]:
    sql = "SELECT oid::regclass::text FROM pg_class WHERE relispartition AND relkind = 'r'"
    return sorted(row[0] for row in await connection.fetch(sql))


async def test_replaced_database_is_kept(store: PostgresStore, url: str, tmp_path: Path) -> None:
    """It gets a schema name that the result has; numbers of series are those of the backup."""
    sent = await fill(store)
    await PostgresBackups(url).backup(tmp_path / "it", silent)
    await store.commit([[kept(50, model="later")]], NOW)
    await store.close()
    done = await PostgresBackups(url).restore(tmp_path / "it", silent)
    assert done.kept is not None
    await assert_same(url, sent, done)
    connection = await asyncpg.connect(url)
    name = done.kept.removeprefix("schema ")
    kept_there = await connection.fetchval(
        f"SELECT count(*) FROM {name}.decisions WHERE id = 'd50'"
    )
    assert kept_there == 1
    await connection.close()


async def test_backup_has_keys_and_revocations(
    store: PostgresStore, url: str, tmp_path: Path
) -> None:
    """A database that has keys alone is kept, too, when it is replaced."""
    await store.change_access(put(an_api_key(1, projects=frozenset({"a"})), a_revocation()))
    held = await store.access()
    await PostgresBackups(url).backup(tmp_path / "it", silent)
    await store.change_access(put(an_api_key(2)))
    await store.close()
    kept_at = (await PostgresBackups(url).restore(tmp_path / "it", silent)).kept
    assert kept_at is not None
    again = PostgresStore(url)
    await again.open()
    assert await again.access() == held
    await again.close()
    connection = await asyncpg.connect(url)
    name = kept_at.removeprefix("schema ")
    assert await connection.fetchval(f"SELECT count(*) FROM {name}.api_keys") == 2
    await connection.close()


async def test_database_in_use_is_not_replaced(
    store: PostgresStore, url: str, tmp_path: Path
) -> None:
    """Neither a node nor another program that connects during the restore loses its database."""
    await fill(store)
    backups = PostgresBackups(url)
    await backups.backup(tmp_path / "it", silent)
    before = await store.position()
    with pytest.raises(InUse, match=r"in use by routecast \(\d\): stop all nodes"):
        await backups.restore(tmp_path / "it", silent)
    assert await store.position() == before
    await store.close()
    somebody: list[Any] = []

    with pytest.raises(InUse, match="a program without a name"):
        await _restore_with(backups, tmp_path / "it", lambda: asyncpg.connect(url), somebody)
    assert somebody
    for one in somebody:
        await one.close()
    again = PostgresStore(url)
    await again.open()
    assert await again.position() == before
    await again.close()


async def _restore_with(
    backups: PostgresBackups, source: Path, come: Callable[[], Any], came: list[Any]
) -> Restored:
    """Restore while another program connects in the middle of it."""
    with pytest.MonkeyPatch.context() as patch:
        fill_in = backup._fill

        async def fill_slowly(*given: Any) -> None:
            came.append(await come())
            await fill_in(*given)

        patch.setattr(backup, "_fill", fill_slowly)
        return await backups.restore(source, silent)


async def test_backup_is_of_one_position(
    store: PostgresStore, url: str, elsewhere: str, tmp_path: Path
) -> None:
    """A node commits, folds and drops meanwhile, without a wait."""
    sent = [kept(n) for n in range(20)]
    await store.commit([sent], NOW)
    going = asyncio.Event()

    async def produce() -> None:
        number = 100
        while not going.is_set():
            await store.commit([[kept(number)]], NOW)
            await store.prune(decisions_before=0, minutes_before=0, limit=10)
            number += 1

    producing = asyncio.create_task(produce())
    made = await PostgresBackups(url).backup(tmp_path / "it", silent)
    going.set()
    await producing
    done = await PostgresBackups(elsewhere).restore(tmp_path / "it", silent)
    assert done.decisions == made.decisions == 20 + made.position.seq - 1
    many = [*sent, *(kept(100 + n) for n in range(made.position.seq - 1))]
    again = PostgresStore(elsewhere)
    await again.open()
    assert_sums((await again.load(NOW)).total, many)
    assert [one async for one in again.verify() if isinstance(one, Difference)] == []
    await again.close()


@pytest.mark.parametrize("at", [0.3, 0.6, 0.9, 0.999])
async def test_damage_to_a_backup_is_found_before_anything_changes(
    store: PostgresStore, url: str, elsewhere: str, tmp_path: Path, at: float
) -> None:
    """A backup cut off at any place is found."""
    await fill(store)
    source = tmp_path / "it"
    await PostgresBackups(url).backup(source, silent)
    data = source.read_bytes()
    place = int(len(data) * at)
    (tmp_path / "cut").write_bytes(data[:place])
    with pytest.raises(Damaged, match="cut"):
        await PostgresBackups(elsewhere).restore(tmp_path / "cut", silent)
    connection = await asyncpg.connect(elsewhere)
    assert await connection.fetchval("SELECT to_regnamespace('routecast')") is None
    await connection.close()


async def test_table_with_changed_content_is_found(
    store: PostgresStore, url: str, tmp_path: Path
) -> None:
    """It is found also if the archive itself is valid."""
    await fill(store)
    source, other = tmp_path / "it", tmp_path / "other"
    await PostgresBackups(url).backup(source, silent)
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(other, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, data.replace(b"d3", b"dX") if "decisions" in name else data)
    with pytest.raises(Damaged, match="table decisions is not as it was written"):
        await PostgresBackups(url).restore(other, silent)


async def test_other_files_are_refused(url: str, tmp_path: Path) -> None:
    """The error says what the file is."""
    refused = {"sqlite": b"SQLite format 3\0" + b"\0" * 99, "text": b"hello", "empty": b""}
    for name, data in refused.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(BadDatabase, match="SQLite" if name == "sqlite" else "no backup"):
            await PostgresBackups(url).restore(tmp_path / name, silent)
    with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
        archive.writestr("hello", "hello")
    with pytest.raises(BadDatabase, match="no backup"):
        await PostgresBackups(url).restore(tmp_path / "zip", silent)
    with pytest.raises(Unavailable, match="No such file"):
        await PostgresBackups(url).restore(tmp_path / "absent", silent)
    with pytest.raises(BadDatabase, match="no decisions"):
        await PostgresBackups(url).backup(tmp_path / "new", silent)


async def test_backup_of_a_newer_program_is_refused(
    store: PostgresStore, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database of a newer program can be replaced, which is the way back to a backup."""
    sent = await fill(store)
    await PostgresBackups(url).backup(tmp_path / "it", silent)
    monkeypatch.setattr(backup, "KNOWN", schema.KNOWN - 1)
    with pytest.raises(BadDatabase, match="upgrade this program"):
        await PostgresBackups(url).restore(tmp_path / "it", silent)
    monkeypatch.undo()
    await store.close()
    connection = await asyncpg.connect(url)
    newer = f"version = {schema.KNOWN + 1}, oldest_program = {schema.KNOWN + 1}"
    await connection.execute(f"UPDATE routecast.schema_version SET {newer}")
    await connection.close()
    done = await PostgresBackups(url).restore(tmp_path / "it", silent)
    assert done.kept is not None
    await assert_same(url, sent, done)


async def test_backup_is_readable_for_its_owner_only(
    store: PostgresStore, url: str, tmp_path: Path
) -> None:
    """This holds with any umask; and a backup never replaces a file."""
    await fill(store)
    before = os.umask(0)
    try:
        await PostgresBackups(url).backup(tmp_path / "it", silent)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "it").stat().st_mode) == 0o600
    with pytest.raises(Unavailable, match="File exists"):
        await PostgresBackups(url).backup(tmp_path / "it", silent)


async def test_progress_is_reported(
    store: PostgresStore, url: str, elsewhere: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is reported for each stage, in bytes."""
    monkeypatch.setattr(backup, "_STEP", 100)
    await fill(store)
    told: list[Checked] = []
    await PostgresBackups(url).backup(tmp_path / "it", told.append)
    await PostgresBackups(elsewhere).restore(tmp_path / "it", told.append)
    assert {one.stage for one in told} == {"copying", "checking", "restoring"}
    assert all(0 < one.done <= one.of for one in told)


@pytest.mark.skipif(not FULL.exists(), reason=lacks("/dev/full", "run on Linux"))
async def test_full_disk_is_an_error_of_the_file(store: PostgresStore, url: str) -> None:
    """It is not reported as a failure of the server."""
    await fill(store)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backup, "_create", lambda path: path.open("wb"))
        with pytest.raises(Unavailable, match="/dev/full: No space left"):
            await PostgresBackups(url).backup(FULL, silent)


@pytest.fixture(params=["session", "transaction"])
def pooler(request: pytest.FixtureRequest, postgres: Postgres) -> Iterator[PgBouncer]:
    if program() is None:
        skip_without("PgBouncer", "apt install pgbouncer")
    with PgBouncer(postgres.url, request.param) as running:
        yield running


async def test_backup_and_restore_work_through_a_pooler(
    store: PostgresStore, url: str, elsewhere: str, tmp_path: Path, pooler: PgBouncer
) -> None:
    """A restore must be the only user, and idle connections of the pooler count as users."""
    sent = await fill(store)
    await PostgresBackups(pooler.through(url)).backup(tmp_path / "it", silent)
    done = await PostgresBackups(pooler.through(elsewhere)).restore(tmp_path / "it", silent)
    assert urlsplit(elsewhere).path in pooler.through(elsewhere)
    await assert_same(elsewhere, sent, done)
