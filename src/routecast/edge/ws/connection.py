"""`WebSocketConnection`: uvicorn's `ws` protocol class, with little memory for each connection.

`HttpProtocol` hands over a connection with its upgrade request. `handshake.py` answers the request,
and keeps no state: a connection is one slotted object. Its `peer` (`streaming/peers.py`) speaks the
default stream or routecast.v1 over it. Payloads are written directly to the socket, mostly by
batches (`batch.py`). A connection has no task, queue or coroutine.

The transport's buffer limit is 0 (`high=0`): it calls `pause_writing` as soon as a socket is full.
From then on the connection is skipped. When the socket has drained, the peer sends the newest
version.
"""

import asyncio
import logging
import time
from collections.abc import Coroutine, Mapping, Sequence
from enum import Enum, auto
from typing import Any, Final, cast

from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Frame, Opcode

from routecast import audit
from routecast.core.access import ANYONE, Principal
from routecast.core.default_session import DefaultSession
from routecast.core.message import ENCODINGS
from routecast.core.payload import Payload
from routecast.core.request_trace import trace_of
from routecast.edge.access import (
    SEVERAL,
    Credential,
    TicketIn,
    read_query,
    text_of_credential,
    without_ticket,
)
from routecast.edge.admission import AdmissionControl
from routecast.edge.asgi_connection import SEND_SECONDS
from routecast.edge.header_fields import read_agent
from routecast.edge.problem import respond_crash
from routecast.edge.proxies import SECURE_SCHEMES, Proxies, limit_key
from routecast.edge.reset import reset
from routecast.edge.ws.batch import (
    INDEPENDENT,
    PLAIN,
    Compression,
    WebSocketBatch,
    keep_context,
    share,
)
from routecast.edge.ws.frames import PING, PONG_HEAD, PONG_SIZE, WINDOW_BITS, saved_bytes
from routecast.edge.ws.handshake import Agreement, Handshakes, UpgradeRequest, final, refuse
from routecast.edge.ws.messages import MessageAssembler
from routecast.edge.ws.socket_send import FLAGS, NO_DESCRIPTOR, descriptor, queued, send
from routecast.errors import BadBody, BadHead, NotFound, RoutecastError
from routecast.instruments import Instruments
from routecast.ports import Batch, PongReport
from routecast.protocol import MAX_MESSAGE_BYTES, CloseCode, close_reason
from routecast.streaming.connections import ABNORMAL_CLOSURE
from routecast.streaming.heartbeat import PING_SECONDS, Heartbeat
from routecast.streaming.peers import Peer, Peers

PATH: Final = b"/ws/metrics"
# A client with a full socket is kept while it takes at least this number of bytes in SEND_SECONDS,
# because a large history takes longer than that on a slow network.
PROGRESS_BYTES: Final = 65_536
# The time that a client has to answer a close frame, in seconds.
CLOSE_FRAME_SECONDS: Final = 2.0
# A client may send MAX_FRAMES in FRAMES_SECONDS; clients of a stream send few frames.
MAX_FRAMES: Final = 1_200
FRAMES_SECONDS: Final = 20.0
# Received bytes are parsed in pieces of at most this size, and the number of frames is checked
# after each. One read can hold 40,000 frames, which take half a second.
WS_PIECE: Final = 4_096

_BODY: Final = (b"content-length", b"transfer-encoding")

log = logging.getLogger(__name__)


class ConnectionState(Enum):
    """The states of a connection."""

    CONNECTING = auto()  # its upgrade request is not answered yet
    OPEN = auto()  # the socket has room
    FULL = auto()  # the socket has no room; payloads are skipped until it has drained
    CLOSING = auto()  # the close frame or the refusal is sent; the client may answer it
    CLOSED = auto()


# The states that may follow each state. `_enter` ignores all others.
NEXT_STATES: Final[Mapping[ConnectionState, frozenset[ConnectionState]]] = {
    ConnectionState.CONNECTING: frozenset(
        {ConnectionState.OPEN, ConnectionState.CLOSING, ConnectionState.CLOSED}
    ),
    ConnectionState.OPEN: frozenset(
        {ConnectionState.FULL, ConnectionState.CLOSING, ConnectionState.CLOSED}
    ),
    ConnectionState.FULL: frozenset(
        {ConnectionState.OPEN, ConnectionState.CLOSING, ConnectionState.CLOSED}
    ),
    ConnectionState.CLOSING: frozenset({ConnectionState.CLOSED}),
    ConnectionState.CLOSED: frozenset(),
}


