"""One stream of metrics, with or without asyncio."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing, suppress
from typing import TypedDict, Unpack

from routecast.client.auth import Token
from routecast.client.client import Client, OneOrMore
from routecast.client.document import Metrics
from routecast.client.url import DEFAULT_SERVER


class ViewOptions(TypedDict, total=False):
    """The options of a stream; see `Client.subscribe`."""

    fields: OneOrMore
    interval: float | None
    strategy: OneOrMore
    provider: OneOrMore
    model: OneOrMore
    project: OneOrMore
    window: str | None


async def stream(
    url: str = DEFAULT_SERVER, *, token: Token | None = None, **asked: Unpack[ViewOptions]
) -> AsyncGenerator[Metrics]:
    """Yield the metrics whenever they change, also after lost connections; never ends.

    A slow loop skips older values. The options are those of `Client.subscribe`. Raises Refused or
    BadRequest if a retry cannot help.
    """
    async with Client(url, token=token) as client, await client.subscribe(**asked) as subscription:
        async for metrics in subscription:
            yield metrics


def stream_sync(
    url: str = DEFAULT_SERVER, *, token: Token | None = None, **asked: Unpack[ViewOptions]
) -> Generator[Metrics]:
    """Yield what `stream` does, without asyncio: the connection is in a thread of its own.

    Closing the generator (or leaving its loop) ends the connection and the thread.
    """
    reader = _StreamThread(stream(url, token=token, **asked))
    reader.start()
    try:
        while True:
            yield reader.next()
    finally:
        reader.stop()


class _StreamThread(threading.Thread):
    """Reads a stream, and keeps the newest metrics for another thread."""

    def __init__(self, metrics: AsyncGenerator[Metrics]) -> None:
        super().__init__(name="routecast-stream", daemon=True)
        self._metrics = metrics
        self._loop = asyncio.new_event_loop()
        self._task = self._loop.create_task(self._read())
        self._changed = threading.Condition()
        self._newest: Metrics | None = None
        self._error: BaseException | None = None

    def next(self) -> Metrics:
        """Wait for new metrics, and return them; raise the error that ended the stream."""
        with self._changed:
            self._changed.wait_for(lambda: self._newest or self._error)
            newest, self._newest = self._newest, None
            if newest is not None:
                return newest
            assert self._error is not None
            raise self._error

    def stop(self) -> None:
        """End the connection, and wait until it has ended."""
        with suppress(RuntimeError):  # it has ended already
            self._loop.call_soon_threadsafe(self._task.cancel)
        self.join()

    def run(self) -> None:
        try:
            self._loop.run_until_complete(self._task)
        except BaseException as error:  # any error: the caller must raise it
            self._put(None, error)
        finally:
            self._loop.close()

    async def _read(self) -> None:
        async with aclosing(self._metrics):
            async for metrics in self._metrics:
                self._put(metrics, None)

    def _put(self, newest: Metrics | None, error: BaseException | None) -> None:
        with self._changed:
            self._newest, self._error = newest or self._newest, error
            self._changed.notify()
