"""Live: in step with the bus, and loaded again whenever it may not be."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterable
from math import inf
from pathlib import Path
from statistics import median

import apsw
import pytest

from routecast.adapters.bus.memory import MemoryBus
from routecast.adapters.cache.memory import MemoryCache
from routecast.adapters.cluster.memory import MemoryCluster
from routecast.adapters.store.sqlite import SqliteStore, folding
from routecast.core import snapshot as core_snapshot
from routecast.core.cardinality import FoldedNames
from routecast.core.decision import DecisionRecord
from routecast.core.delta import Delta
from routecast.core.periods import CELL_BYTES
from routecast.core.rollup import Bucket, Key
from routecast.core.snapshot import BOUNDED, COVERAGE, LIFETIME, Snapshot
from routecast.instruments import Instruments
from routecast.ports import Reading
from routecast.protocol import Position, Source
from routecast.services import live_state as module
from routecast.services import snapshot_loader as source_module
from routecast.services.live_state import LiveState
from routecast.services.snapshot_loader import SnapshotLoader
from tests.support.clock import HeldClock
from tests.support.decisions import DAY, HOUR, MINUTE, NOW, assert_sums, cells_of, kept
from tests.support.running_services import PATIENCE, broken, running, until
from tests.support.windows import cells_in


class GatedStore(SqliteStore):
    """A SQLite store that counts its readers; loads can be held back, after they were read."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.gate = asyncio.Event()
        self.gate.set()
        self.loads = 0
        self.looked: list[float] = []  # when, on the monotonic clock

    @property
    def looks(self) -> int:
        return len(self.looked)

    async def position(self) -> Position:
        position = await super().position()
        self.looked.append(time.monotonic())
        return position

    async def load(self, now: int, room: int | None = None) -> Snapshot:
        snapshot = await super().load(now, room)
        self.loads += 1
        await self.gate.wait()
        return snapshot


class Node:
    """A store, and live state that follows it."""

    def __init__(
        self, store: GatedStore, cache: MemoryCache, clock: HeldClock, look_seconds: float
    ) -> None:
        self.store = store
        self.cache = cache
        self.clock = clock
        self.bus = MemoryBus()
        self.instruments = Instruments()
        self.loaded: list[Snapshot] = []
        self.advances: list[Reading | None] = []  # what was current when that was told
        self.cluster = MemoryCluster()
        sources = SnapshotLoader(store, cache, self.bus, self.cluster, clock, self.instruments)
        self.live = LiveState(
            sources,
            store,
            self.bus,
            self.cluster,
            clock,
            self.instruments,
            look_seconds=look_seconds,
            learn=self._learn,
            renew=lambda keys, _: self._learn(keys),
            advanced=lambda: self.advances.append(self.live.current()),
        )

    def _learn(self, _: Iterable[Key]) -> None:
        held = self.live.held()
        if held is not None and held.snapshot not in self.loaded:
            self.loaded.append(held.snapshot)

    async def commit(self, *numbers: int, tell: bool = True) -> Position:
        """Commit decisions; with `tell`, send the delta on the bus."""
        done = await self.store.commit([[kept(number) for number in numbers]], NOW)
        assert done.delta is not None
        if tell:
            self.bus.publish(done.delta)
        return done.position

    def seq(self) -> int | None:
        """Return the seq of the current snapshot, None when there is none."""
        reading = self.live.current()
        return reading.snapshot.position.seq if reading else None

    def assert_current(self, *numbers: int) -> None:
        """Assert that the current snapshot holds exactly these decisions."""
        reading = self.live.current()
        assert reading is not None
        assert reading.source is Source.LIVE
        decisions: list[DecisionRecord] = [kept(number) for number in numbers]
        assert_sums(reading.snapshot.total, decisions)
        assert_sums(cells_in(reading.snapshot, "5m", self.clock.now()), decisions)


