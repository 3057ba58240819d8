"""WebSocket on the transport itself: a protocol class for uvicorn, lean in time and in memory.

Uvicorn hands over a connection with its upgrade request. The handshake is that of `websockets`
(`handshake.py`), of which nothing stays with a connection, which is one slotted object. Frames that
were encoded once are written straight to the socket: no task, queue or coroutine for each.

The transport is told to hold nothing (`high=0`): it writes at once, and calls `pause_writing` as
soon as a socket is full. From then on the connection is skipped; when it drains, `resume_writing`
sends the newest frame.
"""

import asyncio
import time
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Generic, NamedTuple, Self, TypeVar, cast

from websockets.extensions.permessage_deflate import PerMessageDeflate

from routecast.core.default_session import DefaultSession
from routecast.core.document import EncodedDocument
from routecast.core.groups import PingState, Shard
from routecast.core.rotation import random_start
from routecast.core.view import ViewSubscription
from routecast.edge.admission import AdmissionControl
from routecast.edge.asgi_connection import SEND_SECONDS
from routecast.edge.proxies import Proxies, limit_key
from routecast.edge.reset import reset
from routecast.edge.ws.frames import PING, PONG_HEAD, PONG_SIZE, WINDOW_BITS, deflated, plain
from routecast.edge.ws.handshake import Handshakes, UpgradeRequest, refuse
from routecast.edge.ws.messages import MessageAssembler
from routecast.edge.ws.socket_send import FLAGS, NOWHERE, descriptor, send, send_all
from routecast.errors import BadBody, NotFound, RoutecastError
from routecast.instruments import Instruments
from routecast.protocol import MAX_MESSAGE_BYTES, CloseCode, close_reason
from routecast.streaming.connections import ConnectionManager

PATH: Final = b"/ws/metrics"
# A client may take this time, in seconds, to answer a close frame.
CLOSE_FRAME_SECONDS: Final = 2.0
# A client may send MAX_FRAMES in FRAMES_SECONDS: a stream's client has next to nothing to say.
MAX_FRAMES: Final = 1_200
FRAMES_SECONDS: Final = 20.0
# Received bytes are parsed in pieces of at most this size; the number of frames is checked in
# between. One read can hold 40,000 frames, and half a second's work.
WS_PIECE: Final = 4_096
# The code of a connection that nobody has begun to close.
OPEN: Final = 1006

_BODY: Final = (b"content-length", b"transfer-encoding")
# Takes over a connection that chose a subprotocol; True if what it was sent may be referred to.
Speak = Callable[["WebSocketConnection", bool], object]
One = TypeVar("One", bound="WebSocketConnection")


class WebSocketEdge:
    """What all connections of one server share. Its `protocol` is uvicorn's `ws` class."""

    # What a client may send: bytes in a message, and frames in `FRAMES_SECONDS`.
    max_message_bytes = MAX_MESSAGE_BYTES
    max_frames = MAX_FRAMES

    def __init__(
        self,
        manager: ConnectionManager,
        door: AdmissionControl,
        instruments: Instruments,
        *,
        compress: bool,
        proxies: Proxies | None = None,
        subprotocols: Mapping[str, "Speak"] | None = None,
    ) -> None:
        self.manager = manager
        self.door = door
        self.instruments = instruments
        self.proxies = proxies or Proxies("")
        self.subprotocols = subprotocols or {}
        self.handshakes = Handshakes(self.subprotocols, compress=compress)

    def protocol(self, **_: Any) -> "WebSocketConnection":
        """Return the protocol of a new connection; uvicorn calls this, with its own state."""
        return WebSocketConnection(self)


