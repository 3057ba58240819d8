"""Other servers in Python: the same document every interval, by common libraries.

`python -m benchmarks.python_peers NAME PORT INTERVAL DOCUMENT`; Redis is at `$REDIS_PORT`.
"""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import picows
import uvicorn
import uvloop
from redis.asyncio import Redis
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect
from websockets.asyncio.server import ServerConnection, broadcast, serve

from benchmarks.load import HOST

REDIS_KEY: Final = "metrics"
# As Routecast's own listener.
BACKLOG: Final = 2_048


class Ticker:
    """Makes the document once per interval."""

    def __init__(self, interval: float, document: str) -> None:
        self.interval = interval
        self._document = document

    def text(self) -> str:
        """Return the document with the current time."""
        now = datetime.now(UTC).isoformat(timespec="microseconds")
        return f'{self._document}"{now}"}}'

    async def each(self, send: Callable[[str], Any]) -> None:
        """Call or await something with the document at each tick. Never ends."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            due = max(due + self.interval, loop.time())
            await asyncio.sleep(due - loop.time())
            sending = send(self.text())
            if sending is not None:
                await sending


# -- Starlette on stock uvicorn -----------------------------------------------------------------


def starlette(port: int, ticker: Ticker) -> None:
    """Sends one message to all clients at each tick."""
    clients: set[WebSocket] = set()

    async def stream(socket: WebSocket) -> None:
        await socket.accept()
        clients.add(socket)
        with suppress(WebSocketDisconnect):
            while True:
                await socket.receive_text()
        clients.discard(socket)

    async def tell(text: str) -> None:
        # One after the other: faster than a task for each, and equally fair while all of them read.
        for client in list(clients):
            with suppress(WebSocketDisconnect):
                await client.send_text(text)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> Any:
        task = asyncio.create_task(ticker.each(tell))
        yield
        task.cancel()

    _uvicorn(port, stream, lifespan)


def _uvicorn(port: int, stream: Callable[[WebSocket], Awaitable[None]], lifespan: Any) -> None:
    app = Starlette(routes=[WebSocketRoute("/ws/metrics", stream)], lifespan=lifespan)
    uvicorn.run(app, host=HOST, port=port, log_level="warning", access_log=False)


# -- the original design ------------------------------------------------------------------------


def original(port: int, ticker: Ticker) -> None:
    """A loop for each connection that reads Redis each interval."""
    redis = Redis(
        host=HOST,
        port=int(os.environ["REDIS_PORT"]),
        decode_responses=True,
        max_connections=sys.maxsize,  # by default, a 101st connection raises an error
    )

    async def stream(socket: WebSocket) -> None:
        await socket.accept()
        with suppress(WebSocketDisconnect):
            while True:
                await socket.send_text(str(await redis.get(REDIS_KEY)))
                await asyncio.sleep(ticker.interval)

    async def write(text: str) -> None:
        await redis.set(REDIS_KEY, text)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> Any:
        task = asyncio.create_task(ticker.each(write))
        yield
        task.cancel()
        await redis.aclose()

    _uvicorn(port, stream, lifespan)


# -- WebSocket libraries ------------------------------------------------------------------------


def websockets(port: int, ticker: Ticker) -> None:
    """`broadcast` of the library that Routecast takes its handshake from."""
    clients: set[ServerConnection] = set()

    async def stream(connection: ServerConnection) -> None:
        clients.add(connection)
        await connection.wait_closed()
        clients.discard(connection)

    async def main() -> None:
        async with serve(stream, HOST, port, compression=None, backlog=BACKLOG):
            await ticker.each(lambda text: broadcast(clients, text))

    uvloop.run(main())


def cython(port: int, ticker: Ticker) -> None:
    """`picows`, which is written in Cython."""
    clients: set[picows.WSTransport] = set()

    class Listener(picows.WSListener):
        def on_ws_connected(self, transport: picows.WSTransport) -> None:
            clients.add(transport)

        def on_ws_disconnected(self, transport: picows.WSTransport) -> None:
            clients.discard(transport)

    def tell(text: str) -> None:
        message = text.encode()
        for client in clients:
            client.send(picows.WSMsgType.TEXT, message)

    async def main() -> None:
        async with await picows.ws_create_server(lambda _: Listener(), HOST, port, backlog=BACKLOG):
            await ticker.each(tell)

    uvloop.run(main())


PEERS: Final = {peer.__name__: peer for peer in (starlette, original, websockets, cython)}


if __name__ == "__main__":
    name, port, interval, document = sys.argv[1:]
    PEERS[name](int(port), Ticker(float(interval), Path(document).read_text()))
