"""A connection on a plain ASGI server: WebSocket or server-sent events, by awaiting `send`."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final

from routecast.core.payload import Payload
from routecast.core.rotation import rotated
from routecast.instruments import Instruments
from routecast.ports import Batch, Connection, PongReport
from routecast.protocol import CloseCode, close_reason
from routecast.streaming.connections import ABNORMAL_CLOSURE
from routecast.streaming.peers import Peer

# A client that has not taken a message for this time, in seconds, will not catch up.
SEND_SECONDS: Final = 10.0


class AsgiConnection:
    """One client's connection (`ports.Connection`) on a server that is reached by awaiting `send`.

    At most one payload waits to be sent. Replies may wait too; the session limits their number.
    Only the ASGI server can send pings.
    """

    __slots__ = (
        "_behind",
        "_binary",
        "_is_taken",
        "_out",
        "_stop",
        "_wake",
        "agent",
        "client",
        "kind",
        "peer",
        "reason",
    )

    def __init__(self, kind: str, client: str, *, agent: str = "", binary: bool = False) -> None:
        self.kind = kind
        self.client = client
        self.agent = agent
        self.peer: Peer | None = None
        self.reason = ""  # why it is stopped, for a close frame
        self._binary = binary
        self._out: deque[Payload] = deque()
        self._is_taken = False  # whether a payload waits or is being sent
        self._behind = False  # whether a payload was skipped since
        self._stop: CloseCode | None = None
        self._wake = asyncio.Event()

    def new_batch(self) -> Batch:
        return AsgiBatch()

    def send(self, payload: Payload) -> bool:
        if self._is_taken:
            self._behind = True
            return False
        self._is_taken = True
        self._put(payload)
        return True

    def prepare(self, payload: Payload) -> None:
        """Do nothing: the server of the application frames and compresses."""

    def reply(self, data: bytes) -> None:
        self._put(Payload(data, binary=self._binary))

    def _put(self, payload: Payload) -> None:
        self._out.append(payload)
        self._wake.set()

    def has_room(self) -> bool:
        self._behind = self._behind or self._is_taken
        return not self._is_taken

    @property
    def unsent(self) -> int:
        return sum(len(payload.body) for payload in self._out)

    @property
    def saved_by_compression(self) -> int | None:
        return 0 if self.kind == "SSE" else None  # only the ASGI server knows

    def pong(self) -> PongReport | None:
        return None  # only the ASGI server knows

    def receive(self, message: str | bytes) -> None:
        """Pass a message of the client to the peer."""
        if self._stop is None and self.peer is not None:
            self.peer.receive(message)

    def fail(self, code: CloseCode) -> None:
        self.stop(code)

    def stop(self, code: CloseCode, return_ms: int | None = None) -> None:
        if self._stop is not None:
            return
        if return_ms is not None and self.peer is not None:
            self.peer.say_goodbye(code, return_ms)
        self._stop, self.reason = code, close_reason(return_ms)
        self._wake.set()

    async def run(
        self,
        peer: Peer,
        instruments: Instruments,
        *,
        send: Callable[[Payload], Awaitable[None]],
        listen: Awaitable[int],
        idle: Callable[[], Awaitable[None]] | None = None,
        idle_seconds: float | None = None,
        send_seconds: float = SEND_SECONDS,
    ) -> tuple[int, bool]:
        """Serve the connection until the client leaves or `stop` is called.

        `listen` returns the close code once the client has left. `idle` is called after each
        `idle_seconds` in which nothing was sent. A client that does not take a message for
        `send_seconds` is left as TOO_SLOW. Returns the close code, and whether this side has to
        close the connection.
        """
        self.peer = peer
        sending = asyncio.ensure_future(self._send_all(send, idle, idle_seconds, send_seconds))
        listening = asyncio.ensure_future(listen)
        code, ours = ABNORMAL_CLOSURE, False
        try:
            peer.start()
            done, _ = await asyncio.wait({sending, listening}, return_when=asyncio.FIRST_COMPLETED)
            if listening in done:
                code = listening.result()
            else:
                code, ours = sending.result(), True
        except OSError:  # the client is gone, as ASGI 2.4 has it
            instruments.send_failures.inc()
        finally:
            if code == CloseCode.TOO_SLOW:
                instruments.send_failures.inc()
            peer.close(code)
            self.peer = None  # they refer to each other
            sending.cancel()
            listening.cancel()
            await asyncio.gather(sending, listening, return_exceptions=True)
        return code, ours

    async def _send_all(
        self,
        send: Callable[[Payload], Awaitable[None]],
        idle: Callable[[], Awaitable[None]] | None,
        idle_seconds: float | None,
        send_seconds: float,
    ) -> CloseCode:
        """Send payloads and replies until the connection is stopped; return the close code."""
        try:
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(idle_seconds):
                        await self._wake.wait()
                is_idle = not self._wake.is_set()
                self._wake.clear()
                if is_idle and idle is not None:
                    async with asyncio.timeout(send_seconds):
                        await idle()
                while self._out:
                    async with asyncio.timeout(send_seconds):  # for each: a client may be slow
                        await send(self._out.popleft())
                if self._stop is not None:
                    return self._stop
                self._is_taken = False
                if self._behind and self.peer is not None:
                    self._behind = False
                    self.peer.catch_up()
        except TimeoutError:
            return CloseCode.TOO_SLOW


class AsgiBatch:
    """Connections that are sent the same payloads (`ports.Batch`)."""

    __slots__ = ("_connections",)

    def __init__(self) -> None:
        self._connections: dict[Connection, None] = {}

    def __len__(self) -> int:
        return len(self._connections)

    def add(self, connection: Connection) -> None:
        self._connections[connection] = None

    def remove(self, connection: Connection) -> None:
        del self._connections[connection]

    def send(self, payload: Payload) -> Sequence[Connection]:
        return [each for each in rotated(self._connections) if not each.send(payload)]