class SendBatch(Generic[One]):
    """Connections that take the same bytes as they are, and their descriptors."""

    __slots__ = ("connections", "descriptors")

    def __init__(self, connections: "Sequence[One]") -> None:
        self.connections = connections
        self.descriptors = array("i", [each._descriptor for each in connections])

    def write(self, data: bytes) -> None:
        """Write to sockets that were not full."""
        start = random_start(len(self.connections))
        descriptors = self.descriptors[start:] + self.descriptors[:start]
        for place, part in send_all(descriptors, data).items():
            self.connections[(start + place) % len(self.connections)]._send_rest(data, part)


class SendPlan(NamedTuple, Generic[One]):
    """What a shard or a cohort falls into, until one of its connections changes."""

    plain: SendBatch[One]
    deflating: SendBatch[One]
    # Of routecast.v1 also those that take the same once a ping is before it. The default stream's
    # are asked by the shard.
    asked: SendBatch[One]
    others: list[One]  # full, closing, or with something of its own that goes first

    def write(self, data: bytes) -> None:
        """Write to those that take it plain."""
        self.plain.write(data)
        if self.asked.connections:
            for each in self.asked.connections:
                each._rider = b""
                each._changed()
            self.asked.write(PING + data)


def plan_sends(connections: Iterable[One]) -> SendPlan[One]:
    """Tell those apart that can be written to at once."""
    plain: list[One] = []
    deflating: list[One] = []
    asked: list[One] = []
    others: list[One] = []
    for each in connections:
        if not each._ready or (each._rider and (each._deflates or each._rider != PING)):
            others.append(each)
        elif each._rider:
            asked.append(each)
        elif each._deflates:
            deflating.append(each)
        else:
            plain.append(each)
    return SendPlan(SendBatch(plain), SendBatch(deflating), SendBatch(asked), others)


