"""A server that is not Redis: it gives the same answer to every command."""

import asyncio
import re
from contextlib import suppress
from typing import Self

_COMMAND = re.compile(rb"\*\d+\r\n\$")


class NonsenseServer:
    """Answers each command of Redis's protocol with `answer`. Use as an async context manager.

    b"" is no answer. `answer` may be changed while it runs.
    """

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.asked = 0  # commands
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        with suppress(ConnectionError, asyncio.CancelledError):
            while data := await reader.read(65_536):
                count = len(_COMMAND.findall(data)) or 1
                self.asked += count
                writer.write(self.answer * count)
                await writer.drain()
        writer.close()
        self._tasks.discard(task)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
