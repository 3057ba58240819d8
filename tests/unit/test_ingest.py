"""Ingest: group commit, its bounds, and what happens when the database fails."""

import asyncio
import gzip
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import apsw
import pytest
from starlette.types import Message

from routecast.adapters.bus.memory import MemoryBus
from routecast.adapters.store.sqlite import SqliteStore
from routecast.core.cardinality import CardinalityLimiter
from routecast.core.decision import DecisionRecord, Rules
from routecast.core.delta import Delta
from routecast.core.sites import Sites
from routecast.core.snapshot import Snapshot
from routecast.edge.http import request_body
from routecast.edge.http.decisions import Decisions
from routecast.errors import Unavailable
from routecast.instruments import Instruments
from routecast.ports import Commit
from routecast.protocol import Position, Receipt, Rejection
from routecast.services import ingest as module
from routecast.services.decision_batch import AllRejected, DecisionBatch
from routecast.services.ingest import Ingest
from tests.support.clock import HeldClock
from tests.support.decisions import NOW, assert_sums, batch_of, cells_of, kept
from tests.support.running_services import PATIENCE, broken, running, until

Submitted = asyncio.Future[Receipt]


@pytest.fixture
def ingest(
    store: SqliteStore,
    bus: MemoryBus,
    clock: HeldClock,
    instruments: Instruments,
) -> Ingest:
    """Ingest that does not run yet, so that submitted batches wait."""
    return Ingest(store, bus, clock, CardinalityLimiter(500, 5000), Rules(), instruments)


def submit(ingest: Ingest, decisions: Sequence[DecisionRecord]) -> Submitted:
    """Submit a batch of good decisions."""
    return ingest.accept(batch_of(decisions))


def receipt(accepted: int, position: Position, duplicates: int = 0) -> Receipt:
    """Return the receipt of a batch of good decisions."""
    return Receipt(accepted, duplicates, [], 0, position)


async def submit_all(ingest: Ingest, *batches: list[int]) -> list[Submitted]:
    """Submit batches of decisions by number; return when all of them wait."""
    waiting = [submit(ingest, [kept(number) for number in batch]) for batch in batches]
    await asyncio.sleep(0)
    return waiting


async def held(store: SqliteStore) -> Snapshot:
    return await store.load(NOW)


# -- group commit -------------------------------------------------------------------------------


async def test_waiting_batches_share_one_commit(ingest: Ingest, store: SqliteStore) -> None:
    """Each batch gets its own count, and all get the same position."""
    waiting = await submit_all(ingest, [1, 2], [3], [4, 5, 6])
    async with running(ingest.run()):
        answers = await asyncio.gather(*waiting)
    position = await store.position()
    assert position.seq == 1
    assert answers == [receipt(2, position), receipt(1, position), receipt(3, position)]


class SeenPosition:
    """Has seen a position of the database."""

    def __init__(self, position: Position | None) -> None:
        self.position = position
        self.calls: list[tuple[Position, Position]] = []

    def went_back(self, seen: Position, there: Position) -> None:
        self.calls.append((seen, there))


@pytest.mark.parametrize("number", [1, 2], ids=["known", "new"])
@pytest.mark.parametrize(("ahead", "goes_back"), [(0, False), (1, True)])
async def test_commit_on_a_database_that_went_back_is_reported(
    store: SqliteStore, bus: MemoryBus, clock: HeldClock, number: int, ahead: int, goes_back: bool
) -> None:
    """A commit gets an earlier seq than was seen, in the same epoch."""
    at = (await store.commit([[kept(1)]], NOW)).position
    live = SeenPosition(seen := Position(at.epoch, at.seq + ahead))
    limits = CardinalityLimiter(500, 5000)
    ingest = Ingest(store, bus, clock, limits, Rules(), Instruments(), live=live)
    async with running(ingest.run()):
        await submit(ingest, [kept(number)])
        assert live.calls == [(seen, at)] * goes_back
        for other in (None, Position("of another epoch", 9)):
            live.position = other
            await submit(ingest, [kept(3)])
    assert len(live.calls) == goes_back


