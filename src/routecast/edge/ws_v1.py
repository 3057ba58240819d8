"""WebSocket on the transport, speaking routecast.v1: the same lean connection, with subscriptions.

Its frames come from channels (`channels.py`), which write to it what all members of one share.
"""

from collections.abc import Iterable, Mapping
from functools import partial
from itertools import chain
from typing import Self, cast

from websockets.frames import Frame, Opcode

from routecast.channels import Cohort, Line
from routecast.core.groups import Block, Question
from routecast.core.message import ENCODINGS, Encoding, Message, Named
from routecast.core.v1 import V1Session
from routecast.edge.send import NOWHERE
from routecast.edge.wire import PING, named_deflated, named_plain
from routecast.edge.ws import OPEN, SEND_SECONDS, Ranks, Speak, WebSocketConnection, line_up
from routecast.protocol import CloseCode
from routecast.subscribers import Subscriber, Subscribers


def v1_speakers(subscribers: Subscribers) -> Mapping[str, Speak]:
    """Return the handler of a connection, by the subprotocol its client chose."""
    return {
        name: partial(V1Connection, subscribers, encoding) for name, encoding in ENCODINGS.items()
    }


class V1Connection(WebSocketConnection):
    """One subscriber of routecast.v1 (`channels.Line`)."""

    __slots__ = ("_before", "_opcode", "_remembers", "_subscriber")

    def __init__(
        self,
        subscribers: Subscribers,
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
        first._relax()
        if not self._ready:  # answers of before are still on their way
            self._expect(SEND_SECONDS, CloseCode.TOO_SLOW)
        self._before: Named | None = None  # the last compressed message it was sent
        self._remembers = remembers  # whether its client has it still
        self._opcode = Opcode.BINARY if encoding.binary else Opcode.TEXT
        self._transport.set_protocol(self)
        session = V1Session(encoding, self._session.subscription.interval)
        self._subscriber: Subscriber = subscribers.open(session, self)
        self._edge.manager.hold(self)

    def send(self, message: Message, named: Named) -> bool:
        if not self._ready:
            self._behind = True
            return False
        if self._deflates:
            data = self._deflated(message, named)
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
    def send_all(cls, message: Message, named: Named, cohort: Cohort) -> list[Line]:
        if cohort.known is None:
            cohort.known = line_up(cast(Iterable[Self], cohort.members))
        ranks: Ranks[Self] = cohort.known
        ranks.write(named.plain or named_plain(message, named))
        others = chain(ranks.deflating.connections, ranks.others)
        return [line for line in others if not line.send(message, named)]

    @staticmethod
    def ask_all(block: Block) -> None:
        for each in cast(Iterable[V1Connection], block.connections):
            if each._ready:
                # Its messages are its cohorts', whose other members may be of other blocks.
                each._rider = PING
                each._changed()

    @classmethod
    def flush_all(cls, block: Block) -> None:
        block.question = Question.NONE
        for each in cast(Iterable[V1Connection], block.connections):
            if each._rider:  # no message has taken it along
                each.flush()
                each._changed()

    def _changed(self) -> None:
        if self.block is not None:  # so it has a subscriber, too
            self._subscriber.changed()

    def _deflated(self, message: Message, named: Named) -> bytes:
        before = self._before
        data = named.after.get(before.number) if before is not None else None
        if data is None:
            data = named_deflated(message, named, before)
        if self._remembers and data is not named.plain:
            self._before = named
        return data

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
