"""Peers: each speaks the default stream or routecast.v1 to one client, over any edge.

A connection carries bytes; its peer knows what they mean.
"""

import asyncio
from collections.abc import Callable, Iterator
from typing import Protocol

from msgspec import UNSET

from routecast import audit
from routecast.core.access import ANYONE, Principal, require_renewal
from routecast.core.connection_ids import write_id
from routecast.core.default_session import DefaultSession
from routecast.core.message import Encoding, Message
from routecast.core.payload import Payload
from routecast.core.v1_session import (
    DEFAULT_LIMITS,
    CloseConnection,
    MessageLimits,
    QueryHistory,
    RenewCredential,
    StartSubscription,
    StopSubscription,
    V1Session,
    refusal,
    renewal_refusal,
)
from routecast.core.view import ViewSubscription
from routecast.errors import BadCredential, BadParameter, Forbidden, OverLimit, Unavailable
from routecast.ports import Connection, Timers
from routecast.protocol import (
    DEFAULT_STREAM,
    SSE,
    V1_JSON,
    V1_MSGPACK,
    CloseCode,
    ErrorCode,
    ErrorOut,
    Goodbye,
    Hello,
    Limits,
    ServerMessage,
    TokenExpiring,
)
from routecast.streaming.channels import Channels, ChannelSubscription
from routecast.streaming.connections import ConnectionManager
from routecast.streaming.frame_limit import FrameLimit
from routecast.streaming.history_subscriptions import HistorySubscription, HistorySubscriptions
from routecast.streaming.principals import CredentialVerifier, StreamPrincipals
from routecast.streaming.sent_counts import NOTHING, SentCounts, one_message


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
    """Makes the peer of each connection.

    Without `principals`, no connection has a credential. `verifier` verifies those that renew them.
    """

    principals: StreamPrincipals | None = None

    def __init__(
        self,
        manager: ConnectionManager,
        channels: Channels,
        histories: HistorySubscriptions,
        timers: Timers,
        principals: StreamPrincipals | None = None,
        verifier: CredentialVerifier | None = None,
        frames: FrameLimit | None = None,
        messages: MessageLimits = DEFAULT_LIMITS,
    ) -> None:
        self.manager = manager
        self.channels = channels
        self.histories = histories
        self.timers = timers
        self.principals = principals
        self.frames = frames or FrameLimit()
        self.messages = messages
        self._verifier = verifier
        # The credentials that are being verified, by the peers that sent them.
        self._renewals: dict[V1Peer, asyncio.Task[None]] = {}

    def peer(
        self,
        connection: Connection,
        session: DefaultSession,
        encoding: Encoding | None,
        principal: Principal = ANYONE,
    ) -> Peer:
        """Return the peer of a connection; with an encoding, it speaks routecast.v1.

        The session must have nothing but the projects of its principal.
        """
        peer: DefaultPeer | V1Peer
        if encoding is None:
            peer = DefaultPeer(self, session.subscription, connection)
        else:
            v1 = V1Session(encoding, session.subscription.interval, principal, self.messages)
            peer = V1Peer(self, v1, connection)
        if principal is not ANYONE and self.principals is not None:
            self.principals.add(connection, peer, principal)
        return peer

    def principal_of(self, connection: Connection) -> Principal:
        """Return whose connection it is; ANYONE if its client has no credential."""
        return ANYONE if self.principals is None else self.principals.of(connection)

    def forget(self, connection: Connection) -> None:
        """Forget whose connection it was, which has ended."""
        if self.principals is not None:
            self.principals.remove(connection)

    # -- credentials ----------------------------------------------------------------------------

    def revoke(self, is_revoked: Callable[[Principal], bool]) -> None:
        """Close the connections of all principals for which this is true.

        Connections without a credential are closed, too, once authentication was turned on.
        """
        if self.principals is None or self._verifier is None:
            return
        self.principals.revoke(is_revoked)
        if self._verifier.required:
            self.principals.close([each for each in self.manager if each not in self.principals])

    def renew(self, peer: "V1Peer", token: str) -> None:
        """Verify a token, in a task if that takes a while, and give its principal to the peer."""
        if self._verifier is None:
            peer.refuse_renewal(BadCredential("this server asks for none"))
            return
        if peer in self._renewals:
            peer.refuse_renewal(Unavailable("the one before it is still being verified"))
            return
        try:
            principal = self._verifier.recognise(token)
        except (BadCredential, Unavailable) as error:
            peer.refuse_renewal(error)
        else:
            if principal is None:
                task = asyncio.create_task(self._renew_later(peer, token, self._verifier))
                self._renewals[peer] = task
            else:
                peer.renew(principal)

    async def _renew_later(self, peer: "V1Peer", token: str, verifier: CredentialVerifier) -> None:
        try:
            principal = await verifier.authenticate(token, peer.client)
        except (BadCredential, Unavailable) as error:
            peer.refuse_renewal(error)
        else:
            peer.renew(principal)
        finally:
            self._renewals.pop(peer, None)

    def cancel_renewal(self, peer: "V1Peer") -> None:
        """Verify no token for a peer any more, because its connection has ended."""
        if (task := self._renewals.pop(peer, None)) is not None:
            task.cancel()


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
        self._peers.frames.add(self.principal, self._subscription.interval)
        if self._peers.manager.connect(self.connection, peer=self):
            self._peers.channels.join(self, self._subscription)

    def receive(self, message: str | bytes) -> None:
        """Ignore what the client sends."""

    def catch_up(self) -> None:
        self._peers.channels.catch_up(self)

    def say_goodbye(self, code: CloseCode, reconnect_after_ms: int) -> None:
        """Send nothing: the close frame says when to reconnect."""

    def warn_of_expiry(self, expires_in_ms: int) -> None:
        """Send nothing: the default stream has documents only."""

    def close(self, code: int) -> None:
        self._peers.channels.leave(self)
        self._peers.frames.remove(self.principal, self._subscription.interval)
        self._peers.manager.disconnect(self.connection, code, self)
        self._peers.forget(self.connection)

    # -- for the operator's view (`connections.InspectedPeer`) ----------------------------------

    @property
    def principal(self) -> Principal:
        return self._peers.principal_of(self.connection)

    @property
    def protocol(self) -> str:
        return SSE if self.connection.kind == "SSE" else DEFAULT_STREAM

    @property
    def lag(self) -> int | None:
        return None  # its client does not tell how far it has read

    @property
    def histories(self) -> int:
        return 0

    def followed(self) -> Iterator[tuple[str, ViewSubscription, int | None]]:
        yield "", self._subscription, None


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
        "_sent",
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
        # What it was sent beside its present subscriptions: histories, and subscriptions that have
        # ended.
        self._sent = NOTHING
        self.answering = asyncio.Lock()

    def start(self) -> None:
        identity = self._peers.manager.new_id()
        epoch = self._peers.channels.epoch() or UNSET
        limits = Limits(messages_per_minute=self._peers.messages.messages)
        hello = Hello(connection=write_id(identity), epoch=epoch, limits=limits)
        self._reply(hello)
        self._peers.manager.connect(self._connection, identity, self)

    def receive(self, message: str | bytes) -> None:
        outcome = self._session.receive(message, self._peers.timers.now())
        match outcome:
            case StartSubscription():
                self._subscribe(outcome)
            case QueryHistory(id=identity, query=query):
                self._histories[identity] = self._peers.histories.subscribe(self, identity, query)
            case StopSubscription(id=identity):
                self._leave(identity)
            case RenewCredential(token=token):
                self._peers.renew(self, token)
            case CloseConnection(code=code):
                self._connection.fail(code)
            case None:
                pass
            case _:
                self._reply(outcome)

    def _subscribe(self, asked: StartSubscription) -> None:
        identity, interval = asked.id, asked.subscription.interval
        try:
            self._peers.frames.require(self._session.principal, interval)
        except OverLimit as error:
            self._session.release(identity)
            code = ErrorCode.TOO_MANY
            self._reply(ErrorOut(id=identity, code=code, message=str(error), retryable=False))
            return
        self._peers.frames.add(self._session.principal, interval)
        member = ChannelSubscription(self._connection, self._session.encoding, identity)
        self._members[identity] = member
        self._peers.channels.join(member, asked.subscription, asked.position)

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

    def warn_of_expiry(self, expires_in_ms: int) -> None:
        self._reply(TokenExpiring(expires_in_ms))

    def renew(self, principal: Principal) -> None:
        """Keep the connection for as long as another credential of its principal is valid."""
        try:
            require_renewal(self._session.principal, principal)
        except Forbidden as error:
            self.refuse_renewal(error)
        else:
            self._session.principal = principal
            if self._peers.principals is not None:
                self._peers.principals.renew(self._connection, principal)

    def refuse_renewal(self, error: BadCredential | Forbidden | Unavailable) -> None:
        """Tell the client that its connection is not renewed, and why."""
        audit.refusals.add(
            "renewal",
            f"the credential of an open stream was not renewed: {error}",
            **audit.holder(self.principal),
            address=self._connection.client,
        )
        self._reply(renewal_refusal(error))

    def close(self, code: int) -> None:
        self._peers.cancel_renewal(self)
        for identity in [*self._members, *self._histories]:
            self._leave(identity)
        self._pending.clear()
        self._set_flushed()
        self._peers.manager.disconnect(self._connection, code, self)
        self._peers.forget(self._connection)

    def _leave(self, identity: str) -> None:
        if identity in self._members:
            member = self._members.pop(identity)
            if member.channel is not None:
                interval = member.channel.subscription.interval
                self._peers.frames.remove(self._session.principal, interval)
            self._peers.channels.leave(member)
            self._sent += member.sent
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
        payload: Payload = message.for_id(history.identity)
        is_sent = self._peers.manager.send_personal(payload, self._connection)
        if is_sent:
            self._sent += one_message(payload)
        return is_sent

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

    # -- for the operator's view (`connections.InspectedPeer`) ----------------------------------

    @property
    def principal(self) -> Principal:
        return self._peers.principal_of(self._connection)

    @property
    def protocol(self) -> str:
        return V1_MSGPACK if self._session.encoding.binary else V1_JSON

    @property
    def sent(self) -> SentCounts:
        return sum((member.sent for member in self._members.values()), start=self._sent)

    @property
    def lag(self) -> int | None:
        if self._session.acked is None:
            return None
        lags = [self._lag_of(identity) for identity in self._members]
        return max((lag for lag in lags if lag is not None), default=None)

    @property
    def histories(self) -> int:
        return len(self._histories)

    def followed(self) -> Iterator[tuple[str, ViewSubscription, int | None]]:
        for identity, member in self._members.items():
            if member.channel is not None:
                yield identity, member.channel.subscription, self._lag_of(identity)

    def _lag_of(self, identity: str) -> int | None:
        """Return how many positions a subscription is behind; None if it is not known."""
        acked, newest = (self._session.acked or {}).get(identity), self._members[identity].newest
        if acked is None or newest is None or newest.state is None:
            return None
        return max(0, newest.state.position.seq - acked)
