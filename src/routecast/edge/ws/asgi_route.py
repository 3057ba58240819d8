"""WebSocket: `/ws/metrics` as a plain ASGI route, for any server and for mounting elsewhere."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from starlette.types import Message, Receive, Scope, Send

from routecast.core.default_session import DefaultSession
from routecast.core.document import EncodedDocument
from routecast.core.message import ENCODINGS, Encoding
from routecast.edge.admission import AdmissionControl
from routecast.edge.asgi_connection import AsgiConnection
from routecast.edge.problem import respond_error
from routecast.edge.ws.asgi_connection_v1 import AsgiConnectionV1
from routecast.errors import RoutecastError
from routecast.instruments import Instruments
from routecast.protocol import CloseCode
from routecast.streaming.connections import ConnectionManager
from routecast.streaming.peers import V1Peers


class MetricsSocket:
    """The ASGI application behind `WS /ws/metrics`."""

    def __init__(
        self,
        manager: ConnectionManager,
        door: AdmissionControl,
        instruments: Instruments,
        subscribers: V1Peers,
    ) -> None:
        self._manager = manager
        self._door = door
        self._instruments = instruments
        self._subscribers = subscribers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()  # websocket.connect
        try:
            session, address = self._door.open_scope(scope)
        except RoutecastError as error:
            await refuse(error, scope, receive, send)
            return
        try:
            # None is the default stream, for whoever asks for nothing that is spoken here.
            spoken = next((name for name in scope["subprotocols"] if name in ENCODINGS), None)
            await send({"type": "websocket.accept", "subprotocol": spoken})
            if spoken is None:
                await self._serve(session, address, receive, send)
            else:
                await self._serve_v1(ENCODINGS[spoken], session, address, receive, send)
        finally:
            self._door.leave(address)

    async def _serve(
        self, session: DefaultSession, client: str, receive: Receive, send: Send
    ) -> None:
        outlet = AsgiConnection(session, "WebSocket", client)

        async def send_frame(frame: EncodedDocument) -> None:
            await send({"type": "websocket.send", "text": frame.text})

        listen = _listen(session.receive, receive)
        await self._run(outlet, outlet.pump(send_frame), listen, send)

    async def _serve_v1(
        self, encoding: Encoding, session: DefaultSession, client: str, receive: Receive, send: Send
    ) -> None:
        outlet = AsgiConnectionV1(session, encoding, self._subscribers, client)

        async def send_data(data: bytes) -> None:
            content = {"bytes": data} if encoding.binary else {"text": data.decode()}
            await send({"type": "websocket.send", **content})

        try:
            listen = _listen(outlet.receive, receive)
            await self._run(outlet, outlet.pump_out(send_data), listen, send)
        finally:
            outlet.subscriber.close()

    async def _run(
        self,
        outlet: AsgiConnection,
        pump: Awaitable[CloseCode],
        listen: Awaitable[int],
        send: Send,
    ) -> None:
        code, ours = await outlet.run(self._manager, self._instruments, pump, listen)
        if ours:
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(1):
                    await send({"type": "websocket.close", "code": code, "reason": outlet.reason})


async def _listen(take: Callable[[str | bytes], None], receive: Receive) -> int:
    """Pass on what the client sends; return the code it closed with."""
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            return int(message.get("code", 1005))
        take(_content(message))


def _content(message: Message) -> str | bytes:
    text: str | None = message.get("text")
    return text if text is not None else message.get("bytes") or b""


async def refuse(error: RoutecastError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer over HTTP instead of upgrading, where the server can; else close (seen as 403)."""
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": int(CloseCode.POLICY)})
        return
    # Starlette's response speaks the websocket form of its messages by itself.
    await respond_error(error)(scope, receive, send)
