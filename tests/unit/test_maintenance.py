"""Retention: what is old goes, and every number stays."""

import logging
from pathlib import Path
from typing import Any

import apsw
import pytest

from routecast import maintenance
from routecast.cluster.memory import MemoryCluster
from routecast.instruments import Instruments
from routecast.maintenance import Retention, Summaries, prune, run_retention
from routecast.ports import Difference
from routecast.protocol import ServiceFailure
from routecast.store.sqlite import SqliteStore
from routecast.supervisor import Supervisor
from tests.support.clock import HeldClock
from tests.support.decisions import DAY, HOUR, NOW, assert_sums, kept
from tests.unit.running import broken, running, until

NONE = ServiceFailure(0, "")


async def differences(store: SqliteStore) -> list[Any]:
    return [found async for found in store.verify() if isinstance(found, Difference)]


async def test_retention_never_changes_totals(
    store: SqliteStore, clock: HeldClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Day after day, in small steps: total and hours stay, and verify is clean after each."""
    monkeypatch.setattr(maintenance, "STEP", 3)
    decisions = [kept(n, decided=NOW + n * 3 * HOUR) for n in range(8 * 5)]
    for decision in decisions:
        await store.commit([[decision]], decision.decided)
    dropped = []
    for day in range(12):
        clock.moment = NOW + day * DAY
        before = await store.load(clock.moment)
        dropped.append(await prune(store, clock, Retention(decision_days=2, minute_days=3)))
        after = await store.load(clock.moment)
        assert (after.total, after.hours) == (before.total, before.hours)
        assert await differences(store) == []
    # Each decision goes, and the minute it was counted in.
    assert sum(dropped) == 2 * len(decisions)
    assert dropped[:2] == dropped[-2:] == [0, 0]
    assert_sums((await store.load(NOW)).total, decisions)


async def test_id_is_known_until_its_decision_goes(store: SqliteStore, clock: HeldClock) -> None:
    """To the microsecond of its receipt; sent after that, it counts again."""
    await store.commit([[kept(1)]], NOW)
    keep = Retention(decision_days=1)
    clock.moment = NOW + DAY
    assert await prune(store, clock, keep) == 0
    assert (await store.commit([[kept(1)]], clock.moment)).inserted == [0]
    clock.moment += 1
    assert await prune(store, clock, keep) == 1
    assert (await store.commit([[kept(1)]], clock.moment)).inserted == [1]
    assert await differences(store) == []


async def test_default_keeps_decisions_30_days_and_minutes_90(
    store: SqliteStore, clock: HeldClock
) -> None:
    """Hours and totals for ever."""
    await store.commit([[kept(1)]], NOW)
    dropped = {}
    for day in (29, 31, 89, 91, 10_000):
        clock.moment = NOW + day * DAY
        dropped[day] = await prune(store, clock, Retention())
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
    """A database that cannot be reached does not end it."""
    monkeypatch.setattr(maintenance, "EVERY", 0.01)
    caplog.set_level(logging.INFO, "routecast.maintenance")
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
    """What fails is told and tried again; the rest of retention is done."""
    monkeypatch.setattr(maintenance, "EVERY", 0.01)
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


async def test_hour_that_fails_does_not_hold_up_the_others(
    store: SqliteStore, clock: HeldClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it fails with, it is put aside, told of, and tried again."""
    monkeypatch.setattr(maintenance, "SUMMARISE_EVERY", 0.01)
    monkeypatch.setattr(maintenance, "ASIDE_SECONDS", 0.05)
    supervisor = Supervisor(Instruments())
    await store.commit([[kept(n, decided=NOW - n * HOUR) for n in range(6)]], NOW)
    await store.prune(decisions_before=0, minutes_before=0, limit=1)  # which folds all
    oldest, *_ = hours = await store.unsummed(before=NOW - maintenance.LATE)
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
    """Those that are over for a while; a database that is away is tried again."""
    monkeypatch.setattr(maintenance, "SUMMARISE_EVERY", 0.01)
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