class WebSocketEdge:
    """The objects and limits that all connections share. Uvicorn calls `protocol` for each one."""

    # The limits of what a client sends: bytes of a message, and frames in FRAMES_SECONDS.
    max_message_bytes = MAX_MESSAGE_BYTES
    max_frames = MAX_FRAMES

    def __init__(
        self,
        peers: Peers,
        admission: AdmissionControl,
        heartbeat: Heartbeat,
        instruments: Instruments,
        *,
        compress: bool,
        proxies: Proxies | None = None,
    ) -> None:
        self.peers = peers
        self.admission = admission
        self.heartbeat = heartbeat
        self.instruments = instruments
        self.proxies = proxies or Proxies("")
        self.handshakes = Handshakes(ENCODINGS, compress=compress)

    def protocol(self, **_: Any) -> "WebSocketConnection":
        """Return the protocol of a new connection; uvicorn's arguments are not used."""
        return WebSocketConnection(self)


class WebSocketConnection(asyncio.Protocol):
    """One client's connection (`ports.Connection`)."""

    __slots__ = (
        "_assembler",
        "_behind",
        "_binary",
        "_code",
        "_edge",
        "_frames",
        "_inflates",
        "_pinged",
        "_prefix",
        "_round_trip_ms",
        "_state",
        "_timer",
        "_transport",
        "_until",
        "_waiting",
        "agent",
        "awaits_pong",
        "batches",
        "client",
        "compression",
        "descriptor",
        "peer",
        "saved",
    )

    kind = "WebSocket"
    _transport: asyncio.Transport

    def __init__(self, edge: WebSocketEdge) -> None:
        self._edge = edge
        self._state = ConnectionState.CONNECTING
        self._code: int | None = None  # the close code; None while it is not known
        self.peer: Peer | None = None  # from the handshake to the end
        self.client = ""
        self.agent = ""
        self.batches: tuple[WebSocketBatch, ...] = ()
        self.compression: Compression = PLAIN
        self.saved = 0  # bytes that compression saved, without those that batches still count
        self.descriptor = NO_DESCRIPTOR  # set from the handshake to the end
        self.awaits_pong = False
        # When the last ping was sent; and how long the last answer took, in milliseconds. That is
        # an integer, because Python keeps one object for each small integer.
        self._pinged = 0.0
        self._round_trip_ms: int | None = None
        self._behind = False  # whether a payload was skipped because the socket is full
        self._prefix = b""  # the handshake's answer, until it is written with the first message
        self._binary = False  # whether messages to the client are binary
        self._inflates = False  # whether the client may send deflated messages
        self._assembler: MessageAssembler | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._frames = 0  # received before `_until`, a time on the monotonic clock
        self._until = 0.0
        self._waiting: WaitingHandshake | None = None

    # -- states ---------------------------------------------------------------------------------

    def _enter(self, state: ConnectionState, code: int | None = None) -> bool:
        """Change to a state if it may follow; return whether it did.

        `code` is the close code, unless one is known already.
        """
        if state not in NEXT_STATES[self._state]:
            return False
        self._state = state
        if self._code is None:
            self._code = code
        for batch in self.batches:
            batch.invalidate()
        self._cancel_timer()
        match state:
            case ConnectionState.OPEN:
                self._transport.resume_reading()
                self.awaits_pong = False  # the ping may have waited behind unsent bytes
            case ConnectionState.FULL:
                # A client that does not read could make pongs pile up by sending pings.
                self._transport.pause_reading()
                self._await_progress()
            case ConnectionState.CLOSING:
                self._prefix = b""
                self._transport.resume_reading()  # for the client's close frame
                self._arm_timer(CLOSE_FRAME_SECONDS, CloseCode.DONE)
            case ConnectionState.CLOSED:
                self.descriptor = NO_DESCRIPTOR  # the number may soon belong to another socket
                self._assembler = None
        return True

    @property
    def can_send(self) -> bool:
        return self._state is ConnectionState.OPEN

    def _arm_timer(self, seconds: float, code: CloseCode) -> None:
        """Abort with a code after `seconds`, unless the state changes before."""
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(seconds, self._time_out, code)

    def _await_progress(self) -> None:
        """Abort after SEND_SECONDS, unless the client takes PROGRESS_BYTES or all in that time."""
        unsent = self._transport.get_write_buffer_size()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(SEND_SECONDS, self._check_progress, unsent)

    def _check_progress(self, unsent: int) -> None:
        if self._transport.get_write_buffer_size() <= unsent - PROGRESS_BYTES:
            self._await_progress()
        else:
            self._time_out(CloseCode.TOO_SLOW)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _time_out(self, code: CloseCode) -> None:
        if self._code is None:
            self._code = code
        if code is CloseCode.TOO_SLOW:
            self._edge.instruments.send_failures.inc()
        reset(self._transport)

    # -- sending --------------------------------------------------------------------------------

    def new_batch(self) -> Batch:
        return WebSocketBatch()

    def send(self, payload: Payload) -> bool:
        if self._state is not ConnectionState.OPEN:
            self._behind = True
            return False
        data = self.compression.form(payload)
        self.saved += saved_bytes(payload, data)
        if self.compression.is_context(payload, data):
            keep_context([self], self.compression, payload)
        self._write(data)
        return True

    def prepare(self, payload: Payload) -> None:
        self.compression.prepare(payload)

    def _write(self, data: bytes) -> None:
        """Write to a socket that is not full; the prefix goes first."""
        if self._prefix:
            data, self._prefix = self._prefix + data, b""
        sent = send(self.descriptor, data, len(data), FLAGS)
        if sent != len(data):
            self.send_rest(data, sent)

    def send_rest(self, data: bytes, sent: int) -> None:
        # The transport finds the socket full too, and calls `pause_writing`. A memoryview, so that
        # all connections share the bytes.
        self._transport.write(memoryview(data)[max(sent, 0) :])

    def reply(self, data: bytes) -> None:
        if self._is_active:  # after a close frame, nothing may be sent
            opcode = Opcode.BINARY if self._binary else Opcode.TEXT
            self._write_through(Frame(opcode, data).serialize(mask=False))

    def _write_through(self, data: bytes) -> None:
        """Write through the transport, which keeps what the socket does not take."""
        data, self._prefix = self._prefix + data, b""
        if data:
            self._transport.write(data)

    def has_room(self) -> bool:
        if self._state is not ConnectionState.FULL:
            return True
        self._behind = True  # so that the peer's `catch_up` is called
        return False

    def pause_writing(self) -> None:
        self._enter(ConnectionState.FULL)

    def resume_writing(self) -> None:
        if self._enter(ConnectionState.OPEN) and self._behind:
            self._behind = False
            if self.peer is not None:
                self.peer.catch_up()

    def ping(self) -> None:
        if self.can_send:  # else it is full or closing, and has a timer for that
            self.awaits_pong = True
            self._pinged = self._edge.heartbeat.pinged
            self._write(PING)

    def pong(self) -> PongReport | None:
        if self._round_trip_ms is None:
            return None
        age = self._edge.heartbeat.since(self._pinged) - self._round_trip_ms / 1000
        if self.awaits_pong:
            age += PING_SECONDS  # it was the ping before that was answered
        return PongReport(max(0.0, age), self._round_trip_ms)

    @property
    def unsent(self) -> int:
        return self._transport.get_write_buffer_size() + queued(self.descriptor)

    @property
    def saved_by_compression(self) -> int:
        for batch in self.batches:
            batch.settle()
        return self.saved

    # -- closing --------------------------------------------------------------------------------

    def abort(self, code: CloseCode) -> None:
        if self.can_send:
            self.stop(code)
            self._transport.abort()  # the close frame is sent; no answer is expected

    def stop(self, code: CloseCode, return_ms: int | None = None) -> None:
        if not self._is_active:
            return  # it is closing already
        if return_ms is not None and self.peer is not None:
            self.peer.say_goodbye(code, return_ms)
        if self._assembler is None:
            self._assembler = self._new_assembler()
        self._assembler.close(code, close_reason(return_ms))
        self._write_through(self._assembler.to_send())
        self._enter(ConnectionState.CLOSING, code)

    def fail(self, code: CloseCode) -> None:
        assert self._assembler is not None
        self._assembler.fail(code)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Uvloop's transports have the methods, though not the base class.
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._enter(ConnectionState.CLOSED)
        if self._waiting is not None:
            self._waiting.task.cancel()
            self._waiting = None
        peer, self.peer = self.peer, None
        if peer is not None:
            share([self], PLAIN)  # one connection less shares its context
            self._edge.heartbeat.remove(self)
            self._edge.admission.release(self.client, self._edge.peers.principal_of(self))
            peer.close(ABNORMAL_CLOSURE if self._code is None else self._code)

    @property
    def _is_active(self) -> bool:
        """Whether it is open, with a full socket or not."""
        return self._state is ConnectionState.OPEN or self._state is ConnectionState.FULL

    # -- receiving ------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self.peer is None:
            if self._waiting is not None:
                self._waiting.early += data
                self._transport.pause_reading()
            return  # it is not answered yet, was refused, or has ended
        is_awaited, self.awaits_pong = self.awaits_pong, False
        assembler = self._assembler
        if assembler is None:
            if len(data) == PONG_SIZE and data.startswith(PONG_HEAD):
                if is_awaited:
                    elapsed = self._edge.heartbeat.since(self._pinged)
                    self._round_trip_ms = round(1000 * elapsed)
                return
            assembler = self._assembler = self._new_assembler()
        if not assembler.finished:
            self._take(assembler, data)
            self._answer(assembler)

    def _take(self, assembler: MessageAssembler, data: bytes) -> None:
        now = time.monotonic()
        if now >= self._until:
            self._until, self._frames = now + FRAMES_SECONDS, 0
        for start in range(0, len(data), WS_PIECE):
            seen = assembler.frames
            for message in assembler.receive(data[start : start + WS_PIECE]):
                if self.peer is not None and self._is_active and not assembler.finished:
                    self.peer.receive(message)
            self._frames += assembler.frames - seen
            if self._frames > self._edge.max_frames:
                assembler.fail(CloseCode.TOO_MANY_MESSAGES)
            if assembler.finished:
                return

    def _answer(self, assembler: MessageAssembler) -> None:
        """Write the assembler's answers, and drop the assembler when it is idle."""
        out = assembler.to_send()
        if out and (self.can_send or assembler.finished):
            self._transport.write(out)
        if assembler.finished:
            self._finish(assembler.close_code)
        elif assembler.idle:
            self._assembler = None

    def _finish(self, code: int) -> None:
        """Close this side of the connection, and wait a moment for the client to close its own.

        What the client still sends is read until then: with unread bytes, the kernel would send a
        reset, and the client might lose the close frame (RFC 6455, 7.1.1).
        """
        self._enter(ConnectionState.CLOSING, code)
        if self._code == CloseCode.TOO_MANY_MESSAGES:
            self._transport.pause_reading()  # but a flood is not read
        self._transport.write_eof()

    def _new_assembler(self) -> MessageAssembler:
        deflate = [PerMessageDeflate(True, True, WINDOW_BITS, WINDOW_BITS)]
        return MessageAssembler(deflate if self._inflates else [], self._edge.max_message_bytes)

    # -- the handshake --------------------------------------------------------------------------

    def upgrade(
        self, method: str, target: bytes, fields: Sequence[tuple[bytes, bytes]], remote: str
    ) -> None:
        """Answer an upgrade request: open the connection, or refuse it."""
        request = UpgradeRequest(method, target, fields)
        if audit.listens():
            address = limit_key(self._client_of(request, remote))
            with audit.answering(trace_of(request.fields, address, PATH.decode())):
                self._answer_upgrade(request, remote)
        else:
            self._answer_upgrade(request, remote)

    def _answer_upgrade(self, request: UpgradeRequest, remote: str) -> None:
        agreed = self._edge.handshakes.answer(request)
        if not agreed.accepted:
            audit.refusals.add("handshake", "the handshake is not valid", route=PATH.decode())
            self._refuse(agreed.answer)
            return
        try:
            self._check(request, remote)
            principal = ANYONE
            access = self._edge.admission.access
            if access.required:
                credential = self._credential(request, remote)
                known = access.recognise(credential)
                if known is None:
                    assert credential is not None
                    finishing = self._finish_handshake(request, agreed, credential)
                    self._waiting = WaitingHandshake(finishing)
                    return
                principal = known
            session = self._admit(request, principal, agreed)
        except RoutecastError as error:
            answer, delay = self._judge(error, request)
            if delay:
                self._waiting = WaitingHandshake(self._refuse_later(answer, delay))
            else:
                self._refuse(refuse(answer))
        else:
            self._open(session, agreed, principal)

    def _check(self, request: UpgradeRequest, remote: str) -> None:
        if request.method != "GET" or any(name in request for name in _BODY):
            raise BadBody("an upgrade must be a GET without a body")
        if len(request.get_all(b"host")) != 1:
            raise BadBody("a request must have exactly one Host field")
        path = request.target.partition(b"?")[0]
        if path != PATH:
            shown = path[:200].decode("latin-1")
            raise NotFound(f"there is no WebSocket at {shown!r}; use {PATH.decode()}")
        self.client = limit_key(self._client_of(request, remote))
        self.agent = read_agent(request.get(b"user-agent"))
        forwarded = request.get_all(b"x-forwarded-proto")
        if self._edge.proxies.scheme_of(remote, forwarded) in SECURE_SCHEMES:
            request.scheme = "https"

    def _client_of(self, request: UpgradeRequest, remote: str) -> str:
        return self._edge.proxies.client_of(remote, request.get_all(b"x-forwarded-for"))

    def _credential(self, request: UpgradeRequest, remote: str) -> Credential | None:
        """Return the credential of an upgrade; None if it has none."""
        found = self._find_credential(request, remote)
        if found is not None:
            self._edge.admission.access.require_private(
                self._client_of(request, remote), secure=request.scheme == "https"
            )
        return found

    def _find_credential(self, request: UpgradeRequest, remote: str) -> Credential | None:
        ticket = read_query(request.target.partition(b"?")[2], takes_ticket=True)
        given = request.credential
        if ticket is not None:
            if given is not None:
                raise BadHead(SEVERAL)
            path, _, query = request.target.partition(b"?")
            request.target = path + b"?" + without_ticket(query)
            return TicketIn(ticket, self.client)
        access = self._edge.admission.access
        if given is not None or not (b"cookie" in request or access.reads_more):
            return given
        fields: dict[bytes, list[bytes]] = {}
        for name, value in request.fields:
            fields.setdefault(name, []).append(value)
        secure = request.scheme == "https"
        return access.added_in(fields, remote=remote, secure=secure, must_prove=True)

    def _admit(
        self, request: UpgradeRequest, principal: Principal, agreed: Agreement
    ) -> DefaultSession:
        return self._edge.admission.admit(
            request.target.partition(b"?")[2],
            origin=request.get(b"origin"),
            host=request.get(b"host"),
            scheme=request.scheme,
            address=self.client,
            principal=principal,
            is_default=agreed.subprotocol is None,
        )

    async def _finish_handshake(
        self, request: UpgradeRequest, agreed: Agreement, credential: Credential
    ) -> None:
        """Open the connection or refuse it, once its credential is verified."""
        try:
            access = self._edge.admission.access
            principal = await access.authenticate(credential, self.client)
            session = self._admit(request, principal, agreed)
        except RoutecastError as error:
            await self._refuse_later(*self._judge(error, request))
        except Exception:  # a fault of ours, which must not leave the client waiting
            self._waiting = None
            log.exception("Unexpected error while verifying a credential")
            self._refuse(final(respond_crash()))
        else:
            early = self._waiting.early if self._waiting is not None else b""
            self._waiting = None
            self._open(session, agreed, principal)
            if early:
                self.data_received(early)

    def _judge(
        self, error: RoutecastError, request: UpgradeRequest
    ) -> tuple[RoutecastError, float]:
        """Count a refused request; return its answer, and the seconds to wait before that."""
        credential = text_of_credential(lambda: request.credential)
        return self._edge.admission.access.slow_refusals.judge(error, self.client, credential)

    async def _refuse_later(self, error: RoutecastError, delay: float) -> None:
        if delay:
            await self._edge.admission.access.slow_refusals.wait(self.client, delay)
        self._waiting = None
        self._refuse(refuse(error))

    def _refuse(self, answer: bytes) -> None:
        self._transport.write(answer)
        self._enter(ConnectionState.CLOSING, CloseCode.POLICY)
        self._transport.close()

    def _open(self, session: DefaultSession, agreed: Agreement, principal: Principal) -> None:
        encoding = ENCODINGS.get(agreed.subprotocol or "")
        self._binary = encoding is not None and encoding.binary
        self._inflates = agreed.inflates
        if agreed.deflates:
            in_context = encoding is not None and agreed.remembers
            share([self], Compression(in_context=True) if in_context else INDEPENDENT)
        self._prefix = agreed.answer  # one write, and one packet, with the first message
        self.descriptor = descriptor(self._transport)
        self._enter(ConnectionState.OPEN)
        # The transport may still hold answers to earlier requests: then this calls `pause_writing`.
        self._transport.set_write_buffer_limits(high=0)
        self.peer = self._edge.peers.peer(self, session, encoding, principal)
        self._edge.heartbeat.add(self)
        self.peer.start()
        self._write_through(b"")


class WaitingHandshake:
    """A handshake whose credential is being verified, in a task.

    `early` is what the client sent meanwhile. It must wait for the answer (RFC 6455, 4.1), so after
    that nothing more is read: the rest stays in the socket.
    """

    __slots__ = ("early", "task")

    def __init__(self, finishing: Coroutine[Any, Any, None]) -> None:
        self.early = b""
        self.task = asyncio.get_running_loop().create_task(finishing)
