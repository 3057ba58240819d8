"""Server-sent events: `GET /sse/metrics`, the stream for clients that cannot use WebSocket.

It has the same views and ticks as the default stream. Each event's `id` is the position of its
document, as `epoch:seq`. A client that reconnects gets the newest document at once, with or without
`Last-Event-ID`: a whole document does not depend on what the client had. Comments keep proxies from
closing a silent connection (WHATWG HTML, 9.2).
"""

import asyncio
import random
from contextlib import suppress
from typing import Final

from starlette.types import Receive, Scope, Send

from routecast.core.document import EncodedDocument
from routecast.core.payload import Payload
from routecast.edge.access import principal_of
from routecast.edge.admission import AdmissionControl
from routecast.edge.asgi_connection import SEND_SECONDS, AsgiConnection
from routecast.edge.head_method import is_head
from routecast.edge.header_fields import read_agent_of
from routecast.edge.problem import respond_error
from routecast.errors import BadCredential, RoutecastError, Unavailable
from routecast.instruments import Instruments
from routecast.streaming.peers import Peers

# Seconds between two comments while no event is sent. Proxies close a silent connection after 30 to
# 60 s.
COMMENT_SECONDS: Final = 15.0
_HEADERS: Final = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx would hold events back
]
# No proxy may send another request after a stream, because the connection may have ended meanwhile.
_CLOSE_HEADER: Final = (b"connection", b"close")
# How long a browser waits before it reconnects, in ms: random, so that not all reconnect at once.
_RETRY: Final = range(3_000, 7_000)
_COMMENT: Final = b": alive\n\n"
_EVENT: Final = "event"


class MetricsEvents:
    """The ASGI application behind `GET /sse/metrics`."""

    def __init__(self, peers: Peers, admission: AdmissionControl, instruments: Instruments) -> None:
        self._peers = peers
        self._admission = admission
        self._instruments = instruments

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            session, address = self._admission.admit_scope(scope)
        except RoutecastError as error:
            await respond_error(error)(scope, receive, send)
            return

        headers = [*_HEADERS, _CLOSE_HEADER] if scope["http_version"].startswith("1") else _HEADERS
        start = {"type": "http.response.start", "status": 200, "headers": headers}
        if is_head(scope):
            self._admission.release(address, principal_of(scope))
            await send(start)
            await send({"type": "http.response.body"})
            return

        async def write(data: bytes, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": more})

        async def send_event(payload: Payload) -> None:
            await write(event(payload))

        connection = AsgiConnection("SSE", address, agent=read_agent_of(scope["headers"]))
        try:
            await send(start)
            await write(b"retry: %d\n\n" % random.choice(_RETRY))
            # A client that does not read delays this, and could outlast its revocation.
            try:
                self._admission.access.require_valid(principal_of(scope))
            except (BadCredential, Unavailable):
                await write(b"", more=False)
                return
            _, ours = await connection.run(
                self._peers.peer(connection, session, None, principal_of(scope)),
                self._instruments,
                send=send_event,
                listen=_gone(receive),
                idle=lambda: write(_COMMENT),
                idle_seconds=COMMENT_SECONDS,
            )
            if ours:
                with suppress(OSError, TimeoutError):
                    async with asyncio.timeout(SEND_SECONDS):
                        await write(b"", more=False)
        finally:
            self._admission.release(address, principal_of(scope))


def event(payload: Payload) -> bytes:
    """Return a document as one event; it is made once for all clients."""
    data = payload.forms.get(_EVENT)
    if data is None:
        position = payload.position if isinstance(payload, EncodedDocument) else None
        identity = b"id: %s:%d\n" % (position.epoch.encode(), position.seq) if position else b""
        data = payload.forms[_EVENT] = identity + b"data: " + payload.body + b"\n\n"
    return data


async def _gone(receive: Receive) -> int:
    """Wait until the client has gone; return the close code for it."""
    while (await receive())["type"] != "http.disconnect":
        pass
    return 1001
