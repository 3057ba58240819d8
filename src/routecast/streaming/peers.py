"""Peers: each speaks the default stream or routecast.v1 to one client, over any edge.

A connection carries bytes; its peer knows what they mean.
"""

import asyncio
import secrets
from typing import Protocol

from msgspec import UNSET

from routecast.core.default_session import DefaultSession
from routecast.core.message import Encoding, Message
from routecast.core.v1_session import (
    CloseConnection,
    QueryHistory,
    StartSubscription,
    StopSubscription,
    V1Session,
    refusal,
)
from routecast.core.view import ViewSubscription
from routecast.errors import BadParameter, Unavailable
from routecast.ports import Connection, Timers
from routecast.protocol import CloseCode, Goodbye, Hello, ServerMessage
from routecast.streaming.channels import Channels, ChannelSubscription
from routecast.streaming.connections import ConnectionManager
from routecast.streaming.history_subscriptions import HistorySubscription, HistorySubscriptions


class Peer(Protocol):
    """What an edge calls for its connection: `start` first, and `close` at the end."""

    def start(self) -> None:
        """Register the connection, and send the first messages."""
        ...

    def receive(self, message: str | bytes) -> None:
        """Handle a message of the client."""
        ...

    def catch_up(self) -> None:
        """Send what was skipped while the socket was full; stop if it is full again."""
        ...

    def say_goodbye(self, code: CloseCode, reconnect_after_ms: int) -> None:
        """Tell the client when to reconnect; the edge closes the connection next."""
        ...

    def close(self, code: int) -> None:
        """Remove the connection, which has ended with a close code."""
        ...


class Peers:
    """Makes the peer of each connection."""

    def __init__(
        self,
        manager: ConnectionManager,
        channels: Channels,
        histories: HistorySubscriptions,
        timers: Timers,
    ) -> None:
        self.manager = manager
        self.channels = channels
        self.histories = histories
        self.timers = timers

    def peer(
        self, connection: Connection, session: DefaultSession, encoding: Encoding | None
    ) -> Peer:
        """Return the peer of a connection; with an encoding, it speaks routecast.v1."""
        if encoding is None:
            return DefaultPeer(self, session.subscription, connection)
        v1 = V1Session(encoding, session.subscription.interval)
        return V1Peer(self, v1, connection)


class DefaultPeer(ChannelSubscription):
    """The peer of a client of the default stream, and its only subscription."""

    __slots__ = ("_peers", "_subscription")

    def __init__(
        self, peers: Peers, subscription: ViewSubscription, connection: Connection
    ) -> None:
        super().__init__(connection)
        self._peers = peers
        self._subscription = subscription

    def start(self) -> None:
        if self._peers.manager.connect(self.connection):
            self._peers.channels.join(self, self._subscription)

    def receive(self, message: str | bytes) -> None:
        """Ignore what the client sends."""

    def catch_up(self) -> None:
        self._peers.channels.catch_up(self)

    def say_goodbye(self, code: CloseCode, reconnect_after_ms: int) -> None:
        """Send nothing: the close frame says when to reconnect."""

    def close(self, code: int) -> None:
        self._peers.channels.leave(self)
        self._peers.manager.disconnect(self.connection, code)


class V1Peer:
    """The peer of a client that speaks routecast.v1: its subscriptions and histories.

    It is a `history_subscriptions.HistorySubscriber`.
    """

    __slots__ = (
        "_connection",
        "_flushed",
        "_histories",
        "_members",
        "_peers",
        "_pending",
        "_session",
        "answering",
    )

    def __init__(self, peers: "Peers", session: V1Session, connection: Connection) -> None:
        self._peers = peers
        self._session = session
        self._connection = connection
        # By id, in the order in which they were last served by `catch_up`.
        self._members: dict[str, ChannelSubscription] = {}
        self._histories: dict[str, HistorySubscription] = {}
        # Answers that wait for room, at most one of each history.
        self._pending: list[tuple[Message, HistorySubscription]] = []
        self._flushed: asyncio.Event | None = None  # made when an answer has to wait
        self.answering = asyncio.Lock()

    def start(self) -> None:
        hello = Hello(connection=secrets.token_hex(8), epoch=self._peers.channels.epoch() or UNSET)
        self._reply(hello)
        self._peers.manager.connect(self._connection)

    def receive(self, message: str | bytes) -> None:
        outcome = self._session.receive(message, self._peers.timers.now())
        match outcome:
            case StartSubscription(id=identity):
                member = ChannelSubscription(self._connection, self._session.encoding, identity)
                self._members[identity] = member
                self._peers.channels.join(member, outcome.subscription, outcome.position)
            case QueryHistory(id=identity, query=query):
                self._histories[identity] = self._peers.histories.subscribe(self, identity, query)
            case StopSubscription(id=identity):
                self._leave(identity)
            case CloseConnection(code=code):
                self._connection.fail(code)
            case None:
                pass
            case _:
                self._reply(outcome)

    def catch_up(self) -> None:
        while self._pending:
            message, history = self._pending[0]
            if self._holds(history) and not self._send(message, history):
                return
            del self._pending[0]
        self._set_flushed()
        for identity, member in list(self._members.items()):
            if not self._peers.channels.catch_up(member):
                return
            self._members[identity] = self._members.pop(identity)

    def say_goodbye(self, code: CloseCode, reconnect_after_ms: int) -> None:
        self._reply(Goodbye(code=code, reconnect_after_ms=reconnect_after_ms))

    def close(self, code: int) -> None:
        for identity in [*self._members, *self._histories]:
            self._leave(identity)
        self._pending.clear()
        self._set_flushed()
        self._peers.manager.disconnect(self._connection, code)

    def _leave(self, identity: str) -> None:
        if identity in self._members:
            self._peers.channels.leave(self._members.pop(identity))
        else:
            self._peers.histories.unsubscribe(self._histories.pop(identity))

    def _set_flushed(self) -> None:
        if self._flushed is not None:
            self._flushed.set()
            self._flushed = None

    def _holds(self, history: HistorySubscription) -> bool:
        return self._histories.get(history.identity) is history

    def _reply(self, message: ServerMessage) -> None:
        self._connection.reply(self._session.encoding.encode(message))

    # -- histories ------------------------------------------------------------------------------

    @property
    def client(self) -> str:
        return self._connection.client

    @property
    def encoding(self) -> Encoding:
        return self._session.encoding

    @property
    def has_pending(self) -> bool:
        return bool(self._pending)

    def prepare_history(self, message: Message, history: HistorySubscription) -> None:
        self._connection.prepare(message.for_id(history.identity))

    def send_history(self, message: Message, history: HistorySubscription) -> None:
        if self._pending or not self._send(message, history):
            self._pending.append((message, history))
            self._flushed = self._flushed or asyncio.Event()
        # The subscriptions' newest versions follow the history, so that both have the same position
        # and add up to the same. If the socket is full, they are rendered now, and sent later.
        for member in self._members.values():
            self._peers.channels.flush_now(member)

    def _send(self, message: Message, history: HistorySubscription) -> bool:
        return self._peers.manager.send_personal(message.for_id(history.identity), self._connection)

    async def flushed(self) -> None:
        if self._flushed is not None:
            await self._flushed.wait()

    async def drained(self) -> None:
        await asyncio.sleep(0)  # the transport may notice only later that its socket is full
        if not self._connection.has_room():
            self._flushed = self._flushed or asyncio.Event()
            await self._flushed.wait()

    def history_ended(self, identity: str, error: BadParameter | Unavailable | None) -> None:
        del self._histories[identity]
        self._session.release(identity)
        if error is not None:
            self._reply(refusal(identity, error))
