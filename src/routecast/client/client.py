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

from routecast.client.answers import plain
from routecast.client.auth import Token
from routecast.client.default_stream import query_of, receive
from routecast.client.feed import Feed, Health, HistoryFeed, Subscription
from routecast.client.history import HistoryRequest
from routecast.client.rate_limit import RateLimitedSender
from routecast.client.reconnect import ReconnectingConnection, logger
from routecast.client.session import ClientSession, SubscribedView, Topic
from routecast.client.url import DEFAULT_SERVER, Server
from routecast.errors import BadRequest
from routecast.protocol import (
    V1_JSON,
    V1_MSGPACK,
    ClientMessage,
    ErrorOut,
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
    """A connection to one server, for several subscriptions and histories.

    Use it in `async with`, which connects in the background, and closes the connection at the end.
    Subscribe only within it.

    If the connection is lost, the client reconnects, and subscriptions resume from their positions.
    If reconnecting cannot help, loops raise an error (see `Feed.__anext__`). If the server does not
    speak routecast.v1, each subscription uses the default stream, on a connection of its own.

    Args:
        url: The address of the server: `http`, `https`, `ws` or `wss`, also with a path before
            Routecast's own; without a scheme, `http`. Default: `DEFAULT_SERVER`.
        token: A token or an API key, sent as `Authorization: Bearer`. A function is called before
            each attempt to connect, and when the server says that the token expires; it returns the
            token, and must not block for long. If it raises, loops raise its exception; after an
            OSError, the client tries again. A new token is sent on the open connection.
        tickets: Whether each attempt to connect fetches a ticket with the token, and opens the
            connection with that: for a proxy in between that lets no credential pass with an
            upgrade. A token that expires is still renewed on the open connection.
        protocols: The subprotocols to offer, the preferred one first. By default these are
            `routecast.v1.msgpack` and `routecast.v1.json`. `()` requests the default stream.
        on_change: Called with the new `health` when the connection is opened or closed, and after
            each failed attempt. It runs in the event loop, so it must not block. If it raises, it
            is not called again, and the loops of that connection raise its exception.

    Raises:
        BadParameter: `url` is not an address of a server.

    Examples:
        >>> import asyncio
        >>> async def show():
        ...     async with connect("http://127.0.0.1:8000") as client:
        ...         counts = await client.subscribe(fields="total_decisions")
        ...         costs = await client.subscribe(fields="cost", window="1h")
        ...         print((await anext(counts)).total_decisions, (await anext(costs)).cost)
        >>> asyncio.run(show())
        1 Cost(total=0.0023, priced=1, unpriced=0)
    """

    def __init__(
        self,
        url: str = DEFAULT_SERVER,
        *,
        token: Token | None = None,
        tickets: bool = False,
        protocols: Sequence[str] = PROTOCOLS,
        on_change: Callable[[Health], None] | None = None,
    ) -> None:
        self._server = Server.parse(url)
        self._token = token
        self._tickets = tickets
        self._protocols = protocols
        self._on_change = on_change
        self._connection = self._new_connection(self._server.stream(), protocols)
        self._session = ClientSession(self._on_topic, lambda: self._connection.refreshed_token())
        self._feeds: dict[Topic, Feed[Any]] = {}
        self._numbers = count(1)
        self._sender: RateLimitedSender | None = None
        self._uses_default_stream = not protocols
        self._tasks: dict[Feed[Any] | None, asyncio.Task[None]] = {}
        self._retries: dict[Feed[Any], asyncio.Task[None]] = {}
        self._error: Exception | None = None
        self._is_open = False

    async def __aenter__(self) -> Self:
        self._is_open = True
        if not self._uses_default_stream:
            self._tasks[None] = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def health(self) -> Health:
        """The state of the connection now; its `position`, `source` and `age` are None."""
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
        """Follow the metrics of a view.

        Args:
            fields: The fields of the document, one name or several. None: the default document,
                which has the first five fields of `Metrics`.
            interval: The minimum time between two documents, 0.1 to 60 seconds. None: 5 seconds.
            strategy: The strategies whose decisions count, one name or up to 100. None: all.
            provider: The providers whose decisions count, as for `strategy`.
            model: The models whose decisions count, as for `strategy`.
            project: The projects whose decisions count, as for `strategy`.
            window: How far back decisions count: `all`, `5m`, `1h`, `24h` or `7d`. None: `all`.

        Returns:
            A subscription to loop over. To end it before the client ends, call its `close`, or use
            it in `async with`. The loop raises BadRequest if the server does not accept an
            argument, or if the client already has 16 subscriptions and followed histories.

        Raises:
            RuntimeError: The client is not open.
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
        """Request a history: the sums of past decisions in buckets of equal length.

        Args:
            since: The start, a time with its offset, or a duration before now. The first bucket
                may begin earlier.
            until: The end, a time with its offset. None: now.
            points: The maximum number of buckets, 1 to 2,000; default 300. The server chooses the
                shortest length with which there are no more.
            group_by: `strategy`, `provider`, `model`, `band` or `status`: one series for each
                name. None: one series of all decisions.
            fields: The columns, one name or several: `count`, `errors`, `fallbacks`,
                `input_tokens`, `output_tokens`, `cost`, `avg_cost`, `avg_confidence`,
                `avg_latency_ms`, `p50_latency_ms`, `p95_latency_ms` and `p99_latency_ms`. None:
                `count` and `cost`.
            strategy: The strategies whose decisions count, one name or up to 100. None: all.
            provider: The providers whose decisions count, as for `strategy`.
            model: The models whose decisions count, as for `strategy`.
            project: The projects whose decisions count, as for `strategy`.
            follow: Whether the feed continues: it then yields the newest `points` buckets again
                whenever one of them changes.

        Returns:
            A feed to loop over. Without `follow`, it yields one `History` and ends. The loop raises
            BadRequest if the server does not accept an argument, or does not speak routecast.v1. If
            the server cannot read the history now, the loop raises Unavailable; with `follow`, the
            client tries again instead.

        Raises:
            RuntimeError: The client is not open.
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
        """Close the connection; all loops end. `async with` calls it."""
        self._is_open = False
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
                    elif isinstance(message, ErrorOut) and message.id is msgspec.UNSET:
                        logger.warning("%s: %s", self._server, plain(message.message))
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
        if not self._is_open:
            raise RuntimeError("the client is not open: use it in `async with`")
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
        for feed in self._feeds.values():
            feed.fail(error)
        self._connection.close()

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
        return ReconnectingConnection(
            self._server, url, self._notify, protocols, self._token, self._tickets
        )

    def _notify(self) -> None:
        if (on_change := self._on_change) is not None:
            self._on_change = None  # it is called no more if it raises
            on_change(self.health)
            self._on_change = on_change


connect: Final = Client
"""Another name of `Client`, to be read in `async with connect(url) as client`."""


def _filters(
    strategy: OneOrMore, provider: OneOrMore, model: OneOrMore, project: OneOrMore
) -> Filters | None:
    filters = Filters(_list(strategy), _list(provider), _list(model), _list(project))
    return None if filters == Filters() else filters


def _list(names: OneOrMore) -> list[str] | None:
    if names is None:
        return None
    return [names] if isinstance(names, str) else list(names)