class WebSocketConnection(asyncio.Protocol):
    """One subscriber (`core.groups.Connection`)."""

    __slots__ = (
        "_address",
        "_behind",
        "_code",
        "_deflates",
        "_descriptor",
        "_edge",
        "_frames",
        "_inbox",
        "_inflates",
        "_ready",
        "_rider",
        "_session",
        "_timer",
        "_transport",
        "_until",
        "shard",
    )

    kind = "WebSocket"
    _transport: asyncio.Transport

    def __init__(self, edge: WebSocketEdge) -> None:
        self._edge = edge
        self._session: DefaultSession | None = None
        self._address = ""
        self.shard: Shard | None = None
        self._ready = False  # to be written to: open, and the socket not full
        self._behind = False  # was skipped since
        self._deflates = False  # may be sent frames as `frames.deflated` makes them
        self._descriptor = NOWHERE  # of the socket, once frames may be written to it
        self._inflates = False  # may send deflated messages itself
        self._inbox: MessageAssembler | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._code: int = OPEN
        self._rider = b""  # goes ahead of the next frame, at no write of its own
        self._frames = 0  # received until a time on the monotonic clock
        self._until = 0.0

    @property
    def subscription(self) -> ViewSubscription:
        assert self._session is not None
        return self._session.subscription

    @property
    def client(self) -> str:
        return self._address

    # -- sending --------------------------------------------------------------------------------

    def offer(self, frame: EncodedDocument) -> bool:
        if not self._ready:
            self._behind = True
            return False
        self._send(deflated(frame) if self._deflates else frame.plain or plain(frame))
        return True

    @classmethod
    def offer_all(cls, frame: EncodedDocument, shard: Shard) -> int:
        known = cls._known(shard)
        rider = b""
        if shard.ping_state is PingState.DUE:
            rider, shard.ping_state = PING, PingState.NONE
        if known.plain.connections:
            known.plain.write(rider + (frame.plain or plain(frame)))
        if known.deflating.connections:
            known.deflating.write(rider + deflated(frame))
        return sum(not connection.offer(frame) for connection in known.others)

    @classmethod
    def _known(cls, shard: Shard) -> SendPlan[Self]:
        if shard.known is None:
            shard.known = plan_sends(cast(Iterable[Self], shard.connections))
        known: SendPlan[Self] = shard.known
        return known

    def _changed(self) -> None:
        """Tell that what is known of the connections it is served with holds no more."""
        if self.shard is not None:
            self.shard.known = None

    def _send(self, data: bytes) -> None:
        """Write to a socket that was not full, with what waits to go first."""
        if self._rider:
            data, self._rider = self._rider + data, b""
        sent = send(self._descriptor, data, len(data), FLAGS)
        if sent != len(data):
            self._send_rest(data, sent)

    def _send_rest(self, data: bytes, sent: int) -> None:
        """Leave the rest to the transport: it meets the same obstacle, and deals with it."""
        # A view, so that all who are sent the same share its bytes.
        self._transport.write(memoryview(data)[max(sent, 0) :])

    def pause_writing(self) -> None:
        self._ready = False
        self._changed()
        if self._session is None or self._code != OPEN:
            return
        # Who does not read need not be heard: no pongs pile up for a flood of pings.
        self._transport.pause_reading()
        self._arm_timer(SEND_SECONDS, CloseCode.TOO_SLOW)

    def resume_writing(self) -> None:
        if self._session is None or self._code != OPEN:
            return
        self._cancel_timer()
        self._transport.resume_reading()
        self._ready = True
        self._changed()
        if self.shard is not None:
            self.shard.responded.add(
                self
            )  # the question may have been behind what it took only now
        if self._behind:
            self._behind = False
            self._catch_up()

    def _catch_up(self) -> None:
        self._edge.manager.catch_up(self)

    def _arm_timer(self, seconds: float, code: CloseCode) -> None:
        """Abort with a code unless something happens in time."""
        self._cancel_timer()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(seconds, self._time_out, code)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _time_out(self, code: CloseCode) -> None:
        if self._code == OPEN:
            self._code = code
        if code is CloseCode.TOO_SLOW:
            self._edge.instruments.send_failures.inc()
        reset(self._transport)

    # -- life and death -------------------------------------------------------------------------

    @staticmethod
    def queue_ping(shard: Shard) -> None:
        """Nothing to do: `offer_all` sees it."""

    @classmethod
    def flush_ping(cls, shard: Shard) -> None:
        if shard.ping_state is not PingState.NONE:
            shard.ping_state = PingState.NONE
            known = cls._known(shard)
            known.plain.write(PING)
            known.deflating.write(PING)

    def flush(self) -> None:
        """Send what waits for a frame to go with."""
        if self._rider:
            data, self._rider = self._rider, b""
            self._transport.write(data)

    def give_up(self) -> None:
        if self._ready:  # or it is full, and on its own clock, or closing
            self.stop(CloseCode.SILENT)
            self._transport.abort()  # the word is out; an answer is not to be expected

    def stop(self, code: CloseCode, return_ms: int | None = None) -> None:
        if self._code != OPEN:
            return  # it is closing, and on its own clock
        self._code = code
        if self._inbox is None:
            self._inbox = self._new_inbox()
        self._inbox.close(code, close_reason(return_ms))
        self.flush()
        self._transport.write(self._inbox.to_send())
        self._ready = False
        self._changed()
        self._transport.resume_reading()  # for the answer
        self._arm_timer(CLOSE_FRAME_SECONDS, code)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Uvloop's transports have the methods, though not the base class.
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._ready = False
        self._descriptor = NOWHERE  # soon it is another's
        self._rider = b""
        self._cancel_timer()
        self._inbox = None
        if self._session is not None:
            self._edge.door.leave(self._address)
            self._session = None
            self._edge.manager.disconnect(self, self._code)

    # -- receiving ------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        shard = self.shard
        if shard is None:
            return  # refused or ended, and what it says does not count
        shard.responded.add(self)
        inbox = self._inbox
        if inbox is None:
            if len(data) == PONG_SIZE and data.startswith(PONG_HEAD):
                return
            inbox = self._inbox = self._new_inbox()
        if not inbox.finished:
            self._take(inbox, data)
            self._answer(inbox)

    def _take(self, inbox: MessageAssembler, data: bytes) -> None:
        now = time.monotonic()
        if now >= self._until:
            self._until, self._frames = now + FRAMES_SECONDS, 0
        for start in range(0, len(data), WS_PIECE):
            seen = inbox.frames
            for message in inbox.receive(data[start : start + WS_PIECE]):
                self.received(message)
            self._frames += inbox.frames - seen
            if self._frames > self._edge.max_frames:
                inbox.fail(CloseCode.TOO_MANY_MESSAGES)
            if inbox.finished:
                return

    def _answer(self, inbox: MessageAssembler) -> None:
        """Write what the parser wants written, and let go of it when it is done."""
        out = inbox.to_send()
        if out and (self._ready or inbox.finished):
            self._transport.write(out)
        if inbox.finished:
            self._finish(inbox.close_code)
        elif inbox.idle:
            self._inbox = None

    def _finish(self, code: int) -> None:
        """End the connection from this side, and wait a moment for the client to end it too.

        What it still sends is read until then: closed with that unread, the kernel would answer
        with a reset, and the client might lose the close frame (RFC 6455, 7.1.1).
        """
        if self._code == OPEN:
            self._code = code
        self._ready, self._rider = False, b""  # after a close frame nothing may come
        self._changed()
        self._arm_timer(CLOSE_FRAME_SECONDS, CloseCode.DONE)
        if self._code == CloseCode.TOO_MANY_MESSAGES:
            self._transport.pause_reading()  # but for a flood the time is not taken
        self._transport.write_eof()

    def received(self, message: str | bytes) -> None:
        """Take a whole message of the client."""
        assert self._session is not None
        self._session.receive(message)

    def _new_inbox(self) -> MessageAssembler:
        deflate = [PerMessageDeflate(True, True, WINDOW_BITS, WINDOW_BITS)]
        return MessageAssembler(deflate if self._inflates else [], self._edge.max_message_bytes)

    # -- the handshake --------------------------------------------------------------------------

    def upgrade(
        self, method: str, target: bytes, fields: Sequence[tuple[bytes, bytes]], peer: str
    ) -> None:
        """Answer the request of a peer that asks for this connection, be it with a refusal."""
        request = UpgradeRequest(method, target, fields)
        agreed = self._edge.handshakes.answer(request)
        answer = agreed.answer
        if agreed.accepted:
            try:
                if method != "GET" or any(name in request for name in _BODY):
                    raise BadBody("an upgrade is a plain GET without a body")
                if len(request.get_all(b"host")) != 1:
                    raise BadBody("a request has one Host")
                self._session = self._open(request, peer)
            except RoutecastError as error:
                answer = refuse(error)
        if self._session is None:
            self._transport.write(answer)
            self._arm_timer(CLOSE_FRAME_SECONDS, CloseCode.POLICY)
            self._transport.close()
            return
        self._ready = True
        self._descriptor = descriptor(self._transport)
        # It may have an answer in it still, of what was asked before: then this pauses.
        self._transport.set_write_buffer_limits(high=0)
        self._rider = answer  # one write, and one packet, with the first frame
        self._inflates, self._deflates = agreed.inflates, agreed.deflates
        if agreed.subprotocol is not None:
            self._edge.subprotocols[agreed.subprotocol](self, agreed.remembers)
            return
        self._edge.manager.connect(self)
        self.flush()

    def _open(self, request: UpgradeRequest, peer: str) -> DefaultSession:
        path, _, query = request.target.partition(b"?")
        if path != PATH:
            shown = path[:200].decode("latin-1")
            raise NotFound(f"there is no WebSocket at {shown!r}; it is at {PATH.decode()}")
        forwarded = request.get_all(b"x-forwarded-for")
        self._address = limit_key(self._edge.proxies.client_of(peer, forwarded))
        return self._edge.door.open(
            query,
            origin=request.get(b"origin"),
            host=request.get(b"host"),
            address=self._address,
        )
