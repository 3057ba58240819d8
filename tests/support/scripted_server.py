"""A scripted WebSocket server, for behaviour that a real server does not show on demand."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from websockets.asyncio.server import ServerConnection, serve
from websockets.typing import Subprotocol

from routecast.protocol import V1_JSON, ClientMessage, Hello

Message = dict[str, Any]

_read = msgspec.json.Decoder(ClientMessage).decode


class ScriptedConnection:
    """The server's side of one connection."""

    def __init__(self, socket: ServerConnection) -> None:
        self.socket = socket

    async def hello(self) -> None:
        """Send the `hello` of a server."""
        await self.send(msgspec.to_builtins(Hello(connection="c")))

    async def receive(self) -> Any:
        """Return the next message of the client."""
        return _read(await self.socket.recv(decode=False))

    async def send(self, *messages: Message | str) -> None:
        """Send messages unchanged."""
        for message in messages:
            text = message if isinstance(message, str) else msgspec.json.encode(message).decode()
            await self.socket.send(text)

    def send_at_once(self, *texts: str) -> None:
        """Send messages in one write, so that the client gets all of them from one read."""
        for text in texts:
            self.socket.protocol.send_text(text.encode())
        self.socket.transport.write(b"".join(self.socket.protocol.data_to_send()))

    async def close(self, code: int, reason: str = "") -> None:
        """Close with a code."""
        await self.socket.close(code, reason)

    async def wait_closed(self) -> None:
        """Wait until the client disconnects."""
        await self.socket.wait_closed()


Script = Callable[[ScriptedConnection], Awaitable[None]]


class ScriptedServer:
    """The address of a scripted server, and its number of connections so far."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.connections = 0


@asynccontextmanager
async def scripted(
    *scripts: Script, protocols: tuple[str, ...] = (V1_JSON,)
) -> AsyncIterator[ScriptedServer]:
    """Run the scripts, one for each connection; the last one also for all further ones."""

    async def play(socket: ServerConnection) -> None:
        script = scripts[min(server.connections, len(scripts) - 1)]
        server.connections += 1
        await script(ScriptedConnection(socket))

    names = [Subprotocol(name) for name in protocols]
    async with serve(play, "127.0.0.1", 0, subprotocols=names or None) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        server = ScriptedServer(f"http://127.0.0.1:{port}")
        yield server


def snapshot(seq: int, data: Message, *, epoch: str = "e", **more: Any) -> Message:
    """Return a snapshot as a server sends it."""
    position = {"epoch": epoch, "seq": seq}
    message = {"type": "snapshot", "id": "s1", "position": position, "source": "live", "age_ms": 0}
    return {**message, "data": data, "timestamp": f"at {seq}", **more}


def delta(base: int, seq: int, data: Message, **more: Any) -> Message:
    """Return a delta as a server sends it."""
    return {**snapshot(seq, data), "type": "delta", "base": base, **more}


async def until(met: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait until a condition is met."""
    async with asyncio.timeout(seconds):
        while not met():  # noqa: ASYNC110  # -- time between two checks; the answer is the event
            await asyncio.sleep(0.001)
