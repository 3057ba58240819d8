"""`HttpProtocol`: uvicorn's HTTP protocol, with limits and deadlines for clients.

The parser is httptools (llhttp). It has three properties that matter here:

- It reads trailer fields as header fields; this class ignores them.
- It stops after an `Upgrade` field, and takes the body for another protocol. So if an upgrade is
  not accepted, this class has the head parsed again without that field.
- It has no limits of bytes or time. So this class counts every byte that is not payload, and sets a
  deadline whenever it waits for the client.

Answers leave in the order of the requests. So a refusal is sent after the answers to all earlier
requests; nothing after the refused request is read.
"""

import asyncio
import time
import urllib.parse
from collections.abc import Callable
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, Final, NamedTuple, Protocol

import httptools
from starlette.types import Message
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from routecast.edge.header_fields import read_fields
from routecast.edge.http.deadlines import BodyDeadlines, ConnectionDeadlines
from routecast.edge.http.http_edge import HttpEdge
from routecast.edge.http.request_body import BODY_READ_SECONDS, SMALL_BODY
from routecast.edge.problem import respond
from routecast.edge.reset import reset
from routecast.edge.ws.connection import PATH as STREAM_PATH
from routecast.errors import BadHead
from routecast.protocol import Problem

MAX_HEAD_BYTES: Final = 32_768  # four times the limit of most servers
# Bytes of a request's framing: sizes and extensions of chunks, and trailers. Honest clients send a
# few of them for each chunk of some kB.
MAX_FRAMING_BYTES: Final = 65_536
# Received bytes are parsed in pieces of at most this size; the limits are checked in between.
HTTP_PIECE: Final = 65_536
# The maximum number of pipelined requests, and the bytes of their bodies. Few clients use
# pipelining, but one read can hold thousands of requests.
MAX_PIPELINED: Final = 16
MAX_PIPELINED_BYTES: Final = 65_536
# The bytes that a client may still send after the request that ends its connection.
MAX_DISCARDED_BYTES: Final = 2**24
# A client that reads nothing of an answer for this time, in seconds, is gone. It is longer than
# `asgi_connection.SEND_SECONDS`, so that a stream closes first and reports it.
STALLED_SECONDS: Final = 15.0


class Reason(NamedTuple):
    """Why the transport refuses a request; `cause` counts it, `detail` is for the client."""

    cause: str
    status: HTTPStatus = HTTPStatus.BAD_REQUEST
    detail: str = ""


NOT_HTTP: Final = Reason("the request is not valid HTTP/1.1")
HEAD_TOO_LARGE: Final = Reason("the request's headers are too large")
FRAMING_TOO_LARGE: Final = Reason("chunk sizes, chunk extensions and trailers are too large")
TOO_MANY_PIPELINED: Final = Reason("too many requests ahead of their answers")
SLOW_HEAD: Final = Reason("the request did not come in time", HTTPStatus.REQUEST_TIMEOUT)
SLOW_BODY: Final = Reason(f"the body took longer than {BODY_READ_SECONDS:.0f} s")
CROWDED: Final = Reason(
    "too many requests or bytes are being received", HTTPStatus.SERVICE_UNAVAILABLE
)
UPGRADE_BEHIND: Final = Reason("an upgrade must wait for the answer to the request before it")
NO_TUNNELS: Final = Reason("CONNECT is not supported", HTTPStatus.NOT_IMPLEMENTED)
BAD_TARGET: Final = Reason("the request target and the Host field name different hosts")
BAD_VERSION: Final = Reason(
    "only HTTP/1.1 and HTTP/1.0 are spoken", HTTPStatus.HTTP_VERSION_NOT_SUPPORTED
)
BAD_CODING: Final = Reason("Transfer-Encoding may only be chunked, over HTTP/1.1")
BAD_FIELDS: Final = "a header field is missing, malformed or comes more than once"


