"""WebSocket on the transport, speaking routecast.v1: the same lean connection, with subscriptions.

Its frames come from channels (`channels.py`), which write to it what all members of one share.
"""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import NamedTuple, cast

from websockets.frames import Frame, Opcode

from routecast.core.groups import PingState, Shard
from routecast.core.message import ENCODINGS, AddressedMessage, Encoding, Message
from routecast.core.v1_session import V1Session
from routecast.edge.asgi_connection import SEND_SECONDS
from routecast.edge.ws.connection import (
    OPEN,
    SendBatch,
    SendPlan,
    Speak,
    WebSocketConnection,
    plan_sends,
)
from routecast.edge.ws.frames import PING, named_deflated, named_plain
from routecast.edge.ws.socket_send import NOWHERE
from routecast.protocol import CloseCode
from routecast.streaming.channels import Cohort, V1Transport
from routecast.streaming.peers import V1Peer, V1Peers


def v1_speakers(subscribers: V1Peers) -> Mapping[str, Speak]:
    """Return the handler of a connection, by the subprotocol its client chose."""
    return {
        name: partial(V1Connection, subscribers, encoding) for name, encoding in ENCODINGS.items()
    }


class _InStep:
    """Connections whose next message is compressed after the same one, into the same bytes."""

    __slots__ = ("_before", "_connections", "_rank")

    def __init__(self, before: AddressedMessage | None, connections: "list[V1Connection]") -> None:
        self._before = before
        self._connections = connections
        self._rank = SendBatch(connections)

    def holds(self) -> bool:
        """Take over what they were sent last; return whether that is still one for all of them.

        The messages of other subscriptions may have gone to some of them in between.
        """
        before = self._before = self._connections[0]._before
        return all(each._before is before for each in self._connections)

    def write(self, message: Message, named: AddressedMessage) -> None:
        """Write a message to all of them, which were not full."""
        data = _deflated(message, named, self._before)
        self._rank.write(data)
        if data is named.plain:
            return
        self._before = named
        for each in self._connections:
            each._before = named


class _Plan(NamedTuple):
    """How a cohort's members are written to, until one of them changes."""

    ranks: "SendPlan[V1Connection]"
    in_step: list[_InStep]
    forgetful: "SendBatch[V1Connection]"  # whose messages are each compressed by itself


def _plan(members: "Iterable[V1Connection]") -> _Plan:
    ranks = plan_sends(members)
    by_before: dict[AddressedMessage | None, list[V1Connection]] = {}
    forgetful = []
    for each in ranks.deflating.connections:
        if each._remembers:
            by_before.setdefault(each._before, []).append(each)
        else:
            forgetful.append(each)
    return _Plan(ranks, [_InStep(*each) for each in by_before.items()], SendBatch(forgetful))


def _deflated(message: Message, named: AddressedMessage, before: AddressedMessage | None) -> bytes:
    """Return a message compressed after another; whoever needs the same shares the bytes."""
    data = named.after.get(before.number if before is not None else 0)
    return named_deflated(message, named, before) if data is None else data


class V1Connection(WebSocketConnection):
    """One subscriber of routecast.v1 (`channels.V1Transport`)."""

    __slots__ = ("_before", "_opcode", "_remembers", "_subscriber")

    def __init__(
        self,
        subscribers: V1Peers,
        encoding: Encoding,
        first: WebSocketConnection,
        remembers: bool,
    ) -> None:
        """Take over from the connection that shook the client's hand."""
        super().__init__(first._edge)
        assert first._session is not None
        self._transport = first._transport
        self._descriptor, first._descriptor = first._descriptor, NOWHERE
        self._address = first._address
        self._deflates, self._inflates = first._deflates, first._inflates
        self._session, first._session = first._session, None
        self._rider, first._rider = first._rider, b""
        self._ready = first._ready
        first._cancel_timer()
        if not self._ready:  # answers of before are still on their way
            self._arm_timer(SEND_SECONDS, CloseCode.TOO_SLOW)
        self._before: AddressedMessage | None = None  # the last compressed message it was sent
        self._remembers = remembers  # whether its client has it still
        self._opcode = Opcode.BINARY if encoding.binary else Opcode.TEXT
        self._transport.set_protocol(self)
        session = V1Session(encoding, self._session.subscription.interval)
        self._subscriber: V1Peer = subscribers.open(session, self)
        self._edge.manager.hold(self)

    def send(self, message: Message, named: AddressedMessage) -> bool:
        if not self._ready:
            self._behind = True
            return False
        if self._deflates:
            data = _deflated(message, named, self._before)
            if self._remembers and data is not named.plain:
                self._before = named
        else:
            data = named.plain or named_plain(message, named)
        self._send(data)
        return True

    def has_room(self) -> bool:
        if self._ready or self._code != OPEN:
            return True
        self._behind = True  # so that it is told
        return False

    @classmethod
    def send_all(
        cls, message: Message, named: AddressedMessage, cohort: Cohort
    ) -> list[V1Transport]:
        plan: _Plan | None = cohort.known
        if plan is None or not all(some.holds() for some in plan.in_step):
            plan = cohort.known = _plan(cast(Iterable[V1Connection], cohort.members))
        plan.ranks.write(named.plain or named_plain(message, named))
        for some in plan.in_step:
            some.write(message, named)
        if plan.forgetful.connections:
            plan.forgetful.write(_deflated(message, named, None))
        behind: list[V1Transport] = [
            line for line in plan.ranks.others if not line.send(message, named)
        ]
        # Those that are in step from this message on, or had their ping with it, go together.
        if len(plan.in_step) > 1 or len(behind) < len(plan.ranks.others):
            cohort.known = None
        return behind

    @staticmethod
    def queue_ping(shard: Shard) -> None:
        for each in cast(Iterable[V1Connection], shard.connections):
            if each._ready:
                # Its messages are its cohorts', whose other members may be of other shards.
                each._rider = PING
                each._changed()

    @classmethod
    def flush_ping(cls, shard: Shard) -> None:
        shard.ping_state = PingState.NONE
        for each in cast(Iterable[V1Connection], shard.connections):
            if each._rider:  # no message has taken it along
                each.flush()
                each._changed()

    def _changed(self) -> None:
        if self.shard is not None:  # so it has a subscriber, too
            self._subscriber.changed()

    def reply(self, data: bytes) -> None:
        if self._code != OPEN:
            return  # after a close frame nothing may come
        rider, self._rider = self._rider, b""
        self._transport.write(rider + Frame(self._opcode, data).serialize(mask=False))

    def received(self, message: str | bytes) -> None:
        assert self._inbox is not None
        if not self._inbox.finished:
            self._subscriber.receive(message)

    def fail(self, code: CloseCode) -> None:
        assert self._inbox is not None
        self._inbox.fail(code)

    def stop(self, code: CloseCode, return_ms: int | None = None) -> None:
        if return_ms is not None and self._code == OPEN:
            self._subscriber.say_goodbye(code, return_ms)
        super().stop(code, return_ms)

    def connection_lost(self, exc: Exception | None) -> None:
        self._subscriber.close()
        super().connection_lost(exc)

    def _catch_up(self) -> None:
        self._subscriber.catch_up()
