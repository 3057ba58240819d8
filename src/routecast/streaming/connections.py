"""Connections: who is listening, and the ticks that send each of them its frames.

Connections with equal subscriptions that came at about the same time form a group
(`core/groups.py`), which has one tick. At a tick each distinct view is rendered and encoded once,
however many connections share it.
A connection that has not read its last frame is skipped; when it has, it gets the newest one. So
nothing queues: at most one frame waits for a reader (the policy is to conflate).
"""

import asyncio
import heapq
import itertools
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain
from math import inf
from typing import Final, Protocol

from routecast.core import groups
from routecast.core.document import EncodedDocument
from routecast.core.groups import Connection, Group, Key, PingState, Shard
from routecast.core.rotation import rotated
from routecast.core.view import View, ViewSubscription
from routecast.errors import Unavailable
from routecast.instruments import Instruments
from routecast.protocol import CloseCode

log = logging.getLogger(__name__)

# Ticks fall on multiples of a quantum, so that clients that come together share them. An interval
# has QUANTA of them, but none is shorter than QUANTUM, in seconds.
QUANTA: Final = 20
QUANTUM: Final = 0.05
# Ticks that have fewer connections than this draw together: a tick has its price, too.
MAX_COALESCED: Final = 10_000
# Each connection is sent a ping every PING_SECONDS.
PING_SECONDS: Final = 20.0
# The ping comes up to this time earlier, in seconds, where it can go with a tick's frame: that
# spares a write to each connection, except to those whose turn is later.
EARLY_SECONDS: Final = 5.0
# Many connections are not sent a ping at once, or their answers would delay the frames of that
# moment: they are sent it in ASK_TURNS turns, with PING_TURN_SECONDS in between.
ASK_TURNS: Final = 3
PING_TURN_SECONDS: Final = 1.0
# The ping waits at most this time, in seconds, for a frame to go with, at no write of its own.
PIGGYBACK_SECONDS: Final = 2.0
# A connection that has not answered this time after its ping, in seconds, is gone. The ping may
# have gone with a frame, or without one a little later.
PONG_SECONDS: Final = 7.0
# At most this number is closed before others get a turn: closing costs more than sending a frame.
CLOSE_BATCH: Final = 50
# Clients that are told to come back are spread so that not more than this many come in a second,
# over at least the first and at most the second of these times, in seconds.
RETURNS_PER_SECOND: Final = 1_000
SHORTEST_SPREAD: Final = 2.0
LONGEST_SPREAD: Final = 60.0
# Done, going away, and closed without saying why.
_NORMAL: Final = frozenset({CloseCode.DONE, CloseCode.GOING_AWAY, 1005})
# Codes counted by their number: those of the contract and of WebSocket itself. A client may close
# with any of two thousand others.
_COUNTED: Final = frozenset({*CloseCode, 1002, 1005, 1006})


class Frames(Protocol):
    """Where frames come from (`metrics_reader.MetricsReader`)."""

    def frame_now(self, view: View) -> EncodedDocument | None:
        """Return a view's newest frame from live state, None when that cannot answer."""
        ...

    async def frames(self, views: Mapping[View, str]) -> dict[View, EncodedDocument]:
        """Return the newest frame of those views that can be made at once.

        It may be the error document's. By each view is the client that pays for it.
        """
        ...


class FrameTurns(Protocol):
    """Who pays for frames, and the work of those that take a while (`renders.Renders`)."""

    def payer(self, view: View, clients: Iterable[str]) -> tuple[str, float]:
        """Return which of the clients of a view pays for it, and in how many seconds it may."""
        ...

    def admit(self, view: View, client: str) -> None:
        """Raise Unavailable when a client must not ask for a view now."""
        ...

    def ask(self, view: View, client: str, done: Callable[[], None]) -> None:
        """Have a view made ready, and be told. Raises Unavailable when too many wait."""
        ...


