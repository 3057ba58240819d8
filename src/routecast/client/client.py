"""The asyncio client: any number of subscriptions on one connection that comes back by itself."""

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

_LEAST_PAUSE: Final = 1.0

Names = str | Iterable[str] | None

_CODECS: Final[dict[str, tuple[Callable[[bytes], Any], Callable[[ClientMessage], str | bytes]]]] = {
    V1_JSON: (
        msgspec.json.Decoder(ServerMessage).decode,
        lambda message: msgspec.json.encode(message).decode(),
    ),
    V1_MSGPACK: (msgspec.msgpack.Decoder(ServerMessage).decode, msgspec.msgpack.encode),
}


class _OnlyPlain(Exception):
    """The server does not speak the subprotocol."""


class Client:
    """A connection to one server; `connect` makes it. Use as an asynchronous context manager.

    It connects in the background, and comes back by itself whenever the connection is lost: what
    is subscribed goes on from its position. Where coming back cannot help, iterating raises
    Refused (Unauthenticated, where a new token can). Of a server that does not speak routecast.v1
    each subscription reads the default stream, on a connection of its own.
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
        self._link = self._new_link(self._server.stream(), protocols)
        self._session = ClientSession(self._news)
        self._feeds: dict[Topic, Feed[Any]] = {}
        self._numbers = count(1)
        self._outbox: RateLimitedSender | None = None
        self._plain = not protocols
        self._tasks: dict[Feed[Any] | None, asyncio.Task[None]] = {}
        self._asks: dict[Feed[Any], asyncio.Task[None]] = {}
        self._error: Exception | None = None

    async def __aenter__(self) -> Self:
        if not self._plain:
            self._tasks[None] = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def health(self) -> Health:
        """How the connection is now."""
        return Health.of(self._link)

    async def subscribe(
        self,
        *,
        fields: Names = None,
        interval: float | None = None,
        strategy: Names = None,
        provider: Names = None,
        model: Names = None,
        project: Names = None,
        window: str | None = None,
    ) -> Subscription:
        """Follow the metrics of some decisions; iterate over what it returns.

        `fields` are those of the document, `interval` is seconds between two of them at least,
        `window` one of `all`, `5m`, `1h`, `24h`, `7d`; each filter is a name or several. What the
        server does not know raises BadRequest when iterated.
        """
        asked = Subscribe(
            f"s{next(self._numbers)}",
            fields=_list(fields),
            filter=_filters(strategy, provider, model, project),
            window=window,
            interval=interval,
        )
        view = SubscribedView(asked)
        feed = Subscription(view, self._link, self._end)
        await self._add(feed)
        return feed

    async def history(
        self,
        since: datetime | timedelta,
        until: datetime | None = None,
        *,
        points: int = 300,
        group_by: GroupBy | None = None,
        fields: Names = None,
        strategy: Names = None,
        provider: Names = None,
        model: Names = None,
        project: Names = None,
        follow: bool = False,
    ) -> HistoryFeed:
        """Ask for the past in at most `points` buckets; iterate over what it returns.

        `since` is a moment with its offset, or how long ago; `until` is now where it is absent.
        There is one `History` to be had; with `follow` it comes again as it grows, always the
        `points` newest buckets. What the server does not know raises BadRequest when iterated, a
        past that cannot be read now Unavailable.
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
        feed = HistoryFeed(HistoryRequest(asked, points, time.time), self._link, self._end)
        await self._add(feed)
        return feed

    async def close(self) -> None:
        """Hang up; whoever iterates comes to the end."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        self._tasks.clear()
        self._link.close()
        for feed in self._feeds.values():
            feed.end()
        self._feeds.clear()

    # -- routecast.v1 ---------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            await self._link.run(self._converse, self._goodbye_ms)
        except _OnlyPlain:
            self._plain = True
            for feed in self._feeds.values():
                self._start_plain(feed)
        except Exception as error:  # who iterates must hear of it, whatever it is
            self._fail(error)

    async def _converse(self, socket: ClientConnection) -> NoReturn:
        if socket.subprotocol is None:
            raise _OnlyPlain
        decode, encode = _CODECS[socket.subprotocol]
        self._outbox = RateLimitedSender(socket, encode)
        sending = asyncio.create_task(self._outbox.run())
        try:
            self._send(self._session.opened())
            while True:
                data = await socket.recv(decode=False)
                with suppress(msgspec.ValidationError):  # of a later version: not for us
                    message = decode(data)
                    if isinstance(message, Hello):
                        self._outbox.pace.limit = message.limits.messages_per_minute
                    answers = self._session.receive(message)
                    self._link.alive()
                    self._send(answers)
        finally:
            sending.cancel()
            self._outbox = None
            self._session.closed()
            # On the next connection all is asked for in any case.
            for feed in [*self._asks]:
                self._asks.pop(feed).cancel()

    def _goodbye_ms(self) -> int | None:
        goodbye, self._session.goodbye = self._session.goodbye, None
        return None if goodbye is None else goodbye.reconnect_after_ms

    def _news(self, topic: Topic) -> None:
        self._link.backoff.reset()
        if feed := self._feeds.get(topic):
            feed.take()
            if isinstance(topic, HistoryRequest) and topic.trouble is not None and not topic.over:
                self._asks[feed] = asyncio.create_task(self._ask_again(feed))

    async def _ask_again(self, feed: Feed[Any]) -> None:
        """Ask once more for a history that the server could not read, and so has forgotten."""
        await asyncio.sleep(Backoff().next(_LEAST_PAUSE))
        del self._asks[feed]
        self._send([feed.topic.request()])

    def _send(self, messages: Iterable[ClientMessage]) -> None:
        if self._outbox is not None:  # on the next connection, all is asked for again
            for message in messages:
                self._outbox.put(message)

    # -- both -----------------------------------------------------------------------------------

    async def _add(self, feed: Feed[Any]) -> None:
        self._feeds[feed.topic] = feed
        if self._error is not None:
            feed.fail(self._error)
        elif self._plain:
            self._start_plain(feed)
        else:
            self._send(self._session.add(feed.topic))

    async def _end(self, feed: Feed[Any]) -> None:
        self._feeds.pop(feed.topic, None)
        if ask := self._asks.pop(feed, None):
            ask.cancel()
        if task := self._tasks.pop(feed, None):
            task.cancel()
            await asyncio.wait([task])
        self._send(self._session.remove(feed.topic))

    def _fail(self, error: Exception) -> None:
        self._error = error
        self._link.close()
        for feed in self._feeds.values():
            feed.fail(error)

    # -- the default stream ---------------------------------------------------------------------

    def _start_plain(self, feed: Feed[Any]) -> None:
        if isinstance(feed.topic, SubscribedView):
            self._tasks[feed] = asyncio.create_task(self._run_plain(feed, feed.topic))
        else:
            feed.fail(BadRequest("unsupported", f"{self._server} speaks the default stream only"))

    async def _run_plain(self, feed: Feed[Any], view: SubscribedView) -> None:
        self._link = feed.link = self._new_link(self._server.stream(query_of(view.asked)), ())

        async def converse(socket: ClientConnection) -> NoReturn:
            while True:
                receive(view, await socket.recv(decode=False))
                feed.link.alive()
                feed.link.backoff.reset()
                feed.take()

        try:
            await feed.link.run(converse)
        except Exception as error:  # who iterates must hear of it, whatever it is
            feed.link.close()
            feed.fail(error)

    def _new_link(self, url: str, protocols: Sequence[str]) -> ReconnectingConnection:
        return ReconnectingConnection(self._server, url, self._tell, protocols, self._token)

    def _tell(self) -> None:
        if self._on_change is not None:
            self._on_change(self.health)


connect: Final = Client


def _filters(strategy: Names, provider: Names, model: Names, project: Names) -> Filters | None:
    filters = Filters(_list(strategy), _list(provider), _list(model), _list(project))
    return None if filters == Filters() else filters


def _list(names: Names) -> list[str] | None:
    if names is None:
        return None
    return [names] if isinstance(names, str) else list(names)
