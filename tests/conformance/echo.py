"""An echo: the protocol class of the server as it is, but what a client sends comes back.

`python -m tests.conformance.echo` serves it at the path of the stream, prints the port it took,
and runs until it is told to stop.
"""

import sys
from functools import partial
from typing import Any, cast

import uvicorn
from starlette.responses import Response
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Frame, Opcode

from routecast.adapters.clock import SystemTimers
from routecast.core.default_session import DefaultSession
from routecast.core.message import Encoding
from routecast.core.sites import Sites
from routecast.core.view import View
from routecast.edge.admission import AdmissionControl
from routecast.edge.http.http_edge import HttpEdge
from routecast.edge.http.http_protocol import HttpProtocol
from routecast.edge.proxies import Proxies
from routecast.edge.ws.batch import PLAIN
from routecast.edge.ws.connection import WebSocketConnection, WebSocketEdge
from routecast.edge.ws.frames import WINDOW_BITS
from routecast.instruments import Instruments
from routecast.ports import Connection
from routecast.protocol import CloseCode
from routecast.server.run import bind
from routecast.streaming.connections import ConnectionManager
from routecast.streaming.heartbeat import Heartbeat
from routecast.streaming.peers import Peer, Peers

# It begins anew with each message.
_DEFLATE = PerMessageDeflate(True, True, WINDOW_BITS, WINDOW_BITS)


class EchoConnection(WebSocketConnection):
    """A connection that can send a message back as it came: text as text."""

    __slots__ = ()

    def echo(self, message: str | bytes) -> None:
        """Send a message, deflated where that was agreed on."""
        assert self._inbox is not None
        if isinstance(message, str):
            frame = Frame(Opcode.TEXT, message.encode())
        else:
            frame = Frame(Opcode.BINARY, message)
        extensions = [] if self.compression is PLAIN else [_DEFLATE]
        # What came before is answered before.
        data = self._inbox.to_send() + frame.serialize(mask=False, extensions=extensions)
        self._transport.write(data)


class EchoPeer:
    """Sends each message back (`peers.Peer`)."""

    def __init__(self, connection: EchoConnection, manager: ConnectionManager) -> None:
        self._connection = connection
        self._manager = manager

    def start(self) -> None:
        self._manager.connect(self._connection)

    def receive(self, message: str | bytes) -> None:
        self._connection.echo(message)

    def catch_up(self) -> None:
        """Nothing was skipped."""

    def say_goodbye(self, code: CloseCode, reconnect_after_ms: int) -> None:
        """Nothing is said."""

    def close(self, code: int) -> None:
        self._manager.disconnect(self._connection, code)


class EchoPeers(Peers):
    """Makes echoes."""

    def __init__(self, manager: ConnectionManager) -> None:
        self.manager = manager

    def peer(
        self, connection: Connection, session: DefaultSession, encoding: Encoding | None
    ) -> Peer:
        return EchoPeer(cast(EchoConnection, connection), self.manager)


class EchoEdge(WebSocketEdge):
    """Makes connections with room for the messages of sixteen MiB that the suite sends."""

    max_message_bytes = 2**24
    max_frames = sys.maxsize

    def protocol(self, **_: Any) -> EchoConnection:
        return EchoConnection(self)


class NoRenders:
    """Nothing is rendered, so any client may ask for it."""

    def admit(self, view: View, client: str) -> None:
        """Let every client in."""


def main() -> None:
    instruments = Instruments()
    manager = ConnectionManager(instruments, limit=1_000)
    renders = cast(Any, NoRenders())
    admission = AdmissionControl(manager, renders, interval=5, sites=Sites(), max_per_address=0)
    heartbeat = Heartbeat(SystemTimers())
    edge = EchoEdge(EchoPeers(manager), admission, heartbeat, instruments, compress=True)
    config = uvicorn.Config(
        Response(status_code=404),
        http=cast(
            "type[Any]", partial(HttpProtocol, HttpEdge(instruments, Proxies(""), keep_alive=5))
        ),
        ws=cast("type[Any]", edge.protocol),
        lifespan="off",
        log_level="warning",
        timeout_graceful_shutdown=1,
    )
    with bind("127.0.0.1", 0) as listener:
        sys.stdout.write(f"{listener.getsockname()[1]}\n")
        sys.stdout.flush()
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
