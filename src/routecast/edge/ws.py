"""WebSocket: `/ws/metrics` as a plain ASGI route, for any server and for mounting elsewhere."""

import asyncio
import logging
from contextlib import suppress
from typing import Final

from starlette.types import Message, Receive, Scope, Send

from routecast.connections import ConnectionManager
from routecast.core.frame import Frame
from routecast.core.session import Session, check_origin, open_session
from routecast.edge.problem import respond_error
from routecast.errors import RoutecastError
from routecast.instruments import Instruments
from routecast.protocol import CloseCode

log = logging.getLogger(__name__)

# A client that has not taken a frame for so long will not catch up.
SEND_SECONDS: Final = 10.0


class AsgiConnection:
    """A subscriber on an ASGI server (`connections.Connection`): one frame sent, one waiting."""

    __slots__ = ("_newest", "_send", "_stop", "_wake", "subscription")

    def __init__(self, session: Session, send: Send) -> None:
        self.subscription = session.subscription
        self._send = send
        self._newest: Frame | None = None
        self._stop: CloseCode | None = None
        self._wake = asyncio.Event()

    def offer(self, frame: Frame) -> bool:
        conflated = self._newest is not None
        self._newest = frame
        self._wake.set()
        return not conflated

    def stop(self, code: CloseCode) -> None:
        self._stop = code
        self._wake.set()

    async def pump(self) -> CloseCode:
        """Send what is offered until told to stop; return the code it ended with."""
        while self._stop is None:
            await self._wake.wait()
            self._wake.clear()
            frame, self._newest = self._newest, None
            if frame is not None:
                try:
                    async with asyncio.timeout(SEND_SECONDS):
                        await self._send({"type": "websocket.send", "text": frame.text})
                except TimeoutError:
                    return CloseCode.TOO_SLOW
        return self._stop


class MetricsSocket:
    """The ASGI application behind `WS /ws/metrics`."""

    def __init__(
        self,
        manager: ConnectionManager,
        instruments: Instruments,
        *,
        interval: float,
        allowed_origins: frozenset[str],
    ) -> None:
        self._manager = manager
        self._instruments = instruments
        self._interval = interval
        self._allowed = allowed_origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()  # websocket.connect
        try:
            session = self._open(scope)
        except RoutecastError as error:
            await _refuse(error, scope, receive, send)
            return
        await send({"type": "websocket.accept"})
        connection = AsgiConnection(session, send)
        pump = asyncio.create_task(connection.pump())
        listen = asyncio.create_task(_listen(session, receive))
        code: int = CloseCode.INTERNAL_ERROR
        try:
            await self._manager.connect(connection)
            done, _ = await asyncio.wait({pump, listen}, return_when=asyncio.FIRST_COMPLETED)
            code = listen.result() if listen in done else await self._end(pump, send)
        finally:
            self._manager.disconnect(connection, code)
            pump.cancel()
            listen.cancel()
            await asyncio.gather(pump, listen, return_exceptions=True)

    def _open(self, scope: Scope) -> Session:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        check_origin(headers.get(b"origin"), headers.get(b"host"), self._allowed)
        session = open_session(scope["query_string"], interval=self._interval)
        self._manager.admit()
        return session

    async def _end(self, pump: asyncio.Task[CloseCode], send: Send) -> int:
        """Close from our side, once the pump has ended; return the code it was closed with."""
        try:
            code = pump.result()
        except OSError:  # how ASGI says that the client is gone (spec 2.4)
            self._instruments.send_failures.inc()
            return 1006
        if code is CloseCode.TOO_SLOW:
            self._instruments.send_failures.inc()
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(1):
                await send({"type": "websocket.close", "code": int(code)})
        return code


async def _listen(session: Session, receive: Receive) -> int:
    """Give the session what the client sends; return the code it closed with."""
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            return int(message.get("code", 1005))
        session.receive(_content(message))


def _content(message: Message) -> str | bytes:
    text: str | None = message.get("text")
    return text if text is not None else message.get("bytes") or b""


async def _refuse(error: RoutecastError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer over HTTP instead of upgrading, where the server can; else close (seen as 403)."""
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": int(CloseCode.POLICY)})
        return
    # Starlette's response speaks the websocket form of its messages by itself.
    await respond_error(error)(scope, receive, send)
