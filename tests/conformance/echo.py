"""An echo: the protocol class of the server as it is, but what a client sends comes back.

`python -m tests.conformance.echo` serves it at the path of the stream, prints the port it took,
and runs until it is told to stop.
"""

import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, cast

import uvicorn
from starlette.responses import Response
from websockets.frames import Frame as WireFrame
from websockets.frames import Opcode

from routecast.core.document import EncodedDocument
from routecast.core.sites import Sites
from routecast.core.view import View
from routecast.edge.admission import AdmissionControl
from routecast.edge.http.http_edge import HttpEdge
from routecast.edge.http.http_protocol import HttpProtocol
from routecast.edge.proxies import Proxies
from routecast.edge.ws.connection import WebSocketConnection, WebSocketEdge
from routecast.edge.ws.frames import deflated_message
from routecast.instruments import Instruments
from routecast.server.run import bind
from routecast.streaming.connections import ConnectionManager


class EchoConnection(WebSocketConnection):
    """Sends each message back as it came: text as text, deflated where that was agreed on."""

    __slots__ = ()

    def received(self, message: str | bytes) -> None:
        assert self._inbox is not None
        if isinstance(message, str):
            opcode, body = Opcode.TEXT, message.encode()
        else:
            opcode, body = Opcode.BINARY, message
        if self._deflates:
            echo = deflated_message(opcode, body)
        else:
            echo = WireFrame(opcode, body).serialize(mask=False)
        # What came before is answered before.
        self._transport.write(self._inbox.to_send() + echo)


class EchoEdge(WebSocketEdge):
    """Makes echoes, with room for the messages of sixteen MiB that the suite sends."""

    max_message_bytes = 2**24
    max_frames = sys.maxsize

    def protocol(self, **_: Any) -> EchoConnection:
        return EchoConnection(self)


class NoTurns:
    """Nothing is rendered, so anybody may ask for it."""

    def payer(self, view: View, clients: Iterable[str]) -> tuple[str, float]:
        return "", 0.0

    def admit(self, view: View, client: str) -> None:
        """Let everybody in."""

    def ask(self, view: View, client: str, done: Callable[[], None]) -> None:
        done()


class NoFrames:
    """Nothing to stream: an echo speaks when it is spoken to."""

    def frame_now(self, view: View) -> EncodedDocument | None:
        return None

    async def frames(self, views: Mapping[View, str]) -> dict[View, EncodedDocument]:
        return {}


def main() -> None:
    instruments = Instruments()
    manager = ConnectionManager(NoFrames(), NoTurns(), instruments, limit=1_000)
    door = AdmissionControl(manager, interval=5, sites=Sites(), max_per_address=0)
    edge = EchoEdge(manager, door, instruments, compress=True)
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
