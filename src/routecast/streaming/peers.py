"""Subscribers: the connections that speak routecast.v1, whatever edge they came in by."""

import asyncio
import secrets
import time

from msgspec import UNSET

from routecast.core.message import Encoding, Message
from routecast.core.v1_session import (
    CloseConnection,
    QueryHistory,
    StartSubscription,
    StopSubscription,
    V1Session,
    refusal,
)
from routecast.errors import BadParameter, Unavailable
from routecast.protocol import CloseCode, Goodbye, Hello, ServerMessage
from routecast.streaming.channels import Channels, ChannelSubscription, V1Transport
from routecast.streaming.history_subscriptions import HistorySubscription, HistorySubscriptions


class V1Peers:
    """Greets connections, and gives each what it follows and looks back on."""

    def __init__(self, channels: Channels, lookbacks: HistorySubscriptions) -> None:
        self.channels = channels
        self.lookbacks = lookbacks

    def open(self, session: V1Session, line: V1Transport) -> "V1Peer":
        """Greet a connection, and return who is to be told all that becomes of it."""
        hello = Hello(connection=secrets.token_hex(8), epoch=self.channels.epoch() or UNSET)
        line.reply(session.encoding.encode(hello))
        return V1Peer(self, session, line)


class V1Peer:
    """One connection: give it what comes of the client, and tell when there is room again.

    It is a `history_subscriptions.HistorySubscriber`.
    """

    __slots__ = (
        "_all_told",
        "_everybody",
        "_line",
        "_lookbacks",
        "_members",
        "_parked",
        "_session",
        "turn",
    )

    def __init__(self, everybody: V1Peers, session: V1Session, line: V1Transport) -> None:
        self._everybody = everybody
        self._session = session
        self._line = line
        self._members: dict[
            str, ChannelSubscription
        ] = {}  # by id; who was sent something last is last
        self._lookbacks: dict[str, HistorySubscription] = {}
        # What is to be told of the past as soon as there is room: one message of each at most.
        self._parked: list[tuple[Message, HistorySubscription]] = []
        self._all_told: asyncio.Event | None = None  # made with the first of them
        self.turn = asyncio.Lock()

    def receive(self, message: str | bytes) -> None:
        """Take a message of the client."""
        outcome = self._session.receive(message, time.monotonic())
        match outcome:
            case StartSubscription(id=identity):
                member = ChannelSubscription(self._line, self._session.encoding, identity)
                self._members[identity] = member
                self._everybody.channels.join(member, outcome.subscription, outcome.position)
            case QueryHistory(id=identity, query=query):
                self._lookbacks[identity] = self._everybody.lookbacks.ask(self, identity, query)
            case StopSubscription(id=identity):
                self._leave(identity)
            case CloseConnection(code=code):
                self._line.fail(code)
            case None:
                pass
            case _:
                self._reply(outcome)

    def changed(self) -> None:
        """Tell that the line is not as it was: what cohorts know of theirs holds no more."""
        for member in self._members.values():
            if member.cohort is not None:
                member.cohort.known = None

    def catch_up(self) -> None:
        """Send what was missed while the socket was full, until it is full again."""
        while self._parked:
            message, lookback = self._parked[0]
            if self._holds(lookback) and not self._send(message, lookback):
                return
            del self._parked[0]
        self._end_waiting()
        for identity, member in list(self._members.items()):
            if not self._everybody.channels.catch_up(member):
                return
            self._members[identity] = self._members.pop(identity)

    def say_goodbye(self, code: CloseCode, reconnect_after_ms: int) -> None:
        """Tell the client when to come back; the connection is to be closed next."""
        self._reply(Goodbye(code=code, reconnect_after_ms=reconnect_after_ms))

    def close(self) -> None:
        """Forget the connection."""
        for identity in [*self._members, *self._lookbacks]:
            self._leave(identity)
        self._parked.clear()
        self._end_waiting()

    def _leave(self, identity: str) -> None:
        if identity in self._members:
            self._everybody.channels.leave(self._members.pop(identity))
        else:
            self._everybody.lookbacks.leave(self._lookbacks.pop(identity))

    def _end_waiting(self) -> None:
        if self._all_told is not None:
            self._all_told.set()
            self._all_told = None

    def _holds(self, lookback: HistorySubscription) -> bool:
        return self._lookbacks.get(lookback.identity) is lookback

    def _reply(self, message: ServerMessage) -> None:
        self._line.reply(self._session.encoding.encode(message))

    # -- looking back ---------------------------------------------------------------------------

    @property
    def client(self) -> str:
        return self._line.client

    @property
    def encoding(self) -> Encoding:
        return self._session.encoding

    @property
    def waits(self) -> bool:
        return bool(self._parked)

    def tell(self, message: Message, lookback: HistorySubscription) -> None:
        if self._parked or not self._send(message, lookback):
            self._parked.append((message, lookback))
            self._all_told = self._all_told or asyncio.Event()
        # What is live now goes with it: at one position, both add up to the same. Where there is no
        # room, it is rendered now, and sent after it.
        for member in self._members.values():
            self._everybody.channels.flush_now(member)

    def _send(self, message: Message, lookback: HistorySubscription) -> bool:
        return self._line.send(message, message.under(lookback.identity))

    async def told(self) -> None:
        if self._all_told is not None:
            await self._all_told.wait()

    async def drained(self) -> None:
        await asyncio.sleep(0)  # a transport may tell a little later that its socket is full
        if not self._line.has_room():
            self._all_told = self._all_told or asyncio.Event()
            await self._all_told.wait()

    def ended(self, identity: str, error: BadParameter | Unavailable | None) -> None:
        del self._lookbacks[identity]
        self._session.release(identity)
        if error is not None:
            self._reply(refusal(identity, error))
