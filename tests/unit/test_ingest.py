"""Ingest: group commit, its bounds, and what happens when the database fails."""

import asyncio
import logging

import pytest

from routecast import ingest as module
from routecast.bus.memory import MemoryBus
from routecast.core.delta import Delta
from routecast.core.names import Names
from routecast.core.snapshot import Snapshot
from routecast.errors import SumFull, Unavailable
from routecast.ingest import Ingest
from routecast.instruments import Instruments
from routecast.protocol import Position
from routecast.store.sqlite import SqliteStore
from tests.support.clock import HeldClock
from tests.support.decisions import NOW, assert_sums, cells_of, kept
from tests.unit.running import PATIENCE, broken, running

Submitted = asyncio.Task[tuple[int, Position]]


@pytest.fixture
def ingest(
    store: SqliteStore,
    bus: MemoryBus,
    clock: HeldClock,
    instruments: Instruments,
) -> Ingest:
    """Ingest that is not running yet: what is submitted waits."""
    return Ingest(store, bus, clock, Names(500, 5000), instruments)


async def submit_all(ingest: Ingest, *batches: list[int]) -> list[Submitted]:
    """Submit batches of decisions by number; return when all of them wait."""
    tasks = [ingest.submit([kept(number) for number in batch]) for batch in batches]
    await asyncio.sleep(0)
    return tasks


async def held(store: SqliteStore) -> Snapshot:
    return await store.load(NOW)


# -- group commit -------------------------------------------------------------------------------


async def test_waiting_batches_share_one_commit(ingest: Ingest, store: SqliteStore) -> None:
    """Each gets its own count, all the same position."""
    waiting = await submit_all(ingest, [1, 2], [3], [4, 5, 6])
    async with running(ingest.run()):
        answers = await asyncio.gather(*waiting)
    position = await store.position()
    assert position.seq == 1
    assert answers == [(2, position), (1, position), (3, position)]


async def test_acknowledged_is_on_disk(ingest: Ingest, store: SqliteStore) -> None:
    """Another reader of the file sees it, as soon as there is an answer."""
    other = SqliteStore(store.path)
    await other.open()
    async with running(ingest.run()):
        for number in range(5):
            _, position = await ingest.submit([kept(number)])
            assert (await held(other)).position == position
            assert_sums((await held(other)).total, [kept(n) for n in range(number + 1)])
    await other.close()


