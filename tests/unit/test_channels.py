"""Channels: what changed goes once to all who were sent the same, and to nobody twice."""

import asyncio
import gc
import json
import random
import time
import weakref
from contextlib import suppress
from typing import Any

import pytest

from routecast.adapters.cache.memory import MemoryCache
from routecast.adapters.clock import SystemTimers
from routecast.adapters.store.sqlite import SqliteStore
from routecast.core import breakdown
from routecast.core.decision import MINUTE
from routecast.core.message import JSON, MSGPACK, AddressedMessage, Encoding, Message
from routecast.core.v1_session import V1Session
from routecast.core.versions import FRESH_MESSAGE, Stamps
from routecast.core.view import View, ViewSubscription
from routecast.errors import Unavailable
from routecast.ports import Reading, Timers
from routecast.protocol import CloseCode, Source
from routecast.services import renders
from routecast.streaming import channels as module
from routecast.streaming.channels import Channel, Channels
from routecast.streaming.peers import V1Peer, V1Peers
from tests.support.clock import HeldClock, HeldTimers
from tests.support.decisions import NOW
from tests.support.fanout import FAST, FanoutHarness
from tests.support.running_services import running, until
from tests.support.v1 import merged

NO_HISTORY: Any = None


class Line:
    """A connection that takes what it is sent while it is `open` (`channels.V1Transport`)."""

    def __init__(
        self, channels: Channels, encoding: Encoding = JSON, client: str = "192.0.2.1"
    ) -> None:
        self.client = client
        self.open = True
        self.sent: list[tuple[Message, AddressedMessage]] = []
        self.replies: list[bytes] = []
        self.failed: CloseCode | None = None
        self.subscriber: V1Peer = V1Peers(channels, NO_HISTORY).open(
            V1Session(encoding, FAST), self
        )

    def send(self, message: Message, named: AddressedMessage) -> bool:
        if self.open:
            self.sent.append((message, named))
        return self.open

    @staticmethod
    def send_all(
        message: Message, named: AddressedMessage, cohort: module.Cohort
    ) -> list[module.V1Transport]:
        return [line for line in cohort.members if not line.send(message, named)]

    def reply(self, data: bytes) -> None:
        self.replies.append(data)

    def fail(self, code: CloseCode) -> None:
        self.failed = code

    def ask(self, **message: Any) -> None:
        self.subscriber.receive(json.dumps(message))

    def subscribe(self, identity: str = "main", **asked: Any) -> None:
        self.ask(type="subscribe", id=identity, **asked)

    def drain(self) -> None:
        self.open = True
        self.subscriber.catch_up()

    def messages(self, identity: str = "main") -> list[dict[str, Any]]:
        """Return what was sent under an id; each delta must lead from what was held."""
        sent = [json.loads(named.body) for _, named in self.sent if named.identity == identity]
        seq, document = None, {}
        for message in sent:
            if message["type"] == "delta":
                assert message["base"] == seq
            if message["type"] != "error":
                before = document if message["type"] == "delta" else {}
                document = merged(before, message["data"])
                seq = message["position"]["seq"]
        return sent

    def total(self, identity: str = "main") -> int:
        """Return the count of decisions it knows of."""
        document: dict[str, Any] = {}
        for message in self.messages(identity):
            before = document if message["type"] == "delta" else {}
            document = merged(before, message.get("data", {}))
        return int(document.get("total_decisions", -1))


class Sources:
    """A hall's live state, which can fail, be stale, or be gone altogether."""

    def __init__(self, hall: FanoutHarness) -> None:
        self.hall = hall
        self.source: Source | None = Source.LIVE

    def reading_now(self) -> Reading | None:
        return self._reading() if self.source is Source.LIVE else None

    async def read(self) -> Reading:
        await asyncio.sleep(0)
        if self.source is None:
            raise Unavailable("nothing")
        return self._reading()

    def _reading(self) -> Reading:
        assert self.source is not None
        return Reading(self.hall.snapshot, self.source, NOW)

    def covering(self, reading: Reading, view: View) -> Reading | None:
        return reading

    def lacks(self, view: View) -> bool:
        return False

    def is_ready(self, *asked: Any) -> bool:
        return self.hall.latest.is_ready(*asked)

    def stamps(self, *asked: Any) -> Stamps:
        return self.hall.latest.stamps(*asked)

    def document(self, *asked: Any) -> Any:
        return self.hall.latest.document(*asked)


@pytest.fixture
def hall(store: SqliteStore, cache: MemoryCache, clock: HeldClock) -> FanoutHarness:
    """A live snapshot, to which commits are made by hand."""
    return FanoutHarness(store, cache, clock)