class ConnectionManager:
    """Holds every open connection and sends each its frames.

    Run `run` and `run_heartbeat` as tasks.
    """

    def __init__(
        self, frames: Frames, turns: FrameTurns, instruments: Instruments, limit: int
    ) -> None:
        self._frames = frames
        self._turns = turns
        self._instruments = instruments
        self._limit = limit
        self._groups: dict[Key, Group] = {}
        self._ticks: list[tuple[float, int, Group]] = []  # a heap, soonest first
        self._order = itertools.count()
        self._sooner = asyncio.Event()
        self._someone = asyncio.Event()
        # When all were last to be asked for a sign of life, and by when they are next, on the
        # monotonic clock; inf while a round of it is under way.
        self._asked = self._ask_by = inf
        self._ask_turns = 1  # by how many they are asked
        self._tick_asked = asyncio.Event()  # and its frames are out
        self._gone = asyncio.Event()
        self._waiting: list[Connection] = []  # for their first frame, from other than live state
        self._closing = False
        self._served = 0  # since others had a turn
        self.active = 0  # connections open
        instruments.connections.set_function(lambda: self.active)

    def admit(self, view: View, client: str) -> None:
        """Raise Unavailable when there is no room for one more connection of a client."""
        if self._closing:
            raise Unavailable("restarting", retry_after=round(self._spread()) + 1)
        if self.active >= self._limit:
            raise Unavailable("too many connections", retry_after=random.randint(5, 15))
        self._turns.admit(view, client)

    def hold(self, connection: Connection) -> None:
        """Take in a connection that gets its frames from elsewhere (`channels.py`)."""
        group = Group(type(connection), ViewSubscription(), -1, inf)  # it has no tick
        self._take(connection, self._groups.setdefault(group.key, group))

    def connect(self, connection: Connection) -> None:
        """Take a connection in and send it its first frame at once."""
        subscription = connection.subscription
        # Never a quantum too late: then the tick of those who came just before would serve it
        # a second frame right after its first.
        interval = subscription.interval
        length = max(QUANTUM, interval / QUANTA)
        due = (time.monotonic() + interval) // length * length
        quantum = round(due % interval / length) % QUANTA
        key = type(connection), subscription, quantum
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = Group(*key, due)
            self._schedule(group)
        if not self._take(connection, group):
            return
        _, wait = self._turns.payer(subscription.view, (connection.client,))
        frame = None if wait else self._frames.frame_now(subscription.view)
        if frame is not None:
            self.send_personal(frame, connection)
        else:
            # However many come at once, the engines are asked once for all of them.
            self._wait_for_frame(connection)

    def _wait_for_frame(self, connection: Connection) -> None:
        self._waiting.append(connection)
        self._sooner.set()

    def _take(self, connection: Connection, group: Group) -> bool:
        """Put a connection into a group; False when it comes too late."""
        group.arrivals.add(connection)
        self.active += 1
        self._someone.set()
        self._instruments.opened.inc()
        log.info("%s connected. Total connections: %d", connection.kind, self.active)
        if self._closing:
            connection.stop(CloseCode.RESTART, self._return_ms())
        return not self._closing

    def disconnect(self, connection: Connection, code: int) -> None:
        """Forget a connection that is closed; does nothing for one not held."""
        if connection.shard is None:
            return
        connection.shard.remove(connection)  # an empty group goes at its next tick
        self.active -= 1
        self._instruments.closed.labels(str(int(code)) if code in _COUNTED else "other").inc()
        if code in _NORMAL:
            log.info("Client disconnected normally")
        log.info("%s disconnected. Total connections: %d", connection.kind, self.active)
        if self._closing and not self.active:
            self._gone.set()

    def send_personal(self, frame: EncodedDocument, connection: Connection) -> None:
        """Send a frame to one connection, if it is still there."""
        if connection.shard is not None:
            self._count(frame, 1, 0 if connection.offer(frame) else 1)

    def catch_up(self, connection: Connection) -> None:
        """Send a connection that was skipped, and can be written to again, its newest frame."""
        newest = connection.shard.group.newest if connection.shard is not None else None
        if newest is not None:
            self.send_personal(newest, connection)

    async def broadcast(self, frame: EncodedDocument, group: Group) -> None:
        """Send a frame to a group, shard by shard; others get their turn in between."""
        offered = conflated = 0
        async for shard in self._in_turns(rotated(group.shards)):
            if shard.connections:
                offered += len(shard.connections)
                conflated += group.kind.offer_all(frame, shard)
        self._count(frame, offered, conflated)

    async def _in_turns(self, shards: Iterable[Shard]) -> AsyncIterator[Shard]:
        """Yield shards, and give others a turn on the event loop before it is too many at once."""
        for shard in shards:
            self._served += len(shard.connections)
            if self._served > groups.SHARD_SIZE:
                await asyncio.sleep(0)
                self._served = len(shard.connections)
            yield shard

    async def run(self) -> None:
        """Send frames as their ticks come. Never ends."""
        while True:
            await self._wait()
            if self._waiting:
                await self._send_first_frames()
            now = time.monotonic()
            due = self._take_due(now)
            if not due:
                continue
            for group in due:
                group.settle()
            # Nobody waits for a document that takes longer to make than the plain one.
            plain = [group for group in due if group.subscription.view.plain]
            others = [group for group in due if not group.subscription.view.plain]
            left = [some for some in (plain, others) if some]
            while left:
                try:
                    await self._tick(left[0], now)
                except Exception:
                    self._put_back(chain.from_iterable(left))
                    raise
                del left[0]

    async def _tick(self, due: list[Group], now: float) -> None:
        """Send groups their frames; put those off that have to wait for one."""
        payers, due = self._who_pays(due, now)
        asking = bool(due) and self._is_time_to_ask(due, now)
        if asking:
            await self._ask(due)
        frames = await self._frames.frames(payers) if due else {}
        for group in due:
            frame = frames.get(group.subscription.view)
            if frame is not None:
                group.newest = frame
                await self.broadcast(frame, group)
        if asking:
            self._tick_asked.set()
        self._instruments.broadcast_seconds.observe(time.monotonic() - now)
        for group in due:
            if group.subscription.view in frames:
                self._reschedule(group)
            else:
                self._wait_for_render(group, payers[group.subscription.view])

    def _who_pays(self, due: list[Group], now: float) -> tuple[dict[View, str], list[Group]]:
        """Return who pays for each view, and the groups that are served now.

        A group none of whose clients may use rendering time is put off until one of them may.
        """
        payers: dict[View, str] = {}
        served = []
        for group in due:
            view = group.subscription.view
            payer, wait = self._turns.payer(view, (each.client for each in group))
            if wait:
                self._instruments.ticks_stretched.inc()
                self._put_off(group, now + wait)
            else:
                payers[view] = payer
                served.append(group)
        return payers, served

    def _wait_for_render(self, group: Group, payer: str) -> None:
        """Serve a group as soon as its view can be rendered."""
        try:
            self._turns.ask(group.subscription.view, payer, lambda: self._put_off(group, 0))
        except Unavailable as error:
            self._put_off(group, time.monotonic() + error.retry_after)

    def _put_off(self, group: Group, until: float) -> None:
        group.due = max(until, time.monotonic())
        self._schedule(group)

    async def run_heartbeat(self) -> None:
        """Ask each connection for a sign of life now and then, and end the silent. Never ends."""
        self._asked = time.monotonic()
        while True:
            if not self.active:  # an idle server sleeps
                self._someone.clear()
                await self._someone.wait()
                self._asked = time.monotonic()
            # A tick that is late by less than a quantum is in time.
            self._ask_by = self._asked + PING_SECONDS + QUANTUM
            await self._wait_to_ask()
            for turns in range(self._ask_turns - 1, 0, -1):
                await asyncio.sleep(PING_TURN_SECONDS)
                await self._ask_some(turns)
            patience = PONG_SECONDS
            if any(shard.ping_state for shard in self._shards()):
                await asyncio.sleep(PIGGYBACK_SECONDS)
                async for shard in self._in_turns(self._shards()):
                    shard.group.kind.flush_ping(shard)
                patience -= PIGGYBACK_SECONDS
            await asyncio.sleep(patience)
            await self._end_silent()

    async def _wait_to_ask(self) -> None:
        """Return once the first are asked: by a tick, or by this when none comes in time.

        A tick whose frames are long in coming is not waited for.
        """
        while self._ask_by < inf:
            self._tick_asked.clear()
            try:
                async with asyncio.timeout(self._ask_by - time.monotonic()):
                    await self._tick_asked.wait()
            except TimeoutError:
                if self._ask_by < inf:
                    await self._ask()

    def _is_time_to_ask(self, due: Sequence[Group], now: float) -> bool:
        """Whether a tick is that of most, and their last one before they are to be asked."""
        if now < self._ask_by - EARLY_SECONDS:
            return False
        last = [group for group in due if now + group.subscription.interval > self._ask_by]
        return 2 * sum(map(len, last)) >= self.active

    async def _ask(self, first: Sequence[Group] = ()) -> None:
        """Note that all are to be asked, and ask one turn's, those of some groups first."""
        self._asked, self._ask_by = time.monotonic(), inf
        for shard in self._shards():  # all of them at once: who moves takes the question along
            shard.responded, shard.ping_state = set(), PingState.WAITS
        self._ask_turns = max(1, min(ASK_TURNS, -(-self.active // groups.SHARD_SIZE)))
        await self._ask_some(self._ask_turns, first)

    async def _ask_some(self, turns: int, first: Sequence[Group] = ()) -> None:
        """Ask one turn's of those who wait for the question: all of them, if no turns follow."""
        shards = [each for each in self._shards() if each.ping_state is PingState.WAITS]
        shards.sort(key=lambda shard: shard.group not in first)
        async for shard in self._in_turns(shards[: -(-len(shards) // turns)]):
            shard.ping_state = PingState.DUE
            shard.group.kind.queue_ping(shard)

    async def _end_silent(self) -> None:
        # What has come in while nothing ran here is read before it is judged.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        silent = [each for shard in self._shards() for each in shard.silent()]
        for number, connection in enumerate(silent, 1):
            if connection.shard is not None and connection not in connection.shard.responded:
                connection.give_up()
            if not number % CLOSE_BATCH:
                await asyncio.sleep(0)

    def _shards(self) -> list[Shard]:
        for group in self._groups.values():
            if group.due == inf:  # it has no tick to do so
                group.settle()
        everyone = ((*group.shards, group.arrivals) for group in self._groups.values())
        return [shard for shard in chain.from_iterable(everyone) if shard.connections]

    async def close(self, seconds: float) -> None:
        """Take no more, tell everyone to come back (1012) and when, and wait until they left.

        Returns after `seconds` at the latest; who is left by then has not been reading.
        """
        self._closing = True
        for number, connection in enumerate(self._all(), 1):
            connection.stop(CloseCode.RESTART, self._return_ms())
            if not number % CLOSE_BATCH:
                await asyncio.sleep(0)
        if self.active:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._gone.wait()

    def _all(self) -> list[Connection]:
        return list(chain.from_iterable(self._groups.values()))

    def _spread(self) -> float:
        """Return a random delay over a time in which all that are here can come back."""
        spread = min(max(self.active / RETURNS_PER_SECOND, SHORTEST_SPREAD), LONGEST_SPREAD)
        return random.random() * spread

    def _return_ms(self) -> int:
        return round(self._spread() * 1000)

    async def _send_first_frames(self) -> None:
        waiting, self._waiting = self._waiting, []
        payers = {each.subscription.view: each.client for each in waiting}
        frames = await self._frames.frames(payers)
        for number, connection in enumerate(waiting, 1):
            if connection.shard is not None:
                view = connection.subscription.view
                if view in frames:
                    self.send_personal(frames[view], connection)
                else:
                    # Its next tick brings the frame if too many wait already.
                    with suppress(Unavailable):
                        done = partial(self._wait_for_frame, connection)
                        self._turns.ask(view, connection.client, done)
            if not number % groups.SHARD_SIZE:
                await asyncio.sleep(0)

    # -- ticks ----------------------------------------------------------------------------------

    def _schedule(self, group: Group) -> None:
        heapq.heappush(self._ticks, (group.due, next(self._order), group))
        if self._ticks[0][2] is group:
            self._sooner.set()

    def _reschedule(self, group: Group) -> None:
        interval, now = group.subscription.interval, time.monotonic()
        group.due += interval
        if group.due <= now:
            missed = (now - group.due) // interval + 1
            group.due += missed * interval
            self._instruments.ticks_merged.inc(missed)
        if self._coalesce_ticks(group):
            self._schedule(group)

    def _coalesce_ticks(self, group: Group) -> bool:
        """Move a tick forward by a quantum, to where one is that has room for its connections.

        So it goes on, a twentieth of an interval at a time, until all are at the front of the
        interval. Returns False when the group is one with another now.
        """
        subscription, quantum = group.subscription, group.quantum
        length = subscription.interval / QUANTA
        if not quantum or length < QUANTUM:
            return True
        before = self._groups.get((group.kind, subscription, quantum - 1))
        if before is not None and len(before) + len(group) > MAX_COALESCED:
            return True
        del self._groups[group.key]
        if before is None:
            group.quantum -= 1
            group.due -= length
            self._groups[group.key] = group
            return True
        before.newest = group.newest
        before.join(group)
        return False

    async def _wait(self) -> None:
        """Sleep until the next tick, or until something changes what that is."""
        if self._waiting:
            return
        delay = self._ticks[0][0] - time.monotonic() if self._ticks else None
        if delay is None or delay > 0:
            self._sooner.clear()
            timer = None
            if delay is not None:
                # Not `asyncio.timeout`: that raises each time, and costs as much as the tick.
                timer = asyncio.get_running_loop().call_later(delay, self._sooner.set)
            await self._sooner.wait()
            if timer is not None:
                timer.cancel()

    def _put_back(self, groups: Iterable[Group]) -> None:
        """See to it that groups have a next tick, when theirs crashed."""
        scheduled = {id(group) for *_, group in self._ticks}
        for group in groups:
            if id(group) not in scheduled:
                self._reschedule(group)

    def _take_due(self, now: float) -> list[Group]:
        due = []
        while self._ticks and self._ticks[0][0] <= now:
            group = heapq.heappop(self._ticks)[2]
            if len(group):
                due.append(group)
            else:
                del self._groups[group.key]
        return due

    def _count(self, frame: EncodedDocument, offered: int, conflated: int) -> None:
        sent = offered - conflated
        self._instruments.frames_sent.inc(sent)
        self._instruments.bytes_sent.inc(sent * len(frame.body))
        if conflated:
            self._instruments.conflated.inc(conflated)