async def test_group_has_a_bound(
    ingest: Ingest, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What does not fit waits for the next one; a batch over the bound goes alone, and whole."""
    monkeypatch.setattr(module, "MAX_GROUP", 4)
    waiting = await submit_all(ingest, [1, 2], [3, 4], [5], list(range(10, 20)), [6])
    async with running(ingest.run()):
        answers = await asyncio.gather(*waiting)
    assert [position.seq for _, position in answers] == [1, 1, 2, 3, 4]
    assert [count for count, _ in answers] == [2, 2, 1, 10, 1]
    assert (await store.position()).seq == 4


async def test_duplicates_count_once(ingest: Ingest, store: SqliteStore) -> None:
    """In a batch, across batches that share a commit, and across commits."""
    waiting = await submit_all(ingest, [1, 1, 2], [2, 3])
    async with running(ingest.run()):
        assert [count for count, _ in await asyncio.gather(*waiting)] == [2, 1]
        assert await ingest.submit([kept(3), kept(1)]) == (0, await store.position())
    assert_sums((await held(store)).total, [kept(1), kept(2), kept(3)])


async def test_empty_batch_changes_nothing(ingest: Ingest, store: SqliteStore) -> None:
    """It is answered in its turn, with the position there is."""
    before = await store.position()
    async with running(ingest.run()):
        assert await ingest.submit([]) == (0, before)
    assert await store.position() == before


async def test_answer_comes_after_the_bus_knows(ingest: Ingest, bus: MemoryBus) -> None:
    """Whoever has an answer reads what it wrote; what is known already is no news."""
    heard: list[Delta | Position] = []
    bus.listen(heard.append)
    async with running(ingest.run()):
        _, position = await ingest.submit([kept(1)])
        assert heard == [Delta(position, cells_of([kept(1)]), NOW)]
        await ingest.submit([kept(1)])
        assert len(heard) == 1


async def test_client_that_hangs_up_takes_nothing_back(ingest: Ingest, store: SqliteStore) -> None:
    """What was queued is committed; nobody is answered, and nothing breaks."""
    gone, stays = await submit_all(ingest, [1], [2])
    gone.cancel()
    async with running(ingest.run()):
        assert (await stays)[0] == 1
    assert gone.cancelled()
    assert_sums((await held(store)).total, [kept(1), kept(2)])


async def test_names_over_their_bound_are_folded_and_counted(
    store: SqliteStore, bus: MemoryBus, clock: HeldClock
) -> None:
    """They are kept under `other`, and an instrument says how many."""
    instruments = Instruments()
    ingest = Ingest(store, bus, clock, Names(1, 10), instruments)
    async with running(ingest.run()):
        await ingest.submit([kept(1), kept(2, strategy="new"), kept(3, strategy="newer")])
    folded = [kept(n, strategy="other") for n in (2, 3)]
    assert_sums((await held(store)).total, [kept(1), *folded])
    assert instruments.registry.get_sample_value("routecast_names_folded_total") == 2


async def test_names_of_what_is_not_stored_take_no_room(
    store: SqliteStore, bus: MemoryBus, clock: HeldClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of duplicates, and of a commit that fails; while they wait, the limit holds all the same."""
    names = Names(2, 10)
    ingest = Ingest(store, bus, clock, names, Instruments())
    async with running(ingest.run()):
        await ingest.submit([kept(1)])
        duplicate = ingest.submit([kept(1, strategy="spent")])
        over = ingest.submit([kept(2, strategy="new")])  # there may be two, and one is reserved
        await asyncio.gather(duplicate, over)
        assert names.used("strategy") == 1
        with monkeypatch.context() as broken:
            broken.setattr(store, "commit", _fail)
            with pytest.raises(Unavailable):
                await ingest.submit([kept(3, strategy="lost")])
        await ingest.submit([kept(4, strategy="true")])
        await ingest.submit([kept(5, strategy="late")])
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
    """What is refused is not half-kept; with room again, it can be sent again."""
    monkeypatch.setattr(module, "MAX_WAITING", 5)
    waiting = await submit_all(ingest, [1, 2, 3])
    with pytest.raises(Unavailable, match="too many decisions are waiting") as refused:
        await ingest.submit([kept(4), kept(5), kept(6)])
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
        assert (await ingest.submit([kept(4)]))[0] == 1


async def test_batch_over_the_bound_is_taken_when_nothing_waits(
    ingest: Ingest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise it could never be sent."""
    monkeypatch.setattr(module, "MAX_WAITING", 5)
    async with running(ingest.run()):
        assert (await ingest.submit([kept(n) for n in range(20)]))[0] == 20


async def test_close_commits_what_waits_and_takes_no_more(
    ingest: Ingest, store: SqliteStore
) -> None:
    """Then `run` ends by itself."""
    waiting = await submit_all(ingest, [1], [2])
    ingest.close()
    with pytest.raises(Unavailable, match="shutting down"):
        await ingest.submit([kept(3)])
    with pytest.raises(Unavailable, match="shutting down"):
        await ingest.check()
    async with asyncio.timeout(PATIENCE):
        await ingest.run()
        assert [(await one)[0] for one in waiting] == [1, 1]
    assert_sums((await held(store)).total, [kept(1), kept(2)])


async def test_close_ends_a_run_that_waits_for_work(ingest: Ingest) -> None:
    """Nothing is waiting; nothing will come."""
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
    """Every batch of the group is refused, and may be sent again; it is logged once."""
    caplog.set_level(logging.WARNING, "routecast.ingest")
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
        assert (await ingest.submit([kept(1), kept(2)]))[0] == 2
        assert not fails(ingest)
        await ingest.check()
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]
    assert_sums((await held(store)).total, [kept(1), kept(2)])


async def test_failure_long_past_says_nothing_about_now(
    ingest: Ingest, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a while the database itself is asked again."""
    async with running(ingest.run()):
        with broken(store.path), pytest.raises(Unavailable):
            await ingest.submit([kept(1)])
        assert fails(ingest)
        monkeypatch.setattr(module, "FAILING_SECONDS", 0.0)
        assert not fails(ingest)
        assert await ingest.check() is None  # type: ignore[func-returns-value]


async def test_batch_whose_sum_is_full_is_refused_alone(ingest: Ingest, store: SqliteStore) -> None:
    """The others of its group are kept; sending it again would not help, and nothing fails."""
    await store.commit([[kept(0, cost=2**62)]], NOW)
    first, second = await submit_all(ingest, [1], [2])
    full = ingest.submit([kept(3), kept(4, cost=2**62)])
    await asyncio.sleep(0)
    (third,) = await submit_all(ingest, [5])
    async with running(ingest.run()), asyncio.timeout(PATIENCE):
        assert [(await one)[0] for one in (first, second, third)] == [1, 1, 1]
        with pytest.raises(SumFull):
            await full
    assert not fails(ingest)
    assert_sums((await held(store)).total, [kept(0, cost=2**62), *(kept(n) for n in (1, 2, 5))])


async def test_failure_nobody_foresaw_refuses_too(
    ingest: Ingest, store: SqliteStore, caplog: pytest.LogCaptureFixture
) -> None:
    """Its cause goes to the log, not to the client; ingest goes on."""
    async with running(ingest.run()):
        with pytest.raises(Unavailable, match=r"^the commit failed; see the server's log$"):
            await ingest.submit([kept(1, cost=object())])
        assert (await ingest.submit([kept(2)]))[0] == 1
    assert "for a reason not foreseen" in caplog.text
    assert_sums((await held(store)).total, [kept(2)])