@pytest.fixture
def sources(hall: FanoutHarness) -> Sources:
    """The hall's state, live."""
    return Sources(hall)


@pytest.fixture
def channels(hall: FanoutHarness, sources: Sources, clock: HeldClock) -> Channels:
    """Nobody follows anything yet."""
    return channels_of(hall, sources, clock, SystemTimers())


def channels_of(
    hall: FanoutHarness, sources: Sources, clock: HeldClock, timers: Timers
) -> Channels:
    """Return channels that are told of the hall's commits."""
    channels = Channels(sources, hall.renders, clock, timers, hall.instruments)
    hall.advanced = channels.push
    return channels


def counts(line: Line, identity: str = "main") -> list[str]:
    return [message["type"] for message in line.messages(identity)]


async def test_members_of_a_view_share_all_work(hall: FanoutHarness, channels: Channels) -> None:
    """One rendering, and one message of the very same bytes; of each encoding."""
    lines = [Line(channels) for _ in range(600)]
    for line in lines:
        line.subscribe(interval=FAST)
    assert hall.count("renders") == 1
    assert len({id(line.sent[0][0]) for line in lines}) == 1
    packing = Line(channels, MSGPACK)
    packing.subscriber.receive(MSGPACK.encode({"type": "subscribe", "id": "x", "interval": FAST}))
    async with running(channels.run()):
        for number in range(1, 4):
            hall.commit()
            count = number + 1
            await until(lambda: all(len(line.sent) == count for line in lines))  # noqa: B023  # -- awaited in its own turn
    assert hall.count("renders") == 4
    for place in range(4):
        assert len({id(line.sent[place][0]) for line in lines}) == 1
    assert len(packing.sent) == 4
    assert counts(lines[0]) == ["snapshot"] + ["delta"] * 3


async def test_a_channel_goes_with_its_last_member(channels: Channels) -> None:
    """At once, not at its next tick, which may be a minute away."""
    line = Line(channels)
    line.subscribe(interval=59)
    assert len(channels_every(59)) == 1
    line.ask(type="unsubscribe", id="main")
    assert not channels_every(59)


def channels_every(interval: float) -> list[Channel]:
    gc.collect()
    found = [one for one in gc.get_objects() if isinstance(one, Channel)]
    return [channel for channel in found if channel.subscription.interval == interval]


async def test_messages_go_with_the_last_member(hall: FanoutHarness, channels: Channels) -> None:
    """Versions stay: who comes back gets what changed from where it was."""
    one, other, again = (Line(channels) for _ in range(3))
    for line in (one, other):
        line.subscribe()
    assert other.sent[0][0] is one.sent[0][0]
    one.ask(type="unsubscribe", id="main")
    again.subscribe()
    assert again.sent[0][0] is one.sent[0][0]
    for line in (again, other):
        line.subscriber.close()
    late = Line(channels)
    late.subscribe()
    assert late.sent[0][0] is not one.sent[0][0]
    late.subscriber.close()
    hall.commit()
    back = Line(channels)
    back.subscribe(position={"epoch": "e", "seq": 0})
    (delta,) = (json.loads(named.body) for _, named in back.sent)
    assert (delta["type"], delta["base"], delta["data"]["total_decisions"]) == ("delta", 0, 1)


# -- when a channel is served -------------------------------------------------------------------

# At a multiple of all intervals here.
START = 1_000.0


@pytest.fixture
def timers() -> HeldTimers:
    """The time at which channels are served, as a test sets it."""
    return HeldTimers(START)


@pytest.fixture
def held(hall: FanoutHarness, sources: Sources, clock: HeldClock, timers: HeldTimers) -> Channels:
    """Channels whose timers go by a clock that the test moves."""
    return channels_of(hall, sources, clock, timers)


async def all_served(channels: Channels) -> None:
    """Return when all that was rung was served, and the service waits for the next."""
    for _ in range(20):
        await asyncio.sleep(0)
    await until(lambda: not channels._wake.is_set())


async def test_a_change_is_sent_as_soon_as_it_is_committed(
    hall: FanoutHarness, held: Channels, timers: HeldTimers
) -> None:
    """Unless a message was sent within the last interval; then when that is over."""
    line = Line(held)
    async with running(held.run()):
        line.subscribe(interval=1)
        steps = [(0.9, 1, 0), (1.0, 0, 1), (1.3, 1, 1), (1.9, 0, 1), (2.0, 0, 2)]
        # Nothing was sent for longer than an interval.
        steps += [(3.7, 0, 2), (3.8, 1, 3), (3.9, 1, 3), (4.7, 0, 3), (4.8, 0, 4)]
        for moment, commits, total in steps:
            timers.go_to(START + moment)
            for _ in range(commits):
                hall.commit()
            await all_served(held)
            assert line.total() == total, moment


