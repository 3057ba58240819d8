"""Channels: which members follow which view, and the path from a commit to their sockets.

Members that follow the same view at the same interval by the same policy (`delivery.py`) are one
channel. A commit or a timer makes a channel due. To serve a channel, its view is rendered once. For
each cohort, the members that were sent the same version before, one message is encoded and sent by
batch. A member whose socket is full is skipped; when its socket has drained, it gets one message
that leads to the newest version. So nothing queues: messages are conflated.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Final, Protocol

from routecast.core.message import Encoding
from routecast.core.payload import Payload
from routecast.core.rotation import rotated
from routecast.core.versions import FRESH_MESSAGE, DocumentState, Stamps, Version, Versions
from routecast.core.view import View, ViewSubscription
from routecast.errors import Unavailable
from routecast.instruments import Instruments
from routecast.patch import Document
from routecast.ports import Batch, Clock, Connection, Reading, Timer, Timers
from routecast.protocol import ALIVE_SECONDS, ErrorCode, ErrorOut, Position
from routecast.streaming.connections import ConnectionManager
from routecast.streaming.delivery import (
    ON_TIME,
    QUANTA,
    Changes,
    Delivery,
    FullDocuments,
    phase_of,
    quantum_of,
)
from routecast.streaming.sent_counts import NOTHING, SentCounts, one_message, shared

# At most this number of members is served before other tasks get a turn on the event loop.
BATCH_SIZE: Final = 500
# Other tasks also get a turn after this time, in seconds.
CHANNEL_TURN_SECONDS: Final = 0.002
# Channels of the default stream that have at most this number of members together are merged,
# because each tick has a fixed cost.
MAX_COALESCED: Final = 10_000


class ChannelSubscription:
    """One subscription of one connection: a member of a channel (`delivery.Receiver`)."""

    __slots__ = ("_before", "cohort", "connection", "encoding", "identity", "resumed")

    def __init__(
        self, connection: Connection, encoding: Encoding | None = None, identity: str = ""
    ) -> None:
        self.connection = connection
        self.encoding = encoding
        self.identity = identity
        self.cohort: Cohort | None = None  # while it is a member
        self.resumed: Version | None = None  # what its client already had when it joined
        # What it was sent, less what its cohort counts for it; see `sent`.
        self._before = NOTHING

    @property
    def channel(self) -> "Channel | None":
        """The channel that it is a member of."""
        return self.cohort.channel if self.cohort is not None else None

    @property
    def base(self) -> Version | None:
        """The version that it was sent last; None before the first."""
        return self.cohort.base if self.cohort is not None else None

    @property
    def sent(self) -> SentCounts:
        """What it was sent. It is computed when someone looks."""
        return self._before if self.cohort is None else self._before + self.cohort.sent

    @property
    def newest(self) -> Version | None:
        """The newest version that is meant for it; None before the first.

        This is the one that it was sent, while later ones do not differ from that.
        """
        if self.cohort is None:
            return None
        base, version = self.cohort.base, self.cohort.channel.version
        if base is None or version is None:
            return base or version
        return version if version.differs(base) else base

    def enter(self, cohort: "Cohort") -> None:
        """Record that it is a member of a cohort from now on."""
        self.cohort = cohort
        self._before = shared(self._before - cohort.sent)

    def exit(self) -> None:
        """Record that it is not a member any more."""
        assert self.cohort is not None
        self._before = shared(self._before + self.cohort.sent)
        self.cohort = None

    def count(self, payload: Payload) -> None:
        """Count a message to this member alone."""
        self._before = shared(self._before + one_message(payload))

    def skip(self, message: SentCounts) -> None:
        """Take back a message that its cohort was sent, because this member's socket was full."""
        self._before = shared(self._before - message)


_CohortKey = tuple[type[Connection], Version | None, Encoding | None, str]


