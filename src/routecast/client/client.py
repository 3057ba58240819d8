"""The asyncio client: any number of subscriptions on one connection that reconnects by itself."""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, Final, NoReturn, Self

import msgspec
from websockets.asyncio.client import ClientConnection

from routecast.client.auth import Token
from routecast.client.default_stream import query_of, receive
from routecast.client.feed import Feed, Health, HistoryFeed, Subscription
from routecast.client.history import HistoryRequest
from routecast.client.rate_limit import RateLimitedSender
from routecast.client.reconnect import ReconnectingConnection
from routecast.client.session import ClientSession, SubscribedView, Topic
from routecast.client.url import DEFAULT_SERVER, Server
from routecast.errors import BadRequest
from routecast.protocol import (
    V1_JSON,
    V1_MSGPACK,
    ClientMessage,
    Filters,
    GetHistory,
    GroupBy,
    Hello,
    ServerMessage,
    Subscribe,
)
from routecast.retry import Backoff

PROTOCOLS: Final = (V1_MSGPACK, V1_JSON)

_MIN_RETRY_SECONDS: Final = 1.0

OneOrMore = str | Iterable[str] | None

_CODECS: Final[dict[str, tuple[Callable[[bytes], Any], Callable[[ClientMessage], str | bytes]]]] = {
    V1_JSON: (
        msgspec.json.Decoder(ServerMessage).decode,
        lambda message: msgspec.json.encode(message).decode(),
    ),
    V1_MSGPACK: (msgspec.msgpack.Decoder(ServerMessage).decode, msgspec.msgpack.encode),
}


class _NoV1(Exception):
    """The server does not speak routecast.v1."""


