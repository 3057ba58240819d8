"""What a caller iterates over: the newest of a topic, however slowly it is read."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, Final, Generic, Self, TypeVar

from routecast.client.document import Metrics, ReceivedDocument, read
from routecast.client.history import History, HistoryRequest
from routecast.client.reconnect import ReconnectingConnection, State
from routecast.client.session import SubscribedView, Topic
from routecast.errors import BadRequest, Unavailable
from routecast.protocol import ALIVE_SECONDS, DEFAULT_INTERVAL, Position, Source

Value = TypeVar("Value")

_ALIVE: Final = 1.2 * ALIVE_SECONDS


@dataclass(frozen=True, slots=True)
class Health:
    """How a client stands with its server, and how good what it holds is.

    `trouble` is why it is not connected, or why what it holds is stale; `retry_in` the seconds
    until the next try; `age` the seconds since what it holds was true for certain.
    """

    state: State
    trouble: str = ""
    retry_in: float | None = None
    position: Position | None = None
    source: Source | None = None
    age: float | None = None

    @classmethod
    def of(cls, link: ReconnectingConnection) -> "Health":
        """Return how a connection is, apart from anything asked for on it."""
        retry_in = None if link.retry_at is None else max(0.0, link.retry_at - time.monotonic())
        return cls(link.state, link.trouble, retry_in)


class Feed(Generic[Value]):
    """An asynchronous iterator of the newest values: those in between are left out, never queued.

    Leave it by `close` (or `async with`), so that the server sends no more.
    """

    def __init__(
        self,
        topic: Topic,
        link: ReconnectingConnection,
        end: Callable[["Feed[Value]"], Awaitable[None]],
    ):
        self.topic = topic
        self.link = link
        self._end = end
        self._changed = asyncio.Event()
        self._fresh = False
        self._heard = 0.0
        self._ended = False
        self._error: Exception | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Value:
        while not self._fresh:
            if self._error is not None:
                raise self._error
            if self._ended or self.topic.over:
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        self._fresh = False
        return self._value()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Follow it no longer; who iterates comes to the end."""
        self.end()
        await self._end(self)

    def _value(self) -> Value:
        raise NotImplementedError

    def take(self) -> None:
        """Take note that the topic has news."""
        trouble = self.topic.trouble
        if trouble is None:
            self._fresh = True
            self._heard = time.monotonic()
        elif not trouble.retryable:
            self._error = BadRequest(trouble.code, trouble.message)
        elif self.topic.over:
            self._error = Unavailable(trouble.message)
        self._changed.set()

    def fail(self, error: Exception) -> None:
        """Raise this where it is iterated, after what came before."""
        self._error = error
        self._changed.set()

    def end(self) -> None:
        """Come to the end where it is iterated."""
        self._ended = True
        self._changed.set()


class Subscription(Feed[Metrics]):
    """The metrics of some decisions, as they change."""

    topic: SubscribedView

    @property
    def metrics(self) -> Metrics | None:
        """The newest metrics; None before the first."""
        return None if self.topic.shown is None else self._value()

    @property
    def health(self) -> Health:
        """How the connection is, and how good the numbers are."""
        link, shown = Health.of(self.link), self.topic.shown
        if shown is None:
            trouble = self.topic.trouble
            return link if trouble is None else replace(link, trouble=trouble.message)
        silence = time.monotonic() - self._heard
        return replace(
            link,
            **self._stale(link, shown, silence),
            position=shown.position,
            source=None if shown.source is None else Source(shown.source),
            age=silence + (shown.age_ms or 0) / 1000,
        )

    def _stale(self, link: Health, shown: ReceivedDocument, silence: float) -> dict[str, Any]:
        """Return what is to be said instead where all is well but the numbers."""
        if link.state is not State.CONNECTED:
            return {}
        if self.topic.trouble is not None:
            why = f"the server answers “{self.topic.trouble.message}”"
        elif silence > self._patience:
            why = "connected, but nothing comes"
        elif shown.source == Source.STALE:
            why = "the server shows the last it knew"
        else:
            return {}
        return {"state": State.STALE, "trouble": why}

    @property
    def _patience(self) -> float:
        """How many seconds of silence are usual."""
        if self.link.protocols:
            return _ALIVE
        return 3 * (self.topic.asked.interval or DEFAULT_INTERVAL) + 1

    def _value(self) -> Metrics:
        shown = self.topic.shown
        assert shown is not None
        return read(shown)


class HistoryFeed(Feed[History]):
    """The past, and where it follows, the past as it grows."""

    topic: HistoryRequest

    def _value(self) -> History:
        assert self.topic.held is not None
        return self.topic.held
