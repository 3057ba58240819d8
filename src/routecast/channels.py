"""Channels: who follows what over routecast.v1, and the ticks that send them what changed.

Members that follow the same view at the same interval are one channel, whose ticks fall on
multiples of the interval. At a tick the view is rendered, compared and encoded once for all who
were sent the same before. A member whose socket is full is skipped; when it has read, it gets one
message from what it was really sent to what is newest. So nothing queues (the policy is to merge).
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Any, Final, Protocol

from routecast.core.message import Encoding, Message, Named
from routecast.core.metrics import Document
from routecast.core.turns import in_turn
from routecast.core.versions import FRESH, State, Version, Versions, message
from routecast.core.view import Subscription, View
from routecast.errors import Unavailable
from routecast.instruments import Instruments
from routecast.ports import Clock, Reading
from routecast.protocol import ALIVE_SECONDS, CloseCode, Position

# So many members or more get their message before others get a turn on the event loop.
YIELD_EVERY: Final = 250
# A tick may be so much later than it should, in seconds, and the stream still shows in time that it
# lives.
MARGIN: Final = 1.0
# Of an interval: a multiple of it is a rounded product, and counts as reached a little before.
ROUNDED: Final = 1e-6


class Line(Protocol):
    """A connection that speaks routecast.v1, on whatever edge."""

    def send(self, message: Message, named: Named) -> bool:
        """Send a message as it is under a client's id; False when the socket is full.

        Then `subscribers.Subscriber.catch_up` is called once it has drained. Never blocks or
        raises.
        """
        ...

    @staticmethod
    def send_all(message: Message, named: Named, cohort: "Cohort") -> "list[Line]":
        """Send a message to those of a cohort of this kind; return those whose socket was full.

        It is `send` for each of them, with what is the same for all done once.
        """
        ...

    def reply(self, data: bytes) -> None:
        """Send a short answer, whatever the socket holds. There are as many as messages came."""
        ...

    def has_room(self) -> bool:
        """Whether all that was sent is out of the server's hands.

        If not, `subscribers.Subscriber.catch_up` is called once it is, or `close` at its end.
        """
        ...

    def fail(self, code: CloseCode) -> None:
        """Close because of the message that is being received; no further one counts."""
        ...


class Member:
    """One subscription of one client."""

    __slots__ = ("channel", "cohort", "encoding", "identity", "line")

    def __init__(self, line: Line, encoding: Encoding, identity: str) -> None:
        self.line = line
        self.encoding = encoding
        self.identity = identity
        # None before it has joined, and once it has left.
        self.channel: Channel | None = None
        self.cohort: Cohort | None = None

    @property
    def base(self) -> Version | None:
        """The version it was really sent."""
        return self.cohort.base if self.cohort is not None else None


class Cohort:
    """Members in step: they were sent the same version, and one message is right for all of them.

    There are no more than YIELD_EVERY, so nobody comes or leaves while they are served. As in a
    block (`core/groups.py`), `known` is what their kind knows of their lines, until one of them
    comes, leaves or changes; then it is None.
    """

    __slots__ = ("base", "encoding", "identity", "kind", "known", "members")

    def __init__(
        self, kind: type[Line], base: Version | None, encoding: Encoding, identity: str
    ) -> None:
        self.kind = kind
        self.base = base
        self.encoding = encoding
        self.identity = identity
        self.members: dict[Line, Member] = {}
        self.known: Any = None

    @property
    def key(self) -> "_Key":
        """What they have in common."""
        return self.kind, self.base, self.encoding, self.identity

    @property
    def full(self) -> bool:
        """Whether one more is to go elsewhere."""
        return len(self.members) >= YIELD_EVERY


_Key = tuple[type[Line], Version | None, Encoding, str]


class Channel:
    """Members that follow one view at one interval."""

    __slots__ = ("_open", "cohorts", "due", "subscription", "timer", "version", "whole")

    def __init__(self, subscription: Subscription, now: float) -> None:
        self.subscription = subscription
        self.version: Version | None = None  # of the last tick
        # When all members had a whole document, and when the next tick is, on the monotonic clock.
        self.whole = now
        self.due = now
        self.timer: asyncio.TimerHandle | None = None
        # A dict keeps their order, and forgets one of them in no time.
        self.cohorts: dict[Cohort, None] = {}
        self._open: dict[_Key, Cohort] = {}  # those with room for one more

    def place(self, member: Member, base: Version | None) -> None:
        """Put a member among those in step with it, now that `base` is what it was sent."""
        self.remove(member)
        key = type(member.line), base, member.encoding, member.identity
        cohort = self._open.get(key)
        # It may have gone on to another base since.
        if cohort is None or cohort.full or cohort.base is not base:
            cohort = self._open[key] = Cohort(*key)
            self.cohorts[cohort] = None
        cohort.members[member.line] = member
        cohort.known = None
        member.cohort = cohort

    def remove(self, member: Member) -> None:
        """Take a member out of its cohort, if it is in one."""
        cohort, member.cohort = member.cohort, None
        if cohort is None:
            return
        del cohort.members[member.line]
        cohort.known = None
        if not cohort.members:
            del self.cohorts[cohort]
            if self._open.get(cohort.key) is cohort:
                del self._open[cohort.key]

    def rally(self) -> None:
        """Note who has room, after cohorts have gone on to another base."""
        self._open = {cohort.key: cohort for cohort in self.cohorts if not cohort.full}

    def turn(self, now: float) -> int:
        """Set the next tick: at a multiple of the interval, or sooner to show life.

        Returns how many ticks are over that there was no time for.
        """
        last, ticks = self._ticks(self.due), self._ticks(max(now, self.due))  # timers may be early
        self.due = min((ticks + 1) * self.subscription.interval, self._patience)
        return ticks - last

    def must_show_life(self) -> bool:
        """Whether members would wait too long for a whole document if not sent one now."""
        return (self._ticks(self.due) + 1) * self.subscription.interval > self._patience

    def _ticks(self, now: float) -> int:
        """Return how many intervals the monotonic clock has had by then."""
        return int(now / self.subscription.interval + ROUNDED)

    @property
    def _patience(self) -> float:
        return self.whole + ALIVE_SECONDS - MARGIN


class Documents(Protocol):
    """Where documents come from (`latest.Latest`)."""

    def reading_now(self) -> Reading | None:
        """Return live state, None when that cannot answer."""
        ...

    async def read(self) -> Reading:
        """Return the newest state to be had. Raises Unavailable when there is none at all."""
        ...

    def document(self, reading: Reading, view: View, now: int) -> Document | None:
        """Return a view's document, None when it cannot be made."""
        ...


