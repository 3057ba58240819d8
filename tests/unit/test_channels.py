"""Channels: a change is encoded once for all members in step, and sent to none of them twice."""

import asyncio
import json
import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from routecast.adapters.cache.memory import MemoryCache
from routecast.adapters.store.sqlite import SqliteStore
from routecast.core.breakdown import CELLS_PER_STEP, STEPS_AT_ONCE
from routecast.core.decision import MINUTE
from routecast.core.message import MSGPACK, AddressedMessage
from routecast.core.payload import Payload
from routecast.core.snapshot import Snapshot
from routecast.core.versions import FRESH_MESSAGE
from routecast.core.view import View
from routecast.ports import Reading
from routecast.protocol import ALIVE_SECONDS, MIN_INTERVAL, Position, Source
from routecast.services.renders import MAX_WAITING_PER_CLIENT
from routecast.streaming.delivery import LONGEST_BRIEF_REST, SNAPSHOT_MARGIN
from tests.support.clock import HeldClock
from tests.support.decisions import NOW
from tests.support.fanout import FAST, START, FakeConnection, FanoutHarness
from tests.support.running_services import running

GREEDY, MODEST = "192.0.2.1", "192.0.2.2"
FEW = ["total_decisions", "cost"]
# Decisions of this number of strategies take a view more steps than it may do at once.
MANY = 4 * STEPS_AT_ONCE * CELLS_PER_STEP


@pytest.fixture
def fanout(store: SqliteStore, cache: MemoryCache, clock: HeldClock) -> FanoutHarness:
    """A harness without clients."""
    return FanoutHarness(store, cache, clock)


@pytest.fixture
def small(store: SqliteStore, cache: MemoryCache, clock: HeldClock) -> FanoutHarness:
    """A harness without clients, with one connection in a batch."""
    return FanoutHarness(store, cache, clock, batch_size=1)


def message_of(payload: Payload) -> object:
    """Return the part of a payload that does not depend on the subscription's id."""
    assert isinstance(payload, AddressedMessage)
    return payload.tail


# -- shared work --------------------------------------------------------------------------------


async def test_members_of_a_view_share_all_work(fanout: FanoutHarness) -> None:
    """All members of an encoding get the same bytes, from one rendering."""
    connections = [fanout.connect_v1() for _ in range(600)]
    for connection in connections:
        connection.subscribe(interval=FAST)
    assert fanout.count("renders") == 1
    packing = fanout.connect_v1(MSGPACK, connection=Packing())
    packing.peer.receive(MSGPACK.encode({"type": "subscribe", "id": "x", "interval": FAST}))
    async with fanout.running():
        for _ in range(3):
            fanout.commit()
            await fanout.go(FAST)
    assert fanout.count("renders") == 4
    for place in range(4):
        assert len({id(message_of(connection.sent[place])) for connection in connections}) == 1
    assert len(packing.sent) == 4
    assert connections[0].types() == ["snapshot"] + ["delta"] * 3


class Packing(FakeConnection):
    """A connection of routecast.v1.msgpack."""

    def reply(self, data: bytes) -> None:
        """Ignore a reply."""


async def test_a_channel_ends_with_its_last_member(fanout: FanoutHarness) -> None:
    """It ends at once, without a pending timer, and not at its next tick."""
    connection = fanout.connect_v1()
    connection.subscribe(interval=59)
    assert len(fanout.timers.pending()) == 1
    connection.request(type="unsubscribe", id="main")
    assert not fanout.timers.pending()


async def test_messages_end_with_the_last_member(fanout: FanoutHarness) -> None:
    """Versions stay, so that a client that reconnects gets a delta from its position."""
    one, other, again = (fanout.connect_v1() for _ in range(3))
    for connection in (one, other):
        connection.subscribe()
    assert message_of(other.sent[0]) is message_of(one.sent[0])
    one.request(type="unsubscribe", id="main")
    again.subscribe()
    assert message_of(again.sent[0]) is message_of(one.sent[0])
    for connection in (again, other):
        connection.close()
    late = fanout.connect_v1()
    late.subscribe()
    assert message_of(late.sent[0]) is not message_of(one.sent[0])
    late.close()
    fanout.commit()
    back = fanout.connect_v1()
    back.subscribe(position={"epoch": "e", "seq": 0})
    (delta,) = (json.loads(payload.body) for payload in back.sent)
    assert (delta["type"], delta["base"], delta["data"]["total_decisions"]) == ("delta", 0, 1)


async def test_a_client_comes_back_to_where_only_a_default_stream_was(
    fanout: FanoutHarness,
) -> None:
    """A position that only a default stream had can be the base of a delta."""
    view = View(strategy=frozenset({"other"}))
    fanout.connect(1, view)
    back = fanout.connect_v1()
    async with fanout.running():
        fanout.commit(strategy="other")
        await fanout.go(1)
        fanout.commit()  # it changes nothing of the view
        position = {"epoch": "e", "seq": 1}
        back.subscribe(filter={"strategy": ["other"]}, position=position, interval=5)
        await fanout.settle()
    (delta,) = (json.loads(payload.body) for payload in back.sent)
    assert (delta["type"], delta["base"], delta["data"]) == ("delta", 1, {})
    assert delta["position"]["seq"] == 2


