"""Live state: it follows the bus, and loads again whenever it may not be up to date.

The store is real, and so are its threads. Time passes when a test says so (`HeldTimers`).
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path

import apsw
import pytest

from routecast.adapters.bus.memory import MemoryBus
from routecast.adapters.cache.memory import MemoryCache
from routecast.adapters.cluster.memory import MemoryCluster
from routecast.adapters.store.null import NullStore
from routecast.adapters.store.sqlite import SqliteStore, folding
from routecast.core.cardinality import FoldedNames
from routecast.core.decision import DecisionRecord
from routecast.core.delta import Delta
from routecast.core.periods import CELL_BYTES
from routecast.core.poll_schedule import SILENT_POLLS, STEP_SECONDS
from routecast.core.rollup import Key, PeriodCells
from routecast.core.snapshot import BOUNDED, COVERAGE, LIFETIME, Snapshot
from routecast.core.topology import ALONE_POLL_SECONDS, POLL_SECONDS, Topology
from routecast.errors import MissingDeltas
from routecast.instruments import Instruments
from routecast.ports import Listener, Reading, Store
from routecast.protocol import Position, Source
from routecast.services.live_state import (
    DELTA_GRACE_SECONDS,
    LARGE_CELLS,
    OWN_GRACE_SECONDS,
    RELOAD_SECONDS,
    STOPPED_SECONDS,
    LiveState,
)
from routecast.services.position_poller import PositionPoller
from routecast.services.snapshot_loader import (
    LOAD_SECONDS,
    SHARE_REPEAT,
    SHARE_SECONDS,
    SnapshotLoader,
)
from tests.support.clock import HeldClock, HeldTimers
from tests.support.decisions import DAY, HOUR, MINUTE, NOW, assert_sums, cells_of, kept
from tests.support.engines import PATIENCE
from tests.support.running_services import broken, running, until
from tests.support.windows import cells_in

ALONE = Topology()
WITH_BUS = Topology(has_bus=True)


class GatedStore(SqliteStore):
    """A SQLite store that counts its calls.

    A test can hold back loads after they were read, and make it forget its deltas.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.gate = asyncio.Event()
        self.gate.set()
        self.loads = 0
        self.polls = 0
        self.fetches = 0
        self.forgets = False

    async def position(self) -> Position:
        self.polls += 1
        return await super().position()

    async def load(self, now: int, room: int | None = None) -> Snapshot:
        snapshot = await super().load(now, room)
        self.loads += 1
        await self.gate.wait()
        return snapshot

    async def deltas(self, after: Position) -> list[Delta]:
        self.fetches += 1
        if self.forgets:
            raise MissingDeltas("they are forgotten")
        return await super().deltas(after)


class OtherNodeBus(MemoryBus):
    """A bus on which a test speaks as another node, and which it may let fail."""

    failing: str | None = None
    outages = 0

    def listen(self, listener: Listener) -> Callable[[], None]:
        self.hear = listener
        return super().listen(listener)


