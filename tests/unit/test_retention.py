"""Retention: old data are deleted, and no total changes."""

import logging
from pathlib import Path
from typing import Any

import apsw
import pytest

from routecast.adapters.cluster.memory import MemoryCluster
from routecast.adapters.store.sqlite import SqliteStore
from routecast.core import clock_check
from routecast.instruments import Instruments
from routecast.ports import Difference
from routecast.protocol import ServiceState
from routecast.services import retention
from routecast.services.retention import Retention, Summaries, due, prune, run_retention
from routecast.services.supervisor import Supervisor
from tests.support.clock import HeldClock
from tests.support.decisions import DAY, HOUR, NOW, assert_sums, kept
from tests.support.running_services import broken, running, until

NONE = ServiceState("ok", 0, 0, "")


async def differences(store: SqliteStore) -> list[Any]:
    return [found async for found in store.verify() if isinstance(found, Difference)]


async def test_retention_never_changes_totals(
    store: SqliteStore, clock: HeldClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each small step over many days, totals, hours and `verify` are right."""
    monkeypatch.setattr(retention, "PRUNE_BATCH", 3)
    decisions = [kept(n, decided=NOW + n * 3 * HOUR) for n in range(8 * 5)]
    for decision in decisions:
        await store.commit([[decision]], decision.decided)
    keep = Retention(decision_days=2, minute_days=3)
    dropped = []
    for day in range(12):
        clock.moment = NOW + day * DAY
        before = await store.load(clock.moment)
        dropped.append(await prune(store, due(clock.now(), keep)))
        after = await store.load(clock.moment)
        assert (after.total, after.hours) == (before.total, before.hours)
        assert await differences(store) == []
    # Each decision goes, and the minute it was counted in.
    assert sum(dropped) == 2 * len(decisions)
    assert dropped[:2] == dropped[-2:] == [0, 0]
    assert_sums((await store.load(NOW)).total, decisions)


async def test_id_is_known_until_its_decision_goes(store: SqliteStore, clock: HeldClock) -> None:
    """It is known to the microsecond of its receipt; sent later, it counts again."""
    await store.commit([[kept(1)]], NOW)
    keep = Retention(decision_days=1)
    clock.moment = NOW + DAY
    assert await prune(store, due(clock.now(), keep)) == 0
    assert (await store.commit([[kept(1)]], clock.moment)).inserted == [0]
    clock.moment += 1
    assert await prune(store, due(clock.now(), keep)) == 1
    assert (await store.commit([[kept(1)]], clock.moment)).inserted == [1]
    assert await differences(store) == []


async def test_default_keeps_decisions_30_days_and_minutes_90(
    store: SqliteStore, clock: HeldClock
) -> None:
    """Hours and totals are kept for ever."""
    await store.commit([[kept(1)]], NOW)
    dropped = {}
    for day in (29, 31, 89, 91, 10_000):
        clock.moment = NOW + day * DAY
        dropped[day] = await prune(store, due(clock.now(), Retention()))
    assert dropped == {29: 0, 31: 1, 89: 0, 91: 1, 10_000: 0}
    found = await store.load(NOW)
    assert_sums(found.total, [kept(1)])
    assert_sums(found.hours[NOW // HOUR], [kept(1)])


async def test_retention_is_tried_again(
    store: SqliteStore,
    clock: HeldClock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A database that cannot be reached does not end the service."""
    monkeypatch.setattr(retention, "PRUNE_INTERVAL", 0.01)
    caplog.set_level(logging.INFO, "routecast.services.retention")
    await store.commit([[kept(1)]], NOW)
    async with running(
        run_retention(store, MemoryCluster(), clock, Retention(), Supervisor(Instruments()))
    ):
        with broken(store.path):
            clock.moment = NOW + 31 * DAY
            await until(lambda: "Retention will be tried again" in caplog.text)
        await until(lambda: "Retention dropped 1 rows" in caplog.text)
    assert (await store.commit([[kept(1)]], NOW)).inserted == [1]


async def test_minutes_are_pruned_though_decisions_cannot_be(
    store: SqliteStore, clock: HeldClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failing part is reported and tried again; the rest of retention is done."""
    monkeypatch.setattr(retention, "PRUNE_INTERVAL", 0.01)
    monkeypatch.setattr(clock_check, "LONGEST_SILENCE", 1_000 * DAY)
    supervisor = Supervisor(Instruments())
    await store.commit([[kept(1)]], NOW)
    clock.moment = NOW + 100 * DAY
    other = apsw.Connection(str(store.path))
    other.set_busy_timeout(10_000)
    other.execute(
        "CREATE TRIGGER stuck BEFORE DELETE ON decisions BEGIN SELECT raise(ABORT, 'stuck'); END"
    )
    minutes = "SELECT count(*) FROM rollups WHERE period = 'minute'"
    async with running(run_retention(store, MemoryCluster(), clock, Retention(), supervisor)):
        await until(lambda: other.execute(minutes).fetchall() == [(0,)])
        await until(lambda: "retention" in supervisor.failing)
        assert "stuck" in supervisor.failing["retention"].last_error
        other.execute("DROP TRIGGER stuck")
        await until(lambda: "retention" not in supervisor.failing)
    assert other.execute("SELECT count(*) FROM decisions").fetchall() == [(0,)]
    other.close()


async def test_clock_that_is_ahead_at_the_start_drops_little(
    store: SqliteStore,
    clock: HeldClock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """No minute is dropped, and kept decisions still count once."""
    caplog.set_level(logging.INFO, "routecast.services.retention")
    monkeypatch.setattr(retention, "PRUNE_INTERVAL", 0.01)
    sent = [kept(n, decided=NOW - (400 - n) * HOUR) for n in range(400)]
    for one in sent:
        await store.commit([[one]], one.decided)
    other = apsw.Connection(str(store.path))
    count_minutes = "SELECT count(*) FROM rollups WHERE period = 'minute'"
    minutes = other.execute(count_minutes).fetchall()
    supervisor = Supervisor(Instruments())
    left = "SELECT count(*) FROM decisions"
    clock.moment = NOW + 100 * DAY
    async with running(run_retention(store, MemoryCluster(), clock, Retention(), supervisor)):
        await until(lambda: "Retention dropped" in caplog.text)
        clock.moment = NOW  # it is set right
        await until(lambda: "set back" in caplog.text)
    ((kept_now,),) = other.execute(left).fetchall()
    assert kept_now >= 350
    assert other.execute(count_minutes).fetchall() >= minutes
    assert (await store.commit([sent[-kept_now:]], NOW)).inserted == [0]
    assert "The clock may be wrong: it is 100.0 days after the last decision" in caplog.text
    other.close()


async def test_first_look_that_fails_is_tried_again_soon(
    store: SqliteStore, clock: HeldClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The next try succeeds, and notices that the clock is ahead."""
    await store.commit([[kept(1)]], NOW)
    clock.moment = NOW + 100 * DAY
    away = store.path.rename(store.path.with_name("away.db"))
    supervisor = Supervisor(Instruments())
    async with running(run_retention(store, MemoryCluster(), clock, Retention(), supervisor)):
        await until(lambda: "Retention will be tried again" in caplog.text)
        away.rename(store.path)
        await until(lambda: "it is 100.0 days after the last decision" in caplog.text)


async def test_clock_that_jumps_drops_nothing_at_once(
    store: SqliteStore, clock: HeldClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Retention drops little for one day, and then trusts the clock."""
    monkeypatch.setattr(retention, "PRUNE_INTERVAL", 0.01)
    passed = [0.0]
    for n in range(400):
        await store.commit([[kept(n)]], NOW - (400 - n) * HOUR)
    supervisor = Supervisor(Instruments())
    other = apsw.Connection(str(store.path))

    def left() -> int:
        count: int = other.execute("SELECT count(*) FROM decisions").fetchall()[0][0]
        return count

    keep = Retention(decision_days=20)
    run = run_retention(store, MemoryCluster(), clock, keep, supervisor, lambda: passed[0])
    async with running(run):
        clock.moment += 30 * DAY
        await until(lambda: left() < 400)
        assert left() > 200
        passed[0] += 25 * 3600
        clock.moment += 25 * HOUR
        await until(lambda: left() == 0)
    other.close()


async def test_hour_that_fails_does_not_hold_up_the_others(
    store: SqliteStore, clock: HeldClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failing hour is put aside, reported and tried again."""
    monkeypatch.setattr(retention, "SUMMARISE_INTERVAL", 0.01)
    monkeypatch.setattr(retention, "ASIDE_SECONDS", 0.05)
    supervisor = Supervisor(Instruments())
    await store.commit([[kept(n, decided=NOW - n * HOUR) for n in range(6)]], NOW)
    await store.prune(decisions_before=0, minutes_before=0, limit=1)  # which folds all
    oldest, *_ = hours = await store.unsummed(before=NOW - retention.GRACE_PERIOD)
    assert len(hours) == 5
    other = apsw.Connection(str(store.path))
    other.set_busy_timeout(10_000)

    def put(bins: bytes) -> None:
        change = "UPDATE rollups SET latency_bins = ? WHERE period = 'hour' AND start = ?"
        other.execute(change, (bins, oldest))

    read = "SELECT latency_bins FROM rollups WHERE period = 'hour' AND start = ?"
    ((good,),) = other.execute(read, (oldest,)).fetchall()
    put(b"\xc1")  # which is no histogram
    summed = "SELECT start FROM summaries WHERE part = 'all' ORDER BY start"
    summaries = Summaries(store, MemoryCluster(), clock, supervisor)
    async with running(summaries.run()):
        await until(lambda: supervisor.failing.get("summaries", NONE).failures > 1)
        assert [row[0] for row in other.execute(summed)] == hours[1:]
        assert supervisor.failing["summaries"].last_error.endswith("see the server's log")
        put(good)
        await until(lambda: not supervisor.failing)
    assert [row[0] for row in other.execute(summed)] == hours
    assert await differences(store) == []
    other.close()


async def test_hours_are_summed_up_in_the_background(
    path: Path,
    clock: HeldClock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Hours are summed some time after their end; a database that is away is tried again."""
    monkeypatch.setattr(retention, "SUMMARISE_INTERVAL", 0.01)
    store = SqliteStore(path)
    async with running(Summaries(store, MemoryCluster(), clock, Supervisor(Instruments())).run()):
        await until(lambda: "Summaries will be tried again" in caplog.text)
        await store.open()
        other = apsw.Connection(str(path))

        def summed() -> int:
            (count,) = other.execute("SELECT count(*) FROM summaries WHERE part = 'all'").fetchone()
            return int(count)

        await store.commit([[kept(n, decided=NOW - n * HOUR) for n in range(6)]], NOW)
        await store.prune(decisions_before=0, minutes_before=0, limit=1)  # which folds all
        await until(lambda: summed() == 5)
        clock.moment += HOUR
        await until(lambda: summed() == 6)
    other.close()
    await store.close()