async def test_documents_that_no_client_can_hold_are_not_kept(fanout: FanoutHarness) -> None:
    """Documents of the default stream are no base of a delta, and would displace others."""
    fanout.connect(1)
    async with fanout.running():
        for _ in range(50):
            fanout.commit()
            await fanout.go(1)
    assert len(fanout.channels._versions._held) == 1


# -- when a channel is served -------------------------------------------------------------------


async def test_a_change_is_sent_as_soon_as_it_is_committed(fanout: FanoutHarness) -> None:
    """A change is sent at once, or when an interval has passed since the last message."""
    connection = fanout.connect_v1()
    async with fanout.running():
        connection.subscribe(interval=1)
        steps = [(0.9, 1, 0), (1.0, 0, 1), (1.3, 1, 1), (1.9, 0, 1), (2.0, 0, 2)]
        # Nothing was sent for longer than an interval.
        steps += [(3.7, 0, 2), (3.8, 1, 3), (3.9, 1, 3), (4.7, 0, 3), (4.8, 0, 4)]
        for moment, commits, total in steps:
            await fanout.go_to(moment)
            for _ in range(commits):
                fanout.commit()
            await fanout.settle()
            assert connection.total() == total, moment


async def test_commits_of_one_turn_are_one_message(fanout: FanoutHarness) -> None:
    """Commits of one turn of the event loop are merged, and so are those during a rest."""
    connection = fanout.connect_v1()
    async with fanout.running():
        connection.subscribe(interval=1)
        await fanout.go(1)
        for _ in range(5):
            fanout.commit()
        await fanout.settle()
        assert [message.get("base") for message in connection.messages()] == [None, 0]
        assert connection.total() == 5
        for _ in range(5):
            fanout.commit()
            await fanout.settle()
        assert len(connection.sent) == 2
        await fanout.go(1)
    assert [message.get("base") for message in connection.messages()] == [None, 0, 5]
    assert connection.total() == 10


async def test_a_commit_of_other_projects_renders_and_sends_nothing(fanout: FanoutHarness) -> None:
    """It costs a project's views no document and no message."""
    one, other = fanout.connect_v1(), fanout.connect_v1()
    async with fanout.running():
        one.subscribe(filter={"project": ["search"]})
        other.subscribe(filter={"project": ["chat", "ads"]})
        await fanout.go(1)
        renders = fanout.count("renders")
        fanout.commit({"project": "search"}, {"project": "default"}, {"project": "search"})
        await fanout.go(1)
        assert fanout.count("renders") == renders + 1
        fanout.commit({"project": "ads"}, {"project": "default"}, {"project": "chat"})
        await fanout.go(1)
        assert fanout.count("renders") == renders + 2
    assert one.types() == other.types() == ["snapshot", "delta"]
    assert one.total() == other.total() == 2


async def test_views_that_are_pushed_together_rest_together(fanout: FanoutHarness) -> None:
    """Many channels then cost one wake-up of the event loop, and not one each."""
    connections = [fanout.connect_v1() for _ in range(4)]
    async with fanout.running():
        for number, connection in enumerate(connections):
            connection.subscribe(interval=1 + number % 2)
            await fanout.go(0.03)
        await fanout.go_to(3.7)
        for _ in range(2):
            fanout.commit()
            await fanout.settle()
            assert {connection.total() for connection in connections} == {1}
        assert fanout.timers.pending() == pytest.approx([START + 4.7, START + 5.7])


async def test_values_of_the_clock_are_sent_at_multiples_of_the_interval(
    fanout: FanoutHarness,
) -> None:
    """It is not sent after each commit, and at least an interval after a pushed change."""
    connection = fanout.connect_v1()
    times = []
    async with fanout.running():
        for _ in range(200):
            fanout.commit()
        fanout.clock.moment += 10_000_000  # what is of the minute before counts for less and less
        await fanout.go_to(0.3)
        connection.subscribe(interval=1, fields=["rate"])
        await fanout.settle()
        assert len(connection.sent) == 1
        for tenth in range(4, 60):
            seen = len(connection.sent)
            await fanout.go_to(tenth / 10)
            if tenth == 35:
                fanout.commit()
                await fanout.settle()
            times += [tenth / 10] * (len(connection.sent) - seen)
    assert times == [2.0, 3.0, 4.0, 5.0]


