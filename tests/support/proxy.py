"""A proxy between a client and a server: slow, silent, with TLS, or resetting connections."""

import asyncio
import socket
import ssl
import struct
from contextlib import suppress
from enum import Enum
from typing import Self


class Reset(Enum):
    """When connections are reset (RST)."""

    NEVER = 0
    AT_ONCE = 1
    AFTER_BYTES = 2  # the first ones that a client sends
    ON_REPLY = 3  # after the first answer of the server


class Proxy:
    """Forwards connections to a port of this machine. Use as an async context manager."""

    def __init__(self, target: int, tls: ssl.SSLContext | None = None) -> None:
        self.delay = 0.0  # seconds, each way
        self.resets = 0  # connections that were reset
        self._reset = Reset.NEVER
        self._open: set[asyncio.StreamWriter] = set()
        self.silent = False  # drop all data silently
        self._target = target
        self._tls = tls
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._reset is Reset.AT_ONCE:
            self._cut(writer)
            return
        if self._reset is Reset.AFTER_BYTES:
            with suppress(ConnectionError):
                await reader.read(65_536)
            self._cut(writer)
            return
        self._open.add(writer)
        try:
            there = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:  # the target does not run
            self._open.discard(writer)
            writer.transport.abort()
            return
        for source, sink in ((reader, there[1]), (there[0], writer)):
            task = asyncio.create_task(self._forward(source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def reset(self, when: Reset) -> None:
        """Reset open connections now and later ones as given; NEVER ends that."""
        self._reset = when
        if when is not Reset.NEVER:
            for writer in list(self._open):
                self._cut(writer)

    def _cut(self, writer: asyncio.StreamWriter) -> None:
        self._open.discard(writer)
        self.resets += 1
        raw = writer.get_extra_info("socket")
        with suppress(OSError):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    async def _forward(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await source.read(65_536):
                await asyncio.sleep(self.delay)
                if self._reset is Reset.ON_REPLY and sink in self._open:
                    self._cut(sink)
                    return
                if self.silent:
                    continue
                sink.write(data)
                await sink.drain()
        self._open.discard(sink)
        sink.close()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
