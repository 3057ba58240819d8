"""The default stream: the whole document at once, and then every interval, changed or not."""

import asyncio
import json
from itertools import pairwise

import pytest

from routecast.adapters.cache.memory import MemoryCache
from routecast.adapters.store.sqlite import SqliteStore
from routecast.core.breakdown import CELLS_PER_STEP, STEPS_AT_ONCE
from routecast.core.document import EncodedDocument
from routecast.core.payload import Payload
from routecast.core.view import View
from routecast.protocol import Source
from routecast.streaming.channels import MAX_COALESCED
from routecast.streaming.delivery import QUANTA
from tests.support.clock import HeldClock
from tests.support.fanout import CLIENT, FAST, START, FakeConnection, FanoutHarness
from tests.support.running_services import running

OTHER_CLIENT = "192.0.2.2"
# Decisions of this number of strategies take a view more steps than it may do at once.
MANY = 4 * STEPS_AT_ONCE * CELLS_PER_STEP
FEW = View(fields=("total_decisions", "cost"))


@pytest.fixture
def fanout(store: SqliteStore, cache: MemoryCache, clock: HeldClock) -> FanoutHarness:
    """A harness without clients."""
    return FanoutHarness(store, cache, clock)


class TimedConnection(FakeConnection):
    """A connection that records what it was sent at what time."""

    def __init__(self, fanout: FanoutHarness, client: str = CLIENT) -> None:
        super().__init__(client)
        self.times: list[float] = []
        self._fanout = fanout

    def send(self, payload: Payload) -> bool:
        if self.is_open:
            self.times.append(round(self._fanout.seconds, 6))
        return super().send(payload)

    def gaps(self) -> list[float]:
        return [after - before for before, after in pairwise(self.times)]


# -- the first document -------------------------------------------------------------------------


async def test_the_first_document_comes_at_once(fanout: FanoutHarness) -> None:
    """It needs no tick, and no running service."""
    connection = fanout.connect(interval=60)
    assert connection.counts() == [0]


async def test_the_first_tick_is_an_interval_after_the_first_document(
    fanout: FanoutHarness,
) -> None:
    """It may be a twentieth earlier, so that clients that come together share a tick."""
    async with fanout.running():
        for interval in (0.1, 0.3, 1.0, 5.0, 7.3, 60.0):
            for moment in (0.0, 0.01, 0.13, 0.77):
                await fanout.go(moment)
                connection = TimedConnection(fanout)
                fanout.connect(interval, connection=connection)
                await fanout.go(interval)
                first, second = connection.times
                quantum = max(0.05, interval / QUANTA)
                assert interval - quantum - 1e-6 <= second - first <= interval + 1e-6
                connection.close()


async def test_a_crowd_without_live_state_asks_the_engines_once(fanout: FanoutHarness) -> None:
    """All clients get their first document from one read."""
    fanout.source = Source.CACHE
    connections = [fanout.connect(60) for _ in range(300)]
    assert not any(connection.sent for connection in connections)
    async with fanout.running():
        await fanout.settle()
    assert all(connection.counts() == [0] for connection in connections)
    assert fanout.reads == 1
    assert fanout.count("renders") == 1


async def test_a_client_that_left_while_it_waited_gets_nothing(fanout: FanoutHarness) -> None:
    """The other clients get their document."""
    fanout.source = Source.CACHE
    gone, stays = fanout.connect(60), fanout.connect(60)
    gone.close()
    async with fanout.running():
        await fanout.settle()
    assert (gone.sent, stays.counts()) == ([], [0])


# -- ticks --------------------------------------------------------------------------------------


async def test_documents_come_changed_or_not(fanout: FanoutHarness) -> None:
    """One comes at each interval, with a new timestamp; a commit is in the next one."""
    connection = TimedConnection(fanout)
    fanout.connect(5, connection=connection)
    async with fanout.running():
        await fanout.go(12)
        fanout.commit()
        await fanout.go(1)
        assert connection.counts() == [0, 0, 0]
        await fanout.go(7)
    assert connection.counts() == [0, 0, 0, 1, 1]
    assert connection.times == [0, 5, 10, 15, 20]
    timestamps = [json.loads(payload.body)["timestamp"] for payload in connection.sent]
    assert len(set(timestamps)) == 5


