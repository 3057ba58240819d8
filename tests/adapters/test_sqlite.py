"""The SQLite store: files of other programs, and failures that only SQLite has."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from routecast.adapters.store.sqlite import SqliteStore, history, writer
from routecast.adapters.store.sqlite import folding as steps
from routecast.adapters.store.sqlite.connection import SQLITE_SQL
from routecast.adapters.store.sqlite.schema import FIRST_SQLITE_WITH_KEYS, SQLITE_MIGRATIONS
from routecast.core.decision import DecisionRecord
from routecast.core.history import history_query, plan
from routecast.core.keys import AccessRecords
from routecast.core.overflow import SUMS
from routecast.errors import BadDatabase, MissingDeltas, Unavailable
from routecast.ports import Difference
from routecast.protocol import Position
from tests.support.decisions import HOUR, MINUTE, NOW, assert_sums, kept
from tests.support.keys import an_api_key, put
from tests.support.needs import skip_without
from tests.support.running_services import until
from tests.support.summaries import sum_up


async def assert_holds(store: SqliteStore, decisions: list[DecisionRecord], seq: int) -> None:
    """Assert that the store has exactly these decisions, in all its tables."""
    snapshot = await store.load(NOW)
    assert snapshot.position.seq == seq
    assert_sums(snapshot.total, decisions)
    found = [one async for one in store.verify()]
    assert [one for one in found if isinstance(one, Difference)] == []
    (counted,) = apsw.Connection(str(store.path)).execute("SELECT count(*) FROM decisions")
    assert counted == (len(decisions),)


# -- opening ------------------------------------------------------------------------------------


def refusal(path: Path, *, create: bool = True) -> str:
    """Return the reason for which a file is not opened."""

    async def open_and_close() -> None:
        store = SqliteStore(path, create=create)
        try:
            await store.open()
        finally:
            await store.close()

    with pytest.raises(BadDatabase) as refused:
        asyncio.run(open_and_close())
    return str(refused.value)


async def position(path: Path) -> Position:
    store = SqliteStore(path)
    await store.open()
    try:
        return await store.position()
    finally:
        await store.close()


def test_text_file_is_not_a_database(path: Path) -> None:
    """The error has its path, and the file is not changed."""
    path.write_text("strategy,provider\nhybrid,gemini\n" * 100)
    before = path.read_bytes()
    assert refusal(path) == f"{path} is not a SQLite database"
    assert path.read_bytes() == before


def test_database_of_another_program_is_not_changed(path: Path) -> None:
    """Routecast adds no tables to it."""
    with apsw.Connection(str(path)) as other:
        other.execute("CREATE TABLE notes (text)")
    other.close()
    before = path.read_bytes()
    assert refusal(path) == f"{path} is a database of another program"
    assert path.read_bytes() == before


def test_newer_schema_is_refused(path: Path) -> None:
    """An older program must not write data that it does not know; the error says how to fix it."""
    asyncio.run(position(path))
    newest = SQLITE_MIGRATIONS[-1][0]
    other = apsw.Connection(str(path))
    other.execute(f"PRAGMA user_version = {newest + 1}")
    other.close()
    assert refusal(path) == (
        f"{path} was written by a newer Routecast (schema {newest + 1}; this one knows {newest}): "
        "upgrade this program"
    )


def test_path_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    """The folder is missing, the path is a folder, or a file that must exist does not."""
    missing = tmp_path / "nowhere" / "routecast.db"
    assert refusal(missing).startswith(f"cannot open {missing} (")
    assert refusal(tmp_path).startswith(f"cannot open {tmp_path} (")
    absent = tmp_path / "absent.db"
    assert refusal(absent, create=False) == f"there is no database {absent}"
    assert not absent.exists()


def test_empty_file_becomes_a_database(path: Path) -> None:
    """`mktemp` makes such files."""
    path.touch()
    assert asyncio.run(position(path)).seq == 0


async def test_file_has_the_id_of_routecast(store: SqliteStore, path: Path) -> None:
    """The header has it; the file has a write-ahead log, so that readers never wait."""
    other = apsw.Connection(str(path))
    assert other.pragma("application_id") == int.from_bytes(b"RTCA")
    assert other.pragma("user_version") == SQLITE_MIGRATIONS[-1][0]
    assert other.pragma("journal_mode") == "wal"
    other.close()


# Statements that turn a newer schema into schema 3.
SCHEMA_3 = """
DROP INDEX near_series;
ALTER TABLE history DROP COLUMN folded_parts;
ALTER TABLE unsummed_hours DROP COLUMN changes;
CREATE TABLE whole (seq INTEGER PRIMARY KEY, packed BLOB NOT NULL) STRICT;
INSERT INTO whole SELECT seq, packed FROM deltas;
DROP TABLE deltas;
ALTER TABLE whole RENAME TO deltas;
DROP TABLE folded_names;
DROP TABLE checks;
DROP TABLE marks;
DROP TABLE api_keys;
DROP TABLE revocations;
DROP TABLE access_version;
PRAGMA user_version = 3;
"""


async def test_database_of_an_older_schema_is_kept(path: Path) -> None:
    """Its summaries have 64 bits, its deltas have no parts, and some are not folded."""
    store = SqliteStore(path)
    await store.open()
    decisions = [kept(n, decided=NOW - n * HOUR) for n in range(9)]
    await store.commit([decisions], NOW)
    await store.prune(decisions_before=0, minutes_before=0, limit=1)  # which folds all
    assert await sum_up(store, NOW) == 8
    await store.commit([[kept(10)]], NOW)  # which folds nothing
    await store.close()
    other = apsw.Connection(str(path))
    for name in SUMS:
        other.execute(f"ALTER TABLE summaries DROP COLUMN {name}_high")
    other.execute(SCHEMA_3)
    other.close()
    await assert_reopens(path, [*decisions, kept(10)])


async def assert_reopens(path: Path, decisions: list[DecisionRecord]) -> None:
    """Assert that a database opens with these decisions, all of them summed up."""
    store = SqliteStore(path)
    await store.open()
    assert await store.unsummed(before=NOW) == []
    assert [one async for one in store.verify() if isinstance(one, Difference)] == []
    assert_sums((await store.load(NOW)).total, decisions)
    await store.commit([[kept(11)]], NOW)
    assert_sums((await store.load(NOW)).total, [*decisions, kept(11)])
    await store.close()


async def test_database_without_keys_gets_room_for_them(path: Path) -> None:
    """It is that of the version before keys; its decisions and its epoch stay."""
    older = apsw.Connection(str(path))
    older.execute("PRAGMA journal_mode = WAL")
    with older:
        for _, script in SQLITE_MIGRATIONS[: FIRST_SQLITE_WITH_KEYS - 1]:
            older.execute(script)
        older.execute(f"PRAGMA user_version = {FIRST_SQLITE_WITH_KEYS - 1}")
        older.execute(f"PRAGMA application_id = {int.from_bytes(b'RTCA')}")
        older.execute("INSERT INTO history VALUES (1, 'old', 0, 0, 0, 0)")
        version = older.pragma("schema_version")
        older.execute("INSERT INTO marks VALUES (x'', ?, 0)", (version,))
    older.close()
    store = SqliteStore(path)
    await store.open()
    assert await store.position() == Position("old", 0)
    assert await store.access() == AccessRecords("", {}, {})
    await store.change_access(put(an_api_key(1)))
    await store.close()
    assert await position(path) == Position("old", 0)


def test_migrations_are_numbered_without_a_gap() -> None:
    """They run in this order, each once."""
    assert [number for number, _ in SQLITE_MIGRATIONS] == list(range(1, len(SQLITE_MIGRATIONS) + 1))


# -- failures -----------------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the wait for a lock."""
    monkeypatch.setattr(writer, "BUSY_MS", 20)


