"""Lookbacks: the past, for those who ask for it over routecast.v1, and how it goes on.

One is answered after the other on each connection, and none while the last answer waits for room.
"""

import asyncio
from collections.abc import Iterator
from typing import Final, Protocol

from routecast.core.history import HistoryQuery
from routecast.core.history_cursor import HistoryCursor
from routecast.core.message import Encoding, Message
from routecast.core.time_series import MANY_VALUES, HistoryResponse
from routecast.errors import BadParameter, Unavailable
from routecast.protocol import HistoryOut
from routecast.streaming.history_limits import HistoryLimits

# Between two looks whether a bucket has closed, in seconds.
BUCKET_POLL_SECONDS: Final = 1.0
# Histories that are brought forward at the same time, should that take the database.
WORKERS: Final = 8
# At most this number is looked at before others get a turn on the event loop.
HISTORIES_PER_TURN: Final = 50
# Answers kept encoded until the next look: those who ask the same share one.
MAX_KEPT_ENCODED: Final = 64


class Histories(Protocol):
    """Where the past is told (`history.HistoryService`)."""

    async def answer(self, query: HistoryQuery) -> HistoryResponse:
        """Return a query's answer. Raises BadParameter, Unavailable."""
        ...

    async def follow(self, query: HistoryQuery) -> tuple[HistoryResponse, HistoryCursor]:
        """Return a query's answer, and what goes on from it. Raises as `answer` does."""
        ...

    async def advance(self, follow: HistoryCursor) -> HistoryResponse | None:
        """Return what is to be told now, None when nothing is. Raises Unavailable."""
        ...


class HistorySubscriber(Protocol):
    """A connection that asks (`peers.V1Peer`)."""

    turn: asyncio.Lock  # for one answer at a time

    @property
    def client(self) -> str:
        """The address it came from."""
        ...

    @property
    def encoding(self) -> Encoding:
        """How it wants to be told."""
        ...

    @property
    def waits(self) -> bool:
        """Whether something waits to be told."""
        ...

    def tell(self, message: Message, lookback: "HistorySubscription") -> None:
        """Send a message now, or as soon as there is room."""
        ...

    async def told(self) -> None:
        """Return when what was to be told is on its way."""
        ...

    async def drained(self) -> None:
        """Return when the connection has taken what it was sent, or has ended."""
        ...

    def ended(self, identity: str, error: BadParameter | Unavailable | None) -> None:
        """Take note that no more will be told, and why."""
        ...


class HistorySubscription:
    """A history that a client asked for under an id of its own."""

    __slots__ = ("asker", "follow", "identity", "query")

    def __init__(self, asker: HistorySubscriber, identity: str, query: HistoryQuery) -> None:
        self.asker = asker
        self.identity = identity
        self.query = query
        self.follow: HistoryCursor | None = None


class HistorySubscriptions:
    """All of them. Run `run` as a task."""

    def __init__(self, histories: Histories, admission: HistoryLimits | None = None) -> None:
        self._histories = histories
        self._admission = admission or HistoryLimits()
        self._tasks: set[asyncio.Task[None]] = set()
        self._open: set[HistorySubscription] = set()  # those that somebody is still to be told of
        self._followed: dict[HistorySubscription, None] = {}
        self._kept: dict[tuple[int, Encoding], tuple[HistoryResponse, Message]] = {}
        self._asked = asyncio.Event()  # while nobody asks, nothing is looked at

    def ask(
        self, asker: HistorySubscriber, identity: str, query: HistoryQuery
    ) -> HistorySubscription:
        """Begin to look back; `leave` what is returned when nobody is to be told any more."""
        lookback = HistorySubscription(asker, identity, query)
        self._open.add(lookback)
        self._asked.set()
        task = asyncio.create_task(self._answer(lookback))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return lookback

    def leave(self, lookback: HistorySubscription) -> None:
        """Tell nothing more."""
        self._open.discard(lookback)
        self._followed.pop(lookback, None)

    async def run(self) -> None:
        """Tell how histories go on. Never ends."""
        while True:
            if not self._open and not self._kept:
                self._asked.clear()
            await self._asked.wait()
            await asyncio.sleep(BUCKET_POLL_SECONDS)
            self._kept.clear()
            if self._followed:
                turns = enumerate(list(self._followed), 1)
                async with asyncio.TaskGroup() as group:
                    for _ in range(WORKERS):
                        group.create_task(self._advance(turns))

    async def _answer(self, lookback: HistorySubscription) -> None:
        error: BadParameter | Unavailable | None = None
        async with lookback.asker.turn:
            if lookback not in self._open:
                return
            try:
                async with self._admission.enter(lookback.asker.client, lookback.query):
                    await self._answer_now(lookback)
            except (BadParameter, Unavailable) as problem:
                error = problem
        if lookback not in self._open:
            return
        if lookback.follow is not None:
            self._followed[lookback] = None
        else:
            self._open.discard(lookback)
            lookback.asker.ended(lookback.identity, error)

    async def _answer_now(self, lookback: HistorySubscription) -> None:
        if lookback.query.follow:
            answer, lookback.follow = await self._histories.follow(lookback.query)
        else:
            answer = await self._histories.answer(lookback.query)
        await self._tell(lookback, answer)
        await lookback.asker.told()
        if answer.values > MANY_VALUES:
            await lookback.asker.drained()

    async def _advance(self, turns: Iterator[tuple[int, HistorySubscription]]) -> None:
        for number, lookback in turns:
            if not number % HISTORIES_PER_TURN:
                await asyncio.sleep(0)
            if lookback not in self._followed or lookback.asker.waits:
                continue
            assert lookback.follow is not None
            try:
                answer = await self._histories.advance(lookback.follow)
            except Unavailable:
                continue  # it is not forgotten
            if answer is not None:
                await self._tell(lookback, answer)

    async def _tell(self, lookback: HistorySubscription, answer: HistoryResponse) -> None:
        key = id(answer), lookback.asker.encoding
        kept = self._kept.get(key)
        if kept is None:
            out = _out(answer)
            if answer.values > MANY_VALUES:
                message = await asyncio.to_thread(Message, key[1], out)
            else:
                message = Message(key[1], out)
            if len(self._kept) >= MAX_KEPT_ENCODED:
                self._kept.clear()
            kept = self._kept[key] = answer, message
        if lookback in self._open:
            lookback.asker.tell(kept[1], lookback)


def _out(answer: HistoryResponse) -> HistoryOut:
    told = answer.document()
    return HistoryOut(
        id="",
        position=answer.position,
        step=told["step"],
        from_=told["from"],
        points=told["points"],
        series=answer.series,
    )