class Channels:
    """All channels, and the versions they send. Run `run` as a task."""

    def __init__(self, documents: Documents, clock: Clock, instruments: Instruments) -> None:
        self._documents = documents
        self._clock = clock
        self._instruments = instruments
        self._versions = Versions()
        self._channels: dict[Subscription, Channel] = {}
        self._due: list[Channel] = []
        self._waiting: list[Member] = []  # for their first message, from other than live state
        self._wake = asyncio.Event()

    def epoch(self) -> str | None:
        """Return the name of the database's history, None while it is not known."""
        reading = self._documents.reading_now()
        return reading.snapshot.position.epoch if reading else None

    def join(
        self, member: Member, subscription: Subscription, position: Position | None = None
    ) -> None:
        """Let a member follow, and send it its first message at once.

        `position` is where its client was before.
        """
        channel = self._channels.get(subscription)
        if channel is None:
            channel = self._channels[subscription] = Channel(subscription, time.monotonic())
            self._schedule(channel)
        member.channel = channel
        find = self._versions.find
        channel.place(member, None if position is None else find(subscription.view, position))
        reading = self._documents.reading_now()
        if reading is not None:
            self.send(member, self._version_now(subscription.view, reading))
        else:
            # However many come at once, the engines are asked once for all of them.
            self._waiting.append(member)
            self._wake.set()

    def leave(self, member: Member) -> None:
        """Send a member nothing more."""
        if (channel := member.channel) is not None:
            channel.remove(member)
            member.channel = None
            if not channel.cohorts:
                self._close(channel)

    def send(self, member: Member, version: Version) -> bool:
        """Send one member what leads to a version; False when its socket is full."""
        leading = message(version, member.base, member.encoding, self._clock.now())
        sent = leading is not None and member.line.send(leading, leading.under(member.identity))
        if sent and member.channel is not None:
            member.channel.place(member, version)
        self._count(leading, int(sent), int(not sent))
        return sent

    def catch_up(self, member: Member) -> bool:
        """Send a member whose socket has drained what it missed; False when it is full again."""
        if member.channel is None:
            return True
        newest = self._versions.newest(member.channel.subscription.view)
        if newest is None or not _is_news(newest, member.base):
            return True
        return self.send(member, newest)

    def bring_up(self, member: Member) -> None:
        """Send a member what is live now, before its next tick."""
        reading = self._documents.reading_now()
        if reading is not None and member.channel is not None:
            version = self._version(member.channel.subscription.view, reading)
            if _is_news(version, member.base):
                self.send(member, version)

    async def run(self) -> None:
        """Send what changed as ticks come. Never ends."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            due, self._due = self._due, []
            waiting, self._waiting = self._waiting, []
            due = [channel for channel in due if channel.cohorts]
            if not due and not waiting:
                continue
            started = time.monotonic()
            try:
                reading = await self._documents.read()
            except Unavailable:
                reading = None
            await self._welcome(waiting, reading)
            for channel in due:
                await self._tick(channel, self._version(channel.subscription.view, reading))
                if channel.cohorts:
                    self._schedule(channel)
            self._instruments.broadcast_seconds.observe(time.monotonic() - started)

    async def _welcome(self, waiting: Sequence[Member], reading: Reading | None) -> None:
        for number, member in enumerate(waiting, 1):
            if member.channel is not None:
                self.send(member, self._version(member.channel.subscription.view, reading))
            if not number % YIELD_EVERY:
                await asyncio.sleep(0)

    async def _tick(self, channel: Channel, version: Version) -> None:
        """Bring all members to a version, those with the same base by the same message."""
        whole = channel.must_show_life()
        if version is channel.version and not whole:
            return  # whoever was not sent it then asks for it when it can
        channel.version = version
        if whole:
            channel.whole = time.monotonic()
        served = YIELD_EVERY  # others get a turn between two channels, too
        for cohort in in_turn(channel.cohorts):
            if served >= YIELD_EVERY:
                await asyncio.sleep(0)
                served = 0
            served += len(cohort.members)
            self._serve(channel, cohort, version, whole)
        channel.rally()

    def _serve(self, channel: Channel, cohort: Cohort, version: Version, whole: bool) -> None:
        if not cohort.members:
            return  # they left while others were served
        base = cohort.base
        leading = self._leading(version, base, cohort.encoding, self._clock.now(), whole)
        if leading is None:
            return
        named = leading.under(cohort.identity)
        behind = cohort.kind.send_all(leading, named, cohort)
        self._count(leading, len(cohort.members) - len(behind), len(behind))
        cohort.base = version
        for line in behind:
            channel.place(cohort.members[line], base)

    def _leading(
        self, version: Version, base: Version | None, encoding: Encoding, now: int, whole: bool
    ) -> Message | None:
        if whole and (base is None or base.number <= version.number):
            return message(version, None, encoding, now)
        return message(version, base, encoding, now) if _is_news(version, base) else None

    # -- versions -------------------------------------------------------------------------------

    def _version_now(self, view: View, reading: Reading) -> Version:
        """Return a view's version for one who comes: where only time went on, a crowd shares it."""
        newest, position = self._versions.newest(view), reading.snapshot.position
        if newest is not None and newest.state is not None:
            age = self._clock.now() - newest.made
            if 0 <= age < FRESH and newest.state.is_of(position, reading.source):
                return newest
        return self._version(view, reading)

    def _version(self, view: View, reading: Reading | None) -> Version:
        """Return a view's version in the newest state, made anew only where that may differ."""
        now, newest = self._clock.now(), self._versions.newest(view)
        document = state = None
        if reading is not None:
            state = State(
                reading.snapshot.position, view.moment(now), reading.source, reading.as_of
            )
            if newest is not None and newest.confirm(state):
                return newest
            document = self._documents.document(reading, view, now)
        if document is None:
            if newest is not None and newest.state is None:
                return newest
            state = None
        return self._versions.add(view, now, state, document)

    # -- ticks ----------------------------------------------------------------------------------

    def _schedule(self, channel: Channel) -> None:
        now = time.monotonic()
        self._instruments.ticks_merged.inc(channel.turn(now))
        loop = asyncio.get_running_loop()
        channel.timer = loop.call_later(channel.due - now, self._ring, channel)

    def _ring(self, channel: Channel) -> None:
        self._due.append(channel)
        self._wake.set()

    def _close(self, channel: Channel) -> None:
        """Forget a channel that nobody follows; its versions stay, for those who come back."""
        del self._channels[channel.subscription]
        if channel.timer is not None:
            channel.timer.cancel()  # it may have a minute to go, and holds the view
        self._versions.rest(channel.subscription.view)

    def _count(self, sent: Message | None, times: int, conflated: int) -> None:
        if sent is not None:
            self._instruments.frames_sent.inc(times)
            self._instruments.bytes_sent.inc(times * len(sent))
        if conflated:
            self._instruments.conflated.inc(conflated)


def _is_news(version: Version, base: Version | None) -> bool:
    """Whether a version is newer than what one was sent, and another."""
    return base is None or (version.number > base.number and version.differs(base))
