"""HTTP on the transport: uvicorn's own protocol, with an end to what a client may leave undone."""

import asyncio
import time
from email.utils import formatdate
from typing import Any, Final

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


class GuardedHttp(HttpToolsProtocol):
    """Ends connections whose request does not come, or whose answer is not taken.

    Uvicorn's `http` class.
    """

    unfinished = 0
    _second = 0  # that of the `Date` sent with answers

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # -- as uvicorn has it
        super().connection_made(transport)
        self._head = 0  # bytes read since the last whole head or body
        self._in_body = False
        self._due: float | None = None  # when the request that is awaited must be whole
        self._patience: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self._await_request()
        if GuardedHttp.unfinished > MAX_UNFINISHED:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        if self.cycle is None or self.cycle.response_complete:
            # Another request, or what is left of one that is answered.
            self._await_request()
        if not self._in_body:
            self._head += len(data)
        super().data_received(data)
        if self._head > MAX_HEAD_BYTES and not self._in_body:
            self.send_400_response("The request's headers are too large.")

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
        self._finish()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self.end_request()
        super().on_message_complete()

    def end_request(self) -> None:
        """Note that a request is whole, its body with it."""
        self._in_body = False
        self._finish()

    def connection_lost(self, exc: Exception | None) -> None:
        self._finish()
        self._lose_patience()
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

    def _await_request(self) -> None:
        if self._due is None:
            GuardedHttp.unfinished += 1
            self._due = self.loop.time() + REQUEST_SECONDS
            if self._patience is None:
                self._patience = self.loop.call_later(REQUEST_SECONDS, self._look)

    def _look(self) -> None:
        # One timer looks at many requests: a timer for each would cost more than it watches over.
        self._patience = None
        if self._due is not None:
            left = self._due - self.loop.time()
            if left <= 0:
                self.transport.abort()
            else:
                self._patience = self.loop.call_later(left, self._look)

    def _finish(self) -> None:
        if self._due is not None:
            GuardedHttp.unfinished -= 1
            self._due = None

    def _lose_patience(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

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
        self._lose_patience()
        self.connections.discard(self)
        kind: Any = self.ws_protocol_class
        protocol = kind(
            config=self.config, server_state=self.server_state, app_state=self.app_state
        )
        transport = self.transport
        protocol.connection_made(transport)
        transport.set_protocol(protocol)
        del self.parser, self.flow, self.transport
        protocol.upgrade(self.scope["method"], self.url, self.scope["headers"])
