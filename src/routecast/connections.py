"""Connections: who is listening, and the ticks that send each of them its frames.

Connections with equal subscriptions that came at about the same time form a group, which has one
tick. At a tick each distinct view is rendered and encoded once, however many connections share it.
A connection that has not read its last frame is skipped; when it has, it gets the newest one. So
nothing queues: at most one frame waits for a reader (the policy is to conflate).
"""

import asyncio
import heapq
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Final, Protocol

from routecast.core.frame import Frame
from routecast.core.view import Subscription, View
from routecast.errors import Unavailable
from routecast.instruments import Instruments
from routecast.protocol import CloseCode

log = logging.getLogger(__name__)

# Ticks fall on multiples of this, in seconds, so that those who come together share them.
QUANTUM: Final = 0.05
# So many connections get their frame before others get a turn on the event loop.
YIELD_EVERY: Final = 250
# Done, going away, and closed without saying why.
_NORMAL: Final = frozenset({CloseCode.DONE, CloseCode.GOING_AWAY, 1005})


class Connection(Protocol):
    """One subscriber, on whatever edge."""

    subscription: Subscription

    def offer(self, frame: Frame) -> bool:
        """Send a frame, or keep it as the newest to send once the last one is read.

        Returns False when it took the place of a frame that was not sent: that one is conflated.
        Never blocks and never raises.
        """
        ...

    def stop(self, code: CloseCode) -> None:
        """Close with a code; `ConnectionManager.disconnect` follows when it is done."""
        ...


class _Group:
    """Connections that share a subscription and a tick."""

    __slots__ = ("connections", "due", "key", "subscription")

    def __init__(self, key: tuple[Subscription, int], due: float) -> None:
        self.key = key
        self.subscription = key[0]
        self.due = due
        # A dict keeps the order in which they came, and forgets one of them in no time.
        self.connections: dict[Connection, None] = {}


class ConnectionManager:
    """Holds every open connection and sends each its frames. Run `run` as a task."""

    def __init__(
        self,
        frames: Callable[[Iterable[View]], Awaitable[dict[View, Frame]]],
        instruments: Instruments,
        limit: int,
    ) -> None:
        self._frames = frames
        self._instruments = instruments
        self._limit = limit
        self._groups: dict[tuple[Subscription, int], _Group] = {}
        self._group_of: dict[Connection, _Group] = {}
        self._ticks: list[tuple[float, int, _Group]] = []  # a heap, soonest first
        self._order = itertools.count()
        self._sooner = asyncio.Event()
        self._closing = False
        instruments.connections.set_function(lambda: len(self._group_of))

    @property
    def active(self) -> int:
        """How many connections are open."""
        return len(self._group_of)

    def admit(self) -> None:
        """Raise Unavailable when there is no room for one more connection."""
        if self._closing:
            raise Unavailable("restarting", retry_after=2)
        if self.active >= self._limit:
            raise Unavailable("too many connections", retry_after=10)

    async def connect(self, connection: Connection) -> None:
        """Take a connection in and send it its first frame at once."""
        subscription = connection.subscription
        # Never a quantum too late: then the tick of those who came just before would serve it
        # a second frame right after its first.
        due = (time.monotonic() + subscription.interval) // QUANTUM * QUANTUM
        key = (subscription, round(due % subscription.interval / QUANTUM))
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = _Group(key, due)
            self._schedule(group)
        group.connections[connection] = None
        self._group_of[connection] = group
        self._instruments.opened.inc()
        log.info("WebSocket connected. Total connections: %d", self.active)
        frames = await self._frames([subscription.view])
        self.send_personal(frames[subscription.view], connection)
        if self._closing:
            connection.stop(CloseCode.RESTART)

    def disconnect(self, connection: Connection, code: int) -> None:
        """Forget a connection that is closed; does nothing for one not held."""
        group = self._group_of.pop(connection, None)
        if group is None:
            return
        del group.connections[connection]  # an empty group goes at its next tick
        self._instruments.closed.labels(str(int(code))).inc()
        if code in _NORMAL:
            log.info("Client disconnected normally")
        log.info("WebSocket disconnected. Total connections: %d", self.active)

    def send_personal(self, frame: Frame, connection: Connection) -> None:
        """Send a frame to one connection, if it is still there."""
        if connection in self._group_of:
            self._count(frame, 1, 0 if connection.offer(frame) else 1)

    async def broadcast(self, frame: Frame, connections: Iterable[Connection]) -> None:
        """Send one frame to many connections; others get their turn in between."""
        sent = conflated = 0
        for sent, connection in enumerate(list(connections), 1):
            if not connection.offer(frame):
                conflated += 1
            if not sent % YIELD_EVERY:
                await asyncio.sleep(0)
        self._count(frame, sent, conflated)

    async def run(self) -> None:
        """Send frames as their ticks come. Ends after `close` when every connection is gone."""
        while not (self._closing and not self._group_of):
            await self._wait()
            now = time.monotonic()
            due = self._take_due(now)
            if not due:
                continue
            frames = await self._frames({group.subscription.view for group in due})
            for group in due:
                await self.broadcast(frames[group.subscription.view], group.connections)
            self._instruments.broadcast_seconds.observe(time.monotonic() - now)
            for group in due:
                self._reschedule(group)

    async def close(self) -> None:
        """Tell every connection that the server restarts (1012), and take no more."""
        self._closing = True
        for number, connection in enumerate(list(self._group_of), 1):
            connection.stop(CloseCode.RESTART)
            if not number % YIELD_EVERY:
                await asyncio.sleep(0)
        self._sooner.set()

    # -- ticks ----------------------------------------------------------------------------------

    def _schedule(self, group: _Group) -> None:
        heapq.heappush(self._ticks, (group.due, next(self._order), group))
        if self._ticks[0][2] is group:
            self._sooner.set()

    def _reschedule(self, group: _Group) -> None:
        interval, now = group.subscription.interval, time.monotonic()
        group.due += interval
        if group.due <= now:
            missed = (now - group.due) // interval + 1
            group.due += missed * interval
            self._instruments.ticks_merged.inc(missed)
        self._schedule(group)

    async def _wait(self) -> None:
        """Sleep until the next tick, or until something changes what that is."""
        delay = self._ticks[0][0] - time.monotonic() if self._ticks else None
        if delay is None or delay > 0:
            self._sooner.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._sooner.wait()

    def _take_due(self, now: float) -> list[_Group]:
        due = []
        while self._ticks and self._ticks[0][0] <= now:
            group = heapq.heappop(self._ticks)[2]
            if group.connections:
                due.append(group)
            else:
                del self._groups[group.key]
        return due

    def _count(self, frame: Frame, offered: int, conflated: int) -> None:
        sent = offered - conflated
        self._instruments.frames_sent.inc(sent)
        self._instruments.bytes_sent.inc(sent * len(frame.body))
        if conflated:
            self._instruments.conflated.inc(conflated)
