"""An echo server on the WebSocket protocol class of the real server.

`python -m tests.conformance.echo` serves it at the path of the stream, prints its port, and runs
until it is stopped.
"""

import sys
from functools import partial
from typing import Any, cast

import uvicorn
from starlette.responses import Response
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Frame, Opcode

from routecast.adapters.clock import SystemTimers
from routecast.core.access import ANYONE, Principal
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

# Without context takeover.
_DEFLATE = PerMessageDeflate(True, True, WINDOW_BITS, WINDOW_BITS)


class EchoConnection(WebSocketConnection):
    """A connection that can send a message back, text as text."""

    __slots__ = ()

    def echo(self, message: str | bytes) -> None:
        """Send a message, compressed if the handshake agreed on that."""
        assert self._assembler is not None
        if isinstance(message, str):
            frame = Frame(Opcode.TEXT, message.encode())
        else:
            frame = Frame(Opcode.BINARY, message)
        extensions = [] if self.compression is PLAIN else [_DEFLATE]
        # Answers to earlier control frames go first.
        data = self._assembler.to_send() + frame.serialize(mask=False, extensions=extensions)
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
        """Do nothing: no message was skipped."""

    def say_goodbye(self, code: CloseCode, reconnect_after_ms: int) -> None:
        """Do nothing: an echo has no goodbye."""

    def close(self, code: int) -> None:
        self._manager.disconnect(self._connection, code)


class EchoPeers(Peers):
    """Makes peers that echo."""

    def __init__(self, manager: ConnectionManager) -> None:
        self.manager = manager

    def peer(
        self,
        connection: Connection,
        session: DefaultSession,
        encoding: Encoding | None,
        principal: Principal = ANYONE,
    ) -> Peer:
        return EchoPeer(cast(EchoConnection, connection), self.manager)


class EchoEdge(WebSocketEdge):
    """Makes connections that accept messages of 16 MiB, which the suite sends."""

    max_message_bytes = 2**24
    max_frames = sys.maxsize

    def protocol(self, **_: Any) -> EchoConnection:
        return EchoConnection(self)


class NoRenders:
    """Renders nothing, so every client is admitted."""

    def admit(self, view: View, client: str) -> None:
        """Admit every client."""


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
