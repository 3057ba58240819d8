"""History subscriptions: histories that clients of routecast.v1 ask for or follow.

A connection gets one answer after the other, and none while the last answer waits for room.
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

# Seconds between two checks whether a bucket has closed.
BUCKET_POLL_SECONDS: Final = 1.0
# The maximum number of histories that are advanced at the same time; it may read the database.
WORKERS: Final = 8
# At most this number of histories is checked before other tasks get a turn on the event loop.
HISTORIES_PER_TURN: Final = 50
# The maximum number of encoded answers that are kept until the next check, because equal queries
# share one.
MAX_KEPT_ENCODED: Final = 64


class Histories(Protocol):
    """Answers and advances history queries (`history.HistoryService`)."""

    async def answer(self, query: HistoryQuery) -> HistoryResponse:
        """Return a query's answer. Raises BadParameter, Unavailable."""
        ...

    async def follow(self, query: HistoryQuery) -> tuple[HistoryResponse, HistoryCursor]:
        """Return a query's answer, and a cursor for `advance`. Raises as `answer` does."""
        ...

    async def advance(self, cursor: HistoryCursor) -> HistoryResponse | None:
        """Return what has changed since the last answer; None if nothing. Raises Unavailable."""
        ...


class HistorySubscriber(Protocol):
    """A peer whose client asks for histories (`peers.V1Peer`)."""

    answering: asyncio.Lock  # for one answer at a time

    @property
    def client(self) -> str:
        """The address of the client."""
        ...

    @property
    def encoding(self) -> Encoding:
        """How its messages are written."""
        ...

    @property
    def has_pending(self) -> bool:
        """Whether an answer waits for room."""
        ...

    def prepare_history(self, message: Message, subscription: "HistorySubscription") -> None:
        """Do the slow part of sending a message; called in another thread."""
        ...

    def send_history(self, message: Message, subscription: "HistorySubscription") -> None:
        """Send a message now, or as soon as there is room."""
        ...

    async def flushed(self) -> None:
        """Return when no answer waits for room."""
        ...

    async def drained(self) -> None:
        """Return when the connection has taken what it was sent, or has ended."""
        ...

    def history_ended(self, identity: str, error: BadParameter | Unavailable | None) -> None:
        """Record that an id gets no more answers; `error` says why, if it failed."""
        ...


class HistorySubscription:
    """A history that a client asked for under an id of its own."""

    __slots__ = ("cursor", "identity", "query", "subscriber")

    def __init__(self, subscriber: HistorySubscriber, identity: str, query: HistoryQuery) -> None:
        self.subscriber = subscriber
        self.identity = identity
        self.query = query
        self.cursor: HistoryCursor | None = None  # if the history is followed


class HistorySubscriptions:
    """Answers all history subscriptions. Run `run` as a task."""

    def __init__(self, histories: Histories, limits: HistoryLimits | None = None) -> None:
        self._histories = histories
        self._limits = limits or HistoryLimits()
        self._tasks: set[asyncio.Task[None]] = set()
        self._open: set[HistorySubscription] = set()  # those that may get another answer
        self._followed: dict[HistorySubscription, None] = {}
        self._encoded: dict[tuple[int, Encoding], tuple[HistoryResponse, Message]] = {}
        self._wanted = asyncio.Event()  # cleared while there is no subscription

    def subscribe(
        self, subscriber: HistorySubscriber, identity: str, query: HistoryQuery
    ) -> HistorySubscription:
        """Start to answer a query; pass the result to `unsubscribe` to end that."""
        subscription = HistorySubscription(subscriber, identity, query)
        self._open.add(subscription)
        self._wanted.set()
        task = asyncio.create_task(self._answer(subscription))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return subscription

    def unsubscribe(self, subscription: HistorySubscription) -> None:
        """Send no more answers."""
        self._open.discard(subscription)
        self._followed.pop(subscription, None)

    async def run(self) -> None:
        """Send new answers of the followed histories. Never ends."""
        while True:
            if not self._open and not self._encoded:
                self._wanted.clear()
            await self._wanted.wait()
            await asyncio.sleep(BUCKET_POLL_SECONDS)
            self._encoded.clear()
            if self._followed:
                turns = enumerate(list(self._followed), 1)
                async with asyncio.TaskGroup() as group:
                    for _ in range(WORKERS):
                        group.create_task(self._advance(turns))

    async def _answer(self, subscription: HistorySubscription) -> None:
        error: BadParameter | Unavailable | None = None
        async with subscription.subscriber.answering:
            if subscription not in self._open:
                return
            try:
                async with self._limits.enter(subscription.subscriber.client, subscription.query):
                    await self._answer_now(subscription)
            except (BadParameter, Unavailable) as problem:
                error = problem
        if subscription not in self._open:
            return
        if subscription.cursor is not None:
            self._followed[subscription] = None
        else:
            self._open.discard(subscription)
            subscription.subscriber.history_ended(subscription.identity, error)

    async def _answer_now(self, subscription: HistorySubscription) -> None:
        if subscription.query.follow:
            answer, subscription.cursor = await self._histories.follow(subscription.query)
        else:
            answer = await self._histories.answer(subscription.query)
        await self._send(subscription, answer)
        await subscription.subscriber.flushed()
        if answer.values > MANY_VALUES:
            await subscription.subscriber.drained()

    async def _advance(self, turns: Iterator[tuple[int, HistorySubscription]]) -> None:
        for number, subscription in turns:
            if not number % HISTORIES_PER_TURN:
                await asyncio.sleep(0)
            if subscription not in self._followed or subscription.subscriber.has_pending:
                continue
            assert subscription.cursor is not None
            try:
                answer = await self._histories.advance(subscription.cursor)
            except Unavailable:
                continue  # it is tried again at the next check
            if answer is not None:
                await self._send(subscription, answer)

    async def _send(self, subscription: HistorySubscription, answer: HistoryResponse) -> None:
        key = id(answer), subscription.subscriber.encoding
        held = self._encoded.get(key)
        if held is None:
            out = _out(answer)
            if answer.values > MANY_VALUES:
                message = await asyncio.to_thread(Message, key[1], out)
            else:
                message = Message(key[1], out)
            if len(self._encoded) >= MAX_KEPT_ENCODED:
                self._encoded.clear()
            held = self._encoded[key] = answer, message
        if answer.values > MANY_VALUES:
            await asyncio.to_thread(subscription.subscriber.prepare_history, held[1], subscription)
        if subscription in self._open:
            subscription.subscriber.send_history(held[1], subscription)


def _out(answer: HistoryResponse) -> HistoryOut:
    document = answer.document()
    return HistoryOut(
        id="",
        position=answer.position,
        step=document["step"],
        from_=document["from"],
        points=document["points"],
        series=answer.series,
    )
