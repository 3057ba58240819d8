"""An outlet for routecast.v1: messages to one subscriber of a plain ASGI server."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from routecast.core.default_session import DefaultSession
from routecast.core.message import AddressedMessage, Encoding, Message
from routecast.core.v1_session import V1Session
from routecast.edge.asgi_connection import SEND_SECONDS, AsgiConnection
from routecast.protocol import CloseCode
from routecast.streaming.channels import Cohort, V1Transport
from routecast.streaming.connections import ConnectionManager
from routecast.streaming.peers import V1Peers


class AsgiConnectionV1(AsgiConnection):
    """A subscriber of routecast.v1 (`channels.V1Transport`).

    One stream message at most waits to be sent; beside it answers, as many as the session lets
    a client ask for.
    """

    __slots__ = ("_behind", "_out", "_taken", "subscriber")

    def __init__(
        self, session: DefaultSession, encoding: Encoding, subscribers: V1Peers, client: str
    ) -> None:
        super().__init__(session, "WebSocket", client)
        self._out: deque[bytes] = deque()
        self._taken = False  # the place of the one stream message
        self._behind = False  # one was refused since
        v1 = V1Session(encoding, session.subscription.interval)
        self.subscriber = subscribers.open(v1, self)

    def enter(self, manager: ConnectionManager) -> None:
        manager.hold(self)

    def send(self, message: Message, named: AddressedMessage) -> bool:
        if self._taken:
            self._behind = True
            return False
        self._taken = True
        self.reply(named.body)
        return True

    def has_room(self) -> bool:
        self._behind = self._behind or self._taken
        return not self._taken

    @staticmethod
    def send_all(message: Message, named: AddressedMessage, cohort: Cohort) -> list[V1Transport]:
        return [line for line in cohort.members if not line.send(message, named)]

    def reply(self, data: bytes) -> None:
        self._out.append(data)
        self._wake.set()

    def receive(self, message: str | bytes) -> None:
        """Take a message of the client."""
        if self._stop is None:
            self.subscriber.receive(message)

    def fail(self, code: CloseCode) -> None:
        self.stop(code)

    def stop(self, code: CloseCode, return_ms: int | None = None) -> None:
        if return_ms is not None and self._stop is None:
            self.subscriber.say_goodbye(code, return_ms)
        super().stop(code, return_ms)

    async def pump_out(self, send: Callable[[bytes], Awaitable[None]]) -> CloseCode:
        """Send messages until told to stop; return the code to end with.

        Raises OSError when the client is gone (as ASGI 2.4 has it).
        """
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                async with asyncio.timeout(SEND_SECONDS):
                    while self._out:
                        await send(self._out.popleft())
                if self._stop is not None:
                    return self._stop
                self._taken = False
                if self._behind:
                    self._behind = False
                    self.subscriber.catch_up()
        except TimeoutError:
            return CloseCode.TOO_SLOW
