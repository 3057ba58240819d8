"""`/ws/metrics` as a plain ASGI route, for other servers and for mounting in other apps."""

import asyncio
from collections.abc import Callable
from contextlib import suppress

from starlette.types import Message, Receive, Scope, Send

from routecast.core.access import Principal
from routecast.core.default_session import DefaultSession
from routecast.core.message import ENCODINGS, Encoding
from routecast.core.payload import Payload
from routecast.edge.access import principal_of
from routecast.edge.admission import AdmissionControl
from routecast.edge.asgi_connection import AsgiConnection
from routecast.edge.header_fields import read_agent_of
from routecast.edge.problem import respond_error
from routecast.errors import BadCredential, RoutecastError, Unavailable
from routecast.instruments import Instruments
from routecast.protocol import CloseCode
from routecast.streaming.peers import Peers


class MetricsSocket:
    """The ASGI application behind `WS /ws/metrics`."""

    def __init__(
        self,
        peers: Peers,
        admission: AdmissionControl,
        instruments: Instruments,
    ) -> None:
        self._peers = peers
        self._admission = admission
        self._instruments = instruments

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()  # websocket.connect
        # None is the default stream: the client requests no subprotocol that the server has.
        spoken = next((name for name in scope["subprotocols"] if name in ENCODINGS), None)
        try:
            session, address = self._admission.admit_scope(scope, is_default=spoken is None)
        except RoutecastError as error:
            await refuse(error, scope, receive, send)
            return
        try:
            await send({"type": "websocket.accept", "subprotocol": spoken})
            # It may have been revoked meanwhile, when there was no stream to close.
            try:
                self._admission.access.require_valid(principal_of(scope))
            except (BadCredential, Unavailable) as error:
                # After INTERNAL_ERROR, the client may come back with the same credential.
                is_bad = isinstance(error, BadCredential)
                code = CloseCode.UNAUTHENTICATED if is_bad else CloseCode.INTERNAL_ERROR
                await send({"type": "websocket.close", "code": int(code)})
                return
            encoding = ENCODINGS.get(spoken or "")
            await self._serve(
                session,
                address,
                read_agent_of(scope["headers"]),
                encoding,
                principal_of(scope),
                receive,
                send,
            )
        finally:
            self._admission.release(address, principal_of(scope))

    async def _serve(
        self,
        session: DefaultSession,
        client: str,
        agent: str,
        encoding: Encoding | None,
        principal: Principal,
        receive: Receive,
        send: Send,
    ) -> None:
        binary = encoding is not None and encoding.binary
        connection = AsgiConnection("WebSocket", client, agent=agent, binary=binary)

        async def send_payload(payload: Payload) -> None:
            await send({"type": "websocket.send", **_content_of(payload)})

        code, ours = await connection.run(
            self._peers.peer(connection, session, encoding, principal),
            self._instruments,
            send=send_payload,
            listen=_listen(connection.receive, receive),
        )
        if ours:
            closing = {"type": "websocket.close", "code": code, "reason": connection.reason}
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(1):
                    await send(closing)


def _content_of(payload: Payload) -> dict[str, str | bytes]:
    """Return a payload's content as a field of an ASGI message."""
    return {"bytes": payload.body} if payload.binary else {"text": payload.body.decode()}


async def _listen(take: Callable[[str | bytes], None], receive: Receive) -> int:
    """Pass the client's messages on; return its close code once it has left."""
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            return int(message.get("code", 1005))
        take(_content(message))


def _content(message: Message) -> str | bytes:
    text: str | None = message.get("text")
    return text if text is not None else message.get("bytes") or b""


async def refuse(error: RoutecastError, scope: Scope, receive: Receive, send: Send) -> None:
    """Refuse an upgrade with an HTTP answer, or if the server cannot send one, by closing (403)."""
    answer = respond_error(error)
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": int(CloseCode.POLICY)})
        return
    # In a WebSocket scope, Starlette's response sends `websocket.http.response` messages.
    await answer(scope, receive, send)
