"""Asynchronous iterators over the newest value of a topic."""

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
    """The state of a connection, and how fresh the metrics of a subscription are.

    Attributes:
        state: The state of the connection; `stale` if it is open and the metrics are not fresh.
        trouble: Why it is not connected, or why the metrics are stale; "" if nothing is wrong.
        retry_in: The time until the next attempt to connect, in seconds; None if none is planned.
        position: The position of the newest metrics; None before the first ones, and on the default
            stream.
        source: The source of the newest metrics; None as for `position`.
        age: The time since the metrics were known to be the newest, in seconds; None before the
            first ones.
    """

    state: State
    trouble: str = ""
    retry_in: float | None = None
    position: Position | None = None
    source: Source | None = None
    age: float | None = None

    @classmethod
    def of(cls, connection: ReconnectingConnection) -> "Health":
        """Return the health of a connection, without the fields of a subscription.

        Args:
            connection: The connection of a `Client`, which calls this.
        """
        at = connection.retry_at
        retry_in = None if at is None else max(0.0, at - time.monotonic())
        return cls(connection.state, connection.reason, retry_in)


class Feed(Generic[Value]):
    """An asynchronous iterator over the newest values; older ones are skipped, never queued.

    `Client.subscribe` and `Client.history` make it. Use one loop: each value goes to one loop only.
    End it by `close` or `async with`, so that the server stops sending.

    Args:
        topic: The subscription or history whose values it yields.
        connection: The connection that its values come from.
        end: Called by `close`, to end the topic at the server.

    Examples:
        >>> import asyncio
        >>> async def show():
        ...     async with connect("http://127.0.0.1:8000") as client:
        ...         async with await client.subscribe(provider=("gemini", "claude")) as feed:
        ...             async for metrics in feed:
        ...                 return metrics.provider_usage
        >>> asyncio.run(show())
        {'gemini': 1}
    """

    def __init__(
        self,
        topic: Topic,
        connection: ReconnectingConnection,
        end: Callable[["Feed[Value]"], Awaitable[None]],
    ):
        self.topic = topic
        self.connection = connection
        self._end = end
        self._changed = asyncio.Event()
        self._fresh = False
        self._received_at = 0.0
        self._ended = False
        self._error: Exception | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Value:
        """Wait until there is a newer value than the one before, and return it.

        Raises:
            BadRequest: The server does not accept this view or history. Other feeds continue.
            Refused: The server refuses this client, and reconnecting does not help.
            Unauthenticated: The token or API key is missing, invalid or expired. Connect with a new
                one.
            Unavailable: A history cannot be read now. Request it again after `retry_after` seconds.
            StopAsyncIteration: The feed or its client was closed, or the history is complete.
            msgspec.ValidationError: The server sent metrics with a value of a wrong type.
        """
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
        """End the feed here and at the server; a loop over it ends. `async with` calls it."""
        self.end()
        await self._end(self)

    def _value(self) -> Value:
        raise NotImplementedError

    def take(self) -> None:
        """Record that the topic has a new value or failure. `Client` calls it."""
        failure = self.topic.failure
        if failure is None:
            self._fresh = True
            self._received_at = time.monotonic()
        elif not failure.retryable:
            self._error = BadRequest(failure.code, failure.message)
        elif self.topic.over:
            self._error = Unavailable(failure.message)
        self._changed.set()

    def fail(self, error: Exception) -> None:
        """Make a loop raise an error, after the value that came before. `Client` calls it.

        Args:
            error: The error to raise.
        """
        self._error = error
        self._changed.set()

    def end(self) -> None:
        """Make a loop end. `Client` and `close` call it."""
        self._ended = True
        self._changed.set()


class Subscription(Feed[Metrics]):
    """A feed of the metrics of a view, as they change; `Client.subscribe` makes it.

    Examples:
        >>> import asyncio
        >>> async def show():
        ...     async with connect("http://127.0.0.1:8000") as client:
        ...         live = await client.subscribe(strategy="hybrid")
        ...         metrics = await anext(live)
        ...         print(metrics.strategy_performance["hybrid"], live.health.state)
        >>> asyncio.run(show())
        Performance(count=1, avg_cost=0.0023, avg_confidence=0.87) connected
    """

    topic: SubscribedView

    @property
    def metrics(self) -> Metrics | None:
        """The newest metrics, without waiting; None before the first ones."""
        return None if self.topic.visible is None else self._value()

    @property
    def health(self) -> Health:
        """The state of the connection now, and how fresh the metrics are."""
        health, visible = Health.of(self.connection), self.topic.visible
        if visible is None:
            failure = self.topic.failure
            return health if failure is None else replace(health, trouble=failure.message)
        silence = time.monotonic() - self._received_at
        return replace(
            health,
            **self._stale(health, visible, silence),
            position=visible.position,
            source=None if visible.source is None else Source(visible.source),
            age=silence + (visible.age_ms or 0) / 1000,
        )

    def _stale(self, health: Health, visible: ReceivedDocument, silence: float) -> dict[str, Any]:
        """Return the changes to `health` if the metrics are stale though it is connected."""
        if health.state is not State.CONNECTED:
            return {}
        if self.topic.failure is not None:
            why = f"the server answers “{self.topic.failure.message}”"
        elif silence > self._patience:
            why = "connected, but receives nothing"
        elif visible.source == Source.STALE:
            why = "the server sends old numbers"
        else:
            return {}
        return {"state": State.STALE, "trouble": why}

    @property
    def _patience(self) -> float:
        """The number of seconds without a message after which the metrics are stale."""
        if self.connection.protocols:
            return _ALIVE
        return 3 * (self.topic.asked.interval or DEFAULT_INTERVAL) + 1

    def _value(self) -> Metrics:
        visible = self.topic.visible
        assert visible is not None
        return read(visible)


class HistoryFeed(Feed[History]):
    """A feed of one history, or of its changes with `follow`; `Client.history` makes it.

    Examples:
        >>> import asyncio
        >>> from datetime import timedelta
        >>> async def show():
        ...     async with connect("http://127.0.0.1:8000") as client:
        ...         feed = await client.history(timedelta(hours=1), group_by="strategy")
        ...         history = await anext(feed)
        ...         print(history.step, sum(history.series["hybrid"]["count"]))
        >>> asyncio.run(show())
        60 1
    """

    topic: HistoryRequest

    def _value(self) -> History:
        assert self.topic.held is not None
        return self.topic.held