class Cohort:
    """Members that were last sent the same version: one payload is right for all of them."""

    __slots__ = (
        "base",
        "batch",
        "channel",
        "encoding",
        "identity",
        "kind",
        "members",
        "sent",
        "sent_at",
    )

    def __init__(self, channel: "Channel", key: _CohortKey, batch: Batch, now: float) -> None:
        self.channel = channel
        self.kind, self.base, self.encoding, self.identity = key
        self.batch = batch
        self.sent_at = now  # about when its members were sent the base
        self.sent = NOTHING  # what it was sent as a whole
        self.members: dict[Connection, ChannelSubscription] = {}

    @property
    def key(self) -> _CohortKey:
        """What the members have in common."""
        return self.kind, self.base, self.encoding, self.identity

    def add(self, member: ChannelSubscription) -> None:
        self.members[member.connection] = member
        self.batch.add(member.connection)
        member.enter(self)

    def remove(self, member: ChannelSubscription) -> None:
        del self.members[member.connection]
        self.batch.remove(member.connection)
        member.exit()

    def count(self, payload: Payload, skipped: Iterable[Connection]) -> None:
        """Count a message to all members but those that were skipped."""
        message = one_message(payload)
        self.sent += message
        for connection in skipped:
            self.members[connection].skip(message)

    def has_room_for(self, count: int) -> bool:
        return len(self.members) + count <= self.channel.batch_size


class Channel:
    """Members that follow one view at one interval by one policy."""

    __slots__ = (
        "_open",
        "batch_size",
        "cohorts",
        "delivery",
        "subscription",
        "timer",
        "version",
    )

    def __init__(
        self, subscription: ViewSubscription, delivery: Delivery, batch_size: int = BATCH_SIZE
    ) -> None:
        self.subscription = subscription
        self.delivery = delivery
        self.batch_size = batch_size
        self.version: Version | None = None  # the last one that all members were sent
        self.timer: Timer | None = None
        # A dict keeps their order, and removes one in constant time.
        self.cohorts: dict[Cohort, None] = {}
        self._open: dict[_CohortKey, Cohort] = {}  # cohorts that members may be added to

    @property
    def key(self) -> "_ChannelKey":
        """The channel's subscription and policy; no other channel has the same ones."""
        return _key(self.subscription, self.delivery)

    def __len__(self) -> int:
        return sum(len(cohort.members) for cohort in self.cohorts)

    def place(self, member: ChannelSubscription, base: Version | None, now: float) -> None:
        """Move a member to a cohort of those that were last sent the version `base`, as it was."""
        key = type(member.connection), base, member.encoding, member.identity
        if member.cohort is not None:
            self.remove(member)
        cohort = self._open.get(key)
        # The cohort may have been sent another version since.
        if (
            cohort is None
            or cohort.base is not base
            or not cohort.has_room_for(1)
            or not self.delivery.is_in_step(cohort.sent_at, now)
        ):
            batch = member.connection.new_batch()
            cohort = self._open[key] = Cohort(self, key, batch, now)
            self.cohorts[cohort] = None
        cohort.add(member)

    def remove(self, member: ChannelSubscription) -> None:
        """Remove a member from its cohort."""
        cohort = member.cohort
        assert cohort is not None
        cohort.remove(member)
        if not cohort.members:
            self._drop(cohort)

    def _drop(self, cohort: Cohort) -> None:
        del self.cohorts[cohort]
        if self._open.get(cohort.key) is cohort:
            del self._open[cohort.key]

    def begin_round(self) -> list[Cohort]:
        """Return the cohorts to serve; members that join from now on get cohorts of their own."""
        self._open = {}
        return rotated(self.cohorts)

    def end_round(self) -> None:
        """Merge cohorts that were last sent the same version, where there is room."""
        self._open = {}
        for cohort in list(self.cohorts):
            other = self._open.setdefault(cohort.key, cohort)
            if other is cohort:
                continue
            if not self.delivery.is_in_step(cohort.sent_at, other.sent_at):
                continue
            if other.has_room_for(len(cohort.members)):
                for member in list(cohort.members.values()):
                    cohort.remove(member)
                    other.add(member)
                self._drop(cohort)
            elif len(cohort.members) < len(other.members):
                self._open[cohort.key] = cohort

    def take_over(self, other: "Channel") -> None:
        """Take over all members of another channel, which is empty after that."""
        for cohort in other.cohorts:
            cohort.channel = self
            self.cohorts[cohort] = None
        other.cohorts = {}
        self.end_round()

    def clients(self) -> Iterator[str]:
        """Yield the client of each member."""
        for cohort in self.cohorts:
            for connection in cohort.members:
                yield connection.client