async def test_equal_views_are_rendered_once(fanout: FanoutHarness) -> None:
    """Connections that share a view and a tick get the same bytes from one rendering."""
    connections = [fanout.connect() for _ in range(1_200)]
    others = [fanout.connect(view=FEW) for _ in range(3)]
    async with fanout.running():
        await fanout.settle()
        assert fanout.count("renders") == 2
        for number in range(1, 4):
            fanout.commit()
            await fanout.go(FAST)
            assert {connection.counts()[-1] for connection in connections} == {number}
            assert len({id(connection.sent[-1]) for connection in connections}) == 1
            assert len({id(connection.sent[-1]) for connection in others}) == 1
    assert fanout.count("renders") == 2 * 4


async def test_a_long_round_gives_others_turns(
    store: SqliteStore, cache: MemoryCache, clock: HeldClock
) -> None:
    """Other tasks have turns between two batches."""
    fanout = FanoutHarness(store, cache, clock, batch_size=10)
    turns: set[int] = set()
    turn = 0

    class Noting(FakeConnection):
        def send(self, payload: Payload) -> bool:
            turns.add(turn)
            return super().send(payload)

    for _ in range(100):
        fanout.connect(connection=Noting())
    turns.clear()
    async with fanout.running():
        fanout.timers.go_to(fanout.timers.moment + FAST)
        while fanout.is_busy():
            await asyncio.sleep(0)
            turn += 1
    assert len(turns) == 10


async def test_a_sooner_tick_is_not_kept_waiting(fanout: FanoutHarness) -> None:
    """A new client with a short interval is served before a later tick."""
    async with fanout.running():
        fanout.connect(60)
        await fanout.settle()
        soon = fanout.connect(FAST)
        await fanout.go(3.5 * FAST)
        assert len(soon.sent) == 4


async def test_a_late_tick_is_merged_with_the_next(fanout: FanoutHarness) -> None:
    """After a delay there is one document for all missed ticks, and then one each interval."""
    connection = TimedConnection(fanout)
    fanout.connect(1, connection=connection)
    async with fanout.running():
        await fanout.go(1)
        fanout.timers.go_to(fanout.timers.moment + 5.3)
        await fanout.settle()
        assert connection.times == [0, 1, 6.3]
        await fanout.go(2)
    assert connection.times == [0, 1, 6.3, 7, 8]
    assert fanout.count("ticks_merged") == 4


async def test_a_client_that_comes_during_a_round_is_not_served_by_it(
    store: SqliteStore, cache: MemoryCache, clock: HeldClock
) -> None:
    """It has its first document already, which may be newer than the round's."""
    fanout = FanoutHarness(store, cache, clock, batch_size=2)
    late: list[FakeConnection] = []

    class Welcoming(FakeConnection):
        def send(self, payload: Payload) -> bool:
            if self.sent and not late:
                fanout.commit()
                late.append(fanout.connect())
            return super().send(payload)

    connections = [fanout.connect(connection=Welcoming()) for _ in range(6)]
    async with fanout.running():
        await fanout.go(FAST)
        assert late[0].counts() == [1]
        assert all(connection.counts() == [0, 0] for connection in connections)
        await fanout.go(FAST)
        assert late[0].counts() == [1, 1]


async def test_a_client_that_comes_at_a_tick_is_not_served_by_it(fanout: FanoutHarness) -> None:
    """Its next document comes an interval after its first one."""
    first, late = TimedConnection(fanout), TimedConnection(fanout)
    async with fanout.running():
        fanout.connect(1, connection=first)
        await fanout.go(0.5)
        fanout.timers.go_to(START + 1)  # the tick is due, and its round has not begun
        fanout.connect(1, connection=late)
        await fanout.go_to(3)
    assert first.times == [0, 1, 2, 3]
    assert late.times == [1, 2, 3]


