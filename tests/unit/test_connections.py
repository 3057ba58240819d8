"""Connections: one rendering for all who share a view, and nobody is queued for."""

import asyncio
import gc
import json
import logging
import weakref
from collections.abc import Iterable
from typing import Any

import pytest

from routecast import connections as module
from routecast.cache.memory import MemoryCache
from routecast.connections import ConnectionManager
from routecast.core.frame import Frame
from routecast.core.rollup import Delta
from routecast.core.session import Session
from routecast.core.snapshot import Snapshot
from routecast.core.view import Subscription, View
from routecast.edge.ws import AsgiConnection
from routecast.errors import Unavailable
from routecast.instruments import Instruments
from routecast.latest import Latest
from routecast.ports import Reading
from routecast.protocol import CloseCode, Position, Source
from routecast.store.sqlite import SqliteStore
from tests.support.decisions import NOW, cells_of, kept
from tests.unit.clock import HeldClock
from tests.unit.running import PATIENCE, running, until

FAST = 0.1


class Reader:
    """A subscriber that reads every frame at once (`connections.Connection`)."""

    def __init__(self, interval: float = FAST, view: View | None = None) -> None:
        self.subscription = Subscription(view or View(), interval)
        self.frames: list[Frame] = []
        self.times: list[float] = []
        self.stopped: CloseCode | None = None

    def offer(self, frame: Frame) -> bool:
        self.frames.append(frame)
        self.times.append(asyncio.get_running_loop().time())
        return True

    def stop(self, code: CloseCode) -> None:
        self.stopped = code

    def counts(self) -> list[Any]:
        """Return the count of decisions in each frame."""
        return [json.loads(frame.body).get("total_decisions") for frame in self.frames]


class Hall:
    """A manager over a live snapshot, to which commits are made by hand."""

    def __init__(self, store: SqliteStore, cache: MemoryCache, clock: HeldClock) -> None:
        self.instruments = Instruments()
        self.snapshot = Snapshot(Position("e", 0), NOW)
        self.up = True
        self.latest = Latest(self.reading, cache, store, clock, self.instruments)
        self.manager = ConnectionManager(self.frames, self.instruments, limit=1000)
        self.load = 0.0  # how long rendering takes, in seconds

    def reading(self) -> Reading | None:
        return Reading(self.snapshot, Source.LIVE, NOW) if self.up else None

    async def frames(self, views: Iterable[View]) -> dict[View, Frame]:
        await asyncio.sleep(self.load)
        return await self.latest.frames(views)

    def commit(self) -> None:
        seq = self.snapshot.position.seq + 1
        self.snapshot.apply(Delta(Position("e", seq), cells_of([kept(seq)]), NOW))

    def count(self, name: str, **labels: str) -> float:
        sample = self.instruments.registry.get_sample_value
        return sample(f"routecast_{name}_total", labels) or 0


@pytest.fixture
def hall(store: SqliteStore, cache: MemoryCache, clock: HeldClock) -> Hall:
    """Nobody connected, nothing running."""
    return Hall(store, cache, clock)


# -- coming and going ---------------------------------------------------------------------------


async def test_first_frame_comes_at_once(hall: Hall, caplog: pytest.LogCaptureFixture) -> None:
    """With no tick; the connection is counted and logged."""
    caplog.set_level(logging.INFO, "routecast.connections")
    reader = Reader(interval=60)
    await hall.manager.connect(reader)
    assert reader.counts() == [0]
    assert hall.manager.active == 1
    assert hall.instruments.registry.get_sample_value("routecast_connections") == 1
    assert caplog.messages == ["WebSocket connected. Total connections: 1"]