_ChannelKey = tuple[ViewSubscription, type[Delivery], int]


def _key(subscription: ViewSubscription, delivery: Delivery) -> _ChannelKey:
    phase = delivery.phase if isinstance(delivery, FullDocuments) else 0
    return subscription, type(delivery), phase


class DocumentSource(Protocol):
    """Makes documents (`metrics_reader.MetricsReader`)."""

    def reading_now(self) -> Reading | None:
        """Return live state; None if it cannot answer."""
        ...

    async def read(self) -> Reading:
        """Return the newest available state. Raises Unavailable if there is none at all."""
        ...

    def covering(self, reading: Reading, view: View) -> Reading | None:
        """Return a reading that covers a view; None if there is none yet."""
        ...

    def lacks(self, view: View) -> bool:
        """Whether reading the view's window has failed."""
        ...

    def is_ready(self, reading: Reading, view: View, now: int) -> bool:
        """Do a slice of a view's work; return whether its document is ready."""
        ...

    def stamps(self, reading: Reading, view: View, now: int) -> Stamps:
        """Return the stamps of a document's sums; () if they are unknown.

        While they and `View.time_key` stay the same, so does the document.
        """
        ...

    def document(self, reading: Reading, view: View, now: int) -> Document | None:
        """Return a view's document; None if it cannot be made."""
        ...


class RenderQueue(Protocol):
    """Decides which client pays for a document, and renders views (`renders.Renders`)."""

    def payer(self, view: View, clients: Iterable[str]) -> tuple[str, float]:
        """Return the client that pays for a view, and the seconds until it may."""
        ...

    def charged(self, payer: str) -> AbstractContextManager[None]:
        """Charge a payer for the time that the body takes."""
        ...

    def request(self, view: View, client: str, done: Callable[..., object], *args: object) -> None:
        """Request that a view is made ready; then call `done(*args)`, once for equal requests.

        Raises Unavailable if too many views wait.
        """
        ...

    def withdraw(self, view: View, done: Callable[..., object], *args: object) -> None:
        """Withdraw a request: do not call `done(*args)`."""
        ...