class Node:
    """A store, and live state that follows it."""

    def __init__(
        self,
        store: GatedStore,
        cache: MemoryCache,
        clock: HeldClock,
        topology: Topology = ALONE,
        room: int | None = None,
    ) -> None:
        self.store = store
        self.cache = cache
        self.clock = clock
        self.timers = HeldTimers()
        self.bus = OtherNodeBus()
        self.instruments = Instruments()
        self.loaded: list[Snapshot] = []
        self.advances: list[Reading | None] = []  # what was current when that was told
        self.renewed: list[tuple[set[str], FoldedNames]] = []  # models
        self.cluster = MemoryCluster(self.timers.now)
        asked: Store = store if topology.has_store else NullStore()
        loader = SnapshotLoader(
            asked,
            cache,
            self.bus,
            self.cluster,
            clock,
            self.timers,
            self.instruments,
            topology,
            room=room,
        )
        self.live = LiveState(
            loader,
            asked,
            self.bus,
            PositionPoller(loader, asked, self.bus, self.cluster, self.timers, topology),
            clock,
            self.timers,
            self,
            self.instruments,
            topology,
        )
        self.live.followers.append(self)

    def learn(self, _: Iterable[Key]) -> None:
        held = self.live.last_known()
        if held is not None and held.snapshot not in self.loaded:
            self.loaded.append(held.snapshot)

    def renew(self, keys: Iterable[Key], folded: FoldedNames) -> None:
        self.renewed.append(({key.model for key in keys}, folded))
        self.learn(keys)

    def push(self) -> None:
        self.advances.append(self.live.current())

    async def commit(self, *numbers: int, tell: bool = True) -> Position:
        """Commit decisions; with `tell`, send the delta on the bus."""
        done = await self.store.commit([[kept(number) for number in numbers]], NOW)
        assert done.delta is not None
        if tell:
            self.bus.publish(done.delta)
        return done.position

    async def pass_time(self, seconds: float) -> None:
        """Let slightly more than this time pass, as timers do, and do what is due."""
        await self.timers.pass_time(seconds + 0.01)

    async def leave_polls_to_others(self) -> None:
        """Give the turn to poll to another node for a long time."""
        await self.cluster.claim("look", 10**6)

    def seq(self) -> int | None:
        """Return the seq of the current snapshot; None if there is none."""
        reading = self.live.current()
        return reading.snapshot.position.seq if reading else None

    def assert_current(self, *numbers: int) -> None:
        """Assert that the current snapshot has exactly these decisions."""
        reading = self.live.current()
        assert reading is not None
        assert reading.source is Source.LIVE
        decisions: list[DecisionRecord] = [kept(number) for number in numbers]
        assert_sums(reading.snapshot.total, decisions)
        assert_sums(cells_in(reading.snapshot, "5m", self.clock.now()), decisions)

    def sample(self, name: str) -> float | None:
        """Return the value of a metric."""
        return self.instruments.registry.get_sample_value(f"routecast_{name}")


MakeNode = Callable[..., Node]


@pytest.fixture
async def make_node(path: Path, cache: MemoryCache, clock: HeldClock) -> AsyncIterator[MakeNode]:
    """Return a function that makes a node on an empty database; its live state does not run yet."""
    store = GatedStore(path)
    await store.open()
    yield lambda *topology, **options: Node(store, cache, clock, *topology, **options)
    store.gate.set()
    await store.close()


@pytest.fixture
def node(make_node: MakeNode) -> Node:
    """A node without a bus."""
    return make_node()


@pytest.fixture
def bus_node(make_node: MakeNode) -> Node:
    """A node with a bus to other nodes."""
    return make_node(WITH_BUS)


# -- in step ------------------------------------------------------------------------------------


async def test_loads_what_is_stored(node: Node) -> None:
    """No snapshot is current before the load; then listeners are called, and the cache has it."""
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
    """A commit is current when its delta is on the bus, without a read of the database."""
    async with running(node.live.run()):
        await node.live.loaded()
        for number in range(1, 6):
            position = await node.commit(number)
            assert node.live.position == position
            node.assert_current(*range(1, number + 1))
    assert node.store.loads == 1
    assert node.sample("position_seq") == 5


async def test_followers_hear_of_each_new_position(node: Node) -> None:
    """Followers hear of a position once it can be read, after a load and after each commit."""
    async with running(node.live.run()):
        await node.live.loaded()
        told = [node.advances[-1]]
        for number in range(3):
            await node.commit(number)
            told.append(node.advances[-1])
    assert all(reading is not None for reading in told)
    assert len(node.advances) == 4


async def test_a_large_commit_is_applied_between_others_turns(node: Node) -> None:
    """No snapshot has half of it; commits that come meanwhile are applied after it."""
    async with running(node.live.run()):
        await node.live.loaded()
        large = [kept(number, strategy=f"s{number}") for number in range(LARGE_CELLS + 1)]
        done = await node.store.commit([large], NOW)
        assert done.delta is not None
        node.bus.publish(done.delta)
        node.bus.publish(done.delta)  # a bus may say things twice
        assert node.live.current() is None
        assert node.live.last_known() is None
        await asyncio.sleep(0)  # one piece
        assert node.live.current() is None
        await node.commit(LARGE_CELLS + 1)
        await node.live.settled()
        reading = node.live.current()
        assert reading is not None
        assert_sums(reading.snapshot.total, [*large, kept(LARGE_CELLS + 1)])
        assert node.sample("live_reloads_total") == 1