async def test_a_waiting_client_gets_its_first_document_once(fanout: FanoutHarness) -> None:
    """It is not sent both by itself and by a tick."""
    fanout.commit(*({"strategy": f"s{number}"} for number in range(MANY)))
    waits, joins = TimedConnection(fanout), TimedConnection(fanout)
    async with running(fanout.channels.run()):
        fanout.connect(1, FEW, connection=waits)
        await fanout.go_to(1.3)  # its tick is over, and it goes on to wait
        async with running(fanout.renders.run()):
            await fanout.go_to(3.5)
        assert waits.times == [1.3, 2, 3]
        fanout.commit()
        await fanout.go_to(3.51)
        fanout.connect(1, FEW, connection=joins)
        await fanout.go_to(4.6)
        assert joins.times == [4.5]  # by a tick of its phase: its view needs little work
        async with running(fanout.renders.run()):
            await fanout.go_to(6)
    assert joins.times == pytest.approx([4.5, 5.45])


async def test_a_client_that_catches_up_within_a_round_is_not_served_again(
    store: SqliteStore, cache: MemoryCache, clock: HeldClock
) -> None:
    """It has the round's document already."""
    fanout = FanoutHarness(store, cache, clock, batch_size=2)
    slow: list[FakeConnection] = []

    class Draining(FakeConnection):
        def send(self, payload: Payload) -> bool:
            if len(self.sent) == 1:
                for each in slow:
                    each.drain()
            return super().send(payload)

    fanout.connect(1, connection=Draining())
    slow += [fanout.connect(1) for _ in range(9)]
    for each in slow:
        each.is_open = False
    async with fanout.running():
        await fanout.go(1)
        assert [len(each.sent) for each in slow] == [2] * 9
        await fanout.go(1)
        assert [len(each.sent) for each in slow] == [3] * 9


async def test_no_client_is_always_last(
    store: SqliteStore, cache: MemoryCache, clock: HeldClock
) -> None:
    """A round begins with a random batch, and a batch with a random connection."""
    fanout = FanoutHarness(store, cache, clock, batch_size=2)
    firsts: dict[Payload, FakeConnection] = {}

    class Noted(FakeConnection):
        def send(self, payload: Payload) -> bool:
            firsts.setdefault(payload, self)
            return super().send(payload)

    connections = [fanout.connect(connection=Noted()) for _ in range(6)]
    firsts.clear()
    async with fanout.running():
        for _ in range(200):
            await fanout.go(FAST)
    assert set(firsts.values()) == set(connections)


async def test_the_error_document_keeps_the_connection(fanout: FanoutHarness) -> None:
    """Without a source each tick sends the error document; later ones send numbers again."""
    connection = fanout.connect(1)
    async with fanout.running():
        fanout.source = None
        await fanout.go(2)
        late = fanout.connect(1)
        await fanout.settle()
        fanout.source = Source.DATABASE
        await fanout.go(1)
    bodies = [json.loads(payload.body) for payload in connection.sent]
    assert ["error" in body for body in bodies] == [False, True, True, False]
    assert bodies[1]["error"] == "Failed to fetch metrics"
    assert ["error" in json.loads(payload.body) for payload in late.sent] == [True, False]
    assert isinstance(connection.sent[1], EncodedDocument)
    assert connection.sent[1].position is None


# -- slow clients -------------------------------------------------------------------------------


async def test_a_full_socket_is_skipped_and_catches_up(fanout: FanoutHarness) -> None:
    """When it has drained, it gets the newest document once, however many it missed."""
    slow, quick = fanout.connect(), fanout.connect()
    slow.is_open = False
    async with fanout.running():
        for _ in range(3):
            fanout.commit()
            await fanout.go(FAST)
        assert (slow.counts(), quick.counts()) == ([0], [0, 1, 2, 3])
        slow.drain()
        assert slow.counts() == [0, 3]
        assert slow.sent[-1] is quick.sent[-1]
        await fanout.go(FAST)
        assert slow.counts() == [0, 3, 3]
    assert fanout.count("frames_conflated") == 3


async def test_a_client_whose_first_document_was_skipped_gets_it(fanout: FanoutHarness) -> None:
    """Its socket was full from the start, with answers of earlier requests."""
    connection = FakeConnection()
    connection.is_open = False
    fanout.connect(60, connection=connection)
    assert not connection.sent
    connection.drain()
    assert connection.counts() == [0]


# -- phases -------------------------------------------------------------------------------------


