"""An outlet: frames to one subscriber of a plain ASGI server, one being sent and one waiting."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from routecast.core.default_session import DefaultSession
from routecast.core.document import EncodedDocument
from routecast.core.groups import PingState, Shard
from routecast.core.rotation import rotated
from routecast.instruments import Instruments
from routecast.protocol import CloseCode, close_reason
from routecast.streaming.connections import ConnectionManager

# A client that has not taken a frame for this time, in seconds, will not catch up.
SEND_SECONDS: Final = 10.0
# How a connection ended that nobody closed.
ABNORMAL: Final = 1006


class AsgiConnection:
    """A subscriber (`core.groups.Connection`) for whom awaiting `send` is how to feel its pace."""

    __slots__ = ("_newest", "_stop", "_wake", "client", "kind", "reason", "shard", "subscription")

    def __init__(self, session: DefaultSession, kind: str, client: str) -> None:
        self.kind = kind
        self.client = client
        self.shard: Shard | None = None
        self.subscription = session.subscription
        self.reason = ""  # why it is stopped, for a close frame
        self._newest: EncodedDocument | None = None
        self._stop: CloseCode | None = None
        self._wake = asyncio.Event()

    def offer(self, frame: EncodedDocument) -> bool:
        conflated = self._newest is not None
        self._newest = frame
        self._wake.set()
        return not conflated

    @staticmethod
    def offer_all(frame: EncodedDocument, shard: Shard) -> int:
        return sum(not connection.offer(frame) for connection in rotated(shard.connections))

    @staticmethod
    def queue_ping(shard: Shard) -> None:
        """Nothing to do: pings are the ASGI server's own."""

    @staticmethod
    def flush_ping(shard: Shard) -> None:
        shard.ping_state = PingState.NONE

    def give_up(self) -> None:
        """Nothing to do: nobody was asked."""

    def stop(self, code: CloseCode, return_ms: int | None = None) -> None:
        self._stop, self.reason = code, close_reason(return_ms)
        self._wake.set()

    def enter(self, manager: ConnectionManager) -> None:
        """Ask to be sent frames."""
        manager.connect(self)

    async def pump(
        self,
        send: Callable[[EncodedDocument], Awaitable[None]],
        idle: Callable[[], Awaitable[None]] | None = None,
        idle_seconds: float | None = None,
    ) -> CloseCode:
        """Send what is offered until told to stop; return the code to end with.

        `idle` is called after each `idle_seconds` in which nothing was sent. Raises OSError when
        the client is gone (as ASGI 2.4 has it).
        """
        try:
            while self._stop is None:
                try:
                    async with asyncio.timeout(idle_seconds):
                        await self._wake.wait()
                except TimeoutError:
                    pass
                self._wake.clear()
                frame, self._newest = self._newest, None
                async with asyncio.timeout(SEND_SECONDS):
                    if frame is not None:
                        await send(frame)
                    elif idle is not None and self._stop is None:
                        await idle()
        except TimeoutError:
            return CloseCode.TOO_SLOW
        return self._stop

    async def run(
        self,
        manager: ConnectionManager,
        instruments: Instruments,
        pump: Awaitable[CloseCode],
        listen: Awaitable[int],
    ) -> tuple[int, bool]:
        """Stay connected until the client leaves or is to be left.

        Returns the close code, and whether it is ours to close.
        """
        pumping, listening = asyncio.ensure_future(pump), asyncio.ensure_future(listen)
        code, ours = ABNORMAL, False
        try:
            self.enter(manager)
            done, _ = await asyncio.wait({pumping, listening}, return_when=asyncio.FIRST_COMPLETED)
            if listening in done:
                code = listening.result()
            else:
                code, ours = pumping.result(), True
        except OSError:
            instruments.send_failures.inc()
        finally:
            if code == CloseCode.TOO_SLOW:
                instruments.send_failures.inc()
            manager.disconnect(self, code)
            pumping.cancel()
            listening.cancel()
            await asyncio.gather(pumping, listening, return_exceptions=True)
        return code, ours