@pytest.fixture
async def node(
    request: pytest.FixtureRequest, path: Path, cache: MemoryCache, clock: HeldClock
) -> AsyncIterator[Node]:
    """A node on an empty database, whose live state is not running yet."""
    store = GatedStore(path)
    await store.open()
    quick = "quick" in request.fixturenames
    yield Node(store, cache, clock, look_seconds=0.2 if quick else 2.0)
    store.gate.set()
    await store.close()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at the database as often as a test can wait for."""
    monkeypatch.setattr(module, "STEP_SECONDS", 0.01)
    monkeypatch.setattr(module, "DELTA_GRACE_SECONDS", 0.005)
    monkeypatch.setattr(module, "OWN_GRACE_SECONDS", 0.005)


# -- in step ------------------------------------------------------------------------------------


async def test_loads_what_is_stored(node: Node) -> None:
    """Until then there is nothing current; then it is told of, and put into the cache."""
    position = await node.commit(1, 2)
    assert node.live.current() is None
    async with running(node.live.run()):
        await node.live.loaded()
        node.assert_current(1, 2)
        assert node.live.position == position
        await until(lambda: bool(node.loaded))
        assert [snapshot.position for snapshot in node.loaded] == [position]
    cached = await node.cache.get()
    assert cached is not None
    assert cached.position == position


async def test_commit_is_current_at_once(node: Node) -> None:
    """As soon as its delta is on the bus, with no look at the database."""
    async with running(node.live.run()):
        await node.live.loaded()
        for number in range(1, 6):
            position = await node.commit(number)
            assert node.live.position == position
            node.assert_current(*range(1, number + 1))
    assert node.store.loads == 1
    assert node.instruments.registry.get_sample_value("routecast_position_seq") == 5


async def test_whoever_pushes_is_told_of_each_new_position(node: Node) -> None:
    """Once it can be read: after a load, and after each commit."""
    async with running(node.live.run()):
        await node.live.loaded()
        told = [node.advances[-1]]
        for number in range(3):
            await node.commit(number)
            told.append(node.advances[-1])
    assert all(reading is not None for reading in told)
    assert len(node.advances) == 4


@pytest.fixture
def pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Apply what has more than two cells in pieces of one."""
    monkeypatch.setattr(module, "LARGE_CELLS", 2)
    monkeypatch.setattr(core_snapshot, "APPLY_STEP", 1)


@pytest.mark.usefixtures("pieces")
async def test_a_large_commit_is_applied_between_others_turns(node: Node) -> None:
    """Half of it is never seen; what is committed meanwhile is applied after it."""
    async with running(node.live.run()):
        await node.live.loaded()
        large = [kept(number, strategy=f"s{number}") for number in range(50)]
        done = await node.store.commit([large], NOW)
        assert done.delta is not None
        node.bus.publish(done.delta)
        node.bus.publish(done.delta)  # a bus may say things twice
        assert node.live.current() is None
        assert node.live.held() is None
        await asyncio.sleep(0)  # one piece
        assert node.live.current() is None
        await node.commit(50)
        await node.live.settled()
        reading = node.live.current()
        assert reading is not None
        assert_sums(reading.snapshot.total, [*large, kept(50)])
        assert node.instruments.reloads._value.get() == 1


