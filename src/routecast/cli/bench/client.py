"""A WebSocket client without a task or queue of its own, for thousands of streams."""

import asyncio
import ssl
import time
from collections.abc import Callable
from typing import Final, cast

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidHandshake
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.uri import WebSocketURI, parse_uri

from routecast.client.reconnect import MAX_MESSAGE

_DATA: Final = frozenset({Opcode.TEXT, Opcode.BINARY, Opcode.CONT})

# (client, bytes of one message, time of receipt in seconds since 1970)
OnMessage = Callable[["BenchClient", bytes, float], None]


class BenchClient(asyncio.Protocol):
    """One stream, by the sans-I/O protocol of `websockets`.

    `opened` is done when it is open or has failed, `gone` when its connection has ended.
    `on_message` is called for each whole message until `close` or `abort`, `on_lost` once if an
    open stream ends by itself.
    `began`, `opened_at` and `last` (set by `on_message`) are seconds since 1970, 0 before. A
    message costs little, so that thousands of clients in one process measure the server, not
    themselves.
    """

    def __init__(
        self,
        uri: WebSocketURI,
        authorization: str | None,
        began: float,
        on_message: OnMessage,
        on_lost: Callable[[Exception], None],
    ) -> None:
        self._protocol = ClientProtocol(uri, max_size=MAX_MESSAGE)
        self._authorization = authorization
        self._on_message = on_message
        self._on_lost = on_lost
        self._partial: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.began = began
        self.opened_at = 0.0
        self.last = 0.0
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._closing = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's does not derive from it
        request = self._protocol.connect()
        if self._authorization is not None:
            request.headers["Authorization"] = self._authorization
        self._protocol.send_request(request)
        self._flush()

    def data_received(self, data: bytes) -> None:
        now = time.time()
        self._protocol.receive_data(data)
        for event in self._protocol.events_received():
            if isinstance(event, Frame):
                if event.opcode in _DATA:
                    self._take(event, now)
            elif self._protocol.handshake_exc is None:
                self.opened_at = now
                self.opened.set_result(None)
        self._flush()

    def _take(self, frame: Frame, now: float) -> None:
        if self._closing:  # frames that arrived in one read with the last one
            return
        if frame.fin and not self._partial:
            self._on_message(self, bytes(frame.data), now)
            return
        self._partial.append(bytes(frame.data))
        if frame.fin:
            whole = b"".join(self._partial)
            self._partial.clear()
            self._on_message(self, whole, now)

    def eof_received(self) -> None:
        self._protocol.receive_eof()
        self._flush()

    def connection_lost(self, error: Exception | None) -> None:
        self.gone.set_result(None)
        if self._protocol.state is not State.CLOSED:
            self._protocol.receive_eof()
        if not self.opened.done():
            reason = self._protocol.handshake_exc or error
            self.opened.set_exception(
                reason or InvalidHandshake("it closed the connection during the handshake")
            )
        elif self.opened_at and not self._closing:
            self._on_lost(self._protocol.close_exc)

    def _flush(self) -> None:
        if self._transport is None:
            return
        for data in self._protocol.data_to_send():
            if data:
                self._transport.write(data)
            elif self._transport.can_write_eof():
                self._transport.write_eof()

    def close(self) -> None:
        """Send a close frame; the server ends the connection."""
        self._closing = True
        if self._protocol.state is State.OPEN:
            self._protocol.send_close(1000)
            self._flush()

    def abort(self) -> None:
        """End the connection at once, without waiting for the server."""
        self._closing = True
        if self._transport is not None:
            self._transport.abort()


async def subscribe(
    url: str,
    authorization: str | None,
    on_message: OnMessage,
    on_lost: Callable[[Exception], None],
    timeout: float,
) -> BenchClient:
    """Open one stream, with this header `Authorization` if it is not None.

    Raises OSError (TimeoutError too) or InvalidHandshake.
    """
    uri = parse_uri(url)
    loop = asyncio.get_running_loop()
    tls = ssl.create_default_context() if uri.secure else None
    began = time.time()
    async with asyncio.timeout(timeout):
        _, stream = await loop.create_connection(
            lambda: BenchClient(uri, authorization, began, on_message, on_lost),
            uri.host,
            uri.port,
            ssl=tls,
        )
        try:
            await stream.opened
        except BaseException:
            stream.abort()
            raise
    return stream
