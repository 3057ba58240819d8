"""Connections: one rendering for all who share a view, and nobody is queued for."""

import asyncio
import gc
import json
import logging
import time
import weakref
from collections.abc import Sequence
from itertools import pairwise

import pytest

from routecast.adapters.cache.memory import MemoryCache
from routecast.adapters.store.sqlite import SqliteStore
from routecast.core import groups
from routecast.core.default_session import DefaultSession
from routecast.core.document import EncodedDocument
from routecast.core.groups import Group, PingState
from routecast.core.view import View, ViewSubscription
from routecast.edge.asgi_connection import AsgiConnection
from routecast.errors import Unavailable
from routecast.instruments import Instruments
from routecast.protocol import CloseCode, Source
from routecast.streaming import connections as module
from routecast.streaming.connections import ConnectionManager
from tests.support.clock import HeldClock
from tests.support.fanout import (
    FAST,
    FakeConnection,
    FanoutHarness,
    RidingConnection,
    SlowConnection,
)
from tests.support.frames import frame_of
from tests.support.running_services import PATIENCE, running, until


@pytest.fixture
def hall(store: SqliteStore, cache: MemoryCache, clock: HeldClock) -> FanoutHarness:
    """Nobody connected, nothing running."""
    return FanoutHarness(store, cache, clock)