async def test_commits_of_one_turn_are_one_message(
    hall: FanoutHarness, held: Channels, timers: HeldTimers
) -> None:
    """They are merged, and so are those that come while a channel rests."""
    line = Line(held)
    async with running(held.run()):
        line.subscribe(interval=1)
        timers.go_to(START + 1)
        await all_served(held)
        for _ in range(5):
            hall.commit()
        await all_served(held)
        assert [message.get("base") for message in line.messages()] == [None, 0]
        assert line.total() == 5
        for _ in range(5):
            hall.commit()
            await all_served(held)
        assert len(line.sent) == 2
        timers.go_to(START + 2)
        await all_served(held)
    assert [message.get("base") for message in line.messages()] == [None, 0, 5]
    assert line.total() == 10


async def test_views_that_are_pushed_together_rest_together(
    hall: FanoutHarness, held: Channels, timers: HeldTimers
) -> None:
    """So that many channels go on to cost one turn, not one each."""
    lines = [Line(held) for _ in range(4)]
    async with running(held.run()):
        for number, line in enumerate(lines):
            line.subscribe(interval=1 + number % 2)
            timers.go_to(timers.moment + 0.03)
        timers.go_to(START + 3.7)
        await all_served(held)
        for _ in range(2):
            hall.commit()
            await all_served(held)
            assert {line.total() for line in lines} == {1}
        assert timers.pending() == pytest.approx([START + 4.7, START + 5.7])


async def test_what_moves_with_the_clock_is_sent_at_multiples_of_the_interval(
    hall: FanoutHarness, held: Channels, timers: HeldTimers, clock: HeldClock
) -> None:
    """Not after each commit anew, nor sooner than an interval after a change was pushed."""
    line = Line(held)
    began = clock.moment + 10_000_000  # what is of the minute before counts for less and less
    times = []
    async with running(held.run()), running(hall.renders.run()):
        for _ in range(200):
            hall.commit()
        clock.moment = began
        timers.go_to(START + 0.3)
        line.subscribe(interval=1, fields=["rate"])
        await until(lambda: line.sent)
        for tenth in range(4, 60):
            timers.go_to(START + tenth / 10)
            clock.moment = began + tenth * 100_000
            if tenth == 35:
                hall.commit()
            seen = len(line.sent)
            await all_served(held)
            times += [tenth / 10] * (len(line.sent) - seen)
    assert times == [2.0, 3.0, 4.0, 5.0]


async def test_a_commit_that_changes_nothing_of_a_view_delays_none_that_does(
    hall: FanoutHarness, held: Channels, timers: HeldTimers
) -> None:
    """A look in vain is no message: the view rests for a small part of its interval only."""
    line = Line(held)
    async with running(held.run()), running(hall.renders.run()):
        line.subscribe(interval=10, filter={"strategy": ["other"]})
        await until(lambda: line.sent)
        timers.go_to(START + 11)
        await all_served(held)
        renders = hall.count("renders")
        for _ in range(3):
            hall.commit()
            await all_served(held)
        assert hall.count("renders") == renders
        assert timers.pending()[0] == pytest.approx(START + 11 + module.LONGEST_BRIEF_REST)
        hall.commit(strategy="other")
        timers.go_to(timers.pending()[0])
        await all_served(held)
        assert line.total() == 1


async def test_commits_that_change_nothing_of_a_view_leave_bases_where_they_are(
    hall: FanoutHarness, held: Channels, timers: HeldTimers
) -> None:
    """However many there are: no version is forgotten for them, and no document sent again."""
    held._versions._max_bytes = 20_000
    line = Line(held)
    async with running(held.run()), running(hall.renders.run()):
        line.subscribe(interval=1, filter={"strategy": ["other"]})
        await until(lambda: line.sent)
        for number in range(60):
            timers.go_to(START + 1.5 + number * 0.051)
            hall.commit()
            await all_served(held)
        assert len(line.sent) == 1
        hall.commit(strategy="other")
        timers.go_to(START + 6)
        await all_served(held)
    assert [message.get("base") for message in line.messages()] == [None, 0]
    assert line.total() == 1