async def test_a_commit_that_changes_nothing_of_a_view_delays_none_that_does(
    fanout: FanoutHarness,
) -> None:
    """After a commit outside its filter, a view rests only a small part of its interval."""
    connection = fanout.connect_v1()
    async with fanout.running():
        connection.subscribe(interval=10, filter={"strategy": ["other"]})
        await fanout.go_to(11)
        renders = fanout.count("renders")
        for _ in range(3):
            fanout.commit()
            await fanout.settle()
        assert fanout.count("renders") == renders
        assert fanout.timers.pending()[0] == pytest.approx(START + 11 + LONGEST_BRIEF_REST)
        fanout.commit(strategy="other")
        await fanout.go(LONGEST_BRIEF_REST)
        assert connection.total() == 1


async def test_commits_that_change_nothing_of_a_view_leave_bases_where_they_are(
    fanout: FanoutHarness,
) -> None:
    """Such commits make the channel forget no version and send no document."""
    fanout.channels._versions._max_bytes = 20_000
    connection = fanout.connect_v1()
    async with fanout.running():
        connection.subscribe(interval=1, filter={"strategy": ["other"]})
        for number in range(60):
            await fanout.go_to(1.5 + number * 0.051)
            fanout.commit()
            await fanout.settle()
        assert len(connection.sent) == 1
        fanout.commit(strategy="other")
        await fanout.go_to(6)
    assert [message.get("base") for message in connection.messages()] == [None, 0]
    assert connection.total() == 1


async def test_views_that_come_and_go_do_not_push_a_quiet_one_out(
    fanout: FanoutHarness,
) -> None:
    """Other views never displace a version in use, so nothing of it is sent again."""
    fanout.channels._versions._max_bytes = 20_000
    quiet, restless = fanout.connect_v1(), fanout.connect_v1()
    async with fanout.running():
        quiet.subscribe(interval=0.5, filter={"strategy": ["other"]})
        for number in range(60):
            restless.subscribe(filter={"strategy": [f"s{number}"]})
            await fanout.settle()
            restless.request(type="unsubscribe", id="main")
            fanout.commit()
            await fanout.go(0.3)
    assert len(restless.sent) == 60
    assert quiet.types() == ["snapshot"]


class Interrupting(FakeConnection):
    """A connection that calls a function when it is sent its second message."""

    def __init__(self, interrupt: Callable[[], None]) -> None:
        super().__init__()
        self._interrupt: Callable[[], None] | None = interrupt

    def send(self, payload: Payload) -> bool:
        if self.sent and self._interrupt is not None:
            interrupt, self._interrupt = self._interrupt, None
            interrupt()
        return super().send(payload)


@pytest.mark.parametrize("seconds", [0.0, 0.05, 0.12])
async def test_a_commit_while_its_channel_is_served_is_not_missed(
    fanout: FanoutHarness, seconds: float
) -> None:
    """The commit is sent once after the channel's rest."""

    def take_long() -> None:
        fanout.timers.moment += seconds
        fanout.commit()

    connection = fanout.connect_v1(connection=Interrupting(take_long))
    async with fanout.running():
        connection.subscribe(interval=FAST)
        await fanout.go(0.15)
        fanout.commit()
        await fanout.settle()
        assert connection.total() == (1 if seconds < FAST else 2)
        await fanout.go(FAST)
        assert connection.total() == 2


async def test_a_commit_during_a_look_without_a_change_is_not_missed(
    fanout: FanoutHarness,
) -> None:
    """The commit is sent after the short rest."""
    stamps = fanout.stamps

    def take_long(*asked: Any) -> Any:
        fanout.stamps = stamps  # type: ignore[method-assign]  # -- only once
        found = stamps(*asked)
        fanout.commit(strategy="other")
        return found

    connection = fanout.connect_v1()
    async with fanout.running():
        connection.subscribe(interval=1, filter={"strategy": ["other"]})
        await fanout.go(1.5)
        fanout.stamps = take_long  # type: ignore[method-assign]  # -- only once
        fanout.commit()
        await fanout.go(LONGEST_BRIEF_REST)
    assert connection.total() == 1


async def test_a_version_is_not_forgotten_before_it_is_sent(fanout: FanoutHarness) -> None:
    """A version stays although another follower leaves in the turn after it was made."""
    connection, other = fanout.connect_v1(), fanout.connect_v1()
    document = fanout.document

    def make(*made_of: Any) -> Any:
        fanout.document = document  # type: ignore[method-assign]  # -- only once
        asyncio.get_running_loop().call_soon(other.close)
        return document(*made_of)

    async with fanout.running():
        connection.subscribe(interval=10)
        other.subscribe(interval=20)
        await fanout.go(10.5)
        fanout.document = make  # type: ignore[method-assign]  # -- only once
        fanout.commit()
        await fanout.settle()
    assert connection.total() == 1


async def test_only_a_longer_interval_is_sent(fanout: FanoutHarness) -> None:
    """A view whose rendering was late, but within its interval, reports no interval."""
    connection = fanout.connect_v1()
    async with fanout.running():
        connection.subscribe(interval=1, fields=FEW)
        await fanout.go(2.02)
        fanout.commit(*({"strategy": f"s{number}"} for number in range(MANY)))
        await fanout.settle()
    assert connection.total() == MANY
    assert not any("interval" in message for message in connection.messages())


