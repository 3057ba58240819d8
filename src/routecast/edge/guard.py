"""HTTP on the transport: uvicorn's own protocol, with an end to what a client may leave undone."""

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# A request line and its headers come in one piece from any honest client, at once.
REQUEST_SECONDS: Final = 10.0
MAX_HEAD_BYTES: Final = 32_768  # four times what most servers take
# Connections that have not sent a whole request yet: a crowd that returns at once, and more.
MAX_UNFINISHED: Final = 20_000


class GuardedHttp(HttpToolsProtocol):
    """Ends connections whose request does not come, or does not end; uvicorn's `http` class."""

    unfinished = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # -- as uvicorn has it
        super().connection_made(transport)
        self._head = 0
        self._waiting = True
        GuardedHttp.unfinished += 1
        self._patience = self.loop.call_later(REQUEST_SECONDS, transport.abort)
        if GuardedHttp.unfinished > MAX_UNFINISHED:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._waiting:
            self._head += len(data)
        super().data_received(data)
        if self._waiting and self._head > MAX_HEAD_BYTES:
            self.send_400_response("The request's headers are too large.")

    def on_headers_complete(self) -> None:
        self._finish()
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        self._head = 0
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._finish()
        super().connection_lost(exc)

    def _finish(self) -> None:
        if self._waiting:
            self._waiting = False
            GuardedHttp.unfinished -= 1
            self._patience.cancel()

    def handle_websocket_upgrade(self) -> None:
        """Hand the transport over for good, and leave nothing behind.

        The new protocol must be the transport's before it writes its first byte; and without the
        cycles through the parser, this object is gone at once, not at some later collection.
        """
        self.connections.discard(self)
        head = [self.scope["method"].encode(), b" ", self.url, b" HTTP/1.1\r\n"]
        for name, value in self.scope["headers"]:
            head += [name, b": ", value, b"\r\n"]
        head.append(b"\r\n")
        kind: Any = self.ws_protocol_class
        protocol = kind(
            config=self.config, server_state=self.server_state, app_state=self.app_state
        )
        transport = self.transport
        protocol.connection_made(transport)
        transport.set_protocol(protocol)
        del self.parser, self.flow, self.transport
        protocol.data_received(b"".join(head))