@pytest.mark.usefixtures("impatient")
async def test_locked_database_refuses_and_recovers(path: Path) -> None:
    """While another program has the write lock, nothing is stored, and reads go on."""
    store = SqliteStore(path)
    await store.open()
    await store.commit([[kept(1)]], NOW)
    other = apsw.Connection(str(path))
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable, match="locked"):
        await store.commit([[kept(2)]], NOW)
    with pytest.raises(Unavailable, match="locked"):
        await store.check()
    assert (await store.position()).seq == 1
    other.execute("ROLLBACK")
    await store.check()
    await store.commit([[kept(2)]], NOW)
    await assert_holds(store, [kept(1), kept(2)], seq=2)
    await store.close()
    other.close()


@pytest.fixture
def folding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fold after every commit."""
    monkeypatch.setattr(steps, "SQLITE_FOLD_COMMITS", 1)


@pytest.mark.usefixtures("folding")
@pytest.mark.parametrize(
    "step",
    [
        "INSERT ON deltas",
        "INSERT ON rollups WHEN new.period = 'minute'",
        "INSERT ON rollups WHEN new.period = 'hour'",
        "INSERT ON rollups WHEN new.period = 'total'",
        "UPDATE OF folded ON history",
        "UPDATE OF seq ON history",
    ],
)
async def test_failed_commit_leaves_nothing(store: SqliteStore, path: Path, step: str) -> None:
    """Neither the file nor the writer's memory has any part of it."""
    await store.commit([[kept(1)]], NOW)
    other = apsw.Connection(str(path))
    other.execute(
        f"CREATE TRIGGER broken BEFORE {step} BEGIN SELECT raise(ABORT, 'the disk broke'); END"
    )
    with pytest.raises(Unavailable, match="the disk broke"):
        await store.commit([[kept(2)], [kept(3, strategy="new")]], NOW)
    await assert_holds(store, [kept(1)], seq=1)
    other.execute("DROP TRIGGER broken")
    other.close()
    assert (await store.commit([[kept(2)]], NOW)).inserted == [1]
    await assert_holds(store, [kept(1), kept(2)], seq=2)