async def test_acknowledged_is_on_disk(ingest: Ingest, store: SqliteStore) -> None:
    """Another reader of the file sees a batch as soon as there is an answer."""
    other = SqliteStore(store.path)
    await other.open()
    async with running(ingest.run()):
        for number in range(5):
            position = (await submit(ingest, [kept(number)])).position
            assert (await held(other)).position == position
            assert_sums((await held(other)).total, [kept(n) for n in range(number + 1)])
    await other.close()


async def test_group_has_a_limit(
    ingest: Ingest, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch that does not fit waits for the next group; one over the limit commits alone."""
    monkeypatch.setattr(module, "MAX_GROUP", 4)
    waiting = await submit_all(ingest, [1, 2], [3, 4], [5], list(range(10, 20)), [6])
    async with running(ingest.run()):
        answers = await asyncio.gather(*waiting)
    seqs = [one.position.seq for one in answers]
    assert seqs[0] == seqs[1] != seqs[2] == seqs[4]
    assert seqs.count(seqs[3]) == 1
    assert [one.accepted for one in answers] == [2, 2, 1, 10, 1]
    assert (await store.position()).seq == 3


async def test_groups_are_larger_while_no_small_batch_comes(
    ingest: Ingest, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small batch waits at most for the commit that runs when it comes."""
    monkeypatch.setattr(module, "SMALL_BATCH", 1)
    monkeypatch.setattr(module, "MAX_GROUP", 4)
    monkeypatch.setattr(module, "MAX_BULK_GROUP", 6)
    monkeypatch.setattr(module, "SMALL_SECONDS", 1_000.0)
    medium = [[2 * n, 2 * n + 1] for n in range(6)]
    waiting = await submit_all(ingest, *medium)
    async with running(ingest.run()):
        await asyncio.gather(*waiting)
        assert (await store.position()).seq == 2
        await submit(ingest, [kept(100)])
        waiting = await submit_all(ingest, *([n + 200, n + 201] for n, _ in medium))
        await asyncio.gather(*waiting)
    assert (await store.position()).seq == 6


async def test_duplicates_count_once(ingest: Ingest, store: SqliteStore) -> None:
    """This holds in a batch, in a group, and across commits."""
    waiting = await submit_all(ingest, [1, 1, 2], [2, 3])
    async with running(ingest.run()):
        assert [one.accepted for one in await asyncio.gather(*waiting)] == [2, 1]
        assert await submit(ingest, [kept(3), kept(1)]) == receipt(0, await store.position(), 2)
    assert_sums((await held(store)).total, [kept(1), kept(2), kept(3)])


async def test_empty_batch_changes_nothing(ingest: Ingest, store: SqliteStore) -> None:
    """It is answered in its turn, with the current position."""
    before = await store.position()
    async with running(ingest.run()):
        assert await submit(ingest, []) == receipt(0, before)
    assert await store.position() == before


async def test_answer_comes_after_the_bus_knows(ingest: Ingest, bus: MemoryBus) -> None:
    """A client with an answer can read what it wrote; a batch of duplicates has no delta."""
    heard: list[Delta | Position] = []
    bus.listen(heard.append)
    async with running(ingest.run()):
        position = (await submit(ingest, [kept(1)])).position
        assert heard == [Delta(position, cells_of([kept(1)]), NOW)]
        await submit(ingest, [kept(1)])
        assert len(heard) == 1


async def test_client_that_hangs_up_takes_nothing_back(ingest: Ingest, store: SqliteStore) -> None:
    """Its queued batch is committed without an answer or an error."""
    gone, stays = await submit_all(ingest, [1], [2])
    gone.cancel()
    async with running(ingest.run()):
        assert (await stays).accepted == 1
    assert gone.cancelled()
    assert_sums((await held(store)).total, [kept(1), kept(2)])


async def test_names_over_the_limit_count_as_other(
    store: SqliteStore, bus: MemoryBus, clock: HeldClock
) -> None:
    """A metric has the number of these decisions."""
    instruments = Instruments()
    ingest = Ingest(store, bus, clock, CardinalityLimiter(1, 10), Rules(), instruments)
    async with running(ingest.run()):
        await submit(ingest, [kept(1), kept(2, strategy="new"), kept(3, strategy="newer")])
    folded = [kept(n, strategy="other") for n in (2, 3)]
    assert_sums((await held(store)).total, [kept(1), *folded])
    assert instruments.registry.get_sample_value("routecast_names_folded_total") == 2


async def test_names_of_what_is_not_stored_take_no_room(
    store: SqliteStore, bus: MemoryBus, clock: HeldClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names of duplicates and of failed commits do not count; waiting ones do."""
    names = CardinalityLimiter(2, 10)
    ingest = Ingest(store, bus, clock, names, Rules(), Instruments())
    async with running(ingest.run()):
        await submit(ingest, [kept(1)])
        duplicate = submit(ingest, [kept(1, strategy="spent")])
        over = submit(ingest, [kept(2, strategy="new")])  # there may be two, and one is reserved
        await asyncio.gather(duplicate, over)
        assert names.used("strategy") == 1
        with monkeypatch.context() as broken:
            broken.setattr(store, "commit", _fail)
            with pytest.raises(Unavailable):
                await submit(ingest, [kept(3, strategy="lost")])
        await submit(ingest, [kept(4, strategy="true")])
        await submit(ingest, [kept(5, strategy="late")])
    strategies = {2: "other", 4: "true", 5: "other"}
    stored = [kept(1), *(kept(n, strategy=name) for n, name in strategies.items())]
    assert_sums((await held(store)).total, stored)


async def _fail(*_: object) -> None:
    raise Unavailable("the database is gone")


# -- bounds -------------------------------------------------------------------------------------


async def test_full_queue_refuses_and_keeps_nothing(
    ingest: Ingest,
    store: SqliteStore,
    instruments: Instruments,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A refused batch is not stored in part; with room it can be sent again."""
    monkeypatch.setattr(module, "MAX_WAITING_DECISIONS", 5)
    waiting = await submit_all(ingest, [1, 2, 3])
    with pytest.raises(Unavailable, match="too many decisions are waiting") as refused:
        await submit(ingest, [kept(4), kept(5), kept(6)])
    assert refused.value.retry_after > 0
    samples = instruments.registry.get_sample_value
    assert samples("routecast_ingest_queue_decisions") == 3
    assert samples("routecast_decisions_total", {"outcome": "refused"}) == 3
    waiting += await submit_all(ingest, [7, 8])
    with pytest.raises(Unavailable, match="too many decisions are waiting"):
        await ingest.check()
    async with running(ingest.run()):
        await asyncio.gather(*waiting)
        assert samples("routecast_ingest_queue_decisions") == 0
        assert_sums((await held(store)).total, [kept(n) for n in (1, 2, 3, 7, 8)])
        assert (await submit(ingest, [kept(4)])).accepted == 1


async def test_batch_over_the_limit_is_accepted_when_nothing_waits(
    ingest: Ingest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise it could never be sent."""
    monkeypatch.setattr(module, "MAX_WAITING_DECISIONS", 5)
    async with running(ingest.run()):
        assert (await submit(ingest, [kept(n) for n in range(20)])).accepted == 20


async def test_close_commits_what_waits_and_takes_no_more(
    ingest: Ingest, store: SqliteStore
) -> None:
    """Then `run` ends by itself."""
    waiting = await submit_all(ingest, [1], [2])
    ingest.close()
    with pytest.raises(Unavailable, match="shutting down"):
        await submit(ingest, [kept(3)])
    with pytest.raises(Unavailable, match="shutting down"):
        await ingest.check()
    async with asyncio.timeout(PATIENCE):
        await ingest.run()
        assert [(await one).accepted for one in waiting] == [1, 1]
    assert_sums((await held(store)).total, [kept(1), kept(2)])


async def test_close_ends_a_run_that_waits_for_work(ingest: Ingest) -> None:
    """`run` ends also if no batch waits."""
    run = asyncio.create_task(ingest.run())
    await asyncio.sleep(0)
    ingest.close()
    async with asyncio.timeout(PATIENCE):
        await run
    assert run.done()


# -- failures -----------------------------------------------------------------------------------


def fails(ingest: Ingest) -> bool:
    return ingest.failing is not None


async def test_failing_store_refuses_and_recovers(
    ingest: Ingest, store: SqliteStore, caplog: pytest.LogCaptureFixture
) -> None:
    """Every batch of the group is refused and can be sent again; the failure is logged once."""
    caplog.set_level(logging.WARNING, "routecast.services.ingest")
    async with running(ingest.run()):
        with broken(store.path):
            for _ in range(2):
                first, second = await submit_all(ingest, [1], [2])
                for refused in (first, second):
                    with pytest.raises(Unavailable):
                        await refused
            assert fails(ingest)
            with pytest.raises(Unavailable):
                await ingest.check()
        assert (await submit(ingest, [kept(1), kept(2)])).accepted == 2
        assert not fails(ingest)
        await ingest.check()
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]
    assert_sums((await held(store)).total, [kept(1), kept(2)])


async def test_failure_long_past_says_nothing_about_now(
    ingest: Ingest, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some time after a failure, `check` asks the database again."""
    async with running(ingest.run()):
        with broken(store.path), pytest.raises(Unavailable):
            await submit(ingest, [kept(1)])
        assert fails(ingest)
        monkeypatch.setattr(module, "FAILING_SECONDS", 0.0)
        assert not fails(ingest)
        await ingest.check()


async def test_check_is_shared_by_all_who_ask_within_a_second(
    ingest: Ingest, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Callers within a second share one write to the disk; an early caller waits."""
    other = apsw.Connection(str(path))

    def checks() -> int:
        number: int = other.execute("SELECT number FROM checks").fetchall()[0][0]
        return number

    monkeypatch.setattr(module, "STORE_CHECK_SECONDS", 1_000.0)
    await asyncio.gather(*(ingest.check() for _ in range(100)))
    early = [asyncio.create_task(ingest.check()) for _ in range(100)]
    await asyncio.wait(early, timeout=0.01)
    assert not any(one.done() for one in early)
    assert checks() == 1
    for one in early:
        one.cancel()
    other.close()


async def test_check_reports_the_present_state(
    ingest: Ingest, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A check reports the present state, and not that of an earlier check."""
    monkeypatch.setattr(module, "STORE_CHECK_SECONDS", 0.05)
    await ingest.check()
    with broken(path, "checks"), pytest.raises(Unavailable):
        await ingest.check()
    await ingest.check()


async def test_only_decisions_that_do_not_fit_are_refused(
    ingest: Ingest, store: SqliteStore
) -> None:
    """The rest of its batch and group is stored; a repeated batch gets the same answer."""
    await store.commit([[kept(0, cost=2**62)]], NOW)
    first, second = await submit_all(ingest, [1], [2])
    sent = [kept(3), kept(4, cost=2**62), kept(5, strategy="other", cost=2**62), kept(6)]
    third = submit(ingest, sent)
    async with running(ingest.run()), asyncio.timeout(PATIENCE):
        assert [(await one).accepted for one in (first, second, third)] == [1, 1, 3]
        bad = Rejection(1, "cost: the sum of its series is at its limit", "d4")
        assert ((await first).rejected, (await third).rejected) == ([], [bad])
        again = await submit(ingest, sent)
        assert (again.accepted, again.duplicates, again.rejected) == (0, 3, [bad])
        with pytest.raises(AllRejected, match=r"index 0\): cost: the sum"):
            await submit(ingest, [sent[1]])
    assert not fails(ingest)
    counted = [kept(0, cost=2**62), kept(1), kept(2), *(sent[n] for n in (0, 2, 3))]
    assert_sums((await held(store)).total, counted)


async def test_unexpected_failure_refuses_the_batch(
    ingest: Ingest, store: SqliteStore, caplog: pytest.LogCaptureFixture
) -> None:
    """Its cause goes to the log, not to the client; ingest goes on."""
    async with running(ingest.run()):
        with pytest.raises(Unavailable, match=r"^the commit failed; see the server's log$"):
            await submit(ingest, [kept(1, cost=object())])
        assert (await submit(ingest, [kept(2)])).accepted == 1
    assert "Unexpected error in a commit" in caplog.text
    assert_sums((await held(store)).total, [kept(2)])


# -- sizes --------------------------------------------------------------------------------------


class Held:
    """A store that commits when it is told to."""

    def __init__(self, store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        self.gates: dict[int, asyncio.Event] = {}  # by the size of a commit
        self._commit = store.commit
        monkeypatch.setattr(store, "commit", self.commit)

    def hold(self, size: int) -> asyncio.Event:
        """Hold commits of this number of decisions until an event is set."""
        return self.gates.setdefault(size, asyncio.Event())

    async def commit(self, batches: Sequence[Sequence[DecisionRecord]], received: int) -> Commit:
        size = sum(map(len, batches))
        self.sizes.append(size)
        if size in self.gates:
            await self.gates[size].wait()
        return await self._commit(batches, received)


def many(first: int, count: int) -> list[DecisionRecord]:
    return [kept(number) for number in range(first, first + count)]


async def test_large_batch_does_not_hold_up_others(
    ingest: Ingest, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small batches commit meanwhile; the large batch is whole, and its names are limited."""
    monkeypatch.setattr(module, "MAX_GROUP", 10)
    held = Held(store, monkeypatch)
    gate = held.hold(30)
    async with running(ingest.run()), asyncio.timeout(PATIENCE):
        large = submit(ingest, many(0, 30))
        for number in range(100, 105):
            assert (await submit(ingest, [kept(number)])).accepted == 1
        assert not large.done()
        gate.set()
        assert (await large).accepted == 30
    assert (await store.position()).seq == 6


async def test_large_batches_leave_time_to_others_that_send(
    ingest: Ingest, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a large batch beside small ones, the next large one waits for a limited time."""
    monkeypatch.setattr(module, "MAX_GROUP", 10)
    held = Held(store, monkeypatch)
    gate = held.hold(30)
    async with asyncio.timeout(PATIENCE):
        first, second, third = (submit(ingest, many(100 * n, 30 + n)) for n in range(3))
        async with running(ingest.run()):
            await submit(ingest, [kept(1_000)])
            monkeypatch.setattr(module, "LARGE_REST", 1e9)
            gate.set()
            await first
            for number in range(1_001, 1_020):
                await submit(ingest, [kept(number)])
            assert not second.done()
            ingest.close()
            assert (await second).accepted == 31
            assert (await third).accepted == 32


async def test_large_batches_alone_do_not_wait(
    ingest: Ingest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If only large batches are sent, they follow each other at once."""
    monkeypatch.setattr(module, "MAX_GROUP", 10)
    monkeypatch.setattr(module, "LARGE_REST", 1e9)
    async with running(ingest.run()), asyncio.timeout(PATIENCE):
        for number in range(3):
            assert (await submit(ingest, many(100 * number, 30))).accepted == 30


async def test_large_batches_leave_room_to_others(
    ingest: Ingest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They never fill the whole queue; one may always wait, at any size."""
    monkeypatch.setattr(module, "MAX_GROUP", 10)
    monkeypatch.setattr(module, "MAX_WAITING_DECISIONS", 40)
    monkeypatch.setattr(module, "MAX_LARGE_WAITING", 30)
    waiting = [submit(ingest, many(0, 35))]
    with pytest.raises(Unavailable):
        submit(ingest, many(100, 11))
    waiting.append(submit(ingest, many(200, 5)))
    with pytest.raises(Unavailable):
        submit(ingest, many(300, 1))
    async with running(ingest.run()), asyncio.timeout(PATIENCE):
        assert [(await one).accepted for one in waiting] == [35, 5]
        assert (await submit(ingest, many(100, 25))).accepted == 25


def reserves(names: CardinalityLimiter) -> list[str]:
    """Return the names as which two new strategies count, under a limit of two."""
    counted, reserved = names.reserve([kept(strategy="new"), kept(strategy="newer")])
    names.release(reserved)
    return [one.strategy for one in counted]


@pytest.mark.parametrize("end", ["committed", "refused", "given up", "cancelled", "while bounded"])
async def test_names_of_a_large_batch_are_reserved_until_its_end(
    store: SqliteStore,
    bus: MemoryBus,
    clock: HeldClock,
    monkeypatch: pytest.MonkeyPatch,
    end: str,
) -> None:
    """Afterwards only the names that were committed count towards the limit."""
    monkeypatch.setattr(module, "MAX_GROUP", 4)
    monkeypatch.setattr(module, "SMALL_BATCH", 2)
    monkeypatch.setattr(module, "LOOP_SECONDS", -1.0)  # others get a turn after each slice
    held = Held(store, monkeypatch)
    gate = held.hold(20)
    names = CardinalityLimiter(2, 10)
    ingest = Ingest(store, bus, clock, names, Rules(), Instruments())
    if end == "while bounded":
        reserve = names.reserve

        def reserve_once(*given: Any) -> Any:
            asyncio.get_running_loop().call_soon(ingest.give_up)  # before the next slice
            return reserve(*given)

        monkeypatch.setattr(names, "reserve", reserve_once)
    sent = [kept(n, strategy=f"s{n % 3}") for n in range(20)]
    large = submit(ingest, sent)
    async with running(ingest.run()):
        if end == "while bounded":
            await asyncio.wait([large])
        else:
            await until(lambda: held.sizes == [20])
            assert reserves(names) == ["other", "other"]
        if end == "refused":
            monkeypatch.setattr(held, "_commit", _fail)
        if end == "given up":
            ingest.give_up()
        if end != "cancelled":
            gate.set()
        if end in ("committed", "given up"):
            assert (await large).accepted == 20
    if end in ("committed", "given up"):
        assert (names.used("strategy"), reserves(names)) == (2, ["other", "other"])
        counted = [one._replace(strategy="other") if one.strategy == "s2" else one for one in sent]
        assert_sums((await store.load(NOW)).total, counted)
    else:
        with pytest.raises(Unavailable):
            await large
        assert (names.used("strategy"), reserves(names)) == (0, ["new", "newer"])


async def test_small_and_medium_batches_take_turns(
    ingest: Ingest, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither kind makes the other wait, however many come."""
    monkeypatch.setattr(module, "MAX_GROUP", 8)
    monkeypatch.setattr(module, "SMALL_BATCH", 2)
    held = Held(store, monkeypatch)
    batches = [many(100 * n, 8) for n in range(4)] + [many(1_000 + n, 1) for n in range(12)]
    waiting = [submit(ingest, batch) for batch in batches]
    async with running(ingest.run()), asyncio.timeout(PATIENCE):
        seqs = [one.position.seq for one in await asyncio.gather(*waiting)]
    assert seqs == [2, 4, 5, 6, *[1] * 8, *[3] * 4]
    assert held.sizes == [8, 8, 4, 8, 8, 8]


# -- the end ------------------------------------------------------------------------------------


async def test_giving_up_refuses_what_waits(
    ingest: Ingest, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A running commit is answered by its result, and no refused decision is stored."""
    monkeypatch.setattr(module, "MAX_GROUP", 10)
    held = Held(store, monkeypatch)
    gate = held.hold(3)
    under_way = submit(ingest, many(0, 3))
    async with running(ingest.run()) as run, asyncio.timeout(PATIENCE):
        await until(lambda: held.sizes == [3])
        waiting = [submit(ingest, many(10, 1)), submit(ingest, many(20, 11))]
        ingest.give_up()
        for refused in waiting:
            with pytest.raises(Unavailable, match="shutting down") as error:
                await refused
            assert error.value.retry_after > 0
        with pytest.raises(Unavailable, match="shutting down"):
            submit(ingest, [kept(99)])
        gate.set()
        assert (await under_way).accepted == 3
        await run
    assert_sums((await store.load(NOW)).total, many(0, 3))


async def test_commit_that_is_given_up_may_have_been_kept(
    ingest: Ingest, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its error does not say that nothing was stored."""
    held = Held(store, monkeypatch)
    held.hold(3)
    under_way = submit(ingest, many(0, 3))
    async with running(ingest.run()):
        await until(lambda: held.sizes == [3])
    with pytest.raises(Unavailable, match="may have been kept"):
        await under_way


async def test_request_that_is_cancelled_is_answered(
    ingest: Ingest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stopping server that no longer waits answers 503 with `Retry-After`."""
    never: Submitted = asyncio.get_running_loop().create_future()
    monkeypatch.setattr(ingest, "accept", lambda _: never)
    decisions = Decisions(ingest, Sites())
    sent: list[Message] = []
    asked = asyncio.Event()

    async def receive() -> Message:
        asked.set()
        return {"type": "http.request", "body": b'{"strategy":"s","provider":"p"}'}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/decisions", "headers": []}
    request = asyncio.create_task(decisions(scope, receive, send))
    await asked.wait()
    await asyncio.sleep(0)
    request.cancel()
    await request
    assert sent[0]["status"] == 503
    headers = dict(sent[0]["headers"])
    assert headers[b"content-type"] == b"application/problem+json"
    assert int(headers[b"retry-after"]) > 0


async def test_few_large_batches_are_decoded_at_a_time(
    ingest: Ingest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others wait undecoded or are refused; smaller bodies go first."""
    monkeypatch.setattr(request_body, "SMALL_BODY", 100)
    monkeypatch.setattr(request_body, "MAX_WAITING_BATCHES", 1)
    submitted: list[tuple[int, Submitted]] = []

    def accept(batch: DecisionBatch) -> Submitted:
        done: Submitted = asyncio.get_running_loop().create_future()
        submitted.append((len(batch.decisions), done))
        return done

    async def submits(count: int) -> None:
        await until(lambda: len(submitted) == count)

    def commit(at: int) -> None:
        size, done = submitted[at]
        done.set_result(receipt(size, Position("e", 1)))

    monkeypatch.setattr(ingest, "accept", accept)
    decisions = Decisions(ingest, Sites())

    async def post(count: int) -> int:
        lines = gzip.compress(b'{"strategy":"s","provider":"p"}\n' * count)
        statuses = []

        async def receive() -> Message:
            return {"type": "http.request", "body": lines}

        async def send(message: Message) -> None:
            statuses.append(message.get("status"))

        headers = [(b"content-type", b"application/x-ndjson"), (b"content-encoding", b"gzip")]
        scope = {"type": "http", "method": "POST", "path": "/v1/decisions", "headers": headers}
        await decisions(scope, receive, send)
        return statuses[0]

    most, few = 50 * module.MAX_GROUP, module.MAX_GROUP
    large = [asyncio.create_task(post(most)) for _ in range(3)]
    await submits(2)
    assert await post(most) == 503
    passing = asyncio.create_task(post(few))
    await submits(3)
    commit(2)
    commit(0)
    await submits(4)
    commit(1)
    commit(3)
    assert await asyncio.gather(passing, *large) == [200] * 4
    assert [size for size, _ in submitted] == [most, most, few, most]


async def test_crash_refuses_what_waits_and_is_over_when_run_again(
    ingest: Ingest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No producer waits without end for an answer."""

    def crash() -> None:
        raise OverflowError

    monkeypatch.setattr(ingest, "_next_group", crash)
    (waiting,) = await submit_all(ingest, [1])
    with pytest.raises(OverflowError):
        await ingest.run()
    with pytest.raises(Unavailable, match="being started again"):
        await waiting
    with pytest.raises(Unavailable, match="being started again"):
        submit(ingest, [kept(2)])
    monkeypatch.undo()
    async with running(ingest.run()):
        await asyncio.sleep(0)
        assert (await submit(ingest, [kept(1)])).accepted == 1


async def test_commit_that_cannot_be_published_is_acknowledged(
    ingest: Ingest, bus: MemoryBus, store: SqliteStore, caplog: pytest.LogCaptureFixture
) -> None:
    """It is on disk, and other nodes find it there."""

    def fail(_: object) -> None:
        raise OverflowError

    bus.listen(fail)
    async with running(ingest.run()):
        assert (await submit(ingest, [kept(1)])).accepted == 1
        assert (await submit(ingest, [kept(2)])).accepted == 1
    assert_sums((await held(store)).total, [kept(1), kept(2)])
    assert "could not be published" in caplog.text


async def test_large_batch_that_cannot_be_prepared_is_not_the_first_for_ever(
    ingest: Ingest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused, and the next batch is committed."""
    monkeypatch.setattr(module, "MAX_GROUP", 2)
    bounded, failures = ingest._bounded, [OverflowError()]

    def fail_once(*given: Any) -> Any:
        if failures:
            raise failures.pop()
        return bounded(*given)

    monkeypatch.setattr(ingest, "_bounded", fail_once)
    first, second = await submit_all(ingest, [1, 2, 3], [4, 5, 6])
    async with running(ingest.run()):
        with pytest.raises(Unavailable):
            await first
        assert (await second).accepted == 3