async def test_a_large_commit_that_fails_halfway_is_loaded_over(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A snapshot with a part of a commit is given up."""
    async with running(node.live.run()):
        await node.live.loaded()
        large = [kept(number, strategy=f"s{number}") for number in range(LARGE_CELLS + 1)]
        done = await node.store.commit([large], NOW)
        assert done.delta is not None
        reading = node.live.current()
        assert reading is not None
        added = 0

        def add(minute: int, cells: PeriodCells) -> None:
            nonlocal added
            added += 1
            if added > 1:
                raise MemoryError
            Snapshot._add(reading.snapshot, minute, cells)

        monkeypatch.setattr(reading.snapshot, "_add", add)
        node.bus.publish(done.delta)
        await node.live.settled()
        assert added == 2
        assert node.live.position is None
        await until(lambda: node.live.current() is not None)
        reading = node.live.current()
        assert reading is not None
        assert_sums(reading.snapshot.total, large)


async def test_missing_delta_is_fetched(node: Node) -> None:
    """The next delta waits until the lost one was read from the database."""
    async with running(node.live.run()):
        await node.live.loaded()
        await node.commit(1)
        await node.commit(2, tell=False)
        await node.commit(3)
        node.assert_current(1)
        await node.pass_time(OWN_GRACE_SECONDS)
        node.assert_current(1, 2, 3)
        await node.commit(4)
        node.assert_current(1, 2, 3, 4)
    assert node.store.loads == 1


async def test_deltas_are_applied_in_order(node: Node) -> None:
    """Deltas are applied once and in order, whatever order they arrive in."""
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


async def test_gap_too_wide_to_fill_is_loaded_over(node: Node) -> None:
    """A snapshot is loaded if neither the bus nor the database has the deltas."""
    node.store.forgets = True
    async with running(node.live.run()):
        await node.live.loaded()
        for number in range(1, 6):
            await node.commit(number, tell=False)
        await node.pass_time(ALONE_POLL_SECONDS + OWN_GRACE_SECONDS)
        await until(lambda: node.seq() == 5)
        node.assert_current(1, 2, 3, 4, 5)
    assert node.store.loads == node.sample("live_reloads_total") == 2


async def test_commits_of_another_process_are_noticed(node: Node) -> None:
    """A poll of the position shows commits without a delta."""
    async with running(node.live.run()):
        await node.live.loaded()
        other = SqliteStore(node.store.path)
        await other.open()
        await other.commit([[kept(1)]], NOW)
        await other.commit([[kept(2)]], NOW)
        await other.close()
        await node.pass_time(ALONE_POLL_SECONDS + OWN_GRACE_SECONDS)
        node.assert_current(1, 2)
    assert node.store.loads == 1


async def test_node_that_is_alone_polls_with_the_clock(node: Node) -> None:
    """It polls at multiples of the interval, when ticks fall, too; a late poll skips none."""
    node.timers.go_to(1_004.5)
    async with running(node.live.run()):
        await node.live.loaded()
        for moment in (1_010.0, 1_020.0, 1_033.0, 1_040.0):  # one is 3 s late
            await node.timers.armed()
            polls = node.store.polls
            (due,) = node.timers.pending()
            assert due == moment // 10 * 10
            node.timers.go_to(moment)
            await node.timers.armed()
            assert node.store.polls == polls + 1


async def test_snapshot_stays_in_the_cache(bus_node: Node) -> None:
    """A snapshot is put into the cache again before it expires, though nothing changed."""
    async with running(bus_node.live.run()):
        await bus_node.live.loaded()
        for _ in range(3):
            await bus_node.cache.invalidate(Position("another", 0))
            assert await bus_node.cache.get() is None
            await bus_node.pass_time(SHARE_REPEAT * SHARE_SECONDS + STEP_SECONDS)
            async with asyncio.timeout(PATIENCE):
                while await bus_node.cache.get() is None:  # noqa: ASYNC110  -- it tells nobody
                    await asyncio.sleep(0)


async def test_sharing_delays_nothing_that_is_due(
    bus_node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large snapshot takes long to pack: a lost delta is fetched meanwhile."""
    began = asyncio.Event()

    async def put(_: Snapshot) -> None:
        began.set()
        await asyncio.Event().wait()

    async with running(bus_node.live.run()):
        await bus_node.live.loaded()
        monkeypatch.setattr(bus_node.cache, "put", put)
        await bus_node.commit(1)
        await bus_node.pass_time(SHARE_SECONDS + STEP_SECONDS)
        await asyncio.wait_for(began.wait(), PATIENCE)
        await bus_node.commit(2, tell=False)
        async with asyncio.timeout(PATIENCE):
            await bus_node.pass_time(POLL_SECONDS + STEP_SECONDS + DELTA_GRACE_SECONDS)
        bus_node.assert_current(1, 2)


async def test_sharing_that_crashes_is_a_crash_of_live_state(
    bus_node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The supervisor reports it, and starts live state again."""

    async def put(_: Snapshot) -> None:
        raise ZeroDivisionError

    live = asyncio.create_task(bus_node.live.run())
    await bus_node.live.loaded()
    monkeypatch.setattr(bus_node.cache, "put", put)
    await bus_node.commit(1)
    async with asyncio.timeout(PATIENCE):
        while not live.done():
            bus_node.timers.go_to(bus_node.timers.moment + SHARE_SECONDS)
            await asyncio.sleep(0.001)
    with pytest.raises(ZeroDivisionError):
        live.result()
    async with running(bus_node.live.run()):  # it does not crash again because of the last time
        monkeypatch.undo()
        await until(lambda: bus_node.live.current() is not None)


@pytest.mark.parametrize("long", [True, False], ids=["long", "between two polls"])
async def test_node_polls_when_the_bus_works_again(bus_node: Node, long: bool) -> None:
    """Each node polls by itself at once, because commits may never be announced."""
    async with running(bus_node.live.run()):
        await bus_node.live.loaded()
        await bus_node.leave_polls_to_others()
        if long:
            bus_node.bus.failing = "gone"
            await bus_node.pass_time(POLL_SECONDS)
        await bus_node.commit(1, tell=False)
        bus_node.bus.outages, bus_node.bus.failing = 1, None
        await bus_node.pass_time(STEP_SECONDS + DELTA_GRACE_SECONDS)
        bus_node.assert_current(1)


async def test_live_state_that_crashed_shows_no_numbers(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It receives nothing until it is started again."""

    async def crash() -> None:
        raise RuntimeError("odd")

    run = asyncio.create_task(node.live.run())
    await node.live.loaded()
    assert node.live.current() is not None
    with monkeypatch.context() as broken:
        broken.setattr(node.live, "_step", crash)
        node.timers.go_to(node.timers.moment + ALONE_POLL_SECONDS)
        with pytest.raises(RuntimeError):
            await run
    assert node.live.current() is None
    await node.commit(1)
    async with running(node.live.run()):
        await until(lambda: node.seq() == 1)
        node.assert_current(1)


async def test_process_that_was_stopped_polls_at_once(bus_node: Node) -> None:
    """It may have missed commits, and another node may not poll for a long time."""
    async with running(bus_node.live.run()):
        await bus_node.live.loaded()
        await bus_node.leave_polls_to_others()
        await bus_node.commit(1, tell=False)
        await bus_node.timers.armed()
        polls = bus_node.store.polls
        await bus_node.pass_time(STEP_SECONDS)
        assert bus_node.store.polls == polls
        bus_node.timers.go_to(bus_node.timers.moment + STEP_SECONDS + STOPPED_SECONDS + 0.01)
        await bus_node.pass_time(DELTA_GRACE_SECONDS)
        assert bus_node.store.polls == polls + 1
        bus_node.assert_current(1)


async def test_delta_on_its_way_is_waited_for(node: Node) -> None:
    """A later position does not mean a lost delta: it may arrive a moment later."""
    async with running(node.live.run()):
        await node.live.loaded()
        done = await node.store.commit([[kept(1)]], NOW)
        await node.timers.armed()
        node.timers.go_to(node.timers.pending()[0])
        await node.timers.armed()
        assert node.timers.pending() == [pytest.approx(node.timers.moment + OWN_GRACE_SECONDS)]
        assert done.delta is not None
        node.bus.publish(done.delta)
        node.assert_current(1)
        await node.pass_time(OWN_GRACE_SECONDS)
        node.assert_current(1)
    assert (node.store.loads, node.store.fetches) == (1, 0)


async def test_delta_while_loading_is_not_lost(node: Node) -> None:
    """A delta that the load does not contain is applied to it."""
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
    """A delta that arrived during the load and is in it counts once."""
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
    """A delta that the load lacks and that never came is fetched."""
    node.store.gate.clear()
    async with running(node.live.run()):
        await until(lambda: node.store.loads == 1)
        await node.commit(1, tell=False)
        await node.commit(2)
        node.store.gate.set()
        await node.pass_time(OWN_GRACE_SECONDS)
        node.assert_current(1, 2)
    assert node.store.loads == 1


# -- another history ----------------------------------------------------------------------------


async def test_new_epoch_is_loaded(node: Node) -> None:
    """A replaced database is loaded though its seq is the same."""
    async with running(node.live.run()):
        await node.live.loaded()
        await node.commit(1)
        other = apsw.Connection(str(node.store.path))
        other.execute("UPDATE history SET epoch = 'new'")
        other.close()
        await node.pass_time(ALONE_POLL_SECONDS)
        assert node.live.position == Position("new", 1)
        node.assert_current(1)


async def test_delta_of_another_epoch_is_not_applied(node: Node) -> None:
    """It leads to a load instead."""
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


async def test_lost_database_is_not_live(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is live while the database cannot be read; afterwards all continues."""
    caplog.set_level(logging.WARNING, "routecast.services.position_poller")
    async with running(node.live.run()):
        await node.live.loaded()
        position = await node.commit(1)
        with broken(node.store.path):
            await node.pass_time(ALONE_POLL_SECONDS)
            assert node.live.failing is not None
            assert node.live.current() is None
            assert node.live.position == position
        await node.pass_time(STEP_SECONDS)
        node.assert_current(1)
    assert node.store.loads == 1
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]


async def test_database_that_is_down_at_the_start(node: Node) -> None:
    """The first try ends without success, and others follow."""
    await node.commit(1)
    async with running(node.live.run()):
        with broken(node.store.path):
            await node.live.loaded()
            assert node.live.failing is not None
            assert node.live.current() is None
        await node.pass_time(STEP_SECONDS)
        node.assert_current(1)


async def test_database_that_fails_is_not_asked_for_each_delta(node: Node) -> None:
    """Early deltas, one after the other, cause no more reads of a failing database."""
    async with running(node.live.run()):
        await node.live.loaded()
        await node.commit(1, tell=False)
        asked = node.store.polls
        with broken(node.store.path):
            for number in range(2, 7):
                node.bus.publish(delta_of(node, number))
                await node.pass_time(OWN_GRACE_SECONDS)
            assert node.live.failing is not None
            assert (node.store.polls, node.store.fetches) == (asked + 1, 0)
            await node.pass_time(3 * STEP_SECONDS)
            assert (node.store.polls, node.store.fetches) == (asked + 4, 0)
        await node.pass_time(STEP_SECONDS)
        assert node.seq() == 6


async def test_node_without_a_database_serves_shared_snapshots(make_node: MakeNode) -> None:
    """It does so until it has heard nothing for a long time."""
    node = make_node(Topology(has_bus=True, has_store=False))
    await node.cache.put(Snapshot(Position("e", 1), NOW))
    async with running(node.live.run()):
        await node.timers.armed()
        assert node.live.current() is None  # nothing was heard yet
        node.bus.hear(Position("e", 1))
        await node.pass_time(STEP_SECONDS)
        assert node.seq() == 1
        node.bus.publish(Delta(Position("e", 2), cells_of([kept(2)]), NOW))
        assert node.seq() == 2
        await node.pass_time(SILENT_POLLS * POLL_SECONDS)
        assert node.live.failing is not None
        assert node.live.current() is None


# -- time ---------------------------------------------------------------------------------------


async def test_snapshot_is_renewed_in_its_time(node: Node, clock: HeldClock) -> None:
    """It is loaded again after its lifetime or a clock step; meanwhile the old one serves."""
    async with running(node.live.run()):
        await node.live.loaded()
        await node.commit(1)
        node.store.gate.clear()
        clock.moment = NOW + LIFETIME
        await node.timers.armed()
        node.timers.go_to(node.timers.pending()[0])
        await until(lambda: node.store.loads == 2)
        assert node.live.current() is not None
        await node.commit(2)
        assert node.seq() == 2
        node.store.gate.set()
        await until(lambda: len(node.loaded) == 2)
        assert node.loaded[-1].taken == clock.moment
        assert node.seq() == 2
        clock.moment = NOW - LIFETIME
        await node.pass_time(ALONE_POLL_SECONDS)
        assert len(node.loaded) == 3
        assert node.loaded[-1].taken == clock.moment


@pytest.mark.parametrize("step", [COVERAGE, 40 * DAY, -MINUTE - 1, -3 * HOUR])
async def test_clock_that_steps_costs_the_windows_only(
    node: Node, clock: HeldClock, step: int
) -> None:
    """The total stays live, and the snapshot is loaded again at once."""
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
    """A step back of up to a minute, or forward within the held minutes, changes nothing."""
    async with running(node.live.run()):
        await node.live.loaded()
        for moment in (NOW - MINUTE, NOW + COVERAGE - 1):
            clock.moment = moment
            reading = node.live.current()
            assert reading is not None
            assert all(reading.snapshot.covers(window, moment) for window in BOUNDED)


# -- memory -------------------------------------------------------------------------------------


def spread(first: int, count: int) -> list[DecisionRecord]:
    """Return decisions of different keys, one in each of the last days, hours and minutes."""
    return [
        kept(first + n, model=f"m{first + n}", decided=NOW - n % 7 * DAY - n % 50 * MINUTE)
        for n in range(count)
    ]


async def test_windows_that_memory_has_no_room_for_are_reported_once(
    make_node: MakeNode, caplog: pytest.LogCaptureFixture
) -> None:
    """The log has each change once, and gauges always have the number."""
    node = make_node(room=100 * CELL_BYTES)

    def told() -> list[str]:
        return [each.getMessage() for each in caplog.records if "windows" in each.getMessage()]

    caplog.set_level(logging.INFO)
    async with running(node.live.run()):
        await node.live.loaded()
        assert (node.sample("live_windows_uncovered"), told()) == (0, [])
        done = await node.store.commit([spread(0, 100)], NOW)
        assert done.delta is not None
        node.bus.publish(done.delta)
        assert node.sample("live_windows_uncovered") == 4
        assert node.sample("live_cells") == 100
        await node.pass_time(4 * ALONE_POLL_SECONDS)
    (line,) = told()
    assert "5m, 1h, 24h, 7d" in line
    assert "ROUTECAST_LIVE_MEMORY" in line


async def test_windows_that_were_given_up_are_loaded_again(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows that did not fit as objects fit when they are packed."""
    node = make_node(room=130 * CELL_BYTES)
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
        await node.pass_time(RELOAD_SECONDS - 2 * ALONE_POLL_SECONDS)
        assert len(node.loaded) == 1
        await node.pass_time(3 * ALONE_POLL_SECONDS)
        assert len(node.loaded) == 2
        reading = node.live.current()
        assert reading is not None
        assert reading.snapshot.uncovered < lost
        assert_sums(reading.snapshot.total, spread(0, 60))


# -- names --------------------------------------------------------------------------------------


async def test_new_epoch_is_noticed_and_its_names_are_learnt(node: Node) -> None:
    """After another process folded names, live state has all keys and the folded names."""
    await node.store.commit([[kept(1, model="a"), kept(2, model="b")]], NOW)
    async with running(node.live.run()):
        await node.live.loaded()
        await fold_elsewhere(node, "a")
        await node.pass_time(ALONE_POLL_SECONDS)
        assert node.renewed == [({"a", "b"}, {}), ({"other", "b"}, {"model": {"a"}})]
        assert node.live.position == await node.store.position()


async def test_epoch_that_has_ended_does_not_come_back(bus_node: Node) -> None:
    """Another node's announcement and cached snapshot of the old epoch are not used."""
    await bus_node.commit(1)
    async with running(bus_node.live.run()):
        await bus_node.live.loaded()
        old, ended = await bus_node.store.load(NOW), bus_node.live.position
        assert ended is not None
        await fold_elsewhere(bus_node, "flash")
        begun = await bus_node.store.position()
        await bus_node.pass_time(POLL_SECONDS + STEP_SECONDS)
        assert bus_node.live.position == begun
        await bus_node.leave_polls_to_others()
        for _ in range(3):
            reloads = bus_node.sample("live_reloads_total")
            await bus_node.cache.put(old)
            bus_node.bus.hear(ended)
            bus_node.bus.hear(Delta(ended, cells_of([kept(1)]), NOW))
            assert bus_node.live.current() is None
            await bus_node.pass_time(LOAD_SECONDS + STEP_SECONDS)
            assert bus_node.sample("live_reloads_total") != reloads
            assert bus_node.live.position == begun


async def test_position_of_a_node_that_is_behind_hides_no_newer_one(bus_node: Node) -> None:
    """A lost delta is fetched though another node announces an older position."""
    async with running(bus_node.live.run()):
        await bus_node.live.loaded()
        await bus_node.commit(1)
        assert bus_node.seq() == 1
        await bus_node.leave_polls_to_others()
        behind = bus_node.live.position
        await bus_node.commit(2, tell=False)
        bus_node.bus.hear(await bus_node.store.position())
        assert behind is not None
        bus_node.bus.hear(behind)
        await bus_node.pass_time(DELTA_GRACE_SECONDS)
        bus_node.assert_current(1, 2)


async def fold_elsewhere(node: Node, model: str) -> None:
    """Fold a name as `routecast names fold` does in another process."""
    other = SqliteStore(node.store.path)
    await other.open()
    await other.fold_names("model", [model], remember=True)
    await other.close()


def delta_of(node: Node, seq: int) -> Delta:
    """Return the delta of a commit that only other nodes know."""
    assert node.live.position is not None
    return Delta(Position(node.live.position.epoch, seq), cells_of([kept(seq)]), NOW)


async def test_database_that_went_back_begins_an_epoch(
    node: Node, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """All nodes load again, and no position goes back within an epoch."""
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
        await node.pass_time(ALONE_POLL_SECONDS)
        node.assert_current(1)
        position = node.live.position
    assert position is not None
    assert position.epoch != before.epoch
    assert position == await node.store.position()
    assert "went back from seq 3 to 1" in caplog.text


async def test_database_that_went_back_and_caught_up_begins_an_epoch(
    bus_node: Node, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The commit notices it, although the seq is as before or later when it is read."""
    async with running(bus_node.live.run()):
        await bus_node.live.loaded()
        await bus_node.leave_polls_to_others()
        there = await bus_node.commit(1)
        with apsw.Connection(":memory:") as copy, apsw.Connection(str(path)) as database:
            with copy.backup("main", database, "main") as backup:
                backup.step()
            seen = await bus_node.commit(2)
            with database.backup("main", copy, "main") as backup:
                backup.step()
        again = await bus_node.commit(3, tell=False)
        assert again == seen
        await bus_node.commit(4, tell=False)
        bus_node.live.went_back(seen, there)
        assert bus_node.live.current() is None
        await until(lambda: bus_node.live.current() is not None)
        bus_node.assert_current(1, 3, 4)
        position = bus_node.live.position
        assert position == await bus_node.store.position()
        assert position.epoch != seen.epoch
        bus_node.live.went_back(seen, there)  # of an epoch that is over
        bus_node.assert_current(1, 3, 4)
    assert caplog.text.count("went back from seq 2 to 1") == 1


async def test_listener_that_fails_is_no_failure_of_the_commit(node: Node) -> None:
    """A delta that cannot be applied is read from the database instead."""
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
    """The node starts although the first load crashes."""

    async def crash() -> None:
        raise OverflowError

    monkeypatch.setattr(node.live, "_step", crash)
    with pytest.raises(OverflowError):
        await node.live.run()
    await node.live.loaded()