@pytest.fixture
def beats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Signs of life asked for in quick succession."""
    monkeypatch.setattr(module, "PING_SECONDS", 0.17)
    monkeypatch.setattr(module, "PING_TURN_SECONDS", 0.01)
    monkeypatch.setattr(module, "PIGGYBACK_SECONDS", 0.05)
    monkeypatch.setattr(module, "PONG_SECONDS", 0.1)


def hold(hall: FanoutHarness, readers: Sequence[FakeConnection]) -> Group:
    """Have readers held that get their frames from elsewhere; return their group."""
    for reader in readers:
        hall.manager.hold(reader)
    group = readers[0].group
    assert group is not None
    return group


# -- coming and going ---------------------------------------------------------------------------


async def test_first_frame_comes_at_once(
    hall: FanoutHarness, caplog: pytest.LogCaptureFixture
) -> None:
    """With no tick; the connection is counted and logged."""
    caplog.set_level(logging.INFO, "routecast.streaming.connections")
    reader = FakeConnection(interval=60)
    hall.manager.connect(reader)
    assert reader.counts() == [0]
    assert hall.manager.active == 1
    assert hall.instruments.registry.get_sample_value("routecast_connections") == 1
    assert caplog.messages == ["WebSocket connected. Total connections: 1"]


async def test_disconnect_is_complete(
    hall: FanoutHarness, caplog: pytest.LogCaptureFixture
) -> None:
    """No frame, no count, no memory of it; the others go on. Twice does nothing more."""
    caplog.set_level(logging.INFO, "routecast.streaming.connections")
    async with running(hall.manager.run()):
        gone, stays, other = (
            FakeConnection(),
            FakeConnection(),
            FakeConnection(view=View(window="1h")),
        )
        for reader in (gone, stays, other):
            hall.manager.connect(reader)
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


async def test_who_comes_after_all_have_gone_is_served(hall: FanoutHarness) -> None:
    """A group that was left is not joined again, whatever the phase of its ticks was."""
    pace = FakeConnection(interval=0.15)
    async with running(hall.manager.run()):
        hall.manager.connect(pace)
        for _ in range(4):  # more often than there are phases
            reader = FakeConnection()
            hall.manager.connect(reader)
            await until(lambda: len(reader.frames) >= 2)  # noqa: B023  # -- awaited in its own turn
            hall.manager.disconnect(reader, CloseCode.DONE)
            seen = len(pace.frames)
            await until(lambda: len(pace.frames) >= seen + 2)  # noqa: B023  # -- awaited in its own turn
    assert hall.manager.active == 1


async def test_limit_refuses(hall: FanoutHarness) -> None:
    """Over it nobody is admitted, until somebody leaves."""
    manager = ConnectionManager(hall, hall.renders, Instruments(), limit=2)
    readers = [FakeConnection(), FakeConnection()]
    for reader in readers:
        manager.admit(View(), "192.0.2.1")
        manager.connect(reader)
    with pytest.raises(Unavailable, match="too many connections") as refused:
        manager.admit(View(), "192.0.2.1")
    assert refused.value.retry_after > 0
    manager.disconnect(readers[0], CloseCode.GOING_AWAY)
    manager.admit(View(), "192.0.2.1")  # there is room again


async def test_close_tells_everyone_and_takes_no_more(hall: FanoutHarness) -> None:
    """1012 and when to come back, also to one who comes in between; it waits till they left."""
    readers = [FakeConnection() for _ in range(600)]
    for reader in readers:
        hall.manager.connect(reader)
    async with running(hall.manager.close(PATIENCE)) as closing:
        await until(lambda: readers[-1].stopped is not None)
        assert {reader.stopped for reader in readers} == {CloseCode.RESTART}
        delays = {reader.return_ms or 0 for reader in readers}
        assert 0 <= min(delays) < max(delays) <= module.LONGEST_SPREAD * 1000
        assert len(delays) > 100
        with pytest.raises(Unavailable, match="restarting"):
            hall.manager.admit(View(), "192.0.2.1")
        late = FakeConnection()
        hall.manager.connect(late)
        assert late.stopped is CloseCode.RESTART
        for reader in readers:
            hall.manager.disconnect(reader, CloseCode.RESTART)
        assert not closing.done()
        hall.manager.disconnect(late, CloseCode.RESTART)
        async with asyncio.timeout(PATIENCE):
            await closing
    assert hall.manager.active == 0


async def test_close_waits_no_longer_than_it_may(hall: FanoutHarness) -> None:
    """For those who do not read."""
    reader = FakeConnection()
    hall.manager.connect(reader)
    async with asyncio.timeout(PATIENCE):
        await hall.manager.close(0.01)
    assert reader.stopped is CloseCode.RESTART
    assert hall.manager.active == 1


async def test_every_connection_is_asked(hall: FanoutHarness, beats: None) -> None:
    """Each for its sign of life, again and again; who gives none is given up, and nobody else."""
    readers = [FakeConnection(interval=1 + n % 3) for n in range(10)]
    readers[4].silent = True
    held = FakeConnection()
    async with running(hall.manager.run_heartbeat()):
        await asyncio.sleep(0)  # nobody is there
        for reader in readers:
            hall.manager.connect(reader)
        hall.manager.hold(held)
        await until(lambda: all(reader.asks >= 3 for reader in (*readers, held)))
        assert [reader for reader in (*readers, held) if reader.given_up] == [readers[4]]
        held.silent = True
        await until(lambda: held.given_up)


async def test_a_tick_takes_the_question_along(
    hall: FanoutHarness, beats: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its frames, so it need not be written by itself: the last tick that is in time does."""
    monkeypatch.setattr(module, "PING_SECONDS", 1.0)
    monkeypatch.setattr(module, "EARLY_SECONDS", 100.0)
    reader, silent = FakeConnection(), FakeConnection()
    silent.silent = True
    async with running(hall.manager.run()), running(hall.manager.run_heartbeat()):
        hall.manager.connect(reader)
        hall.manager.connect(silent)
        asked: list[float] = []
        while reader.rides < 3:
            await until(lambda: reader.asks > len(asked))
            asked.append(reader.asked)
    # Each asks a moment after what it counts from.
    assert all(after - before > 0.8 for before, after in pairwise(asked))
    assert silent.given_up
    assert not reader.given_up


