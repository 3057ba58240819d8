"""Channels: who follows what over routecast.v1, and when they are sent what changed.

Members that follow the same view at the same interval are one channel. A channel is served as soon
as a commit changes its view. After each message it rests for one interval; what is committed
meanwhile is sent when the rest is over. What
moves with the clock is sent at ticks, which fall on multiples of the interval. To serve a channel,
its view is rendered, compared and encoded once for all who were sent the same before. A member
whose socket is full is skipped; when it has read, it gets one message from what it was really sent
to what is newest. So nothing queues (the policy is to merge).
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from math import ceil
from typing import Any, Final, Protocol

from routecast.core.message import AddressedMessage, Encoding, Message
from routecast.core.rotation import rotated
from routecast.core.versions import FRESH_MESSAGE, DocumentState, Stamps, Version, Versions, message
from routecast.core.view import View, ViewSubscription
from routecast.errors import Unavailable
from routecast.instruments import Instruments
from routecast.patch import Document
from routecast.ports import Clock, Reading, Timer, Timers
from routecast.protocol import (
    ALIVE_SECONDS,
    MIN_INTERVAL,
    CloseCode,
    ErrorCode,
    ErrorOut,
    Position,
)

# At least this number of members gets its message before others get a turn on the event loop.
MEMBERS_PER_TURN: Final = 250
# Others get a turn after this time, too, in seconds.
CHANNEL_TURN_SECONDS: Final = 0.002
# A tick may be this much late, in seconds, and the stream still shows in time that it lives.
MARGIN: Final = 1.0
# Of an interval: a multiple of it is a rounded product, and counts as reached a little before.
ROUNDED: Final = 1e-6
# A channel that is served late by less than this part of its interval counts as served on time.
PUNCTUAL: Final = 0.1
# A commit that changes nothing of a view costs a look at the view. After that the channel rests for
# this part of its interval, and for at most this time, in seconds.
LOOKS: Final = 20
LONGEST_BRIEF_REST: Final = 0.05


class V1Transport(Protocol):
    """A connection that speaks routecast.v1, on whatever edge."""

    @property
    def client(self) -> str:
        """The address of its client, by which rendering time is counted."""
        ...

    def send(self, message: Message, named: AddressedMessage) -> bool:
        """Send a message as it is under a client's id; False when the socket is full.

        Then `v1_connections.V1Peer.catch_up` is called once it has drained. Never blocks or
        raises.
        """
        ...

    @staticmethod
    def send_all(
        message: Message, named: AddressedMessage, cohort: "Cohort"
    ) -> "list[V1Transport]":
        """Send a message to those of a cohort of this kind; return those whose socket was full.

        It is `send` for each of them, with what is the same for all done once.
        """
        ...

    def reply(self, data: bytes) -> None:
        """Send a short answer, whatever the socket holds. There are as many as messages came."""
        ...

    def has_room(self) -> bool:
        """Whether all that was sent is out of the server's hands.

        If not, `v1_connections.V1Peer.catch_up` is called once it is, or `close` at its end.
        """
        ...

    def fail(self, code: CloseCode) -> None:
        """Close because of the message that is being received; no further one counts."""
        ...


class ChannelSubscription:
    """One subscription of one client."""

    __slots__ = ("channel", "cohort", "encoding", "identity", "line", "resumed")

    def __init__(self, line: V1Transport, encoding: Encoding, identity: str) -> None:
        self.line = line
        self.encoding = encoding
        self.identity = identity
        # None before it has joined, and once it has left.
        self.channel: Channel | None = None
        self.cohort: Cohort | None = None
        self.resumed: Version | None = None  # what its client had when it joined

    @property
    def base(self) -> Version | None:
        """The version it was really sent."""
        return self.cohort.base if self.cohort is not None else None


class Cohort:
    """Members in step: they were sent the same version, and one message is right for all of them.

    There are no more than MEMBERS_PER_TURN, so nobody comes or leaves while they are served. As in
    a shard (`core/groups.py`), `known` is what their kind knows of their lines, until one of them
    comes, leaves or changes; then it is None.
    """

    __slots__ = ("base", "encoding", "identity", "kind", "known", "members")

    def __init__(
        self, kind: type[V1Transport], base: Version | None, encoding: Encoding, identity: str
    ) -> None:
        self.kind = kind
        self.base = base
        self.encoding = encoding
        self.identity = identity
        self.members: dict[V1Transport, ChannelSubscription] = {}
        self.known: Any = None

    @property
    def key(self) -> "_WireKey":
        """What they have in common."""
        return self.kind, self.base, self.encoding, self.identity

    @property
    def full(self) -> bool:
        """Whether one more is to go elsewhere."""
        return len(self.members) >= MEMBERS_PER_TURN


_WireKey = tuple[type[V1Transport], Version | None, Encoding, str]


class Channel:
    """Members that follow one view at one interval."""

    __slots__ = (
        "_open",
        "cohorts",
        "is_put_off",
        "rested",
        "served",
        "subscription",
        "tick",
        "timer",
        "version",
        "whole",
    )

    def __init__(self, subscription: ViewSubscription, now: float) -> None:
        self.subscription = subscription
        self.version: Version | None = None  # that all members were brought to last
        # All of these are on the monotonic clock. When all members had a whole document, until
        # when nothing is sent, and when what moves with the clock is sent next.
        self.whole = now
        self.rested = now
        self.tick = now
        # When it was served last, and whether it was put off since: its clients had used up their
        # rendering time.
        self.served = now
        self.is_put_off = False
        self.timer: Timer | None = None
        # A dict keeps their order, and forgets one of them in no time.
        self.cohorts: dict[Cohort, None] = {}
        self._open: dict[_WireKey, Cohort] = {}  # those with room for one more

    def place(self, member: ChannelSubscription, base: Version | None) -> None:
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

    def remove(self, member: ChannelSubscription) -> None:
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

    def reindex(self) -> None:
        """Note who has room, after cohorts have gone on to another base."""
        self._open = {cohort.key: cohort for cohort in self.cohorts if not cohort.full}

    def due(self, now: float) -> float:
        """Return when it is to be looked at next, if no commit comes before."""
        return self.tick if now >= self.rested else min(self.rested, self.tick)

    def is_tick(self, now: float) -> bool:
        """Whether it is time to send what moves with the clock, too."""
        return now >= self.tick - ROUNDED * self.subscription.interval  # timers may be early

    def moment(self, now: float) -> float:
        """Return when it was to be served, of one that is served now.

        Its next rest is counted from then: timers are a little late, and that must not add up.
        """
        interval = self.subscription.interval
        due = self._ticks(now) * interval if self.is_tick(now) else self.rested
        return due if 0 <= now - due < PUNCTUAL * interval else now

    def rest(self, moment: float) -> None:
        """Send nothing for an interval, after a message to all members."""
        self.rested = moment + self.subscription.interval
        self._tick_from(self.rested, moment)

    def rest_briefly(self, now: float) -> None:
        """Look at no commit for a moment, after one that changed nothing."""
        self.rested = now + min(self.subscription.interval / LOOKS, LONGEST_BRIEF_REST)

    def pass_tick(self, now: float) -> int:
        """Go on to the next tick; return how many are over that there was no time for."""
        last, ticks = self._ticks(self.tick), self._ticks(max(now, self.tick))
        self._tick_from((ticks + 1) * self.subscription.interval, now)
        return ticks - last

    def put_off(self, now: float, wait: float) -> None:
        """Send nothing for `wait` seconds, unless life is to be shown before."""
        self.is_put_off = True
        self.rested = now + wait
        self._tick_from(self.rested, now)

    def wake(self, now: float) -> None:
        """Have it served now, as at a tick."""
        self.tick = min(self.tick, now)

    def _tick_from(self, least: float, now: float) -> None:
        """Set the next tick: at a multiple of the interval, or sooner to show life."""
        interval = self.subscription.interval
        tick = ceil(least / interval - ROUNDED) * interval
        self.tick = min(tick, max(self._patience, now + MIN_INTERVAL))

    def clients(self) -> Iterator[str]:
        """Yield the client of each member."""
        for cohort in self.cohorts:
            for line in cohort.members:
                yield line.client

    def serve(self, now: float) -> float | None:
        """Note that it is served; return the seconds since the last time if they are too many."""
        interval = round(now - self.served, 1)
        is_stretched = self.is_put_off and interval > self.subscription.interval
        self.served, self.is_put_off = now, False
        return interval if is_stretched else None

    def snapshot_due(self, now: float) -> bool:
        """Whether members would wait too long for a whole document if not sent one now."""
        return now + self.subscription.interval > self._patience

    def _ticks(self, now: float) -> int:
        """Return how many intervals the monotonic clock has had by then."""
        return int(now / self.subscription.interval + ROUNDED)

    @property
    def _patience(self) -> float:
        return self.whole + ALIVE_SECONDS - MARGIN


class DocumentSource(Protocol):
    """Where documents come from (`metrics_reader.MetricsReader`)."""

    def reading_now(self) -> Reading | None:
        """Return live state, None when that cannot answer."""
        ...

    async def read(self) -> Reading:
        """Return the newest state to be had. Raises Unavailable when there is none at all."""
        ...

    def covering(self, reading: Reading, view: View) -> Reading | None:
        """Return what a view can be made of now, None where that has to be waited for."""
        ...

    def lacks(self, view: View) -> bool:
        """Whether there is nothing to wait for."""
        ...

    def is_ready(self, reading: Reading, view: View, now: int) -> bool:
        """Do a piece of a view's work; return whether its document can be made at once now."""
        ...

    def stamps(self, reading: Reading, view: View, now: int) -> Stamps:
        """Return the stamps of a document's sums; () where they are not known.

        As long as they and `View.moment` are the same, so is the document.
        """
        ...

    def document(self, reading: Reading, view: View, now: int) -> Document | None:
        """Return a view's document, None when it cannot be made."""
        ...