def counted(path: Path, table: str, where: str = "true") -> int:
    other = apsw.Connection(str(path))
    ((rows,),) = other.execute(f"SELECT count(*) FROM {table} WHERE {where}")
    other.close()
    return int(rows)


async def test_rollups_are_written_for_several_commits_at_once(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reads add the deltas that are not folded, also after a restart."""
    monkeypatch.setattr(steps, "SQLITE_FOLD_COMMITS", 3)
    store = SqliteStore(path)
    await store.open()
    done: list[DecisionRecord] = []
    for number in range(1, 9):
        done.append(kept(number))
        await store.commit([done[-1:]], NOW)
        folded = number - number % 3
        rows = "period = 'total' AND count = "
        assert counted(path, "rollups", rows + str(folded)) == (1 if folded else 0)
        await assert_holds(store, done, seq=number)
        await store.close()
        store = SqliteStore(path)
        await store.open()
    await store.close()


async def test_many_cells_are_folded_when_nothing_else_is_written(
    store: SqliteStore, path: Path
) -> None:
    """Unfolded cells are limited, too, and no single commit folds them all."""
    decisions = [kept(n, decided=NOW - n * MINUTE) for n in range(steps.SQLITE_FOLD_CELLS)]
    await store.commit([decisions], NOW)
    await assert_holds(store, decisions, seq=1)
    await until(lambda: counted(path, "rollups", f"count = {len(decisions)}") > 0)
    await assert_holds(store, decisions, seq=1)


async def test_old_deltas_are_dropped(
    store: SqliteStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`DELTAS_KEPT` stay, and a node that lags further must load a snapshot."""
    monkeypatch.setattr(steps, "DELTAS_KEPT", 5)
    monkeypatch.setattr(steps, "SQLITE_FOLD_COMMITS", 4)
    start = await store.position()
    for number in range(20):
        await store.commit([[kept(number)]], NOW)
    assert counted(path, "deltas") == 5
    last = Position(start.epoch, 15)
    assert [one.position.seq for one in await store.deltas(last)] == [16, 17, 18, 19, 20]
    with pytest.raises(MissingDeltas):
        await store.deltas(Position(start.epoch, 14))


async def test_failed_prune_leaves_everything(store: SqliteStore, path: Path) -> None:
    """Sums of decisions that stayed are not added to `pruned` twice."""
    await store.commit([[kept(1), kept(2)]], NOW)
    other = apsw.Connection(str(path))
    other.execute(
        "CREATE TRIGGER broken BEFORE DELETE ON decisions "
        "BEGIN SELECT raise(ABORT, 'the disk broke'); END"
    )
    with pytest.raises(Unavailable, match="the disk broke"):
        await store.prune(decisions_before=NOW + 1, minutes_before=0, limit=10)
    await assert_holds(store, [kept(1), kept(2)], seq=1)
    other.execute("DROP TRIGGER broken")
    other.close()
    assert await store.prune(decisions_before=NOW + 1, minutes_before=0, limit=10) == 2
    assert [one async for one in store.verify() if isinstance(one, Difference)] == []
    assert_sums((await store.load(NOW)).total, [kept(1), kept(2)])


async def test_history_that_takes_too_long_is_refused(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says what to do, and shorter histories are answered."""
    await store.commit([[kept(n, decided=NOW - n * MINUTE) for n in range(100)]], NOW)
    await store.prune(decisions_before=0, minutes_before=0, limit=1)  # which folds everything
    wanted = plan(history_query(start=NOW - 100 * MINUTE, end=NOW, group_by="model"), NOW)
    monkeypatch.setattr(history, "RANGE_STEPS", 100)
    with monkeypatch.context() as patch:
        patch.setattr(history, "RANGE_READ_SECONDS", 0.0)
        with pytest.raises(Unavailable, match="ask for a shorter one"):
            await store.history(wanted)
    found = await store.history(wanted)
    assert sum(point.count for point in found.points["flash"].values()) == 100


async def test_long_histories_block_nothing_else(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commits and other reads go on while long ranges are read."""
    gate = threading.Event()
    monkeypatch.setattr(history, "read", lambda *_: gate.wait(30))
    wanted = plan(history_query(), NOW)
    reading = [asyncio.create_task(store.history(wanted)) for _ in range(5)]
    await asyncio.sleep(0)
    try:
        await store.commit([[kept(1)]], NOW)
        assert (await store.position()).seq == 1
        assert_sums((await store.load(NOW)).total, [kept(1)])
        assert not any(task.done() for task in reading)
    finally:
        gate.set()
    await asyncio.gather(*reading)


@pytest.mark.parametrize("replaced", [False, True], ids=["removed", "replaced"])
async def test_file_that_was_moved_away_refuses_commits(
    store: SqliteStore, path: Path, replaced: bool
) -> None:
    """Commits to it would be lost, so none is acknowledged until it is back."""
    await store.commit([[kept(1)]], NOW)
    os.rename(path, f"{path}.away")
    if replaced:
        shutil.copy(f"{path}.away", path)
    reason = "was replaced" if replaced else "is gone"
    for refused in (store.commit([[kept(2)]], NOW), store.check(), store.position()):
        with pytest.raises(Unavailable, match=f"{path} {reason}"):
            await refused
    os.rename(f"{path}.away", path)
    await store.check()
    await store.commit([[kept(2)]], NOW)
    await assert_holds(store, [kept(1), kept(2)], seq=2)


async def test_each_check_writes(store: SqliteStore, path: Path) -> None:
    """Writing an equal value would write nothing, and a full disk would not be noticed."""
    other = apsw.Connection(str(path))
    versions = []
    for _ in range(3):
        await store.check()
        versions.append(other.pragma("data_version"))
    assert len(set(versions)) == 3
    other.close()


async def test_second_process_that_commits_is_logged_once(
    store: SqliteStore, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each process shows the other's commits late; checks and readers do not count."""
    other = SqliteStore(path)
    await other.open()
    for n in range(3):
        await store.commit([[kept(n)]], NOW)
        await other.check()
    assert "Another process" not in caplog.text
    for n in range(3, 9):
        await (other if n % 2 else store).commit([[kept(n)]], NOW)
    assert caplog.text.count(f"Another process commits decisions to {path}") == 2  # once for each
    await other.close()


FULL_DISK = """
import asyncio, json, resource, sys
from routecast.errors import Unavailable
from routecast.adapters.store.sqlite import SqliteStore
from tests.support.decisions import NOW, kept

def batch(number):
    return [kept(50 * number + n, reason="r" * 400) for n in range(50)]

async def main(path):
    store = SqliteStore(path)
    await store.open()
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, most))
    acknowledged, error = 0, None
    while error is None and acknowledged < 100:
        try:
            await store.commit([batch(acknowledged)], NOW)
            acknowledged += 1
        except Unavailable as unavailable:
            error = str(unavailable)
    position = await store.position()
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    await store.check()
    again = await store.commit([batch(acknowledged), batch(acknowledged - 1)], NOW)
    await store.close()
    print(json.dumps([acknowledged, error, position.seq, again.inserted]))

asyncio.run(main(sys.argv[1]))
"""


async def run_python(script: str, *arguments: str) -> bytes:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, *arguments, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    return out


async def test_file_at_its_quota_refuses_and_recovers(path: Path) -> None:
    """The quota is reached during a write, and exactly the acknowledged commits are stored."""
    acknowledged, error, seq, again = json.loads(await run_python(FULL_DISK, str(path)))
    assert 0 < acknowledged < 100
    assert error.startswith("SQLite: ")
    assert seq == acknowledged
    assert again == [50, 0]
    store = SqliteStore(path)
    await store.open()
    decisions = [kept(n, reason="r" * 400) for n in range(50 * (acknowledged + 1))]
    await assert_holds(store, decisions, seq=acknowledged + 1)
    await store.close()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte, half of which the file `ballast` takes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        skip_without("a small disk to fill up", "run as root, where tmpfs may be mounted")
    (folder / "ballast").write_bytes(b"\0" * 500_000)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


async def test_full_disk_refuses_and_recovers(disk: Path) -> None:
    """With room again, commits go on, and totals never include the failed one."""
    store = SqliteStore(disk / "routecast.db")
    await store.open()
    decisions: list[DecisionRecord] = []
    refused = None
    while refused is None:
        batch = [kept(len(decisions) + n, reason="r" * 400) for n in range(50)]
        try:
            await store.commit([batch], NOW)
            decisions += batch
        except Unavailable as error:
            refused = str(error)
    assert decisions
    assert "full" in refused
    os.unlink(disk / "ballast")
    await store.check()
    assert (await store.commit([batch], NOW)).inserted == [50]
    await assert_holds(store, decisions + batch, seq=len(decisions) // 50 + 1)
    await store.close()


OTHER_PROCESS = """
import asyncio, sys
from routecast.adapters.store.sqlite import SqliteStore
from tests.support.decisions import MINUTE, NOW, kept

async def main(path):
    store = SqliteStore(path)
    await store.open()
    for n in range(30):
        await store.commit([[kept(1000 + n, decided=NOW - n * MINUTE), kept(n)]], NOW)
    await store.close()

asyncio.run(main(sys.argv[1]))
"""


async def test_two_processes_can_write_one_file(store: SqliteStore, path: Path) -> None:
    """Both commit at once, with the same minutes and some equal ids."""
    other = asyncio.create_task(run_python(OTHER_PROCESS, str(path)))
    mine = 0
    while not other.done():
        await store.commit([[kept(2000 + mine, decided=NOW - mine % 30 * MINUTE), kept(5)]], NOW)
        mine += 1
        await asyncio.sleep(0)
    await other
    decisions = [
        *(kept(1000 + n, decided=NOW - n * MINUTE) for n in range(30)),
        *(kept(n) for n in range(30)),
        *(kept(2000 + n, decided=NOW - n % 30 * MINUTE) for n in range(mine)),
    ]
    await assert_holds(store, decisions, seq=30 + mine)


async def test_name_folding_reads_each_decision_once(store: SqliteStore) -> None:
    """The number of series that are moved does not matter."""
    connection = store._writer._db
    connection.execute(SQLITE_SQL["make_moved"])
    plan = connection.execute(f"EXPLAIN QUERY PLAN {SQLITE_SQL['move_decisions']}").fetchall()
    connection.execute(SQLITE_SQL["drop_moved"])
    steps = [row[-1] for row in plan]
    assert [step for step in steps if "SCAN" in step] == ["SCAN decisions"]
    assert any(step.startswith("SEARCH moved USING INTEGER PRIMARY KEY") for step in steps)