class Client:
    """A connection to one server; `connect` makes it. Use as an asynchronous context manager.

    It connects in the background, and reconnects whenever the connection is lost; subscriptions
    then resume from their positions. If reconnecting cannot help, loops raise Refused, or
    Unauthenticated if a new token can help. If the server does not speak routecast.v1, each
    subscription uses the default stream, on a connection of its own.
    """

    def __init__(
        self,
        url: str = DEFAULT_SERVER,
        *,
        token: Token | None = None,
        protocols: Sequence[str] = PROTOCOLS,
        on_change: Callable[[Health], None] | None = None,
    ) -> None:
        self._server = Server.parse(url)
        self._token = token
        self._protocols = protocols
        self._on_change = on_change
        self._connection = self._new_connection(self._server.stream(), protocols)
        self._session = ClientSession(self._on_topic)
        self._feeds: dict[Topic, Feed[Any]] = {}
        self._numbers = count(1)
        self._sender: RateLimitedSender | None = None
        self._uses_default_stream = not protocols
        self._tasks: dict[Feed[Any] | None, asyncio.Task[None]] = {}
        self._retries: dict[Feed[Any], asyncio.Task[None]] = {}
        self._error: Exception | None = None

    async def __aenter__(self) -> Self:
        if not self._uses_default_stream:
            self._tasks[None] = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def health(self) -> Health:
        """The state of the connection now."""
        return Health.of(self._connection)

    async def subscribe(
        self,
        *,
        fields: OneOrMore = None,
        interval: float | None = None,
        strategy: OneOrMore = None,
        provider: OneOrMore = None,
        model: OneOrMore = None,
        project: OneOrMore = None,
        window: str | None = None,
    ) -> Subscription:
        """Follow the metrics of a view; loop over the returned subscription.

        `fields` are those of the document, `interval` is the minimum time between two documents, in
        seconds, and `window` is one of `all`, `5m`, `1h`, `24h` and `7d`. Each filter is one name
        or several. If the server does not accept them, the loop raises BadRequest.
        """
        asked = Subscribe(
            f"s{next(self._numbers)}",
            fields=_list(fields),
            filter=_filters(strategy, provider, model, project),
            window=window,
            interval=interval,
        )
        view = SubscribedView(asked)
        feed = Subscription(view, self._connection, self._end)
        await self._add(feed)
        return feed

    async def history(
        self,
        since: datetime | timedelta,
        until: datetime | None = None,
        *,
        points: int = 300,
        group_by: GroupBy | None = None,
        fields: OneOrMore = None,
        strategy: OneOrMore = None,
        provider: OneOrMore = None,
        model: OneOrMore = None,
        project: OneOrMore = None,
        follow: bool = False,
    ) -> HistoryFeed:
        """Request a history in at most `points` buckets; loop over the returned feed.

        `since` is a time with its offset, or a duration before now; `until` is now by default. The
        loop yields one `History`; with `follow`, it yields another one whenever it changes, always
        with the newest `points` buckets. The loop raises BadRequest if the server does not accept
        the request, and Unavailable if the history cannot be read now.
        """
        asked = GetHistory(
            f"h{next(self._numbers)}",
            from_=datetime.now(UTC) - since if isinstance(since, timedelta) else since,
            to=until,
            points=points,
            group_by=group_by,
            fields=_list(fields),
            filter=_filters(strategy, provider, model, project),
            follow=follow or None,
        )
        feed = HistoryFeed(HistoryRequest(asked, points, time.time), self._connection, self._end)
        await self._add(feed)
        return feed

    async def close(self) -> None:
        """Close the connection; all loops end."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        self._tasks.clear()
        self._connection.close()
        for feed in self._feeds.values():
            feed.end()
        self._feeds.clear()

    # -- routecast.v1 ---------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            await self._connection.run(self._handle, self._goodbye_ms)
        except _NoV1:
            self._uses_default_stream = True
            for feed in self._feeds.values():
                self._start_default_stream(feed)
        except Exception as error:  # loops must raise it
            self._fail(error)

    async def _handle(self, socket: ClientConnection) -> NoReturn:
        if socket.subprotocol is None:
            raise _NoV1
        decode, encode = _CODECS[socket.subprotocol]
        self._sender = RateLimitedSender(socket, encode)
        sending = asyncio.create_task(self._sender.run())
        try:
            self._send(self._session.opened())
            while True:
                data = await socket.recv(decode=False)
                with suppress(msgspec.ValidationError):  # a message of a later version
                    message = decode(data)
                    if isinstance(message, Hello):
                        self._sender.bucket.limit = message.limits.messages_per_minute
                    answers = self._session.receive(message)
                    self._connection.alive()
                    self._send(answers)
        finally:
            sending.cancel()
            self._sender = None
            self._session.closed()
            # The next connection requests all topics in any case.
            for feed in [*self._retries]:
                self._retries.pop(feed).cancel()

    def _goodbye_ms(self) -> int | None:
        goodbye, self._session.goodbye = self._session.goodbye, None
        return None if goodbye is None else goodbye.reconnect_after_ms

    def _on_topic(self, topic: Topic) -> None:
        self._connection.backoff.reset()
        if feed := self._feeds.get(topic):
            feed.take()
            if isinstance(topic, HistoryRequest) and topic.failure is not None and not topic.over:
                self._retries[feed] = asyncio.create_task(self._retry_history(feed))

    async def _retry_history(self, feed: Feed[Any]) -> None:
        """Request a history again after a delay, because the server could not read it."""
        await asyncio.sleep(Backoff().next(_MIN_RETRY_SECONDS))
        del self._retries[feed]
        self._send([feed.topic.request()])

    def _send(self, messages: Iterable[ClientMessage]) -> None:
        if self._sender is not None:  # else the next connection requests all topics
            for message in messages:
                self._sender.put(message)

    # -- both -----------------------------------------------------------------------------------

    async def _add(self, feed: Feed[Any]) -> None:
        self._feeds[feed.topic] = feed
        if self._error is not None:
            feed.fail(self._error)
        elif self._uses_default_stream:
            self._start_default_stream(feed)
        else:
            self._send(self._session.add(feed.topic))

    async def _end(self, feed: Feed[Any]) -> None:
        self._feeds.pop(feed.topic, None)
        if retry := self._retries.pop(feed, None):
            retry.cancel()
        if task := self._tasks.pop(feed, None):
            task.cancel()
            await asyncio.wait([task])
        self._send(self._session.remove(feed.topic))

    def _fail(self, error: Exception) -> None:
        self._error = error
        self._connection.close()
        for feed in self._feeds.values():
            feed.fail(error)

    # -- the default stream ---------------------------------------------------------------------

    def _start_default_stream(self, feed: Feed[Any]) -> None:
        if isinstance(feed.topic, SubscribedView):
            self._tasks[feed] = asyncio.create_task(self._run_default_stream(feed, feed.topic))
        else:
            feed.fail(BadRequest("unsupported", f"{self._server} speaks the default stream only"))

    async def _run_default_stream(self, feed: Feed[Any], view: SubscribedView) -> None:
        url = self._server.stream(query_of(view.asked))
        self._connection = feed.connection = self._new_connection(url, ())

        async def handle(socket: ClientConnection) -> NoReturn:
            while True:
                receive(view, await socket.recv(decode=False))
                feed.connection.alive()
                feed.connection.backoff.reset()
                feed.take()

        try:
            await feed.connection.run(handle)
        except Exception as error:  # loops must raise it
            feed.connection.close()
            feed.fail(error)

    def _new_connection(self, url: str, protocols: Sequence[str]) -> ReconnectingConnection:
        return ReconnectingConnection(self._server, url, self._notify, protocols, self._token)

    def _notify(self) -> None:
        if self._on_change is not None:
            self._on_change(self.health)


connect: Final = Client


def _filters(
    strategy: OneOrMore, provider: OneOrMore, model: OneOrMore, project: OneOrMore
) -> Filters | None:
    filters = Filters(_list(strategy), _list(provider), _list(model), _list(project))
    return None if filters == Filters() else filters


def _list(names: OneOrMore) -> list[str] | None:
    if names is None:
        return None
    return [names] if isinstance(names, str) else list(names)