class Channels:
    """All channels, and the versions they send. Run `run` as a task."""

    def __init__(
        self,
        manager: ConnectionManager,
        documents: DocumentSource,
        renders: RenderQueue,
        clock: Clock,
        timers: Timers,
        instruments: Instruments,
        *,
        batch_size: int = BATCH_SIZE,
        max_coalesced: int = MAX_COALESCED,
    ) -> None:
        self._manager = manager
        self._documents = documents
        self._renders = renders
        self._clock = clock
        self._timers = timers
        self._instruments = instruments
        self._batch_size = batch_size
        self._max_coalesced = max_coalesced
        self._versions = Versions()
        self._channels: dict[_ChannelKey, Channel] = {}
        self._idle: dict[Channel, None] = {}  # those that a commit makes due
        self._due: dict[Channel, None] = {}
        self._commits = 0  # the number of calls of `push`
        # Members without a first message, because live state or their view was not ready.
        self._waiting: list[ChannelSubscription] = []
        self._wake = asyncio.Event()
        self._is_serving = False
        self._served = 0  # members served since other tasks had a turn

    @property
    def is_due(self) -> bool:
        """Whether any channel is due or being served."""
        return self._is_serving or self._wake.is_set()

    def epoch(self) -> str | None:
        """Return the epoch of live state; None while it is not known."""
        reading = self._documents.reading_now()
        return reading.snapshot.position.epoch if reading else None

    # -- members --------------------------------------------------------------------------------

    def join(
        self,
        member: ChannelSubscription,
        subscription: ViewSubscription,
        position: Position | None = None,
    ) -> None:
        """Make a subscription a member of its channel, and send it its first message at once.

        `position` is that of the client's last document.
        """
        channel = self._channel_for(member, subscription)
        if position is not None:
            member.resumed = self._versions.at_position(subscription.view, position)
        channel.place(member, member.resumed, self._timers.now())
        if channel.delivery.is_put_off:
            _, wait = self._renders.payer(subscription.view, (member.connection.client,))
            if not wait:  # this client may pay, though those that joined before may not
                self._try_again(channel)
        reading = self._documents.reading_now()
        if reading is None:
            # The engines are read once for all members that join at the same time.
            self._wait_for_first(member)
            return
        version = self._version_now(subscription.view, reading)
        if version is not None:
            self._send_first(member, version)
        else:
            self._ask_for_first(member)

    def _channel_for(self, member: ChannelSubscription, subscription: ViewSubscription) -> Channel:
        now, interval = self._timers.now(), subscription.interval
        delivery: Delivery
        if member.encoding is None:
            delivery = FullDocuments(interval, phase_of(interval, now), now)
        else:
            delivery = Changes(interval, now)
        key = _key(subscription, delivery)
        channel = self._channels.get(key)
        if channel is None:
            channel = self._channels[key] = Channel(subscription, delivery, self._batch_size)
            self._schedule(channel)
        return channel

    def _wait_for_first(self, member: ChannelSubscription) -> None:
        self._waiting.append(member)
        self._wake.set()

    def _ask_for_first(self, member: ChannelSubscription) -> None:
        """Send a member its first message once its view can be rendered."""
        channel = member.channel
        assert channel is not None
        view, client = channel.subscription.view, member.connection.client
        try:
            self._renders.request(view, client, self._wait_for_first, member)
        except Unavailable as busy:
            # It stays a member: a later tick of its channel brings a document.
            self._refuse(member, f"{busy}; ask for fewer different views, or less often")

    def _refuse(self, member: ChannelSubscription, why: str) -> None:
        if member.encoding is not None:
            error = ErrorOut(
                id=member.identity, code=ErrorCode.UNAVAILABLE, message=why, retryable=True
            )
            member.connection.reply(member.encoding.encode(error))

    def leave(self, member: ChannelSubscription) -> None:
        """Remove a member from its channel; it is sent nothing more."""
        if (channel := member.channel) is not None:
            # The request may wait long for rendering time, and it refers to the connection.
            self._renders.withdraw(channel.subscription.view, self._wait_for_first, member)
            channel.remove(member)
            if not channel.cohorts:
                self._close(channel)

    def _close(self, channel: Channel) -> None:
        """Drop a channel without members. Its versions stay for clients that reconnect."""
        self._forget(channel)
        self._versions.drop_messages(channel.subscription.view)

    def _forget(self, channel: Channel) -> None:
        del self._channels[channel.key]
        self._idle.pop(channel, None)
        self._due.pop(channel, None)
        if channel.timer is not None:
            channel.timer.cancel()  # it may run for a minute, and it refers to the view

    # -- messages to one member -----------------------------------------------------------------

    def catch_up(self, member: ChannelSubscription) -> bool:
        """Send what a member missed while its socket was full; return False if it is full again."""
        channel = member.channel
        if channel is None:
            return True
        newest = self._versions.newest(channel.subscription.view)
        payload = channel.delivery.missed(newest, member, self._clock.now())
        return payload is None or self._send(member, payload, newest)

    def flush_now(self, member: ChannelSubscription) -> None:
        """Send a member the newest version now, without waiting for its channel to be served."""
        reading, channel = self._documents.reading_now(), member.channel
        if reading is not None and channel is not None:
            # It must have the position of the history that was just sent, so it does not wait for
            # rendering time.
            version = self._charged_version(member, reading)
            payload = channel.delivery.missed(version, member, self._clock.now())
            if payload is not None:
                self._send(member, payload, version)

    def _send_first(self, member: ChannelSubscription, version: Version) -> None:
        channel = member.channel
        assert channel is not None
        payload = channel.delivery.first(version, member, self._clock.now())
        if payload is not None:
            self._send(member, payload, version)

    def _send(self, member: ChannelSubscription, payload: Payload, version: Version | None) -> bool:
        """Send a message that leads one member to a version; return False if its socket is full."""
        is_sent = self._manager.send_personal(payload, member.connection)
        if is_sent:
            member.count(payload)
        channel, now = member.channel, self._timers.now()
        if is_sent and channel is not None:
            channel.place(member, version, now)
            if channel.version is None and channel.delivery.has_bases:  # the first message
                channel.version = version
                channel.delivery.rest(now)
                self._schedule(channel)
        return is_sent

    def _charged_version(
        self, member: ChannelSubscription, reading: Reading | None
    ) -> Version | None:
        """Return the newest version for one member, which pays for it."""
        assert member.channel is not None
        view = member.channel.subscription.view
        payer, _ = self._renders.payer(view, (member.connection.client,))
        with self._renders.charged(payer):
            return self._version(view, reading)

    # -- rounds ---------------------------------------------------------------------------------

    def push(self) -> None:
        """Serve all channels that are not resting, because live state has applied a commit.

        Commits of one turn of the event loop are served together.
        """
        self._commits += 1
        if self._idle:
            self._due.update(self._idle)
            self._idle.clear()
            self._wake.set()

    async def run(self) -> None:
        """Serve channels when commits or ticks make them due. Never ends."""
        while True:
            self._is_serving = False
            await self._wake.wait()
            self._is_serving = True
            self._wake.clear()
            is_due, self._due = self._due, {}
            waiting, self._waiting = self._waiting, []
            due = deque(channel for channel in is_due if channel.cohorts)
            if not due and not waiting:
                continue
            due = deque(sorted(due, key=lambda channel: not channel.subscription.view.plain))
            started = self._timers.now()
            try:
                await self._serve_all(due, waiting)
            except Exception:
                # The channels that are left are served when `run` is called again; the one that
                # failed is the last of them.
                due.rotate(-1)
                self._due = dict.fromkeys([*due, *self._due])
                self._waiting = waiting + self._waiting
                self._wake.set()
                raise
            self._instruments.broadcast_seconds.observe(self._timers.now() - started)

    async def _serve_all(self, due: deque[Channel], waiting: list[ChannelSubscription]) -> None:
        """Serve channels, and take each out of `due` once it is served."""
        if waiting:
            await self._send_first_messages(waiting)
        began, ran = self._timers.now(), self._timers.now()
        reading, is_read = None, False
        served = list(due)
        while due:
            channel = due[0]
            # Live state is asked again for each channel, because it may have changed while other
            # tasks had turns, and members that joined meanwhile may have been sent it. The engines
            # are not asked again while it cannot answer: one answer serves all.
            live = self._documents.reading_now()
            if live is not None:
                reading, is_read = live, False
            elif not is_read:
                reading = await self._read()
                is_read = self._documents.reading_now() is None
            if channel.cohorts:
                # All channels of a round count as served at the same time, so that they are due
                # together again; but not a channel that waited long for others.
                late = self._timers.now() - began
                is_late = late >= ON_TIME * channel.subscription.interval
                await self._serve(channel, reading, began + late if is_late else began)
            due.popleft()
            if self._timers.now() - ran > CHANNEL_TURN_SECONDS:
                await asyncio.sleep(0)
                ran = self._timers.now()
        for channel in served:
            self._coalesce(channel)

    async def _read(self) -> Reading | None:
        try:
            return await self._documents.read()
        except Unavailable:
            return None

    async def _send_first_messages(self, waiting: Sequence[ChannelSubscription]) -> None:
        reading, ran = await self._read(), self._timers.now()
        for member in waiting:
            # A member whose channel was served meanwhile has its first message already.
            if member.channel is not None and member.base is member.resumed:
                version = self._charged_version(member, reading)
                if version is not None:
                    self._send_first(member, version)
                else:
                    self._ask_for_first(member)
            if self._timers.now() - ran > CHANNEL_TURN_SECONDS:
                await asyncio.sleep(0)
                reading, ran = await self._read(), self._timers.now()

    async def _serve(self, channel: Channel, reading: Reading | None, now: float) -> None:
        """Serve a channel, or put it off while none of its clients may use rendering time."""
        delivery, commits = channel.delivery, self._commits
        is_tick, due_time = delivery.is_tick(now), delivery.due_time(now)
        is_resting = delivery.is_resting(now)  # true if a crash came after it was served
        if not is_tick and (is_resting or not self._may_have_changed(channel, reading)):
            self._schedule(channel)
            return
        view = channel.subscription.view
        payer, wait = self._renders.payer(view, channel.clients())
        version = None
        if not wait:
            with self._renders.charged(payer):
                version = self._version(view, reading)
            if version is None:
                wait = self._ask_for(channel, payer)
        if is_tick:
            self._instruments.ticks_merged.inc(delivery.pass_tick(now))
        if version is None:
            self._instruments.ticks_stretched.inc()
            await self._repeat_snapshot(channel, now)
            delivery.put_off(now, wait)
        elif await self._send_version(channel, version, payer, now):
            delivery.rest(due_time)
        elif not is_tick or commits != self._commits:
            delivery.rest_briefly(now)
        if channel.cohorts:
            self._schedule(channel)
            if commits != self._commits and channel in self._idle:
                self._on_timer(channel)  # it was not in `_idle` when the commit came

    def _may_have_changed(self, channel: Channel, reading: Reading | None) -> bool:
        """Whether the newest version of a channel's view may differ from its last one."""
        version = channel.version
        if channel.delivery.is_put_off or version is None or version.state is None:
            return True
        if reading is None:
            return True
        covering = self._documents.covering(reading, channel.subscription.view)
        return covering is None or not version.state.is_of(
            covering.snapshot.position, covering.source
        )

    def _ask_for(self, channel: Channel, payer: str) -> float:
        """Request that a channel's view is made ready; return the seconds to put it off."""
        try:
            self._renders.request(channel.subscription.view, payer, self._try_again, channel)
        except Unavailable as busy:
            return busy.retry_after
        return ALIVE_SECONDS  # `_try_again` is called as soon as the view is ready

    async def _repeat_snapshot(self, channel: Channel, now: float) -> None:
        """Send the last version again if members have waited ALIVE_SECONDS for a snapshot.

        When the channel is put off for the first time, its view may be ready in a moment.
        """
        newest, delivery = self._versions.newest(channel.subscription.view), channel.delivery
        if newest is not None and delivery.is_put_off and delivery.must_repeat(now):
            await self._send_round(channel, newest, "", now)

    async def _send_version(
        self, channel: Channel, version: Version, payer: str, now: float
    ) -> bool:
        """Send a version to all members that need it; return whether any did."""
        if not channel.delivery.begin(version, channel.version, now, self._clock.now()):
            return False
        return await self._send_round(channel, version, payer, now)

    async def _send_round(self, channel: Channel, version: Version, payer: str, now: float) -> bool:
        """Send each member the message that leads to a version; return whether any needed one."""
        delivery, needed = channel.delivery, False
        for cohort in channel.begin_round():
            if not cohort.members:
                continue  # its members left while others were served
            if cohort.base is not None and delivery.is_too_soon(cohort.sent_at, now):
                continue
            with self._renders.charged(payer):
                payload = delivery.payload(version, cohort, self._clock.now())
            if payload is None:
                continue
            needed = True
            base, skipped = cohort.base, self._manager.broadcast(payload, cohort.batch)
            cohort.count(payload, skipped)
            cohort.base, cohort.sent_at = version, self._timers.now()
            if delivery.has_bases:
                base = delivery.base_of_skipped(base)
                for connection in skipped:
                    channel.place(cohort.members[connection], base, cohort.sent_at)
            # Not before the first cohort is served: until then no client has the version as its
            # base, and a version that is made in that turn would replace it.
            await self._yield_to_loop(len(cohort.members))
        # Only now, so that after a crash the cohorts that are left are served.
        channel.version = version
        delivery.end(now)
        channel.end_round()
        return needed

    async def _yield_to_loop(self, served: int) -> None:
        """Yield to the event loop if enough members were served since the last time."""
        self._served += served
        if self._served >= self._batch_size:
            self._served = 0
            await asyncio.sleep(0)

    def _coalesce(self, channel: Channel) -> None:
        """Move a channel of the default stream one phase earlier, if there is room for it there.

        This is repeated at each tick, until all channels are at the start of the interval.
        """
        delivery, subscription = channel.delivery, channel.subscription
        if not isinstance(delivery, FullDocuments) or not delivery.phase or not channel.cohorts:
            return
        if delivery.is_put_off:
            return  # it waits until its clients may use rendering time
        if quantum_of(subscription.interval) * QUANTA > subscription.interval:
            return  # there are only a few phases
        before = self._channels.get((subscription, FullDocuments, delivery.phase - 1))
        if before is None:
            del self._channels[channel.key]
            delivery.move_forward()
            self._channels[channel.key] = channel
            self._schedule(channel)
            return
        assert isinstance(before.delivery, FullDocuments)
        # A channel that is put off waits for its own clients' rendering time.
        if not before.delivery.is_put_off and len(before) + len(channel) <= self._max_coalesced:
            self._forget(channel)
            before.take_over(channel)
            before.delivery.take_over(delivery)

    # -- versions -------------------------------------------------------------------------------

    def _version_now(self, view: View, reading: Reading) -> Version | None:
        """Return a view's version for a new member; None if it must be rendered first.

        If only time has passed since the newest version, all new members share that version. Only
        the plain view is rendered here, because many members may join in one turn of the event
        loop.
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
        """Return a view's version in the newest state; render it only if it may have changed.

        None if its document cannot be made at once, or if it must be rendered and `render` is
        False.
        """
        now, newest = self._clock.now(), self._versions.newest(view)
        document = state = None
        stamps: Stamps = ()
        if reading is not None:
            reading = self._documents.covering(reading, view)
            if reading is None and not (render and self._documents.lacks(view)):
                return None
        if reading is not None:
            time_key = view.time_key(reading.snapshot.document_time(now))
            state = DocumentState(
                reading.snapshot.position, time_key, reading.source, reading.as_of
            )
            if newest is not None and newest.still_valid_for(state):
                return newest
            if not (render and self._documents.is_ready(reading, view, now)):
                return None
            stamps = self._documents.stamps(reading, view, now)
            if newest is not None and newest.still_holds(stamps, time_key):
                return self._versions.carry(newest, now, state)
            document = self._documents.document(reading, view, now)
        if document is None:
            if newest is not None and newest.state is None:
                return newest
            state = None
        return self._versions.add(view, now, state, document, stamps)

    # -- timers ---------------------------------------------------------------------------------

    def _schedule(self, channel: Channel) -> None:
        """Set a channel's timer; if the channel does not rest, a commit serves it earlier."""
        now = self._timers.now()
        if channel.delivery.is_resting(now):
            self._idle.pop(channel, None)
        else:
            channel.delivery.end_rest()
            self._idle[channel] = None
        if channel.timer is not None:
            channel.timer.cancel()
        channel.timer = self._timers.call_at(channel.delivery.due(now), self._on_timer, channel)

    def _try_again(self, channel: Channel) -> None:
        """Serve a channel that was put off: its view is ready, or a new client may pay."""
        if channel.delivery.is_put_off:  # else it was served already
            channel.delivery.wake(self._timers.now())
            self._on_timer(channel)

    def _on_timer(self, channel: Channel) -> None:
        self._idle.pop(channel, None)
        self._due[channel] = None
        self._wake.set()