@pytest.mark.parametrize("told", [True, False], ids=["sent something", "looked in vain"])
async def test_a_commit_while_its_channel_is_served_is_not_missed(
    hall: FanoutHarness,
    held: Channels,
    timers: HeldTimers,
    monkeypatch: pytest.MonkeyPatch,
    told: bool,
) -> None:
    """However long that takes: it is looked at once that is over, or the rest after it."""
    line = Line(held)
    lead = held._leading

    def take_long(*given: Any) -> Message | None:
        monkeypatch.setattr(held, "_leading", lead)
        timers.moment += 0.12
        hall.commit(strategy="other")
        return lead(*given)

    async with running(held.run()), running(hall.renders.run()):
        line.subscribe(interval=0.1, filter={"strategy": ["other"]})
        await until(lambda: line.sent)
        timers.go_to(START + 0.15)
        await all_served(held)
        monkeypatch.setattr(held, "_leading", take_long)
        hall.commit(strategy="other" if told else "hybrid")
        await all_served(held)
        while timers.pending()[0] <= START + 0.4:
            timers.go_to(timers.pending()[0])
            await all_served(held)
        assert line.total() == 1 + told


async def test_an_interval_is_told_only_where_it_is_longer(
    hall: FanoutHarness, held: Channels, timers: HeldTimers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not where a view that took some steps to render came late, yet within its interval."""
    line = Line(held)
    async with running(held.run()), running(hall.renders.run()):
        line.subscribe(interval=1, fields=["total_decisions", "cost"])
        await until(lambda: line.sent)
        timers.go_to(START + 2)
        await all_served(held)
        monkeypatch.setattr(breakdown, "CELLS_PER_STEP", 1)
        timers.go_to(START + 2.02)
        for _ in range(6):
            hall.commit()
        await until(lambda: line.total() == 6)
    assert not any("interval" in message for message in line.messages())


async def test_two_messages_are_an_interval_apart_however_late_the_first_is(
    hall: FanoutHarness, held: Channels, timers: HeldTimers
) -> None:
    """But for a tenth of the interval, so that a server that is a little late keeps its pace."""
    line = Line(held)
    async with running(held.run()):
        line.subscribe(interval=1)
        timers.go_to(START + 1)
        await all_served(held)
        for late, next_ in [(2.9, 3.9), (3.95, 4.9)]:
            hall.commit()
            timers.go_to(START + late)
            await all_served(held)
            assert line.total() == hall.snapshot.position.seq
            hall.commit()
            timers.go_to(START + next_ - 0.01)
            await all_served(held)
            assert line.total() == hall.snapshot.position.seq - 1


async def test_a_first_message_that_is_waited_for_begins_the_interval(
    hall: FanoutHarness, held: Channels, timers: HeldTimers
) -> None:
    """Not the subscription, which may have come long before."""
    line = Line(held)
    async with running(held.run()):
        line.subscribe(interval=1, fields=["total_decisions", "cost"])
        timers.go_to(START + 5)
        await all_served(held)
        async with running(hall.renders.run()):
            await until(lambda: line.sent)
            hall.commit()
            await all_served(held)
            assert len(line.sent) == 1
            timers.go_to(START + 6)
            await all_served(held)
            assert line.total() == 1


async def test_a_channel_that_ends_while_its_numbers_are_read_is_forgotten(
    held: Channels, sources: Sources, timers: HeldTimers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing holds it, and it is not served again."""
    reading = asyncio.Event()
    read = sources.read

    async def read_long() -> Reading:
        await reading.wait()
        return await read()

    monkeypatch.setattr(sources, "read", read_long)
    line = Line(held)
    async with running(held.run()):
        line.subscribe(interval=5)
        timers.go_to(START + 6)
        await all_served(held)
        sources.source = Source.CACHE
        held.push()
        for _ in range(5):
            await asyncio.sleep(0)
        line.subscriber.close()
        reading.set()
        await all_served(held)
    assert not held._idle
    assert not held._due
    assert not timers.pending()


async def test_engines_are_asked_once_for_all_channels(
    hall: FanoutHarness, held: Channels, sources: Sources, timers: HeldTimers
) -> None:
    """Where live state cannot answer: they may take a second each time."""
    lines = [Line(held) for _ in range(10)]
    asked = 0
    read = sources.read

    async def count() -> Reading:
        nonlocal asked
        asked += 1
        return await read()

    sources.read = count  # type: ignore[method-assign]  # -- it counts
    async with running(held.run()):
        for number, line in enumerate(lines):
            line.subscribe(interval=1 + number / 20)
        sources.source = Source.CACHE
        timers.go_to(START + 3.3)
        await all_served(held)
    assert asked == 1


async def test_those_that_a_crash_left_out_are_served_after_it(
    hall: FanoutHarness, held: Channels, timers: HeldTimers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And those that were served before it are not served again within their interval."""
    monkeypatch.setattr(module, "MEMBERS_PER_TURN", 1)
    lines = [Line(held) for _ in range(3)]
    lead, tries = held._leading, 0

    def crash_second(*given: Any) -> Message | None:
        nonlocal tries
        tries += 1
        if tries == 2:
            raise ZeroDivisionError
        return lead(*given)

    async def run() -> None:
        with suppress(ZeroDivisionError):
            await held.run()
        await held.run()

    async with running(run()):
        for line in lines:
            line.subscribe(interval=1)
        timers.go_to(START + 1.5)
        await all_served(held)
        monkeypatch.setattr(held, "_leading", crash_second)
        hall.commit()
        await all_served(held)
        assert [line.total() for line in lines] == [1, 1, 1]
        assert {len(line.sent) for line in lines} == {2}


async def test_a_minute_that_ends_meanwhile_makes_no_error(
    hall: FanoutHarness,
    held: Channels,
    timers: HeldTimers,
    clock: HeldClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A document is made of the moment that it was made ready for."""
    monkeypatch.setattr(breakdown, "CELLS_PER_STEP", 1)
    line = Line(held)
    end = (NOW // MINUTE + 1) * MINUTE
    ready = hall.latest.is_ready

    def end_the_minute(*asked: Any) -> bool:
        done = ready(*asked)
        clock.moment = end + 1
        return done

    async with running(held.run()), running(hall.renders.run()):
        for number in range(8):
            hall.commit(strategy=f"s{number}")
        clock.moment = end - 1
        line.subscribe(interval=1, fields=["total_decisions", "cost"], window="1h")
        await until(lambda: line.sent)
        timers.go_to(START + 1.5)
        await all_served(held)
        monkeypatch.setattr(hall.latest, "is_ready", end_the_minute)
        hall.commit()
        for moment in (2, 3, 4, 5):
            timers.go_to(START + moment)
            await all_served(held)
    assert "error" not in counts(line)
    assert line.total() == 9


async def test_late_tick_is_merged_with_the_next(
    hall: FanoutHarness, held: Channels, timers: HeldTimers
) -> None:
    """After a hold-up there is one message, and the ticks that were missed are counted."""
    line = Line(held)
    async with running(held.run()):
        line.subscribe(interval=1)
        timers.go_to(START + 1)
        await all_served(held)
        for _ in range(2):
            hall.commit()
        timers.go_to(START + 5.5)
        await all_served(held)
    assert (line.total(), len(line.sent)) == (2, 2)
    assert hall.count("ticks_merged") == 3


@pytest.mark.parametrize("interval", [0.1, 0.2, 0.3, 0.7, 1.1, 2.5, 7.3])
def test_tick_on_time_is_merged_with_none(interval: float) -> None:
    """However products and quotients of floating point are rounded; nor does one come twice."""
    start = 1_000_003.3
    channel = Channel(ViewSubscription(View(), interval), start)
    channel.rest(start)
    for count in range(1000):
        channel.whole = tick = channel.tick
        now = tick + (0.0005 if count % 3 else -1e-9)
        assert channel.is_tick(now)
        moment = channel.moment(now)
        assert channel.pass_tick(now) == 0
        assert channel.tick == pytest.approx(tick + interval)
        if count % 2:
            channel.rest(moment)
            assert channel.tick == pytest.approx(tick + interval)
            assert channel.due(now) == pytest.approx(channel.tick)
    assert channel.pass_tick(channel.tick + 3.5 * interval) == 3


async def test_who_was_full_gets_one_delta_from_what_it_has(
    hall: FanoutHarness, channels: Channels
) -> None:
    """However many ticks it missed; the others miss nothing."""
    slow, quick = Line(channels), Line(channels)
    for line in (slow, quick):
        line.subscribe(interval=FAST)
    slow.open = False
    async with running(channels.run()):
        for number in range(1, 5):
            hall.commit()
            await until(lambda: quick.total() == number)  # noqa: B023  # -- awaited in its own turn
        assert len(slow.sent) == 1
        slow.drain()
        assert slow.total() == 4
        assert [m["position"]["seq"] - m["base"] for m in slow.messages()[1:]] == [4]
        hall.commit()
        await until(lambda: slow.total() == quick.total() == 5)
    assert hall.count("frames_conflated") == 4


async def test_those_who_fell_behind_come_into_step_again(
    hall: FanoutHarness, channels: Channels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever was full, left or came: all hold the newest, and nobody who left is kept."""
    monkeypatch.setattr(module, "MEMBERS_PER_TURN", 4)
    rng = random.Random(1)
    lines = [Line(channels) for _ in range(20)]
    for line in lines:
        line.subscribe(interval=FAST)
    steady = lines[0]
    async with running(channels.run()):
        for number in range(1, 40):
            for line in rng.sample(lines[1:], 4):
                line.open = False
            gone = lines.pop(rng.randrange(1, len(lines)))
            gone.subscriber.close()
            lines.append(Line(channels))
            lines[-1].subscribe(interval=FAST)
            hall.commit()
            await until(lambda: steady.total() == number)  # noqa: B023  # -- awaited in its own turn
            for line in rng.sample(lines[1:], 8):
                line.drain()
        for line in lines[1:]:
            line.drain()
        hall.commit()
        await until(lambda: all(line.total() == 40 for line in lines))
    (channel,) = channels._channels.values()
    members = [member for cohort in channel.cohorts for member in cohort.members.values()]
    assert len(members) == len({member.line for member in members}) == len(lines)
    assert len({cohort.base for cohort in channel.cohorts}) == 1
    assert all(not cohort.full for cohort in channel._open.values())
    assert len(channel._open) <= 1
    for line in lines:
        line.subscriber.close()
    assert not channel.cohorts
    assert not channel._open


async def test_nobody_starves_on_a_narrow_line(hall: FanoutHarness, channels: Channels) -> None:
    """Where there is room for one message at a time, each subscription has its turn."""
    line = Line(channels)
    for identity in "abc":
        line.subscribe(identity, interval=FAST, fields=["total_decisions"])
    taken = line.send

    def narrow(message: Message, named: AddressedMessage) -> bool:
        sent = taken(message, named)
        line.open = False
        return sent

    line.open = False
    line.send = narrow  # type: ignore[method-assign]  # -- from now on it is narrow
    async with running(channels.run()):
        for number in range(1, 7):
            conflated = hall.count("frames_conflated")
            hall.commit()
            await until(lambda: hall.count("frames_conflated") >= conflated + 3)  # noqa: B023  # -- awaited in its own turn
            line.drain()
            assert line.total("abc"[(number - 1) % 3]) == number


async def test_nobody_is_always_first(
    hall: FanoutHarness, channels: Channels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tick begins with any of those who are in step."""
    monkeypatch.setattr(module, "MEMBERS_PER_TURN", 1)
    firsts: dict[Message, Line] = {}

    class Noted(Line):
        def send(self, message: Message, named: AddressedMessage) -> bool:
            firsts.setdefault(message, self)
            return super().send(message, named)

    lines = [Noted(channels) for _ in range(3)]
    for line in lines:
        line.subscribe(interval=FAST)
    async with running(channels.run()):
        while len(set(firsts.values())) < len(lines):
            seen = lines[-1].total()
            hall.commit()
            await until(lambda: all(line.total() > seen for line in lines))  # noqa: B023  -- awaited in its own turn
    assert set(firsts.values()) == set(lines)


async def test_nothing_is_sent_twice(hall: FanoutHarness, channels: Channels) -> None:
    """To those who came between two ticks, or drained when nothing was new."""
    one, other = Line(channels), Line(channels)
    async with running(channels.run()):
        one.subscribe(interval=FAST)
        hall.commit()
        other.subscribe(interval=FAST)
        await until(lambda: one.total() == 1)
        one.subscriber.catch_up()
        other.subscriber.catch_up()
        hall.commit()
        await until(lambda: other.total() == 2)
    assert counts(one) == ["snapshot", "delta", "delta"]
    assert counts(other) == ["snapshot", "delta"]


async def test_a_change_of_source_is_told(
    hall: FanoutHarness, sources: Sources, channels: Channels, clock: HeldClock
) -> None:
    """With how old the numbers are, though they are the same; and so is its end."""
    line = Line(channels)
    line.subscribe(interval=FAST)
    async with running(channels.run()):
        sources.source = Source.STALE
        clock.moment = NOW + 3_000_000
        await until(lambda: len(line.sent) == 2)
        told = line.messages()[1]
        assert (told["type"], told["source"], told["data"]) == ("delta", "stale", {})
        assert told["age_ms"] == 3_000
        sources.source = Source.LIVE
        await until(lambda: len(line.sent) == 3)
        assert line.messages()[2]["source"] == "live"


async def test_when_nothing_can_answer(
    hall: FanoutHarness, sources: Sources, channels: Channels
) -> None:
    """An error once, that may pass; and a snapshot as soon as it has."""
    line, late = Line(channels), Line(channels)
    line.subscribe(interval=FAST)
    async with running(channels.run()):
        sources.source = None
        await until(lambda: len(line.sent) == 2)
        assert line.messages()[1]["code"] == "unavailable"
        assert line.messages()[1]["retryable"] is True
        late.subscribe(interval=FAST)
        await until(lambda: len(late.sent) == 1)
        assert late.messages()[0]["code"] == "unavailable"
        sources.source = Source.DATABASE
        await until(lambda: line.total() == late.total() == 0)
    assert counts(line) == ["snapshot", "error", "snapshot"]
    assert counts(late) == ["error", "snapshot"]


async def test_a_crowd_asks_the_engines_once(
    hall: FanoutHarness, sources: Sources, channels: Channels
) -> None:
    """When live state cannot answer, for all who came meanwhile."""
    sources.source = Source.CACHE
    lines = [Line(channels) for _ in range(300)]
    for line in lines:
        line.subscribe(interval=60)
        assert not line.sent
    lines[0].ask(type="unsubscribe", id="main")
    async with running(channels.run()):
        await until(lambda: lines[-1].total() == 0)
    assert not lines[0].sent
    assert hall.count("renders") == 1


async def test_a_quiet_channel_shows_life(
    hall: FanoutHarness, channels: Channels, clock: HeldClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole snapshot with a new timestamp to all in time, whatever the interval."""
    monkeypatch.setattr(module, "ALIVE_SECONDS", 2.0)
    monkeypatch.setattr(module, "MARGIN", 1.0)
    lines = {interval: Line(channels) for interval in (FAST, 0.3, 60)}
    started = time.monotonic()
    async with running(channels.run()):
        for interval, line in lines.items():
            line.subscribe(interval=interval)
        for number in range(1, 3):
            clock.moment = NOW + number * 10 * FRESH_MESSAGE
            await until(lambda: all(len(line.sent) > number for line in lines.values()))  # noqa: B023  # -- awaited in its own turn
            assert time.monotonic() - started < 2.0 * number
    for line in lines.values():
        assert set(counts(line)) == {"snapshot"}
        stamps = [message["timestamp"] for message in line.messages()]
        assert stamps == sorted(set(stamps))
        assert len(stamps) <= 4


async def test_who_leaves_is_forgotten(hall: FanoutHarness, channels: Channels) -> None:
    """Nothing more is sent, and nothing holds it; its channel goes with the last."""
    gone, stays = Line(channels), Line(channels)
    for line in (gone, stays):
        line.subscribe(interval=FAST)
        line.subscribe("hour", interval=FAST, window="1h")
    async with running(channels.run()), running(hall.renders.run()):
        await until(lambda: len(stays.sent) == 2)
        gone.subscriber.close()
        gone.subscriber.close()
        stays.ask(type="unsubscribe", id="hour")
        hall.commit()
        await until(lambda: stays.total() == 1)
        assert len(gone.sent) == 2
        assert counts(stays, "hour") == ["snapshot"]
        trace = weakref.ref(gone)
        del gone, line
        gc.collect()
        assert trace() is None
        stays.subscriber.close()
        await until(lambda: not channels._channels)
        stays.subscribe("again", interval=FAST)
        hall.commit()
        await until(lambda: stays.total("again") == 2)


# -- rendering time -----------------------------------------------------------------------------

GREEDY, MODEST = "192.0.2.1", "192.0.2.2"
FEW = ["total_decisions", "cost"]


async def settled(hall: FanoutHarness, channels: Channels, *lines: Line) -> None:
    """Return when all lines have their first message, and nothing waits to be rendered."""
    await until(
        lambda: (
            all(line.sent for line in lines) and not channels._waiting and not hall.renders._waiting
        )
    )


async def test_newcomer_shares_a_document_that_is_still_true(
    hall: FanoutHarness, channels: Channels, clock: HeldClock
) -> None:
    """However old it is: nothing is rendered for it, so nothing has to be waited for."""
    first, second = Line(channels, client=MODEST), Line(channels, client=GREEDY)
    async with running(channels.run()), running(hall.renders.run()):
        first.subscribe(fields=FEW, interval=60)
        await settled(hall, channels, first)
    clock.moment += 1_000 * module.FRESH_MESSAGE
    second.subscribe(fields=FEW, interval=60)
    assert counts(second) == ["snapshot"]


async def test_first_documents_of_many_views_are_made_one_at_a_time(
    hall: FanoutHarness, channels: Channels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many are asked for in one turn of the event loop, others have turns between them."""
    turns = [0]
    begun: dict[View, int] = {}
    is_ready = hall.latest.is_ready

    def note(reading: Reading, view: View, now: int | None = None) -> bool:
        begun.setdefault(view, turns[0])
        return is_ready(reading, view, now)

    async def count_turns() -> None:
        while True:
            await asyncio.sleep(0)
            turns[0] += 1

    monkeypatch.setattr(hall.latest, "is_ready", note)
    lines = [Line(channels, client=MODEST) for _ in range(8)]
    async with running(channels.run()), running(hall.renders.run()), running(count_turns()):
        for number, line in enumerate(lines):
            line.subscribe(filter={"strategy": ["hybrid", f"s{number}"]}, interval=60)
        assert not begun
        await until(lambda: all(line.sent for line in lines))
    assert len(begun) == len(lines)
    assert len(set(begun.values())) >= len(lines) - 1  # turns are counted from after the first one


async def test_a_greedy_client_gets_a_longer_interval(
    hall: FanoutHarness, channels: Channels
) -> None:
    """And is told which; what others follow keeps its interval."""
    greedy, modest = Line(channels, client=GREEDY), Line(channels, client=MODEST)
    greedy.subscribe(fields=FEW, interval=FAST)
    modest.subscribe(fields=["total_decisions"], interval=FAST)
    async with running(channels.run()), running(hall.renders.run()):
        await settled(hall, channels, greedy, modest)
        hall.budget.charge(GREEDY, 0.35, time.monotonic())
        wait = hall.budget.wait(GREEDY, time.monotonic())
        assert wait > 0.3
        for number in range(1, 4):
            hall.commit()
            await until(lambda: modest.total() == number)  # noqa: B023  # -- awaited in its own turn
        await until(lambda: greedy.total() == 3)
    told = [message["interval"] for message in greedy.messages() if "interval" in message]
    assert len(told) == 1
    assert told[0] >= wait - FAST
    assert not any("interval" in message for message in modest.messages())
    assert hall.count("ticks_stretched") > 0


async def test_who_shares_a_view_is_served_as_long_as_one_may(
    hall: FanoutHarness, channels: Channels
) -> None:
    """A client that used up its time does not slow down what others follow, too."""
    greedy, modest = Line(channels, client=GREEDY), Line(channels, client=MODEST)
    for line in (greedy, modest):
        line.subscribe(fields=FEW, interval=FAST)
    hall.budget.charge(GREEDY, 1_000, time.monotonic())
    async with running(channels.run()), running(hall.renders.run()):
        hall.commit()
        await until(lambda: greedy.total() == modest.total() == 1)


async def test_a_stretched_stream_shows_life(
    hall: FanoutHarness, channels: Channels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing may be rendered, the last document comes once more before it is too late."""
    monkeypatch.setattr(module, "ALIVE_SECONDS", module.MARGIN + 2 * FAST)
    line = Line(channels, client=GREEDY)
    line.subscribe(fields=FEW, interval=FAST)
    async with running(channels.run()), running(hall.renders.run()):
        await settled(hall, channels, line)
        hall.budget.charge(GREEDY, 1_000, time.monotonic())
        hall.commit()
        await until(lambda: len(line.sent) >= 3)
    assert counts(line) == ["snapshot"] * len(line.sent)
    assert {message["position"]["seq"] for message in line.messages()} == {0}


async def test_a_first_message_that_cannot_be_made_is_told(
    hall: FanoutHarness, channels: Channels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The subscription stays, and its snapshot comes when there is time for it."""
    monkeypatch.setattr(renders, "MAX_WAITING_PER_CLIENT", 0)
    hall.budget.charge(GREEDY, 0.35, time.monotonic())
    line = Line(channels, client=GREEDY)
    line.subscribe(fields=FEW, interval=FAST)
    error = json.loads(line.replies[-1])
    assert (error["code"], error["id"], error["retryable"]) == ("unavailable", "main", True)
    async with running(channels.run()), running(hall.renders.run()):
        await until(lambda: counts(line) == ["snapshot"])


async def test_a_view_that_was_made_ready_keeps_its_interval(
    hall: FanoutHarness, channels: Channels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tick whose document takes long is late; those after it come at the interval again."""
    monkeypatch.setattr(breakdown, "CELLS_PER_STEP", 1)
    line = Line(channels, client=MODEST)
    line.subscribe(fields=FEW, interval=FAST)
    async with running(channels.run()), running(hall.renders.run()):
        for _ in range(2 * breakdown.STEPS_AT_ONCE):  # more than one tick can come into step with
            hall.commit()
        await until(lambda: line.total() == 2 * breakdown.STEPS_AT_ONCE)
        started = time.monotonic()
        hall.commit()
        await until(lambda: line.total() == 2 * breakdown.STEPS_AT_ONCE + 1)
        assert time.monotonic() - started < module.ALIVE_SECONDS / 2