class RequestRefused(Exception):
    """Raised in a callback of the parser, to refuse the request that it reads."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.cause)
        self.reason = reason


class Request(Protocol):
    """A request that is being answered: a `Cycle`, or one of `fast_path.py`."""

    disconnected: bool
    keep_alive: bool
    response_started: bool
    response_complete: bool

    @property
    def message_event(self) -> Any:
        """The event that is set to wake the application."""


class Cycle(RequestResponseCycle):
    """A request of an ASGI application and its answer."""

    keep_alive_header: tuple[bytes, bytes]
    last_response_started: Callable[[], None]
    _until_close = False  # the body ends with the connection: HTTP/1.0 has no chunks

    async def send(self, message: Message) -> None:  # type: ignore[override]  # -- wider
        if message["type"] == "http.response.start":
            headers = [*message.get("headers", ())]
            if self.scope["http_version"] == "1.0":
                self._end_with_connection(headers)
            elif self.keep_alive and not any(name == b"connection" for name, _ in headers):
                headers.append(self.keep_alive_header)
            message = {**message, "headers": headers}
        elif self._until_close:
            self.expected_content_length = len(message.get("body", b""))
        await super().send(message)  # type: ignore[arg-type]  # -- uvicorn has types of its own
        if message["type"] == "http.response.start" and not self.keep_alive:
            self.last_response_started()

    def _end_with_connection(self, headers: list[tuple[bytes, bytes]]) -> None:
        if not any(name.lower() == b"content-length" for name, _ in headers):
            self.chunked_encoding = False
            self._until_close = True


class HttpProtocol(HttpToolsProtocol):
    """One HTTP connection: uvicorn's `http` protocol class, with the shared edge as an argument."""

    _second = 0  # the one of the `Date` in answers

    def __init__(self, edge: HttpEdge, **given: Any) -> None:
        super().__init__(**given)
        self._edge = edge
        self._deadlines: ConnectionDeadlines[Any] | None = (
            None  # the ones that this connection is in
        )
        self._stalled: asyncio.TimerHandle | None = None
        self._running: Request | None = None  # the request that is being answered
        self._final_refusal: bytes | None = None  # the refusal that is sent after all answers
        self._read_ended = False  # received bytes are discarded from now on
        self._write_ended = False  # nothing is written from now on
        self._discarded = 0
        # Of the request that is being read:
        self._in_head = False
        self._in_body = False
        self._request_ended = False  # whether a request ended in the data that is being parsed
        self._overhead = 0  # its bytes that are not payload
        self._payload = 0
        self._bodies: BodyDeadlines[Any] = edge.large_bodies  # the deadlines for its body
        self._ignores_upgrade = False  # whether it has an upgrade that is not accepted

    # -- the transport --------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # -- as uvicorn has it
        # As uvicorn's `connection_made`, but that one makes a socket object to ask for the
        # addresses, which takes a thirtieth of the time of a handshake.
        self.connections.add(self)
        self.transport = transport
        self.flow = FlowControl(transport)
        local, remote = transport.get_extra_info("sockname"), transport.get_extra_info("peername")
        self.server = local[:2] if isinstance(local, tuple) else (local, None)  # or a path
        self.client = remote[:2] if isinstance(remote, tuple) else None
        self.scheme = "https" if transport.get_extra_info("sslcontext") else "http"
        if self._edge.admit(transport):
            self._set_deadline(self._edge.heads, self._edge.key_of(self.client))

    def connection_lost(self, exc: Exception | None) -> None:
        self._set_deadline(None)
        self._cancel_timer()
        self._read_ended = True
        self.pipeline.clear()
        self._set_disconnected()
        super().connection_lost(exc)
        self.cycle = None  # type: ignore[assignment]  # -- it refers to this object

    def _set_disconnected(self) -> None:
        """Tell the running request that its client is gone."""
        running, self._running = self._running, None
        if running is not None:
            running.disconnected = True
            running.message_event.set()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self.loop.call_later(STALLED_SECONDS, reset, self.transport)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._cancel_timer()

    def _cancel_timer(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def shutdown(self) -> None:
        if self._stalled is not None:
            reset(self.transport)  # it would delay the server's stop
        elif self._running is None:
            self.transport.close()
        else:
            self.cycle.keep_alive = False  # that of the last request

    # A cycle uses this object as its transport, so every write passes through here.

    def write(self, data: bytes) -> None:
        """Write, unless the connection has ended."""
        if not self._write_ended and not self.transport.is_closing():
            self.transport.write(data)

    def is_closing(self) -> bool:
        """Whether the connection has ended."""
        return self._write_ended or self.transport.is_closing()

    def close(self) -> None:
        """End the connection once all is written.

        If the client is still sending, its bytes are read for a while: with unread bytes, the
        kernel would reset the connection, and the answer could be lost (RFC 9112, 9.6).
        """
        if self._in_body:
            self._linger()
        else:
            self._read_ended = self._write_ended = True
            self.transport.close()

    def _linger(self) -> None:
        self._read_ended = True
        if not self.is_closing():
            self._write_ended = True
            self._set_deadline(self._edge.ends)
            self.transport.write_eof()
            self.flow.resume_reading()

    def abort(self) -> None:
        """End the connection at once."""
        self._read_ended = self._write_ended = True
        reset(self.transport)

    # -- deadlines ------------------------------------------------------------------------------

    def _set_deadline(
        self, deadlines: ConnectionDeadlines[Any] | None, address: str | None = None
    ) -> None:
        if self._deadlines is not deadlines:
            if self._deadlines is not None:
                self._deadlines.discard(self)
            self._deadlines = deadlines
            if deadlines is not None:
                deadlines.add(self, address)

    def _await_head(self) -> None:
        if self._deadlines is not self._edge.heads:
            self._set_deadline(self._edge.heads, self._edge.key_of(self.client))

    def _await_client(self) -> None:
        """Choose the deadline, once all received bytes are parsed."""
        if self._in_body:
            self._await_body(self._bodies, self._payload)
        elif self._running is not None:
            if self.pipeline:
                self._await_body(self._edge.pipelined, self._pipelined_bytes())
            else:
                self._set_deadline(None)
        elif self._in_head or not self._request_ended:
            self._await_head()
        elif self._deadlines is None:  # the rest of a body, after the answer
            self._set_deadline(self._edge.idle)

    def _await_body(self, bodies: BodyDeadlines[Any], held: int) -> None:
        if self._deadlines is not bodies:
            self._set_deadline(bodies, self._edge.key_of(self.client, self.headers))
        bodies.hold(self, held)

    def _pipelined_bytes(self) -> int:
        return sum(len(cycle.body) for cycle, _ in self.pipeline)

    def refuse_late(self) -> None:
        """Refuse a request that did not arrive in time."""
        self._deadlines = None
        self.refuse(SLOW_BODY if self._in_body else SLOW_HEAD)

    def refuse_crowded(self) -> None:
        """Make room for others: drop the waiting requests; the next answer says so."""
        self._deadlines = None
        self.pipeline.clear()
        self.refuse(CROWDED)

    def close_idle(self) -> None:
        """Close a connection that was idle for too long."""
        self._deadlines = None
        self._read_ended = True
        self.transport.close()

    # -- reading --------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self._request_ended = False
        if len(data) <= HTTP_PIECE:
            self._take(data)
        else:
            for start in range(0, len(data), HTTP_PIECE):
                self._take(data[start : start + HTTP_PIECE])
        if not self._read_ended:
            self._await_client()

    def _take(self, data: bytes) -> None:
        running = self._running
        if self._read_ended or (
            running is not None and not running.keep_alive and running.response_started
        ):
            self._discard(len(data))
            return
        self._overhead += len(data)
        try:
            self._feed(data)
        except httptools.HttpParserError as error:
            self.refuse(_reason_of(error))
            return
        if self._request_ended:
            self._overhead = 0
        elif self._in_body:
            if self._overhead > MAX_HEAD_BYTES + MAX_FRAMING_BYTES:
                self.refuse(FRAMING_TOO_LARGE)
        elif self._overhead > MAX_HEAD_BYTES:
            self.refuse(HEAD_TOO_LARGE)

    def _feed(self, data: bytes) -> None:
        while True:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                rest = data[upgrade.args[0] :]
            if not self._ignores_upgrade:
                self._upgrade()
                return
            # The parser took everything after the head for another protocol. So a new parser gets
            # the same head without the upgrade, and then the rest.
            self._ignores_upgrade = False
            data = self._head_without_upgrade() + rest
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)

    def _head_without_upgrade(self) -> bytes:
        lines = [
            b"%s %s HTTP/%s"
            % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        ]
        lines += [b"%s: %s" % (name, value) for name, value in self.headers if name != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])

    def _discard(self, size: int) -> None:
        self._discarded += size
        if self._discarded > MAX_DISCARDED_BYTES:
            self.abort()

    # -- the parser's callbacks -----------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._in_head = True
        self._payload = 0
        self.url = b""
        self.headers = []
        self.expect_100_continue = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_body:
            return  # a trailer field, never to be merged with the headers (RFC 9110, 6.5.1)
        # The parser keeps spaces at the end (RFC 9112, 5.1).
        name, value = name.lower(), value.strip(b" \t")
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self._overhead > MAX_HEAD_BYTES and self._size_of_head() > MAX_HEAD_BYTES:
            raise RequestRefused(HEAD_TOO_LARGE)
        if len(self.pipeline) >= MAX_PIPELINED:
            raise RequestRefused(TOO_MANY_PIPELINED)
        version = self.parser.get_http_version()
        fields = read_fields(self.headers, version)
        if version not in ("1.1", "1.0"):
            raise RequestRefused(BAD_VERSION)
        coding = fields.get(b"transfer-encoding")
        if coding is not None and (version == "1.0" or coding.lower() != b"chunked"):
            raise RequestRefused(BAD_CODING)
        if self.url[:1] != b"/":
            self._read_target(fields)
        if self.parser.should_upgrade():
            self._choose_upgrade(version, fields)
            return
        self._refresh_date()
        length = fields.get(b"content-length")
        small = length is not None and len(length) < 6 and int(length) <= SMALL_BODY
        self._bodies = self._edge.small_bodies if small else self._edge.large_bodies
        self.begin_request(version, fields)
        self._in_body = True

    def _size_of_head(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _read_target(self, fields: dict[bytes, bytes]) -> None:
        """Accept a target that is not a path (RFC 9112, 3.2): a whole URL, or `*` with OPTIONS."""
        method = self.parser.get_method()
        if method == b"CONNECT":
            raise RequestRefused(NO_TUNNELS)
        if self.url == b"*" and method == b"OPTIONS":
            return
        scheme, found, rest = self.url.partition(b"://")
        authority, slash, path = rest.partition(b"/")
        if not found or scheme.lower() not in (b"http", b"https") or not slash:
            raise RequestRefused(NOT_HTTP)
        if authority.lower() != fields.get(b"host", authority).lower():
            raise RequestRefused(BAD_TARGET)
        self.url = slash + path

    def _choose_upgrade(self, version: str, fields: dict[bytes, bytes]) -> None:
        """Accept an upgrade to WebSocket at the stream's path; ignore any other (RFC 9110, 7.8)."""
        accepted = (
            version == "1.1"
            and self.parser.get_method() == b"GET"
            and self.url.partition(b"?")[0] == STREAM_PATH
            and self._get_upgrade() == b"websocket"
        )
        if accepted and (self._running is not None or self._stalled is not None):
            raise RequestRefused(UPGRADE_BEHIND)
        self._ignores_upgrade = not accepted

    def _get_upgrade(self) -> bytes | None:
        # Both fields are lists, and may come more than once (RFC 9110, 5.3).
        upgrade, options = b"", b""
        for name, value in self.headers:
            if name == b"connection":
                options += b"," + value.lower()
            elif name == b"upgrade":
                upgrade += b"," + value.lower()
        wanted = any(option.strip() == b"upgrade" for option in options.split(b","))
        return upgrade[1:] if wanted else None

    def _refresh_date(self) -> None:
        # Not by a timer, so that an idle server sleeps.
        now = int(time.time())
        if now != HttpProtocol._second or not self.server_state.default_headers:
            HttpProtocol._second = now
            self.server_state.default_headers = [(b"date", formatdate(now, usegmt=True).encode())]

    def begin_request(self, version: str, fields: dict[bytes, bytes]) -> None:
        """Have the application answer a request whose head is complete and within the limits."""
        target = httptools.parse_url(self.url)
        path = target.path.decode("ascii")
        if "%" in path:
            path = urllib.parse.unquote(path)
        self.scope = {
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "http_version": version,
            "method": self.parser.get_method().decode("ascii"),
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,  # type: ignore[typeddict-item]  # -- it is http or https
            "root_path": self.root_path,
            "path": self.root_path + path,
            "raw_path": self.root_path.encode("ascii") + target.path,
            "query_string": target.query or b"",
            "headers": self.headers,
            "state": self.app_state.copy(),
        }
        self.cycle = cycle = Cycle(
            scope=self.scope,
            transport=self,  # type: ignore[arg-type]  # -- it has all methods that a cycle uses
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=version != "1.0" and self.parser.should_keep_alive(),
            on_response=self.on_response_complete,
        )
        cycle.keep_alive_header = self._edge.keep_alive_header
        cycle.last_response_started = self.last_response_started
        if self._running is None:
            self._start_asgi_task(cycle, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, self.app))

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def on_body(self, body: bytes) -> None:
        size = len(body)
        self._overhead -= size
        if self._running is None or self.cycle.response_complete:
            return  # the request is answered already
        self._payload += size
        if self.cycle is not self._running and self._pipelined_bytes() + size > MAX_PIPELINED_BYTES:
            raise RequestRefused(TOO_MANY_PIPELINED)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._ignores_upgrade:
            return  # its head will be parsed again
        self._request_ended = True
        if not self._in_body:
            return  # an upgrade that was accepted
        self.end_request()
        super().on_message_complete()
        if self.cycle.keep_alive and not self.parser.should_keep_alive():
            # A trailer field `Connection: close` made the parser stop; it reads no other request.
            self.cycle.keep_alive = False
            if self.cycle.response_complete:
                self.close()

    def end_request(self) -> None:
        """Record that the request and its body are complete."""
        self._in_body = False
        self._payload = 0
        if self._deadlines is not None:
            self._set_deadline(None)

    # -- answering ------------------------------------------------------------------------------

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        self._running = None
        if self._write_ended or self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._final_refusal is not None:
            self.write(self._final_refusal)
            self._linger()
        elif self._in_body:
            self._payload = 0  # the rest of the body is read and dropped
        elif self._in_head:
            self._await_head()
        else:
            self._set_deadline(self._edge.idle)

    def last_response_started(self) -> None:
        """Drop everything after the request whose answer ends the connection."""
        self.pipeline.clear()
        self._final_refusal = None

    def refuse(self, reason: Reason) -> None:
        """Refuse the request that is being read, and end the connection after that."""
        if self._read_ended:
            return
        self._edge.refusal_log.add(reason.cause)
        self._read_ended = True
        self._set_deadline(None)
        owner: Request | None = self.cycle if self._in_body else None  # whose body is being read
        running = self._running
        if running is None:
            if owner is None:  # else the request is answered already
                self.write(self._refusal(reason))
            self._linger()
        elif owner is running:
            if running.response_started:
                running.keep_alive = False
            else:
                self._set_disconnected()
                self.write(self._refusal(reason))
                self._linger()
        else:
            if self.pipeline and self.pipeline[0][0] is owner:
                self.pipeline.popleft()
            self._final_refusal = self._refusal(reason)
            self.flow.resume_reading()  # to notice when the client closes

    def _refusal(self, reason: Reason) -> bytes:
        status = reason.status
        detail = reason.detail or reason.cause
        retry = {"Retry-After": "1"} if status == HTTPStatus.SERVICE_UNAVAILABLE else None
        answer = respond(Problem(title=status.phrase, status=status, detail=detail), retry)
        self._refresh_date()
        lines = [b"HTTP/1.1 %d %s" % (status, status.phrase.encode())]
        fields = [*answer.raw_headers, *self.server_state.default_headers]
        lines += [b"%s: %s" % field for field in fields]
        return b"\r\n".join([*lines, b"connection: close", b"", bytes(answer.body)])

    # -- WebSocket ------------------------------------------------------------------------------

    def _upgrade(self) -> None:
        """Hand the transport over to the WebSocket protocol.

        The transport must have the new protocol before the first byte is written. The reference
        cycles through the parser are broken, so that this object is freed at once, without garbage
        collection.
        """
        self._set_deadline(None)
        self._read_ended = True
        self._cancel_timer()
        self.connections.discard(self)
        kind: Any = self.ws_protocol_class
        protocol = kind(
            config=self.config, server_state=self.server_state, app_state=self.app_state
        )
        transport = self.transport
        protocol.connection_made(transport)
        transport.set_protocol(protocol)
        del self.parser, self.flow, self.transport, self.cycle
        # Asking the transport for the remote address again would cost a system call.
        remote = self.client[0] if self.client else ""
        protocol.upgrade("GET", self.url, self.headers, remote)


def _reason_of(error: httptools.HttpParserError) -> Reason:
    """Return the reason for an error of the parser: invalid HTTP, or what a callback raised."""
    cause = error.__context__
    if isinstance(cause, RequestRefused):
        return cause.reason
    if isinstance(cause, BadHead):
        return Reason(BAD_FIELDS, detail=str(cause))
    return NOT_HTTP