async def test_disconnect_is_complete(hall: Hall, caplog: pytest.LogCaptureFixture) -> None:
    """No frame, no count, no memory of it; the others go on. Twice does nothing more."""
    caplog.set_level(logging.INFO, "routecast.connections")
    async with running(hall.manager.run()):
        gone, stays, other = Reader(), Reader(), Reader(view=View(window="1h"))
        for reader in (gone, stays, other):
            await hall.manager.connect(reader)
        hall.manager.disconnect(gone, CloseCode.DONE)
        hall.manager.disconnect(gone, CloseCode.DONE)
        hall.manager.disconnect(other, 1006)
        hall.manager.send_personal(stays.frames[0], gone)
        assert hall.manager.active == 1
        seen = len(stays.frames)
        await until(lambda: len(stays.frames) > seen + 2)
        assert len(gone.frames) == len(other.frames) == 1
        traces = [weakref.ref(gone), weakref.ref(other)]
        del gone, other, reader
        gc.collect()
        assert [trace() for trace in traces] == [None, None]
    assert hall.count("connections_closed", code="1000") == 1
    assert hall.count("connections_closed", code="1006") == 1
    assert hall.count("connections_opened") == 3
    assert caplog.messages[3:] == [
        "Client disconnected normally",
        "WebSocket disconnected. Total connections: 2",
        "WebSocket disconnected. Total connections: 1",
    ]


async def test_limit_refuses(hall: Hall) -> None:
    """Over it nobody is admitted, until somebody leaves."""
    manager = ConnectionManager(hall.latest.frames, Instruments(), limit=2)
    readers = [Reader(), Reader()]
    for reader in readers:
        manager.admit()
        await manager.connect(reader)
    with pytest.raises(Unavailable, match="too many connections") as refused:
        manager.admit()
    assert refused.value.retry_after > 0
    manager.disconnect(readers[0], CloseCode.GOING_AWAY)
    assert manager.admit() is None  # type: ignore[func-returns-value]


async def test_close_tells_everyone_and_takes_no_more(hall: Hall) -> None:
    """1012 for those who are there and for one who comes in between; then `run` ends."""
    readers = [Reader() for _ in range(600)]
    async with running(hall.manager.run()) as run:
        for reader in readers:
            await hall.manager.connect(reader)
        await hall.manager.close()
        assert {reader.stopped for reader in readers} == {CloseCode.RESTART}
        with pytest.raises(Unavailable, match="restarting"):
            hall.manager.admit()
        late = Reader()
        await hall.manager.connect(late)
        assert late.stopped is CloseCode.RESTART
        for reader in (*readers, late):
            hall.manager.disconnect(reader, CloseCode.RESTART)
        async with asyncio.timeout(PATIENCE):
            await run
    assert hall.manager.active == 0


# -- frames -------------------------------------------------------------------------------------


async def test_equal_views_are_rendered_once(hall: Hall) -> None:
    """However many connections share one, at the start and at each tick; and encoded once."""
    equal = [Reader(), Reader(view=View()), *(Reader() for _ in range(28))]
    others = [Reader(view=View(window="5m")) for _ in range(10)]
    for reader in (*equal, *others):
        await hall.manager.connect(reader)
    assert hall.count("renders") == 2
    async with running(hall.manager.run()):
        for commits in range(1, 4):
            hall.commit()
            await until(lambda: all(r.counts()[-1] == commits for r in (*equal, *others)))  # noqa: B023
            assert hall.count("renders") == 2 + 2 * commits
    assert {reader.frames[-1].source for reader in (*equal, *others)} == {Source.LIVE}


async def test_frame_of_a_tick_is_one_object(hall: Hall) -> None:
    """Connections that came together get the very same frame."""
    readers = [Reader(interval=60) for _ in range(700)]
    for reader in readers:
        await hall.manager.connect(reader)
    frame = await hall.latest.frame(View())
    sent = hall.count("frames_sent")
    await hall.manager.broadcast(frame, readers)
    assert all(reader.frames[-1] is frame for reader in readers)
    assert hall.count("frames_sent") - sent == 700