class DocumentTurns(Protocol):
    """Who pays for documents, and the work of those that take a while (`renders.Renders`)."""

    def payer(self, view: View, clients: Iterable[str]) -> tuple[str, float]:
        """Return which of the clients of a view pays for it, and in how many seconds it may."""
        ...

    def charged(self, payer: str) -> AbstractContextManager[None]:
        """Charge a payer for the time that the body takes."""
        ...

    def ask(self, view: View, client: str, done: Callable[[], None]) -> None:
        """Have a view made ready, and be told. Raises Unavailable when too many wait."""
        ...


class Channels:
    """All channels, and the versions they send. Run `run` as a task."""

    def __init__(
        self,
        documents: DocumentSource,
        turns: DocumentTurns,
        clock: Clock,
        timers: Timers,
        instruments: Instruments,
    ) -> None:
        self._documents = documents
        self._turns = turns
        self._clock = clock
        self._timers = timers
        self._instruments = instruments
        self._versions = Versions()
        self._channels: dict[ViewSubscription, Channel] = {}
        self._idle: dict[Channel, None] = {}  # those that the next commit is looked at for at once
        self._due: dict[Channel, None] = {}
        self._commits = 0  # that were told of
        self._waiting: list[
            ChannelSubscription
        ] = []  # for their first message, from other than live state
        self._wake = asyncio.Event()

    def epoch(self) -> str | None:
        """Return the name of the database's history, None while it is not known."""
        reading = self._documents.reading_now()
        return reading.snapshot.position.epoch if reading else None

    def join(
        self,
        member: ChannelSubscription,
        subscription: ViewSubscription,
        position: Position | None = None,
    ) -> None:
        """Let a member follow, and send it its first message at once.

        `position` is where its client was before.
        """
        channel = self._channels.get(subscription)
        if channel is None:
            now = self._timers.now()
            channel = self._channels[subscription] = Channel(subscription, now)
            channel.rest(now)  # from its first message
            self._schedule(channel)
        member.channel = channel
        find = self._versions.find
        if position is not None:
            member.resumed = find(subscription.view, position)
        channel.place(member, member.resumed)
        reading = self._documents.reading_now()
        if reading is None:
            # However many come at once, the engines are asked once for all of them.
            self._wait_for_first(member)
            return
        version = self._version_now(subscription.view, reading)
        if version is not None:
            self.send(member, version)
        else:
            self._ask_for_first(member)

    def _wait_for_first(self, member: ChannelSubscription) -> None:
        self._waiting.append(member)
        self._wake.set()

    def _ask_for_first(self, member: ChannelSubscription) -> None:
        """Send a member its first message once its view can be rendered."""
        assert member.channel is not None
        view, client = member.channel.subscription.view, member.line.client
        try:
            self._turns.ask(view, client, partial(self._wait_for_first, member))
        except Unavailable as busy:
            # The subscription stays: its ticks bring a snapshot as soon as there is time for it.
            self._refuse(member, f"{busy}; ask for fewer different views, or less often")

    def _refuse(self, member: ChannelSubscription, why: str) -> None:
        error = ErrorOut(
            id=member.identity, code=ErrorCode.UNAVAILABLE, message=why, retryable=True
        )
        member.line.reply(member.encoding.encode(error))

    def leave(self, member: ChannelSubscription) -> None:
        """Send a member nothing more."""
        if (channel := member.channel) is not None:
            channel.remove(member)
            member.channel = None
            if not channel.cohorts:
                self._close(channel)

    def send(self, member: ChannelSubscription, version: Version) -> bool:
        """Send one member what leads to a version; False when its socket is full."""
        leading = message(version, member.base, member.encoding, self._clock.now())
        sent = leading is not None and member.line.send(leading, leading.under(member.identity))
        if sent and member.channel is not None:
            member.channel.place(member, version)
            if member.channel.version is None:  # it is the first one
                member.channel.version = version
                member.channel.rest(self._timers.now())
                self._schedule(member.channel)
        self._count(leading, int(sent), int(not sent))
        return sent

    def catch_up(self, member: ChannelSubscription) -> bool:
        """Send a member whose socket has drained what it missed; False when it is full again."""
        if member.channel is None:
            return True
        newest = self._versions.newest(member.channel.subscription.view)
        if newest is None or not _is_news(newest, member.base):
            return True
        return self.send(member, newest)

    def flush_now(self, member: ChannelSubscription) -> None:
        """Send a member what is live now, before its next tick."""
        reading = self._documents.reading_now()
        if reading is not None and member.channel is not None:
            view = member.channel.subscription.view
            # It goes with a history at the same position, so it does not wait for rendering time.
            payer, _ = self._turns.payer(view, (member.line.client,))
            with self._turns.charged(payer):
                version = self._version(view, reading)
            if version is not None and _is_news(version, member.base):
                self.send(member, version)

    def push(self) -> None:
        """Tell that a commit was applied: serve all channels that are not resting.

        Commits of one turn of the event loop are served together.
        """
        self._commits += 1
        if self._idle:
            self._due.update(self._idle)
            self._idle.clear()
            self._wake.set()

    async def run(self) -> None:
        """Send what changed as commits and ticks come. Never ends."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            rung, self._due = self._due, {}
            waiting, self._waiting = self._waiting, []
            due = deque(channel for channel in rung if channel.cohorts)
            if not due and not waiting:
                continue
            due = deque(sorted(due, key=lambda channel: not channel.subscription.view.plain))
            started = time.monotonic()
            try:
                await self._serve_all(due, waiting)
            except Exception:
                # Those that are left are served when this is run again; the one that failed last.
                due.rotate(-1)
                self._due = dict.fromkeys([*due, *self._due])
                self._waiting = waiting + self._waiting
                self._wake.set()
                raise
            self._instruments.broadcast_seconds.observe(time.monotonic() - started)

    async def _serve_all(self, due: deque[Channel], waiting: list[ChannelSubscription]) -> None:
        """Serve channels, and take each out of `due` once it is served."""
        if waiting:
            await self._welcome(waiting)
        began, ran = self._timers.now(), time.monotonic()
        reading, is_live = None, True
        while due:
            channel = due[0]
            # Live state anew for each channel: others had turns, and may be applying a large
            # commit. What the engines answered stays as it is, and is not asked for again.
            if is_live:
                reading = self._documents.reading_now()
            if is_live and reading is None:
                reading = await self._read()
                is_live = self._documents.reading_now() is not None
            if channel.cohorts:
                # One moment for all, so that those that rest now are served together again; but
                # not for one that others kept waiting for long.
                late = self._timers.now() - began
                is_late = late >= PUNCTUAL * channel.subscription.interval
                await self._take_turn(channel, reading, began + late if is_late else began)
            due.popleft()
            if time.monotonic() - ran > CHANNEL_TURN_SECONDS:
                await asyncio.sleep(0)
                ran = time.monotonic()

    async def _read(self) -> Reading | None:
        try:
            return await self._documents.read()
        except Unavailable:
            return None

    async def _welcome(self, waiting: Sequence[ChannelSubscription]) -> None:
        reading, ran = await self._read(), time.monotonic()
        for member in waiting:
            # One whose channel was served meanwhile has its first message.
            if member.channel is not None and member.base is member.resumed:
                view = member.channel.subscription.view
                payer, _ = self._turns.payer(view, (member.line.client,))
                with self._turns.charged(payer):
                    version = self._version(view, reading)
                if version is not None:
                    self.send(member, version)
                else:
                    self._ask_for_first(member)
            if time.monotonic() - ran > CHANNEL_TURN_SECONDS:
                await asyncio.sleep(0)
                reading, ran = await self._read(), time.monotonic()

    async def _take_turn(self, channel: Channel, reading: Reading | None, now: float) -> None:
        """Serve a channel, or put it off while none of its clients may use rendering time."""
        is_tick, moment, commits = channel.is_tick(now), channel.moment(now), self._commits
        is_resting = now < channel.rested  # then it was served before a crash
        if not is_tick and (is_resting or not self._may_have_changed(channel, reading)):
            self._schedule(channel)
            return
        view = channel.subscription.view
        payer, wait = self._turns.payer(view, channel.clients())
        version = None
        if not wait:
            with self._turns.charged(payer):
                version = self._version(view, reading)
            if version is None:
                wait = self._ask_for(channel, payer)
        if is_tick:
            self._instruments.ticks_merged.inc(channel.pass_tick(now))
        if version is None:
            self._instruments.ticks_stretched.inc()
            await self._show_life(channel, now)
            channel.put_off(now, wait)
        elif await self._bring_to(channel, version, payer, now):
            channel.rest(moment)
        elif not is_tick or commits != self._commits:
            channel.rest_briefly(now)
        if channel.cohorts:
            self._schedule(channel)
            if commits != self._commits and channel in self._idle:
                self._on_timer(channel)  # it was not idle when the commit was told of

    def _may_have_changed(self, channel: Channel, reading: Reading | None) -> bool:
        """Whether a channel's view may be another than what its members were brought to."""
        version = channel.version
        if channel.is_put_off or version is None or version.state is None or reading is None:
            return True
        covering = self._documents.covering(reading, channel.subscription.view)
        return covering is None or not version.state.is_of(
            covering.snapshot.position, covering.source
        )

    def _ask_for(self, channel: Channel, payer: str) -> float:
        """Have a channel's view made ready; return for how many seconds to leave it alone."""
        try:
            self._turns.ask(channel.subscription.view, payer, partial(self._made_ready, channel))
        except Unavailable as busy:
            return busy.retry_after
        return ALIVE_SECONDS  # it is rung before, as soon as the view is ready

    async def _show_life(self, channel: Channel, now: float) -> None:
        """Send the last version once more, if a whole document is due: there is no newer one."""
        newest = self._versions.newest(channel.subscription.view)
        if newest is not None and channel.snapshot_due(now):
            await self._send_all(channel, newest, "", now, None)

    async def _bring_to(self, channel: Channel, version: Version, payer: str, now: float) -> bool:
        """Bring all members to a version; return whether there was anything to tell them."""
        stretched = channel.serve(now)
        if version is channel.version and not channel.snapshot_due(now):
            return False  # whoever was not sent it then asks for it when it can
        return await self._send_all(channel, version, payer, now, stretched)

    async def _send_all(
        self, channel: Channel, version: Version, payer: str, now: float, stretched: float | None
    ) -> bool:
        """Send all members what leads to a version, those with the same base the same message.

        `stretched` is the interval that they really get, where that is longer than they asked for.
        Returns whether there was anything to tell them.
        """
        whole = channel.snapshot_due(now)
        told = False
        served = MEMBERS_PER_TURN  # others get a turn between two channels, too
        for cohort in rotated(channel.cohorts):
            if served >= MEMBERS_PER_TURN:
                await asyncio.sleep(0)
                served = 0
            served += len(cohort.members)
            with self._turns.charged(payer):
                leading = self._leading(version, cohort, whole, stretched)
            if leading is not None:
                told = True
                self._serve(channel, cohort, version, leading)
        # Only now: after a crash, those that are left are served again.
        channel.version = version
        if whole:
            channel.whole = now
        channel.reindex()
        return told

    def _serve(self, channel: Channel, cohort: Cohort, version: Version, leading: Message) -> None:
        base = cohort.base
        named = leading.under(cohort.identity)
        behind = cohort.kind.send_all(leading, named, cohort)
        self._count(leading, len(cohort.members) - len(behind), len(behind))
        cohort.base = version
        for line in behind:
            channel.place(cohort.members[line], base)

    def _leading(
        self, version: Version, cohort: Cohort, whole: bool, stretched: float | None
    ) -> Message | None:
        """Return what leads a cohort to a version; None where there is nothing to tell it."""
        base, now = cohort.base, self._clock.now()
        if not cohort.members:
            return None  # they left while others were served
        if whole and (base is None or base.number <= version.number):
            return message(version, None, cohort.encoding, now, stretched)
        if _is_news(version, base):
            return message(version, base, cohort.encoding, now, stretched)
        return None

    # -- versions -------------------------------------------------------------------------------

    def _version_now(self, view: View, reading: Reading) -> Version | None:
        """Return a view's version for one who comes: where only time went on, a crowd shares it.

        Only the plain view is rendered for that: many may come in one turn of the event loop.
        """
        newest, covering = self._versions.newest(view), self._documents.covering(reading, view)
        if covering is not None and newest is not None and newest.state is not None:
            age, position = self._clock.now() - newest.made, covering.snapshot.position
            if 0 <= age < FRESH_MESSAGE and newest.state.is_of(position, covering.source):
                return newest
        return self._version(view, reading, render=view.plain)

    def _version(
        self, view: View, reading: Reading | None, *, render: bool = True
    ) -> Version | None:
        """Return a view's version in the newest state, rendered only where that may differ.

        None when its document cannot be made at once, or would have to be rendered and may not.
        """
        now, newest = self._clock.now(), self._versions.newest(view)
        document = state = None
        stamps: Stamps = ()
        if reading is not None:
            reading = self._documents.covering(reading, view)
            if reading is None and not (render and self._documents.lacks(view)):
                return None
        if reading is not None:
            moment = view.moment(reading.snapshot.moment(now))
            state = DocumentState(reading.snapshot.position, moment, reading.source, reading.as_of)
            if newest is not None and newest.still_valid_for(state):
                return newest
            if not (render and self._documents.is_ready(reading, view, now)):
                return None
            stamps = self._documents.stamps(reading, view, now)
            if newest is not None and newest.still_holds(stamps, moment):
                return self._versions.carry(newest, now, state)
            document = self._documents.document(reading, view, now)
        if document is None:
            if newest is not None and newest.state is None:
                return newest
            state = None
        return self._versions.add(view, now, state, document, stamps)

    # -- ticks ----------------------------------------------------------------------------------

    def _schedule(self, channel: Channel) -> None:
        """Have a channel served when it is due; if it does not rest, by the next commit already."""
        now = self._timers.now()
        if now >= channel.rested:
            self._idle[channel] = None
        else:
            self._idle.pop(channel, None)
        if channel.timer is not None:
            channel.timer.cancel()
        channel.timer = self._timers.call_at(channel.due(now), self._on_timer, channel)

    def _made_ready(self, channel: Channel) -> None:
        """Serve a channel whose view was made ready, and that waits for that."""
        if channel.is_put_off:  # else it was served meanwhile
            channel.wake(self._timers.now())
            self._on_timer(channel)

    def _on_timer(self, channel: Channel) -> None:
        self._idle.pop(channel, None)
        self._due[channel] = None
        self._wake.set()

    def _close(self, channel: Channel) -> None:
        """Forget a channel that nobody follows; its versions stay, for those who come back."""
        del self._channels[channel.subscription]
        self._idle.pop(channel, None)
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