async def test_phases_move_together(fanout: FanoutHarness) -> None:
    """They move by a small step at each interval until they are one; no document is missed."""
    connections = []
    async with fanout.running():
        for number in range(7):
            await fanout.go_to(number * 0.7)
            connections.append(TimedConnection(fanout))
            fanout.connect(5, connection=connections[-1])
        await fanout.go_to(130)
        times = [connection.times for connection in connections]
        assert {each[-1] for each in times} == {130.0}
        assert fanout.timers.pending() == [fanout.timers.moment + 5]
    for connection in connections:
        assert min(connection.gaps()) >= 5 - 2 * 5 / QUANTA - 1e-6
        assert max(connection.gaps()) <= 5 + 1e-6
        assert len(connection.sent) >= (130 - connection.times[0]) // 5


async def test_crowds_stay_apart(fanout: FanoutHarness) -> None:
    """Phases with too many clients together keep their own ticks."""
    fanout.manager._limit = 10**6
    async with fanout.running():
        for _ in range(MAX_COALESCED // 2 + 1):
            fanout.connect(5)
        await fanout.go_to(0.3)
        for _ in range(MAX_COALESCED // 2):
            fanout.connect(5)
        await fanout.go_to(20)
        assert len(fanout.timers.pending()) == 2


async def test_a_client_that_was_skipped_catches_up_though_its_phase_moved(
    fanout: FanoutHarness,
) -> None:
    """It gets the document that it missed, although its channel was merged with another."""
    async with fanout.running():
        first = fanout.connect(5)
        await fanout.go_to(0.3)
        slow = fanout.connect(5)
        await fanout.go_to(5.01)
        fanout.commit()
        slow.is_open = False
        await fanout.go_to(9)
        assert first.counts() == [0, 0]
        slow.drain()
        assert slow.counts() == [0, 1]


async def test_a_phase_that_is_put_off_keeps_its_channel(fanout: FanoutHarness) -> None:
    """It waits for its document and is served once, not also by the phase before."""
    first, second = TimedConnection(fanout), TimedConnection(fanout)
    async with running(fanout.channels.run()):
        async with running(fanout.renders.run()):
            fanout.connect(5, FEW, connection=first)
            await fanout.go_to(0.3)
            fanout.connect(5, FEW, connection=second)
            await fanout.go_to(4)
        fanout.commit(*({"strategy": f"s{number}"} for number in range(MANY)))
        await fanout.go_to(5.4)
        assert (first.counts(), second.counts()) == ([0], [0])
        async with running(fanout.renders.run()):
            await fanout.go_to(40)
    for connection in (first, second):
        assert set(connection.counts()[1:]) == {MANY}
        assert min(connection.gaps()) >= 5 / 2
        assert max(connection.gaps()) <= 5.4 + 1e-6
    assert len(fanout.timers.pending()) == 1


async def test_a_phase_that_was_late_brings_no_second_document(fanout: FanoutHarness) -> None:
    """Its members join the phase before, whose tick comes soon."""

    class Delaying(FakeConnection):
        """A connection to which one send takes the server almost an interval."""

        def send(self, payload: Payload) -> bool:
            if len(self.sent) == 1:
                fanout.timers.go_to(START + 1.96)
            return super().send(payload)

    first, second = TimedConnection(fanout), TimedConnection(fanout)
    async with fanout.running():
        fanout.connect(1, connection=first)
        fanout.connect(1, FEW, connection=Delaying())
        await fanout.go_to(0.06)
        fanout.connect(1, connection=second)
        await fanout.go_to(5)
    assert first.times == [0, 1, 2, 3, 4, 5]
    assert second.times == [0.06, 1.96, 3, 4, 5]


async def test_a_greedy_client_does_not_take_others_into_its_phase(
    fanout: FanoutHarness,
) -> None:
    """Otherwise they would wait for its rendering time."""
    greedy, modest = TimedConnection(fanout), TimedConnection(fanout, OTHER_CLIENT)
    async with fanout.running():
        fanout.connect(5, FEW, connection=greedy)
        await fanout.settle()
        fanout.budget.charge(CLIENT, 1_000, fanout.timers.now())
        fanout.commit()
        await fanout.go_to(5.3)
        fanout.connect(5, FEW, connection=modest)
        await fanout.go_to(60)
    assert len(greedy.sent) == 1
    assert max(modest.gaps()) <= 5 + 1e-6
    assert modest.times[-1] > 55


async def test_a_phase_that_is_put_off_brings_no_older_document(
    store: SqliteStore, cache: MemoryCache, clock: HeldClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow client of the phase before was sent a newer one."""
    fanout = FanoutHarness(store, cache, clock, max_coalesced=2)
    slow, greedy = fanout.connect(5, FEW, OTHER_CLIENT), FakeConnection()
    third = fanout.connect(5, FEW, OTHER_CLIENT)  # until it leaves, they are too many for one phase
    async with fanout.running():
        await fanout.go_to(0.3)
        fanout.connect(5, FEW, connection=greedy)
        await fanout.go_to(6)
        # From now on the greedy client may use no time; what it is told to wait is not long.
        payer = fanout.renders.payer
        monkeypatch.setattr(
            fanout.renders,
            "payer",
            lambda view, clients: payer(view, ()) if OTHER_CLIENT in clients else (CLIENT, 4.98),
        )
        fanout.commit()
        await fanout.go_to(10.3)
        third.close()
        fanout.commit()
        slow.is_open = False
        await fanout.go_to(15.4)
        slow.drain()
    assert slow.counts() == [0, 0, 1, 2]


async def test_a_client_that_comes_after_all_have_left_is_served(fanout: FanoutHarness) -> None:
    """An abandoned channel is never joined again, whatever its phase was."""
    async with fanout.running():
        for _ in range(4):
            connection = fanout.connect()
            await fanout.go(2 * FAST)
            assert len(connection.sent) >= 2
            connection.close()
            await fanout.go(0.07)
        assert not fanout.timers.pending()


# -- rendering time -----------------------------------------------------------------------------


async def test_a_greedy_client_gets_a_longer_interval(fanout: FanoutHarness) -> None:
    """It lasts until the client has rendering time; other streams keep their interval."""
    greedy, plain = TimedConnection(fanout), TimedConnection(fanout)
    async with fanout.running():
        fanout.connect(1, FEW, connection=greedy)
        fanout.connect(1, connection=plain)
        await fanout.settle()
        fanout.budget.charge(CLIENT, 0.8, fanout.timers.now())
        wait = fanout.budget.wait(CLIENT, fanout.timers.now())
        assert wait > 2
        fanout.commit()
        await fanout.go(6)
    assert plain.times == [0, 1, 2, 3, 4, 5, 6]
    assert wait - 0.001 < greedy.times[1] < wait + 1
    assert greedy.counts()[1] == 1
    assert fanout.count("ticks_stretched") > 0


async def test_a_view_is_paid_for_by_any_of_its_clients(fanout: FanoutHarness) -> None:
    """A client that used up its rendering time does not slow down views of others."""
    async with fanout.running():
        greedy = fanout.connect(1, FEW)
        fanout.connect(1, FEW, client=OTHER_CLIENT)
        await fanout.settle()
        fanout.budget.charge(CLIENT, 1_000, fanout.timers.now())
        for number in range(1, 3):
            fanout.commit()
            await fanout.go(1)
            assert greedy.counts()[-1] == number


async def test_a_client_that_may_pay_ends_a_wait_when_it_comes(fanout: FanoutHarness) -> None:
    """A client with rendering time serves also those that used up theirs."""
    greedy, modest = TimedConnection(fanout), TimedConnection(fanout, OTHER_CLIENT)
    async with fanout.running():
        fanout.connect(1, FEW, connection=greedy)
        await fanout.settle()
        fanout.budget.charge(CLIENT, 1_000, fanout.timers.now())
        fanout.commit()
        await fanout.go_to(3.01)
        assert greedy.times == [0]
        fanout.connect(1, FEW, connection=modest)
        await fanout.go_to(20)
    assert modest.counts()[0] == 1
    for connection in (greedy, modest):
        assert connection.times[-1] == 20
        assert max(connection.gaps()[1:]) <= 1 + 1e-6


async def test_a_view_that_takes_long_to_render_is_waited_for(fanout: FanoutHarness) -> None:
    """Its tick is late by the rendering; later ticks come at the interval again."""
    connection = TimedConnection(fanout)
    async with fanout.running():
        fanout.connect(1, FEW, connection=connection)
        await fanout.settle()
        fanout.commit(*({"strategy": f"s{number}"} for number in range(2_000)))
        await fanout.go(3)
    assert connection.counts() == [0, 2_000, 2_000, 2_000]
