"""A proxy between a client and a server: it can be slow or silent, and it can speak TLS."""

import asyncio
import ssl
from contextlib import suppress
from typing import Self


class Proxy:
    """Forwards connections to a port of this machine. Use as an async context manager."""

    def __init__(self, target: int, tls: ssl.SSLContext | None = None) -> None:
        self.delay = 0.0  # seconds, each way
        self.silent = False  # drop all that comes, and say nothing of it
        self._target = target
        self._tls = tls
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection("127.0.0.1", self._target)
        for source, sink in ((reader, there[1]), (there[0], writer)):
            task = asyncio.create_task(self._forward(source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _forward(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await source.read(65_536):
                await asyncio.sleep(self.delay)
                if self.silent:
                    continue
                sink.write(data)
                await sink.drain()
        sink.close()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