async def test_ticks_that_hang_cost_nobody_the_time_to_answer(
    store: SqliteStore,
    cache: MemoryCache,
    clock: HeldClock,
    beats: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A source may answer late, be it by more than a round takes: then no frame has a question."""
    monkeypatch.setattr(module, "PING_SECONDS", 0.3)
    monkeypatch.setattr(module, "EARLY_SECONDS", 0.2)

    async def answer_late(load: float) -> None:
        hall, readers = FanoutHarness(store, cache, clock), [SlowConnection(), SlowConnection()]
        for reader in readers:
            hall.manager.connect(reader)
        hall.load = load
        async with running(hall.manager.run()), running(hall.manager.run_heartbeat()):
            await until(lambda: readers[0].asks == 8)
        assert not any(reader.given_up for reader in readers), load

    async with asyncio.TaskGroup() as halls:  # each waits most of the time
        for load in (0.15, 0.2, 0.3, 0.4, 0.6):
            halls.create_task(answer_late(load))


async def test_who_is_asked_late_has_the_time_to_answer(hall: FanoutHarness, beats: None) -> None:
    """Where the process was stopped before the question was out, that is nobody's silence."""
    readers = [SlowConnection(interval=60), SlowConnection(interval=60)]
    for reader in readers:
        hall.manager.connect(reader)
    async with running(hall.manager.run_heartbeat()):
        await until(lambda: any(reader.shard and reader.shard.ping_state for reader in readers))
        time.sleep(2 * module.PONG_SECONDS)  # noqa: ASYNC251  # -- nothing is to run
        await until(lambda: readers[0].asks == 2)
    assert not any(reader.given_up for reader in readers)


async def test_those_of_the_tick_that_asks_come_first(
    hall: FanoutHarness, beats: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of more than are asked at once: the question of others would have to wait for a frame."""
    monkeypatch.setattr(groups, "SHARD_SIZE", 2)
    monkeypatch.setattr(module, "PING_TURN_SECONDS", PATIENCE)
    others = [FakeConnection(interval=60) for _ in range(2)]
    readers = [FakeConnection() for _ in range(4)]
    for reader in (*others, *readers):
        hall.manager.connect(reader)
    async with running(hall.manager.run()), running(hall.manager.run_heartbeat()):
        await until(lambda: any(reader.asks for reader in (*others, *readers)))
    assert any(reader.asks for reader in readers)
    assert not any(reader.asks for reader in others)


async def test_a_tick_of_few_is_not_waited_for(
    hall: FanoutHarness, beats: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would spare little, so most decide; and where they have none in time, time does."""
    monkeypatch.setattr(module, "PING_SECONDS", 0.4)
    monkeypatch.setattr(module, "EARLY_SECONDS", 0.2)
    most = [FakeConnection(interval=60) for _ in range(3)]
    one = FakeConnection(interval=0.1)
    for reader in (*most, one):
        hall.manager.connect(reader)
    started = time.monotonic()
    async with running(hall.manager.run()), running(hall.manager.run_heartbeat()):
        await until(lambda: one.asks)
    assert time.monotonic() - started >= module.PING_SECONDS + module.QUANTUM


@pytest.mark.parametrize("kind", [FakeConnection, RidingConnection])
async def test_who_stays_is_asked_though_many_leave(
    kind: type[FakeConnection], hall: FanoutHarness, beats: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fewer turns and shards would do for those who are left, but each is asked in the end."""
    monkeypatch.setattr(groups, "SHARD_SIZE", 4)
    readers = [kind() for _ in range(12)]
    group = hold(hall, readers)
    async with running(hall.manager.run_heartbeat()):
        await until(lambda: any(shard.ping_state is PingState.DUE for shard in group.shards))
        stay = readers[::4]
        questions = {each.shard.ping_state for each in stay if each.shard}
        assert questions == {PingState.DUE, PingState.WAITS}
        for reader in {*readers} - {*stay}:
            hall.manager.disconnect(reader, CloseCode.DONE)
        await until(lambda: all(reader.asks >= 3 for reader in stay))
        assert len(group.shards) == 1
    assert not any(reader.given_up for reader in stay)


async def test_not_all_are_asked_at_once(
    hall: FanoutHarness, beats: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their answers would hold up a tick; so there are turns, and nobody is left out."""
    monkeypatch.setattr(groups, "SHARD_SIZE", 2)
    monkeypatch.setattr(module, "PING_TURN_SECONDS", 0.02)
    readers = [FakeConnection() for _ in range(9)]
    group = hold(hall, readers)
    waiting: set[int] = set()
    async with running(hall.manager.run_heartbeat()):
        while min(reader.asks for reader in readers) < 2:
            waiting.add(sum(shard.ping_state is PingState.WAITS for shard in group.shards))
            await asyncio.sleep(0)
    assert {0, 1, 3} <= waiting  # of five shards, two and two and one at a time
    assert {reader.asks for reader in readers} == {2}
    assert not any(reader.given_up for reader in readers)


async def test_who_moves_while_an_answer_is_awaited(hall: FanoutHarness, beats: None) -> None:
    """Who came since the last tick is served with the others from the next one on."""
    readers = [FakeConnection(interval=60) for _ in range(3)]
    for reader in readers:
        reader.silent = True  # at first
        hall.manager.connect(reader)
    async with running(hall.manager.run_heartbeat()):
        await until(lambda: all(reader.asks == 1 for reader in readers))
        await until(lambda: not any(each.shard and each.shard.ping_state for each in readers))
        before = {reader.shard for reader in readers}
        for group in {reader.group for reader in readers}:
            assert group is not None
            group.settle()
        assert before.isdisjoint(reader.shard for reader in readers)
        for reader in readers[1:]:
            assert reader.shard is not None
            reader.shard.responded.add(reader)
        await until(lambda: readers[0].given_up)
    assert readers[0].asks == 1
    assert not any(reader.given_up for reader in readers[1:])


async def test_who_moves_before_it_is_asked(hall: FanoutHarness, beats: None) -> None:
    """The question goes with it, so nobody is passed over because others come."""
    reader = FakeConnection(interval=60)
    reader.silent = True
    hall.manager.connect(reader)
    group, before = reader.group, reader.shard
    assert group is not None
    assert before is not None
    async with running(hall.manager.run_heartbeat()):
        await until(lambda: before.ping_state)
        group.settle()
        assert reader.shard is not before
        await until(lambda: reader.given_up)
    assert reader.asks == 1


async def test_who_moves_is_heard_of_as_before(
    hall: FanoutHarness, beats: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards that have become sparse are filled up while answers are awaited."""
    monkeypatch.setattr(groups, "SHARD_SIZE", 4)
    readers = [FakeConnection() for _ in range(12)]
    group = hold(hall, readers)
    group.settle()
    stay = readers[::4]
    stay[1].silent = True
    async with running(hall.manager.run_heartbeat()):
        await until(lambda: all(reader.asks for reader in readers))
        await until(lambda: not any(shard.ping_state for shard in group.shards))
        for reader in {*readers} - {*stay}:
            hall.manager.disconnect(reader, CloseCode.DONE)
        group.settle()
        assert [list(shard.connections) for shard in group.shards] == [stay]
        await until(lambda: stay[1].given_up)
    assert [reader.given_up for reader in stay] == [False, True, False]


# -- frames -------------------------------------------------------------------------------------


async def test_equal_views_are_rendered_once(hall: FanoutHarness) -> None:
    """However many connections share one, at the start and at each tick; and encoded once."""
    equal = [FakeConnection(), FakeConnection(view=View()), *(FakeConnection() for _ in range(28))]
    others = [FakeConnection(view=View(window="5m")) for _ in range(10)]
    for reader in (*equal, *others):
        hall.manager.connect(reader)
    assert hall.count("renders") == 2
    async with running(hall.manager.run()):
        for commits in range(1, 4):
            hall.commit()
            await until(lambda: all(r.counts()[-1] == commits for r in (*equal, *others)))  # noqa: B023  # -- awaited in its own turn
            assert hall.count("renders") == 2 + 2 * commits
    assert {reader.frames[-1].source for reader in (*equal, *others)} == {Source.LIVE}


async def test_frame_of_a_tick_is_one_object(hall: FanoutHarness) -> None:
    """Connections that came together get the very same frame."""
    readers = [FakeConnection(interval=60) for _ in range(700)]
    for reader in readers:
        hall.manager.connect(reader)
    frame = await frame_of(hall.latest, View())
    sent = hall.count("frames_sent")
    await hall.broadcast(frame, readers)
    assert all(reader.frames[-1] is frame for reader in readers)
    assert hall.count("frames_sent") - sent == 700


async def test_long_broadcast_gives_others_a_turn(
    hall: FanoutHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of it, whoever waits for the event loop gets it."""
    monkeypatch.setattr(groups, "SHARD_SIZE", 10)
    readers = [FakeConnection(interval=60) for _ in range(100)]  # all at one tick
    for reader in readers:
        hall.manager.connect(reader)
    served_when_others_ran: list[int] = []

    async def other() -> None:
        while True:
            served_when_others_ran.append(sum(len(reader.frames) > 1 for reader in readers))
            await asyncio.sleep(0)

    async with running(other()):
        await hall.broadcast(await frame_of(hall.latest, View()), readers)
    assert {10, 20, 90} <= set(served_when_others_ran)


async def test_frames_come_changed_or_not(hall: FanoutHarness) -> None:
    """The default stream sends each interval, with a new timestamp or without news."""
    reader = FakeConnection()
    async with running(hall.manager.run()):
        hall.manager.connect(reader)
        await until(lambda: len(reader.frames) >= 4)
    assert set(reader.counts()) == {0}
    assert hall.count("renders") == 1


async def test_error_document_keeps_the_connection(hall: FanoutHarness, store: SqliteStore) -> None:
    """When no source can answer, it says so at each tick; then numbers come again."""
    await store.close()
    hall.up = False
    reader = FakeConnection()
    async with running(hall.manager.run()):
        hall.manager.connect(reader)
        await until(lambda: len(reader.frames) >= 3)
        assert {json.loads(frame.body)["error"] for frame in reader.frames} == {
            "Failed to fetch metrics"
        }
        hall.up = True
        await until(lambda: reader.counts()[-1] == 0)
    assert reader.stopped is None
    assert hall.manager.active == 1


async def test_crowd_without_live_state_asks_the_engines_once(hall: FanoutHarness) -> None:
    """Who comes while nothing is live gets the first frame as soon as there is one."""
    hall.manager.connect(FakeConnection(interval=60))
    readers = [FakeConnection(interval=60) for _ in range(300)]
    async with running(hall.manager.run()):
        await asyncio.sleep(0)  # now it waits for a tick that is a minute away
        hall.up = False
        for reader in readers:
            hall.manager.connect(reader)
        gone = readers.pop()
        hall.manager.disconnect(gone, CloseCode.DONE)
        await until(lambda: all(reader.frames for reader in readers))
    assert {reader.frames[0].source for reader in readers} == {Source.DATABASE}
    assert hall.count("cache", result="miss") == 1
    assert not gone.frames


async def test_who_comes_during_a_tick_is_shown_nothing_older(
    hall: FanoutHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The frames of a tick are made before those of one group after the other are sent."""
    monkeypatch.setattr(groups, "SHARD_SIZE", 1)
    late: list[FakeConnection] = []

    class Herald(FakeConnection):
        def offer(self, frame: EncodedDocument) -> bool:
            if self.frames and not late:  # at the first tick, while others wait for their turn
                hall.commit()
                late.extend(Herald(view=reader.subscription.view) for reader in readers)
                for reader in late:
                    hall.manager.connect(reader)
            return super().offer(frame)

    readers = [Herald(view=view) for view in (View(), View(window="1h"))]
    for reader in readers:
        hall.manager.connect(reader)
    async with running(hall.manager.run()):
        await until(lambda: late and all(len(reader.frames) >= 2 for reader in (*late, *readers)))
    for reader in late:
        assert reader.counts() == sorted(reader.counts())


async def test_nobody_is_always_last(hall: FanoutHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tick begins with any shard of those who share it."""
    monkeypatch.setattr(groups, "SHARD_SIZE", 1)
    firsts: dict[tuple[EncodedDocument, Group | None], FakeConnection] = {}

    class Noted(FakeConnection):
        def offer(self, frame: EncodedDocument) -> bool:
            firsts.setdefault((frame, self.group), self)
            return super().offer(frame)

    readers = [Noted() for _ in range(5)]
    for reader in readers:
        hall.manager.connect(reader)
    assert len(set(firsts.values())) <= 2  # their ticks may have two phases
    async with running(hall.manager.run()):
        await until(lambda: len(set(firsts.values())) == len(readers))
    assert all(len(reader.frames) > 1 for reader in readers)


# -- slow readers -------------------------------------------------------------------------------


async def test_reader_that_never_reads_has_one_frame_waiting(hall: FanoutHarness) -> None:
    """Newer frames take the place of the one that waits, and are counted as conflated."""
    sent: list[str] = []
    drained = asyncio.Event()

    async def send(frame: EncodedDocument) -> None:
        sent.append(frame.text)
        await drained.wait()

    slow = AsgiConnection(DefaultSession(ViewSubscription(View(), FAST)), "SSE", "192.0.2.1")
    quick = FakeConnection()
    async with running(hall.manager.run()), asyncio.TaskGroup() as tasks:
        pump = tasks.create_task(slow.pump(send))
        hall.manager.connect(slow)
        hall.manager.connect(quick)
        async with asyncio.timeout(PATIENCE):
            while hall.count("frames_conflated") < 3:
                hall.commit()
                seen = len(quick.frames)
                await until(lambda: len(quick.frames) > seen)  # noqa: B023  # -- awaited in its own turn
        assert len(sent) == 1
        newest = hall.snapshot.position.seq
        await until(lambda: quick.counts()[-1] == newest)
        drained.set()
        await until(lambda: len(sent) >= 2)
        assert json.loads(sent[1])["total_decisions"] == newest
        slow.stop(CloseCode.DONE)
    assert pump.result() is CloseCode.DONE
    assert len(quick.frames) > 4


async def test_reader_catches_up_when_it_drains(hall: FanoutHarness) -> None:
    """Skipped while its socket is full, it then gets the newest frame there is, at once."""

    class Full(FakeConnection):
        full = True

        def offer(self, frame: EncodedDocument) -> bool:
            return not self.full and super().offer(frame)

    skipped, quick = Full(), FakeConnection()
    hall.manager.connect(skipped)
    hall.manager.connect(quick)
    assert hall.count("frames_conflated") == 1
    async with running(hall.manager.run()):
        hall.commit()
        await until(lambda: hall.count("frames_conflated") >= 3)
    skipped.full = False
    hall.manager.catch_up(skipped)
    assert skipped.counts() == [1]
    hall.manager.disconnect(skipped, CloseCode.DONE)
    hall.manager.catch_up(skipped)
    assert len(skipped.frames) == 1


# -- ticks --------------------------------------------------------------------------------------


async def test_ticks_keep_their_rhythm(hall: FanoutHarness) -> None:
    """What a tick takes does not put off the next one."""
    hall.load = 0.08
    reader = FakeConnection()
    async with running(hall.manager.run()):
        hall.manager.connect(reader)
        await until(lambda: len(reader.frames) >= 14)
    # From the second frame on, which is the first tick's. Were each put off by the time it
    # takes, twelve intervals would take nearly a second more.
    ticks = 12 + hall.count("ticks_merged")
    assert abs(reader.times[13] - reader.times[1] - ticks * FAST) < 0.5


async def test_first_tick_is_an_interval_after_the_first_frame(hall: FanoutHarness) -> None:
    """Give or take what lets those who come together share a tick."""
    reader = FakeConnection(interval=0.5)
    async with running(hall.manager.run()):
        came = asyncio.get_running_loop().time()
        hall.manager.connect(reader)
        await until(lambda: len(reader.frames) >= 2)
    assert reader.times[1] - came >= 0.5 - module.QUANTUM - 0.01


async def test_sooner_tick_is_not_kept_waiting(hall: FanoutHarness) -> None:
    """Somebody with a short interval comes while the next tick is far away."""
    async with running(hall.manager.run()):
        hall.manager.connect(FakeConnection(interval=60))
        await asyncio.sleep(0)
        quick = FakeConnection()
        hall.manager.connect(quick)
        await until(lambda: len(quick.frames) >= 3)
        assert quick.times[2] - quick.times[0] < 30


async def test_late_tick_is_merged_with_the_next(hall: FanoutHarness) -> None:
    """After a hold-up there is one frame, not all those that were missed."""
    reader = FakeConnection()
    async with running(hall.manager.run()):
        hall.manager.connect(reader)
        hall.load = 0.35
        await until(lambda: len(reader.frames) >= 2)
        assert hall.count("ticks_merged") >= 3
        hall.load = 0.0
        await until(lambda: len(reader.frames) >= 4)
    assert reader.counts() == [0] * len(reader.frames)


async def test_ticks_draw_together(hall: FanoutHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a quantum an interval, as long as they are no crowd; nobody misses a frame by it."""
    monkeypatch.setattr(module, "QUANTUM", 0.005)
    monkeypatch.setattr(module, "MAX_COALESCED", 3)
    readers = [FakeConnection() for _ in range(5)]

    def share(number: int) -> int:
        return len({id(each.group) for each in readers[:number]})

    async with running(hall.manager.run()):
        for reader in readers[:3]:
            hall.manager.connect(reader)
            await asyncio.sleep(0.03)
        await until(lambda: share(3) == 1)
        first = readers[0].group
        for reader in readers[3:]:
            hall.manager.connect(reader)
            await asyncio.sleep(0.03)
        await until(lambda: share(5) == 2 and readers[3].group is readers[4].group)
        assert readers[0].group is first
        seen = [len(reader.frames) for reader in readers]
        await until(lambda: min(map(len, (each.frames for each in readers))) > max(seen) + 3)
    assert first is not None
    assert len(first) == 3
    for reader in readers:
        hall.manager.disconnect(reader, CloseCode.DONE)
    assert hall.manager.active == 0


async def test_who_was_skipped_by_a_tick_that_moved_catches_up(
    hall: FanoutHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the frame that it refused, though the tick it is part of now had its own before."""
    monkeypatch.setattr(module, "QUANTUM", 0.005)

    class Full(FakeConnection):
        def offer(self, frame: EncodedDocument) -> bool:
            super().offer(frame)
            return False

    there, comes = Full(), Full()
    async with running(hall.manager.run()):
        hall.manager.connect(there)
        await asyncio.sleep(0.04)
        hall.manager.connect(comes)
        assert comes.group is not there.group
        while comes.group is not there.group:
            hall.commit()
            await asyncio.sleep(0.005)
        refused = [reader.counts()[-1] for reader in (there, comes)]
        hall.manager.catch_up(there)
        hall.manager.catch_up(comes)
    assert there.counts()[-1] == comes.counts()[-1] == max(refused)


async def test_groups_of_a_greedy_client_are_put_off(hall: FanoutHarness) -> None:
    """Until it may have documents rendered again; the plain stream goes on at its interval."""
    few = View(fields=("total_decisions",))
    greedy, shared, plain = (
        FakeConnection(view=few),
        FakeConnection(view=View(window="5m")),
        FakeConnection(),
    )
    other = FakeConnection(view=View(window="5m"), client="192.0.2.2")
    async with running(hall.manager.run()), running(hall.renders.run()):
        for reader in (greedy, shared, plain, other):
            hall.manager.connect(reader)
        await until(lambda: all(each.frames for each in (greedy, shared, plain, other)))
        hall.budget.charge(greedy.client, 1_000, time.monotonic())
        seen = len(greedy.frames)
        await until(lambda: len(plain.frames) > 5 and len(shared.frames) > 5)
        assert len(greedy.frames) <= seen + 1  # a tick may have been under way
        assert hall.count("ticks_stretched") > 0
        late = FakeConnection(view=few)
        hall.manager.connect(late)
        assert not late.frames
        with pytest.raises(Unavailable, match="rendering time"):
            hall.manager.admit(few, greedy.client)
