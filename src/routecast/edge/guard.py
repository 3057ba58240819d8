"""HTTP on the transport: uvicorn's own protocol, with an end to what a client may leave undone."""

import asyncio
import itertools
import time
from email.utils import formatdate
from typing import Any, Final

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from routecast.edge.reset import reset

# A request line and its headers come in one piece from any honest client, at once.
REQUEST_SECONDS: Final = 10.0
MAX_HEAD_BYTES: Final = 32_768  # four times what most servers take
# Requests that may wait behind the one that is being answered; hardly a client sends any ahead. One
# read can hold thousands of them, and each is some kB once it is parsed.
MAX_PIPELINED: Final = 16
# A client that takes nothing of an answer for so long is gone, in seconds: a while after streams
# (`outlet.SEND_SECONDS`) have let go of it and told so.
STALLED_SECONDS: Final = 15.0
# Connections that have not sent a whole request yet: a crowd that returns at once, and more.
MAX_UNFINISHED: Final = 20_000


class Unfinished:
    """Connections of one server whose request is awaited, in the order in which time runs out.

    All have equally long, so one timer looks after them, be they thousands.
    """

    def __init__(self) -> None:
        self._due: dict[GuardedHttp, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._due)

    def add(self, connection: "GuardedHttp") -> None:
        """Give a connection its time, unless it runs already."""
        loop = connection.loop
        self._due.setdefault(connection, loop.time() + REQUEST_SECONDS)
        if self._timer is None:
            self._timer = loop.call_later(REQUEST_SECONDS, self._look, loop)

    def discard(self, connection: "GuardedHttp") -> None:
        """Stop the clock, where it runs."""
        self._due.pop(connection, None)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        now = loop.time()
        late = list(itertools.takewhile(lambda each: each[1] <= now, self._due.items()))
        for connection, _ in late:
            self.discard(connection)
            connection.transport.abort()
        due = next(iter(self._due.values()), None)
        if due is not None:
            self._timer = loop.call_later(due - now, self._look, loop)


class GuardedHttp(HttpToolsProtocol):
    """Ends connections whose request does not come, or whose answer is not taken.

    Uvicorn's `http` class, once it has what all connections of a server share.
    """

    _second = 0  # that of the `Date` sent with answers

    def __init__(self, unfinished: Unfinished, **given: Any) -> None:
        super().__init__(**given)
        self._unfinished = unfinished
        self._head = 0  # bytes read since the last whole head or body
        self._in_body = False
        self._stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # -- as uvicorn has it
        # What uvicorn's own does. That asks a socket for the addresses, which is made for the
        # question, and takes a thirtieth of the time of a handshake.
        self.connections.add(self)
        self.transport = transport
        self.flow = FlowControl(transport)
        name, peer = transport.get_extra_info("sockname"), transport.get_extra_info("peername")
        self.server = name[:2] if isinstance(name, tuple) else (name, None)  # or a path
        self.client = peer[:2] if isinstance(peer, tuple) else None
        self.scheme = "https" if transport.get_extra_info("sslcontext") else "http"
        self._unfinished.add(self)
        if len(self._unfinished) > MAX_UNFINISHED:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        if self.cycle is None or self.cycle.response_complete:
            # Another request, or what is left of one that is answered.
            self._unfinished.add(self)
        if not self._in_body:
            self._head += len(data)
        super().data_received(data)
        if self._head > MAX_HEAD_BYTES and not self._in_body:
            self.send_400_response("The request's headers are too large.")

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value.strip(b" \t"))  # RFC 9112, 5.1; the parser leaves the end

    def _get_upgrade(self) -> bytes | None:
        # Uvicorn's own looks at the last `Connection` field only (RFC 9110, 5.3).
        upgrade, options = None, b""
        for name, value in self.headers:
            if name == b"connection":
                options += b"," + value.lower()
            elif name == b"upgrade":
                upgrade = value.lower()
        wanted = any(option.strip() == b"upgrade" for option in options.split(b","))
        return upgrade if wanted else None

    def on_headers_complete(self) -> None:
        if self._head > MAX_HEAD_BYTES and self._size_of_head() > MAX_HEAD_BYTES:
            raise ValueError("headers too large")  # answered with 400
        if len(self.pipeline) >= MAX_PIPELINED:
            raise ValueError("too many requests ahead of their answers")
        self._head = 0
        self._in_body = True
        self._tell_date()
        self.begin_request()

    def _tell_date(self) -> None:
        # With each second that has a request, not each second: an idle server sleeps.
        now = int(time.time())
        if now != GuardedHttp._second or not self.server_state.default_headers:
            GuardedHttp._second = now
            self.server_state.default_headers = [(b"date", formatdate(now, usegmt=True).encode())]

    def begin_request(self) -> None:
        """Take a request whose head is whole and within its limits."""
        self._unfinished.discard(self)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self.end_request()
        super().on_message_complete()

    def end_request(self) -> None:
        """Note that a request is whole, its body with it."""
        self._in_body = False
        self._unfinished.discard(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._unfinished.discard(self)
        self._relax()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self.loop.call_later(STALLED_SECONDS, reset, self.transport)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._relax()

    def shutdown(self) -> None:
        if self._stalled is not None:
            reset(self.transport)  # it would hold up the server's stop
        else:
            super().shutdown()

    def _relax(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _size_of_head(self) -> int:
        return len(self.url) + sum(len(name) + len(value) for name, value in self.headers)

    def handle_websocket_upgrade(self) -> None:
        """Hand the transport over for good, and leave nothing behind.

        The new protocol must be the transport's before it writes its first byte; and without the
        cycles through the parser, this object is gone at once, not at some later collection.
        """
        if self._stalled or (self.cycle is not None and not self.cycle.response_complete):
            self.send_400_response("An upgrade must wait for the answer to what was asked before.")
            return
        self.connections.discard(self)
        kind: Any = self.ws_protocol_class
        protocol = kind(
            config=self.config, server_state=self.server_state, app_state=self.app_state
        )
        transport = self.transport
        protocol.connection_made(transport)
        transport.set_protocol(protocol)
        del self.parser, self.flow, self.transport
        # Asked of the transport again, the peer's address would cost a system call.
        peer = self.client[0] if self.client else ""
        protocol.upgrade(self.scope["method"], self.url, self.scope["headers"], peer)