@pytest.mark.usefixtures("quick", "pieces")
async def test_a_large_commit_that_fails_halfway_is_loaded_over(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A snapshot that holds some of a commit is given up."""
    async with running(node.live.run()):
        await node.live.loaded()
        large = [kept(number, strategy=f"s{number}") for number in range(50)]
        done = await node.store.commit([large], NOW)
        assert done.delta is not None
        reading = node.live.current()
        assert reading is not None
        added = 0

        def add(minute: int, cells: Bucket) -> None:
            nonlocal added
            added += 1
            if added > 25:
                raise MemoryError
            Snapshot._add(reading.snapshot, minute, cells)

        monkeypatch.setattr(reading.snapshot, "_add", add)
        node.bus.publish(done.delta)
        await node.live.settled()
        await until(lambda: node.live.current() is not None)
        reading = node.live.current()
        assert reading is not None
        assert_sums(reading.snapshot.total, large)


async def test_missing_delta_is_fetched(node: Node) -> None:
    """The bus lost one: the next waits until it was read from the database."""
    async with running(node.live.run()):
        await node.live.loaded()
        await node.commit(1)
        await node.commit(2, tell=False)
        await node.commit(3)
        node.assert_current(1)
        await until(lambda: node.seq() == 3)
        node.assert_current(1, 2, 3)
        await node.commit(4)
        node.assert_current(1, 2, 3, 4)
    assert node.store.loads == 1


async def test_deltas_are_applied_in_order(node: Node) -> None:
    """However they come, and each once: with two nodes, the later may be heard of first."""
    async with running(node.live.run()):
        await node.live.loaded()
        deltas = []
        for number in range(1, 5):
            done = await node.store.commit([[kept(number)]], NOW)
            assert done.delta is not None
            deltas.append(done.delta)
        for place, seq in ((3, 0), (1, 0), (1, 0), (0, 2), (0, 2), (2, 4), (3, 4)):
            node.bus.publish(deltas[place])
            assert node.seq() == seq
        node.assert_current(1, 2, 3, 4)
    assert node.store.loads == 1


@pytest.mark.usefixtures("quick")
async def test_gap_too_wide_to_fill_is_loaded_over(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the bus nor the database has the deltas any more."""
    monkeypatch.setattr(folding, "DELTAS_KEPT", 1)
    monkeypatch.setattr(folding, "SQLITE_FOLD_COMMITS", 1)
    async with running(node.live.run()):
        await node.live.loaded()
        for number in range(1, 6):
            await node.commit(number, tell=False)
        await until(lambda: node.seq() == 5)
        node.assert_current(1, 2, 3, 4, 5)
    # Once at the start, and for each look that fell among the commits.
    assert 2 <= node.store.loads <= 6
    reloads = node.instruments.registry.get_sample_value("routecast_live_reloads_total")
    assert reloads == node.store.loads


@pytest.mark.usefixtures("quick")
async def test_commits_of_another_process_are_noticed(node: Node) -> None:
    """No delta comes at all; the database's position tells."""
    async with running(node.live.run()):
        await node.live.loaded()
        other = SqliteStore(node.store.path)
        await other.open()
        await other.commit([[kept(1)]], NOW)
        await other.commit([[kept(2)]], NOW)
        await other.close()
        await until(lambda: node.seq() == 2)
        node.assert_current(1, 2)


async def test_node_that_is_alone_looks_with_the_clock(node: Node) -> None:
    """At each multiple of the interval, where ticks meet, too; one that is late costs no other."""
    node = Node(node.store, node.cache, node.clock, look_seconds=1.0)
    await asyncio.sleep((0.5 - time.monotonic()) % 1)
    async with running(node.live.run()):
        await until(lambda: node.store.looks == 2)
        loop = asyncio.get_running_loop()
        loop.call_later(1 - time.monotonic() % 1 - 0.1, time.sleep, 0.4)  # over the next one
        await until(lambda: node.store.looks == 6)
    looked = node.store.looked[1:]  # the first is at the start
    seconds = [int(moment) for moment in looked]
    assert seconds == list(range(seconds[0], seconds[0] + 5))
    assert median(moment % 1 for moment in looked) < 0.1


@pytest.mark.usefixtures("quick")
async def test_snapshot_stays_in_the_cache(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though nothing is added to it: it expires there, and a node may start at any time."""
    monkeypatch.setattr(node.live, "_cache_seconds", 0.02)
    async with running(node.live.run()):
        await node.live.loaded()
        for _ in range(3):
            await node.cache.invalidate(Position("another", 0))
            assert await node.cache.get() is None
            async with asyncio.timeout(PATIENCE):
                while await node.cache.get() is None:  # noqa: ASYNC110  # -- has no event
                    await asyncio.sleep(0.002)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("long", [True, False], ids=["long", "between two looks"])
async def test_bus_that_heals_is_mistrusted(
    node: Node, monkeypatch: pytest.MonkeyPatch, long: bool
) -> None:
    """What was committed while it failed may never be told: each node looks for itself, at once."""
    async with running(node.live.run()):
        await node.live.loaded()
        if long:
            monkeypatch.setattr(node.bus, "failing", "gone")
            looks = node.store.looks
            await until(lambda: node.store.looks > looks)
        monkeypatch.setattr(node.live, "_next_look", inf)
        await node.cluster.claim("look", 600)
        await node.commit(1, tell=False)
        monkeypatch.setattr(node.bus, "outages", 1)
        monkeypatch.setattr(node.bus, "failing", None)
        await until(lambda: node.seq() == 1)
        node.assert_current(1)


@pytest.mark.usefixtures("quick")
async def test_live_state_that_crashed_shows_no_numbers(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It hears nothing until it is started again."""

    async def crash() -> None:
        raise RuntimeError("odd")

    run = asyncio.create_task(node.live.run())
    await node.live.loaded()
    await until(lambda: node.live.current() is not None)
    with monkeypatch.context() as broken:
        broken.setattr(node.live, "_step", crash)
        node.live._wakeup.set()
        with pytest.raises(RuntimeError):
            await run
    assert node.live.current() is None
    await node.commit(1)
    async with running(node.live.run()):
        await until(lambda: node.seq() == 1)
        node.assert_current(1)


@pytest.mark.usefixtures("quick")
async def test_process_that_was_stopped_looks_at_once(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot know what it missed, and others need not look for a long time."""
    monkeypatch.setattr(module, "STOPPED_SECONDS", 0.1)
    async with running(node.live.run()):
        await node.live.loaded()
        monkeypatch.setattr(node.live, "_next_look", inf)
        await node.cluster.claim("look", 600)
        await node.commit(1, tell=False)
        time.sleep(0.5)  # noqa: ASYNC251  # -- the loop does not run, as in a process that is stopped
        await until(lambda: node.seq() == 1)
        node.assert_current(1)


@pytest.mark.usefixtures("quick")
async def test_delta_on_its_way_is_waited_for(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """A position ahead of ours is no loss yet: the delta may come a moment later."""
    monkeypatch.setattr(module, "OWN_GRACE_SECONDS", 1.0)
    async with running(node.live.run()):
        await node.live.loaded()
        done = await node.store.commit([[kept(1)]], NOW)
        noticed = node.store.looks + 1
        await until(lambda: node.store.looks >= noticed)
        assert done.delta is not None
        node.bus.publish(done.delta)
        await until(lambda: node.store.looks > noticed)
        node.assert_current(1)
    assert node.store.loads == 1


async def test_delta_while_loading_is_not_lost(node: Node) -> None:
    """It is not in what was read, and is applied to it."""
    await node.commit(1)
    node.store.gate.clear()
    async with running(node.live.run()):
        await until(lambda: node.store.loads == 1)
        await node.commit(2)
        await node.commit(3)
        assert node.live.current() is None
        node.store.gate.set()
        await until(lambda: node.seq() == 3)
        node.assert_current(1, 2, 3)
    assert node.store.loads == 1


async def test_delta_that_is_in_the_load_counts_once(node: Node) -> None:
    """It came while loading, and was read as well."""
    node.store.gate.clear()
    async with running(node.live.run()):
        await until(lambda: node.store.loads == 1)
        first = await node.store.commit([[kept(1)]], NOW)
        assert first.delta is not None
        node.bus.publish(first.delta)
        node.bus.publish(first.delta)
        node.store.gate.set()
        await until(lambda: node.seq() == 1)
        node.assert_current(1)


async def test_gap_while_loading_is_filled(node: Node) -> None:
    """What was read misses a delta that never came: that one is fetched."""
    node.store.gate.clear()
    async with running(node.live.run()):
        await until(lambda: node.store.loads == 1)
        await node.commit(1, tell=False)
        await node.commit(2)
        node.store.gate.set()
        await until(lambda: node.seq() == 2)
        node.assert_current(1, 2)
    assert node.store.loads == 1


@pytest.mark.parametrize("bound", ["MAX_EARLY", "MAX_EARLY_CELLS"])
async def test_more_deltas_than_are_kept_while_loading(
    node: Node, monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    """Some are dropped, and fetched later."""
    monkeypatch.setattr(module, bound, 3)
    node.store.gate.clear()
    async with running(node.live.run()):
        await until(lambda: node.store.loads == 1)
        for number in range(1, 9):
            await node.commit(number)
        node.store.gate.set()
        await until(lambda: node.seq() == 8)
        node.assert_current(*range(1, 9))
    assert node.store.loads == 1


# -- another history ----------------------------------------------------------------------------


@pytest.mark.usefixtures("quick")
async def test_new_epoch_is_loaded(node: Node) -> None:
    """The database was replaced by one with as many commits: its seq says nothing."""
    async with running(node.live.run()):
        await node.live.loaded()
        await node.commit(1)
        other = apsw.Connection(str(node.store.path))
        other.execute("UPDATE history SET epoch = 'new'")
        other.close()
        await until(lambda: node.live.position == Position("new", 1))
        node.assert_current(1)


async def test_delta_of_another_epoch_is_not_applied(node: Node) -> None:
    """It leads to a load, which says what is true."""
    async with running(node.live.run()):
        await node.live.loaded()
        position = await node.commit(1)
        node.bus.publish(Delta(Position("other", 2), cells_of([kept(2)]), NOW))
        assert node.live.current() is None
        await until(lambda: node.live.current() is not None)
        node.assert_current(1)
        assert node.live.position == position
    assert node.store.loads == 2


# -- failures -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick")
async def test_lost_database_is_not_live(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    """While it cannot be read nobody knows what is newest; found again, all goes on."""
    caplog.set_level(logging.WARNING, "routecast.services.live_state")
    async with running(node.live.run()):
        await node.live.loaded()
        position = await node.commit(1)
        with broken(node.store.path):
            await until(lambda: node.live.failing is not None)
            assert node.live.current() is None
            assert node.live.position == position
        await until(lambda: node.live.failing is None)
        node.assert_current(1)
    assert node.store.loads == 1
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]


@pytest.mark.usefixtures("quick")
async def test_database_that_is_down_at_the_start(node: Node) -> None:
    """The first try ends without success, and is not the last."""
    await node.commit(1)
    async with running(node.live.run()):
        with broken(node.store.path):
            await node.live.loaded()
            await until(lambda: node.live.failing is not None)
            assert node.live.current() is None
        await until(lambda: node.live.current() is not None)
        node.assert_current(1)


# -- time ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick")
async def test_snapshot_is_renewed_in_its_time(node: Node, clock: HeldClock) -> None:
    """After its lifetime, or when the clock was set back; the old one serves meanwhile."""
    async with running(node.live.run()):
        await node.live.loaded()
        await node.commit(1)
        node.store.gate.clear()
        clock.moment = NOW + LIFETIME
        await until(lambda: node.store.loads == 2)
        assert node.live.current() is not None
        await node.commit(2)
        assert node.seq() == 2
        node.store.gate.set()
        await until(lambda: len(node.loaded) == 2)
        assert node.loaded[-1].taken == clock.moment
        assert node.seq() == 2
        clock.moment = NOW - LIFETIME
        await until(lambda: len(node.loaded) == 3)
        assert node.loaded[-1].taken == clock.moment


@pytest.mark.parametrize("step", [COVERAGE, 40 * DAY, -MINUTE - 1, -3 * HOUR])
async def test_clock_that_steps_costs_the_windows_only(
    node: Node, clock: HeldClock, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The total is still live; the snapshot is loaded again at once, not at the next look."""
    monkeypatch.setattr(node.live, "_look_seconds", 600.0)
    async with running(node.live.run()):
        await node.live.loaded()
        await node.commit(1)
        node.store.gate.clear()
        clock.moment = NOW + step
        reading = node.live.current()
        assert reading is not None
        assert reading.snapshot.covers("all", clock.now())
        assert not any(reading.snapshot.covers(window, clock.now()) for window in BOUNDED)
        node.store.gate.set()
        await until(lambda: len(node.loaded) == 2)
        reading = node.live.current()
        assert reading is not None
        assert all(reading.snapshot.covers(window, clock.now()) for window in BOUNDED)


async def test_clock_set_back_a_little_changes_nothing(node: Node, clock: HeldClock) -> None:
    """By up to a minute, as time servers do; or forth, for as long as its minutes reach."""
    async with running(node.live.run()):
        await node.live.loaded()
        for moment in (NOW - MINUTE, NOW + COVERAGE - 1):
            clock.moment = moment
            reading = node.live.current()
            assert reading is not None
            assert all(reading.snapshot.covers(window, moment) for window in BOUNDED)


# -- memory -------------------------------------------------------------------------------------


def spread(first: int, count: int) -> list[DecisionRecord]:
    """Return decisions of as many keys, one in each of the last days, hours and minutes."""
    return [
        kept(first + n, model=f"m{first + n}", decided=NOW - n % 7 * DAY - n % 50 * MINUTE)
        for n in range(count)
    ]


async def test_windows_that_memory_has_no_room_for_are_told_once(
    node: Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In the log when it changes, not at each step; and in the gauges at any time."""
    monkeypatch.setattr(node.live._sources, "room", 100 * CELL_BYTES)

    def gauge(name: str) -> float | None:
        return node.instruments.registry.get_sample_value(f"routecast_{name}")

    def told() -> list[str]:
        return [each.getMessage() for each in caplog.records if "windows" in each.getMessage()]

    caplog.set_level(logging.INFO)
    async with running(node.live.run()):
        await node.live.loaded()
        assert (gauge("live_windows_uncovered"), told()) == (0, [])
        done = await node.store.commit([spread(0, 100)], NOW)
        assert done.delta is not None
        node.bus.publish(done.delta)
        assert gauge("live_windows_uncovered") == 4
        assert gauge("live_cells") == 100
        node.live._wakeup.set()
        await until(lambda: told() != [])
        for _ in range(3):
            node.live._wakeup.set()
            await asyncio.sleep(0)
    (line,) = told()
    assert "5m, 1h, 24h, 7d" in line
    assert "ROUTECAST_LIVE_MEMORY" in line


async def test_windows_that_were_given_up_are_loaded_again(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packed, what live state took as objects fits in."""
    monkeypatch.setattr(node.live._sources, "room", 130 * CELL_BYTES)
    monkeypatch.setattr(module, "RELOAD_SECONDS", 0.0)
    monkeypatch.setattr(module, "RELOAD_REST", 0)
    monkeypatch.setattr(folding, "SQLITE_FOLD_COMMITS", 1)
    async with running(node.live.run()):
        await node.live.loaded()
        done = await node.store.commit([spread(0, 60)], NOW)
        assert done.delta is not None
        node.bus.publish(done.delta)
        reading = node.live.current()
        assert reading is not None
        lost = reading.snapshot.uncovered
        assert lost > 0
        node.live._wakeup.set()
        await until(lambda: len(node.loaded) == 2)
        reading = node.live.current()
        assert reading is not None
        assert reading.snapshot.uncovered < lost
        assert_sums(reading.snapshot.total, spread(0, 60))


# -- names --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick")
async def test_new_epoch_is_noticed_and_its_names_are_learnt(node: Node) -> None:
    """Names were folded by another process: all keys are told again, and what is folded."""
    told: list[tuple[set[str], FoldedNames]] = []
    node.live._renew = lambda keys, folded: told.append(({key.model for key in keys}, folded))
    await node.store.commit([[kept(1, model="a"), kept(2, model="b")]], NOW)
    async with running(node.live.run()):
        await node.live.loaded()
        await fold_elsewhere(node, "a")
        await until(lambda: len(told) == 2)
        assert told == [({"a", "b"}, {}), ({"other", "b"}, {"model": {"a"}})]
        assert node.live.position == await node.store.position()


@pytest.mark.usefixtures("quick")
async def test_epoch_that_has_ended_does_not_come_back(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that does not know yet announces the old one, and caches a snapshot of it."""
    monkeypatch.setattr(source_module, "LOAD_SECONDS", 0.5)
    await node.commit(1)
    async with running(node.live.run()):
        await node.live.loaded()
        old, ended = await node.store.load(NOW), node.live.position
        assert ended is not None
        await fold_elsewhere(node, "flash")
        begun = await node.store.position()
        await until(lambda: node.live.position == begun)
        monkeypatch.setattr(node.live, "_next_look", inf)
        await node.cluster.claim("look", 600)
        for _ in range(3):
            before = reloads(node)
            await node.cache.put(old)
            node.bus.announce(ended)
            node.live._in_step = False  # as after a gap
            node.live._wakeup.set()
            await until(lambda before=before: reloads(node) != before)
            assert node.live.position == begun


async def test_position_of_a_node_that_is_behind_hides_no_newer_one(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A delta that was lost is fetched, though another node tells where it still stands."""
    async with running(node.live.run()):
        await node.commit(1)
        await until(lambda: node.seq() == 1)
        monkeypatch.setattr(node.live, "_next_look", inf)
        await node.cluster.claim("look", 600)
        behind = node.live.position
        await node.commit(2, tell=False)
        node.bus.announce(await node.store.position())
        assert behind is not None
        node.bus.announce(behind)
        await until(lambda: node.seq() == 2)
        node.assert_current(1, 2)


async def fold_elsewhere(node: Node, model: str) -> None:
    """Fold a name as `routecast names fold` does, in a process beside the server's."""
    other = SqliteStore(node.store.path)
    await other.open()
    await other.fold_names("model", [model], remember=True)
    await other.close()


def reloads(node: Node) -> float | None:
    """How often live state was loaded."""
    return node.instruments.registry.get_sample_value("routecast_live_reloads_total")


async def test_database_that_went_back_begins_an_epoch(
    node: Node, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Restored by other tools, say: all load again, and no position goes back within an epoch."""
    async with running(node.live.run()):
        await node.live.loaded()
        before = await node.commit(1)
        with apsw.Connection(":memory:") as copy, apsw.Connection(str(path)) as database:
            with copy.backup("main", database, "main") as backup:
                backup.step()
            await node.commit(2)
            await node.commit(3)
            assert node.seq() == 3
            with database.backup("main", copy, "main") as backup:
                backup.step()
        await until(lambda: node.seq() == 1)
        node.assert_current(1)
        position = node.live.position
    assert position is not None
    assert position.epoch != before.epoch
    assert position == await node.store.position()
    assert "went back from seq 3 to 1" in caplog.text


async def test_listener_that_fails_is_no_failure_of_the_commit(node: Node) -> None:
    """What cannot be applied is read from the database instead."""
    async with running(node.live.run()):
        await node.live.loaded()
        await node.commit(1)
        assert node.live._snapshot is not None
        node.live._snapshot.apply = None  # type: ignore[method-assign,assignment]  # -- breaks it
        await node.commit(2)
        await until(lambda: node.seq() == 2)
        node.assert_current(1, 2)


async def test_first_try_that_crashes_is_not_waited_for(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node listens nevertheless."""

    async def crash() -> None:
        raise OverflowError

    monkeypatch.setattr(node.live, "_step", crash)
    with pytest.raises(OverflowError):
        await node.live.run()
    await node.live.loaded()