async def test_long_broadcast_gives_others_a_turn(
    hall: Hall, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of it, whoever waits for the event loop gets it."""
    monkeypatch.setattr(module, "YIELD_EVERY", 10)
    readers = [Reader() for _ in range(100)]
    served_when_others_ran: list[int] = []

    async def other() -> None:
        while True:
            served_when_others_ran.append(sum(bool(reader.frames) for reader in readers))
            await asyncio.sleep(0)

    async with running(other()):
        await hall.manager.broadcast(await hall.latest.frame(View()), readers)
    assert {10, 20, 90} <= set(served_when_others_ran)


async def test_frames_come_changed_or_not(hall: Hall) -> None:
    """The default stream sends each interval, with a new timestamp or without news."""
    reader = Reader()
    async with running(hall.manager.run()):
        await hall.manager.connect(reader)
        await until(lambda: len(reader.frames) >= 4)
    assert set(reader.counts()) == {0}
    assert hall.count("renders") == 1


async def test_error_document_keeps_the_connection(hall: Hall, store: SqliteStore) -> None:
    """When no source can answer, it says so at each tick; then numbers come again."""
    await store.close()
    hall.up = False
    reader = Reader()
    async with running(hall.manager.run()):
        await hall.manager.connect(reader)
        await until(lambda: len(reader.frames) >= 3)
        assert {json.loads(frame.body)["error"] for frame in reader.frames} == {
            "Failed to fetch metrics"
        }
        hall.up = True
        await until(lambda: reader.counts()[-1] == 0)
    assert reader.stopped is None
    assert hall.manager.active == 1


# -- slow readers -------------------------------------------------------------------------------


async def test_reader_that_never_reads_has_one_frame_waiting(hall: Hall) -> None:
    """Newer frames take the place of the one that waits, and are counted as conflated."""
    sent: list[str] = []
    drained = asyncio.Event()

    async def send(message: Any) -> None:
        sent.append(message["text"])
        await drained.wait()

    slow = AsgiConnection(Session(Subscription(View(), FAST)), send)
    quick = Reader()
    async with running(hall.manager.run()), asyncio.TaskGroup() as tasks:
        pump = tasks.create_task(slow.pump())
        await hall.manager.connect(slow)
        await hall.manager.connect(quick)
        while hall.count("frames_conflated") < 3:
            hall.commit()
            seen = len(quick.frames)
            await until(lambda: len(quick.frames) > seen)  # noqa: B023
        assert len(sent) == 1
        newest = hall.snapshot.position.seq
        await until(lambda: quick.counts()[-1] == newest)
        drained.set()
        await until(lambda: len(sent) >= 2)
        assert json.loads(sent[1])["total_decisions"] == newest
        slow.stop(CloseCode.DONE)
    assert pump.result() is CloseCode.DONE
    assert len(quick.frames) > 4


# -- ticks --------------------------------------------------------------------------------------


async def test_ticks_keep_their_rhythm(hall: Hall) -> None:
    """What a tick takes does not put off the next one."""
    hall.load = 0.08
    reader = Reader()
    async with running(hall.manager.run()):
        await hall.manager.connect(reader)
        await until(lambda: len(reader.frames) >= 14)
    # From the second frame on, which is the first tick's. Were each put off by the time it
    # takes, twelve intervals would take nearly a second more.
    ticks = 12 + hall.count("ticks_merged")
    assert abs(reader.times[13] - reader.times[1] - ticks * FAST) < 0.5


async def test_first_tick_is_an_interval_after_the_first_frame(hall: Hall) -> None:
    """Give or take what lets those who come together share a tick."""
    reader = Reader(interval=0.5)
    async with running(hall.manager.run()):
        came = asyncio.get_running_loop().time()
        await hall.manager.connect(reader)
        await until(lambda: len(reader.frames) >= 2)
    assert reader.times[1] - came >= 0.5 - module.QUANTUM - 0.01


async def test_sooner_tick_is_not_kept_waiting(hall: Hall) -> None:
    """Somebody with a short interval comes while the next tick is far away."""
    async with running(hall.manager.run()):
        await hall.manager.connect(Reader(interval=60))
        await asyncio.sleep(0)
        quick = Reader()
        await hall.manager.connect(quick)
        await until(lambda: len(quick.frames) >= 3)
        assert quick.times[2] - quick.times[0] < 30


async def test_late_tick_is_merged_with_the_next(hall: Hall) -> None:
    """After a hold-up there is one frame, not all those that were missed."""
    reader = Reader()
    async with running(hall.manager.run()):
        await hall.manager.connect(reader)
        hall.load = 0.35
        await until(lambda: len(reader.frames) >= 2)
        assert hall.count("ticks_merged") >= 3
        hall.load = 0.0
        await until(lambda: len(reader.frames) >= 4)
    assert reader.counts() == [0] * len(reader.frames)