async def test_two_messages_are_an_interval_apart_however_late_the_first_is(
    fanout: FanoutHarness,
) -> None:
    """A tenth of the interval is tolerated, so that a slightly late server keeps its pace."""
    connection = fanout.connect_v1()
    async with fanout.running():
        connection.subscribe(interval=1)
        await fanout.go(1)
        for late, next_ in [(2.9, 3.9), (3.95, 4.9)]:
            fanout.commit()
            fanout.timers.go_to(START + late)
            await fanout.settle()
            assert connection.total() == fanout.snapshot.position.seq
            fanout.commit()
            await fanout.go_to(next_ - 0.01)
            assert connection.total() == fanout.snapshot.position.seq - 1


async def test_the_interval_counts_from_a_message_that_a_commit_made_due(
    fanout: FanoutHarness,
) -> None:
    """It does not count from the end of the rest before, which was over already."""
    connection = fanout.connect_v1()
    async with fanout.running():
        await fanout.go_to(0.3)
        connection.subscribe(interval=10)
        await fanout.go_to(11.2)
        for _ in range(2):
            fanout.commit()
            await fanout.settle()
        assert connection.total() == 1
        await fanout.go_to(21.19)
        assert connection.total() == 1
        await fanout.go_to(21.21)
        assert connection.total() == 2


