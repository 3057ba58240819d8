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
    url: str = DEFAULT_SERVER,
    *,
    token: Token | None = None,
    tickets: bool = False,
    **asked: Unpack[ViewOptions],
) -> AsyncGenerator[Metrics]:
    """Yield the metrics of a view whenever they change.

    It reconnects by itself, and never ends by itself. A slow loop skips older metrics. If the loop
    may end early, close the generator, as in the example.

    Args:
        url: The address of the server, as for `Client`.
        token: A token or an API key, or a function that returns it, as for `Client`.
        tickets: Whether to connect with tickets in place of the token, as for `Client`.
        **asked: The arguments of `Client.subscribe`.

    Yields:
        The newest metrics.

    Raises:
        BadParameter: `url` is not an address of a server.
        BadRequest: The server does not accept one of the other arguments.
        Refused: The server refuses this client, and reconnecting does not help.
        Unauthenticated: The token or API key is missing, invalid or expired.

    Examples:
        >>> import asyncio
        >>> from contextlib import aclosing
        >>> async def show():
        ...     async with aclosing(stream("http://127.0.0.1:8000", window="5m")) as newest:
        ...         async for metrics in newest:
        ...             return metrics.total_decisions
        >>> asyncio.run(show())
        1
    """
    async with (
        Client(url, token=token, tickets=tickets) as client,
        await client.subscribe(**asked) as subscription,
    ):
        async for metrics in subscription:
            yield metrics


def stream_sync(
    url: str = DEFAULT_SERVER,
    *,
    token: Token | None = None,
    tickets: bool = False,
    **asked: Unpack[ViewOptions],
) -> Generator[Metrics]:
    """Yield the metrics of a view whenever they change, without asyncio.

    The connection is in a thread of its own. Both end when the generator is closed: by its `close`,
    or when a loop ends and no variable has the generator.

    Args:
        url: The address of the server, as for `Client`.
        token: A token or an API key, or a function that returns it, as for `Client`.
        tickets: Whether to connect with tickets in place of the token, as for `Client`.
        **asked: The arguments of `Client.subscribe`.

    Yields:
        The newest metrics; older ones are skipped.

    Raises:
        BadParameter: As for `stream`.
        BadRequest: As for `stream`.
        Refused: As for `stream`.
        Unauthenticated: As for `stream`.

    Examples:
        >>> for metrics in stream_sync("http://127.0.0.1:8000", interval=1):
        ...     print(metrics.total_decisions)
        ...     break
        1
    """
    reader = _StreamThread(stream(url, token=token, tickets=tickets, **asked))
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