async def test_a_view_that_was_waited_for_and_did_not_change_does_not_rest(
    fanout: FanoutHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next commit that changes it is sent at once."""
    connection, is_ready, looks = fanout.connect_v1(), fanout.reader.is_ready, iter(range(3))

    def take_long(*asked: Any) -> bool:
        return next(looks, None) is None and is_ready(*asked)

    async with fanout.running():
        connection.subscribe(interval=10, filter={"strategy": ["other"]})
        await fanout.go_to(11)
        monkeypatch.setattr(fanout.reader, "is_ready", take_long)
        fanout.commit()
        await fanout.settle()
        assert next(looks, None) is None
        await fanout.go_to(12)
        fanout.commit(strategy="other")
        await fanout.settle()
    assert connection.total() == 1


async def test_a_first_message_that_is_waited_for_begins_the_interval(
    fanout: FanoutHarness,
) -> None:
    """The interval begins with the first message, and not with the subscription."""
    connection = fanout.connect_v1()
    fanout.commit(*({"strategy": f"s{number}"} for number in range(MANY)))
    async with running(fanout.channels.run()):
        connection.subscribe(interval=1, fields=FEW)
        await fanout.go(2.7)
        assert not connection.sent
        async with running(fanout.renders.run()):
            await fanout.settle()
            assert len(connection.sent) == 1
            fanout.commit()
            await fanout.go_to(3.69)
            assert len(connection.sent) == 1
            await fanout.go_to(3.71)
            assert connection.total() == MANY + 1


async def test_a_channel_that_ends_while_its_numbers_are_read_is_forgotten(
    fanout: FanoutHarness,
) -> None:
    """Nothing refers to the channel afterwards, and it is not served again."""
    reading = asyncio.Event()
    read = fanout.read

    async def read_long() -> Reading:
        await reading.wait()
        return await read()

    connection = fanout.connect_v1()
    async with fanout.running():
        connection.subscribe(interval=5)
        await fanout.go(6)
        fanout.read = read_long  # type: ignore[method-assign]  # -- it takes long
        fanout.source = Source.CACHE
        fanout.channels.push()
        for _ in range(5):
            await asyncio.sleep(0)
        connection.close()
        reading.set()
        await fanout.settle()
    assert not fanout.channels._idle
    assert not fanout.channels._due
    assert not fanout.timers.pending()


async def test_engines_are_asked_once_for_all_channels(fanout: FanoutHarness) -> None:
    """Without live state one read, which may take a second, serves all channels."""
    connections = [fanout.connect_v1() for _ in range(10)]
    async with fanout.running():
        for number, connection in enumerate(connections):
            connection.subscribe(interval=1 + number / 20)
        fanout.source = Source.CACHE
        fanout.timers.go_to(START + 3.3)
        await fanout.settle()
    assert fanout.reads == 1


async def test_live_state_that_returns_within_a_round_serves_the_rest_of_it(
    small: FanoutHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that joins then is sent live state, and so nothing older after that."""
    newcomer, cached = small.connect_v1(), Reading(Snapshot(Position("e", 0), NOW), Source.CACHE, 0)

    async def read() -> Reading:
        return cached

    def return_once() -> None:
        if small.source is None:
            small.source = Source.LIVE
            small.commit()
            for identity in ("1", "2", "3"):
                newcomer.subscribe(identity, interval=int(identity))

    connections = [small.connect_v1(connection=Interrupting(return_once)) for _ in range(3)]
    async with small.running():
        for interval, connection in enumerate(connections, 1):
            connection.subscribe(interval=interval)
        monkeypatch.setattr(small, "read", read)
        small.source = None
        small.timers.go_to(START + 6)
        await small.settle()
    for identity in ("1", "2", "3"):
        seqs = [message["position"]["seq"] for message in newcomer.messages(identity)]
        assert seqs == [1] * len(seqs)
        assert seqs


async def test_members_that_a_crash_left_out_are_served_after_it(small: FanoutHarness) -> None:
    """Members that a crash left out are served, and the others not again in their interval."""
    crashes = 0

    def crash() -> None:
        nonlocal crashes
        crashes += 1
        if crashes == 2:
            raise ZeroDivisionError

    connections = [small.connect_v1(connection=Interrupting(crash)) for _ in range(3)]

    async def run() -> None:
        with suppress(ZeroDivisionError):
            await small.channels.run()
        await small.channels.run()

    async with running(run()), running(small.renders.run()):
        for connection in connections:
            connection.subscribe(interval=1)
        await small.go(1.5)
        small.commit()
        await small.settle()
    assert [connection.total() for connection in connections] == [1, 1, 1]
    assert {len(connection.sent) for connection in connections} == {2}


async def test_a_minute_that_ends_during_rendering_makes_no_error(fanout: FanoutHarness) -> None:
    """A document is rendered for the moment for which it was prepared."""
    connection = fanout.connect_v1()
    end = (NOW // MINUTE + 1) * MINUTE
    ready = fanout.reader.is_ready

    def end_the_minute(*asked: Any) -> bool:
        done = ready(*asked)
        fanout.clock.moment = end + 1
        return done

    async with fanout.running():
        fanout.commit(*({"strategy": f"s{number}"} for number in range(MANY)))
        fanout.clock.moment = end - 2_000_000
        connection.subscribe(interval=1, fields=FEW, window="1h")
        await fanout.go(1.5)
        fanout.reader.is_ready = end_the_minute  # type: ignore[method-assign]  # -- and ends it
        fanout.commit()
        await fanout.go(4)
    assert "error" not in connection.types()
    assert connection.total() == MANY + 1


async def test_a_late_tick_is_merged_with_the_next(fanout: FanoutHarness) -> None:
    """After a delay there is one message, and missed ticks are counted."""
    connection = fanout.connect_v1()
    async with fanout.running():
        connection.subscribe(interval=1)
        await fanout.go(1)
        for _ in range(2):
            fanout.commit()
        fanout.timers.go_to(START + 5.5)
        await fanout.settle()
    assert (connection.total(), len(connection.sent)) == (2, 2)
    assert fanout.count("ticks_merged") == 3


# -- slow clients -------------------------------------------------------------------------------


async def test_a_full_socket_gets_one_delta_from_what_it_has(fanout: FanoutHarness) -> None:
    """A client that missed messages gets one delta; the others miss none."""
    slow, quick = fanout.connect_v1(), fanout.connect_v1()
    for connection in (slow, quick):
        connection.subscribe(interval=FAST)
    slow.is_open = False
    async with fanout.running():
        for number in range(1, 5):
            fanout.commit()
            await fanout.go(FAST)
            assert quick.total() == number
        assert len(slow.sent) == 1
        slow.drain()
        assert slow.total() == 4
        assert [m["position"]["seq"] - m["base"] for m in slow.messages()[1:]] == [4]
        fanout.commit()
        await fanout.go(FAST)
    assert slow.total() == quick.total() == 5
    assert fanout.count("frames_conflated") == 4


async def test_slow_clients_get_the_newest_version_again(
    store: SqliteStore, cache: MemoryCache, clock: HeldClock
) -> None:
    """All members get the newest version in the end, and no closed connection is kept."""
    fanout = FanoutHarness(store, cache, clock, batch_size=4)
    rng = random.Random(1)

    def join() -> FakeConnection:
        connection = fanout.connect_v1()
        connection.subscribe(interval=FAST)
        return connection

    connections = [join() for _ in range(20)]
    async with fanout.running():
        for number in range(1, 40):
            for connection in rng.sample(connections[1:], 4):
                connection.is_open = False
            connections.pop(rng.randrange(1, len(connections))).close()
            connections.append(join())
            fanout.commit()
            await fanout.go(FAST)
            assert connections[0].total() == number
            for connection in rng.sample(connections[1:], 8):
                connection.drain()
        for connection in connections[1:]:
            connection.drain()
        fanout.commit()
        await fanout.go(FAST)
    assert {connection.total() for connection in connections} == {40}
    (channel,) = fanout.channels._channels.values()
    members = [member for cohort in channel.cohorts for member in cohort.members]
    assert len(members) == len(set(members)) == len(connections)
    assert len({cohort.base for cohort in channel.cohorts}) == 1
    assert sum(len(cohort.batch) for cohort in channel.cohorts) == len(connections)
    assert len(channel.cohorts) <= 2 * len(connections) / 4
    for connection in connections:
        connection.close()
    assert not channel.cohorts
    assert not channel._open


class Narrow(FakeConnection):
    """A connection with room for one message at a time."""

    def send(self, payload: Payload) -> bool:
        sent = super().send(payload)
        self.is_open = False
        return sent


async def test_no_subscription_starves_on_a_narrow_connection(fanout: FanoutHarness) -> None:
    """With room for one message at a time, subscriptions take turns."""
    connection = fanout.connect_v1(connection=Narrow())
    for identity in "abc":
        connection.is_open = True
        connection.subscribe(identity, interval=FAST, fields=["total_decisions"])
    async with fanout.running():
        await fanout.settle()
        while not all(connection.types(identity) for identity in "abc"):
            connection.drain()
            await fanout.go(FAST)
        for number in range(1, 7):
            fanout.commit()
            await fanout.go(FAST)
            connection.drain()
            totals = [connection.total(identity) for identity in "abc"]
            assert max(totals) == number
            assert min(totals) >= number - 3


async def test_no_client_is_always_first(small: FanoutHarness) -> None:
    """A round begins with a random member."""
    firsts: dict[object, FakeConnection] = {}

    class Noted(FakeConnection):
        def send(self, payload: Payload) -> bool:
            firsts.setdefault(message_of(payload), self)
            return super().send(payload)

    connections = [small.connect_v1(connection=Noted()) for _ in range(3)]
    for connection in connections:
        connection.subscribe(interval=FAST)
    firsts.clear()
    async with small.running():
        for _ in range(100):
            small.commit()
            await small.go(FAST)
    assert set(firsts.values()) == set(connections)


async def test_nothing_is_sent_twice(fanout: FanoutHarness) -> None:
    """Members that came between two messages, or drained without a change, get nothing twice."""
    one, other = fanout.connect_v1(), fanout.connect_v1()
    async with fanout.running():
        one.subscribe(interval=FAST)
        fanout.commit()
        other.subscribe(interval=FAST)
        await fanout.go(FAST)
        assert one.total() == 1
        one.drain()
        other.drain()
        fanout.commit()
        await fanout.go(FAST)
    assert one.types() == ["snapshot", "delta", "delta"]
    assert other.types() == ["snapshot", "delta"]


# -- sources ------------------------------------------------------------------------------------


async def test_a_change_of_source_is_sent(fanout: FanoutHarness) -> None:
    """Unchanged numbers are sent with their source and age when the source changes, or returns."""
    connection = fanout.connect_v1()
    connection.subscribe(interval=FAST)
    async with fanout.running():
        fanout.source = Source.STALE
        fanout.clock.moment = NOW + 3_000_000
        await fanout.go(FAST)
        told = connection.messages()[1]
        assert (told["type"], told["source"], told["data"]) == ("delta", "stale", {})
        assert told["age_ms"] == 3_100
        fanout.source = Source.LIVE
        await fanout.go(FAST)
    assert [message["source"] for message in connection.messages()] == ["live", "stale", "live"]


async def test_without_a_source_a_client_gets_one_error(fanout: FanoutHarness) -> None:
    """The client gets one temporary error, and a snapshot as soon as there are numbers."""
    connection, late = fanout.connect_v1(), fanout.connect_v1()
    connection.subscribe(interval=FAST)
    async with fanout.running():
        fanout.source = None
        await fanout.go(3 * FAST)
        assert connection.messages()[1]["code"] == "unavailable"
        assert connection.messages()[1]["retryable"] is True
        late.subscribe(interval=FAST)
        await fanout.settle()
        assert late.messages()[0]["code"] == "unavailable"
        fanout.source = Source.DATABASE
        await fanout.go(FAST)
        assert connection.total() == late.total() == 0
    assert connection.types() == ["snapshot", "error", "snapshot"]
    assert late.types() == ["error", "snapshot"]


async def test_a_crowd_asks_the_engines_once(fanout: FanoutHarness) -> None:
    """Without live state one read serves all clients that came meanwhile."""
    fanout.source = Source.CACHE
    connections = [fanout.connect_v1() for _ in range(300)]
    for connection in connections:
        connection.subscribe(interval=60)
        assert not connection.sent
    connections[0].request(type="unsubscribe", id="main")
    async with fanout.running():
        await fanout.settle()
    assert {connection.total() for connection in connections[1:]} == {0}
    assert not connections[0].sent
    assert fanout.count("renders") == 1


# -- quiet channels -----------------------------------------------------------------------------


async def test_a_quiet_channel_sends_snapshots(fanout: FanoutHarness) -> None:
    """All members get a snapshot with a new timestamp in time, with any interval."""
    connections = {interval: fanout.connect_v1() for interval in (FAST, 7.3, 60)}
    async with fanout.running():
        for interval, connection in connections.items():
            connection.subscribe(interval=interval)
        for number in range(1, 5):
            await fanout.go_to(number * ALIVE_SECONDS)
            for connection in connections.values():
                assert number < len(connection.sent) <= 2 * number + 1
    for connection in connections.values():
        assert set(connection.types()) == {"snapshot"}
        stamps = [message["timestamp"] for message in connection.messages()]
        assert stamps == sorted(set(stamps))


async def test_a_snapshot_that_is_ready_in_a_moment_is_not_sent_twice(
    fanout: FanoutHarness,
) -> None:
    """The last version is repeated only if the newest one still cannot be made a little later."""
    connection = fanout.connect_v1()
    async with fanout.running():
        connection.subscribe(interval=60, fields=FEW)
        await fanout.go(ALIVE_SECONDS / 2)
        fanout.commit(*({"strategy": f"s{number}"} for number in range(MANY)))
        await fanout.go(ALIVE_SECONDS / 2)
    assert [message["position"]["seq"] for message in connection.messages()] == [0, 1]


async def test_a_slow_client_of_a_quiet_channel_gets_its_snapshot(
    fanout: FanoutHarness,
) -> None:
    """It gets the snapshot when its socket has drained, though nothing changed."""
    slow, quick = fanout.connect_v1(), fanout.connect_v1()
    async with fanout.running():
        for connection in (slow, quick):
            connection.subscribe(interval=1)
        await fanout.go(1)
        slow.is_open = False
        await fanout.go_to(ALIVE_SECONDS - 0.5)
        assert (len(slow.sent), len(quick.sent)) == (1, 2)
        slow.drain()
        slow.drain()
        fanout.commit()
        await fanout.go(1)
    for connection in (slow, quick):
        assert connection.types() == ["snapshot", "snapshot", "delta"]
        assert connection.total() == 1


async def test_a_connection_that_leaves_is_sent_nothing(fanout: FanoutHarness) -> None:
    """The last member takes the channel with it, and may subscribe again under a new id."""
    gone, stays = fanout.connect_v1(), fanout.connect_v1()
    for connection in (gone, stays):
        connection.subscribe(interval=FAST)
        connection.subscribe("hour", interval=FAST, window="1h")
    async with fanout.running():
        await fanout.settle()
        assert len(stays.sent) == 2
        gone.close()
        gone.close()
        stays.request(type="unsubscribe", id="hour")
        fanout.commit()
        await fanout.go(FAST)
        assert stays.total() == 1
        assert len(gone.sent) == 2
        assert stays.types("hour") == ["snapshot"]
        stays.request(type="unsubscribe", id="main")
        assert not fanout.channels._channels
        stays.subscribe("again", interval=FAST)
        fanout.commit()
        await fanout.go(FAST)
        assert stays.total("again") == 2


# -- rendering time -----------------------------------------------------------------------------


async def test_newcomer_shares_a_document_that_is_still_true(fanout: FanoutHarness) -> None:
    """A new member gets an existing document of any age without a rendering."""
    first, second = fanout.connect_v1(client=MODEST), fanout.connect_v1(client=GREEDY)
    async with fanout.running():
        first.subscribe(fields=FEW, interval=60)
        await fanout.settle()
    fanout.clock.moment += 1_000 * FRESH_MESSAGE
    second.subscribe(fields=FEW, interval=60)
    assert second.types() == ["snapshot"]


async def test_first_documents_of_many_views_are_made_one_at_a_time(
    fanout: FanoutHarness,
) -> None:
    """Other tasks have turns between the first renderings of many views."""
    turns = 0
    begun: dict[View, int] = {}
    is_ready = fanout.reader.is_ready

    def note(reading: Reading, view: View, now: int | None = None) -> bool:
        begun.setdefault(view, turns)
        return is_ready(reading, view, now)

    fanout.reader.is_ready = note  # type: ignore[method-assign]  # -- it notes when it is asked
    connections = [fanout.connect_v1(client=MODEST) for _ in range(8)]
    async with fanout.running():
        for number, connection in enumerate(connections):
            connection.subscribe(filter={"strategy": ["hybrid", f"s{number}"]}, interval=60)
        assert not begun
        while not all(connection.sent for connection in connections):
            await asyncio.sleep(0)
            turns += 1
    assert len(set(begun.values())) == len(connections)


async def test_a_greedy_client_gets_a_longer_interval(fanout: FanoutHarness) -> None:
    """The client is told its longer interval; shared views keep theirs."""
    greedy, modest = fanout.connect_v1(client=GREEDY), fanout.connect_v1(client=MODEST)
    async with fanout.running():
        greedy.subscribe(fields=FEW, interval=FAST)
        modest.subscribe(fields=["total_decisions"], interval=FAST)
        await fanout.settle()
        fanout.budget.charge(GREEDY, 0.35, fanout.timers.now())
        wait = fanout.budget.wait(GREEDY, fanout.timers.now())
        assert wait > 1
        for number in range(1, 4):
            fanout.commit()
            await fanout.go(FAST)
            assert modest.total() == number
        await fanout.go(wait)
        assert greedy.total() == 3
    told = [message["interval"] for message in greedy.messages() if "interval" in message]
    assert len(told) == 1
    assert told[0] >= wait - FAST
    assert not any("interval" in message for message in modest.messages())
    assert fanout.count("ticks_stretched") > 0


async def test_a_shared_view_is_served_as_long_as_one_client_may(fanout: FanoutHarness) -> None:
    """A client that used up its rendering time does not slow down views of others."""
    greedy, modest = fanout.connect_v1(client=GREEDY), fanout.connect_v1(client=MODEST)
    async with fanout.running():
        for connection in (greedy, modest):
            connection.subscribe(fields=FEW, interval=FAST)
        fanout.budget.charge(GREEDY, 1_000, fanout.timers.now())
        fanout.commit()
        await fanout.go(FAST)
    assert greedy.total() == modest.total() == 1


async def test_a_client_that_may_pay_ends_a_wait_when_it_comes(fanout: FanoutHarness) -> None:
    """A client with rendering time ends the wait of others that used up theirs."""
    greedy, modest = fanout.connect_v1(client=GREEDY), fanout.connect_v1(client=MODEST)
    async with fanout.running():
        greedy.subscribe(fields=FEW, interval=1)
        await fanout.settle()
        fanout.budget.charge(GREEDY, 1_000, fanout.timers.now())
        for number in range(1, 8):
            if number == 3:
                modest.subscribe(fields=FEW, interval=1)
            fanout.commit()
            await fanout.go(1)
            assert greedy.total() == (0 if number < 3 else number)
    assert modest.total() == 7


@pytest.mark.parametrize("interval", [FAST, 7, 60])
@pytest.mark.parametrize("wait", [2.0, 5_000.0])
async def test_a_stretched_stream_repeats_its_document(
    fanout: FanoutHarness, monkeypatch: pytest.MonkeyPatch, interval: float, wait: float
) -> None:
    """Without rendering time, the last document is sent again before the stream seems dead.

    It is not sent more often, however long the wait and the interval are.
    """
    connection = fanout.connect_v1(client=GREEDY)
    async with fanout.running():
        connection.subscribe(fields=FEW, interval=interval)
        await fanout.settle()
        monkeypatch.setattr(fanout.renders, "payer", lambda *_: (GREEDY, wait))
        fanout.commit()
        await fanout.go(3 * (ALIVE_SECONDS - SNAPSHOT_MARGIN) + 2 * MIN_INTERVAL)
    assert connection.types() == ["snapshot"] * 4
    assert {message["position"]["seq"] for message in connection.messages()} == {0}


async def test_clients_that_leave_while_they_wait_are_freed(fanout: FanoutHarness) -> None:
    """Clients that leave while they wait for rendering time leave nothing behind."""
    fanout.budget.charge(GREEDY, 1_000, fanout.timers.now())
    async with fanout.running():
        for _ in range(100):
            connection = fanout.connect_v1(client=GREEDY)
            connection.subscribe(fields=FEW, interval=60)
            await fanout.settle()
            connection.close()
        (request,) = fanout.renders._waiting.values()
        assert not request.done
        waits = fanout.connect_v1(client=MODEST)
        waits.subscribe(fields=FEW, interval=60)
        await fanout.settle()
        assert waits.types() == ["snapshot"]


async def test_a_first_message_without_rendering_time_is_an_error(fanout: FanoutHarness) -> None:
    """The subscription stays, and its snapshot comes when there is rendering time."""
    connection = fanout.connect_v1(client=GREEDY)
    others = [fanout.connect_v1(client=GREEDY) for _ in range(MAX_WAITING_PER_CLIENT)]
    for number, other in enumerate(others):
        other.subscribe(filter={"strategy": [f"s{number}"]}, interval=60)
    connection.subscribe(fields=FEW, interval=FAST)
    error = connection.replies[-1]
    assert (error["code"], error["id"], error["retryable"]) == ("unavailable", "main", True)
    async with fanout.running():
        await fanout.go(FAST)
    assert connection.types() == ["snapshot"]


async def test_a_view_that_was_made_ready_keeps_its_interval(fanout: FanoutHarness) -> None:
    """After a late tick with a slow rendering, ticks come at the interval again."""
    connection = fanout.connect_v1(client=MODEST)
    async with fanout.running():
        connection.subscribe(fields=FEW, interval=FAST)
        fanout.commit(*({"strategy": f"s{number}"} for number in range(MANY)))
        await fanout.go(2 * FAST)
        assert connection.total() == MANY
        fanout.commit()
        await fanout.go(FAST)
        assert connection.total() == MANY + 1
