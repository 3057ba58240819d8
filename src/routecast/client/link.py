"""A connection that is opened again whenever it is lost, until coming back cannot help."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NoReturn

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException
from websockets.typing import Subprotocol

from routecast.client.address import Server
from routecast.client.backoff import Backoff
from routecast.client.credentials import Token, bearer
from routecast.client.reasons import describe, least_pause, refusal, told_pause
from routecast.errors import Unauthenticated

logger: Final = logging.getLogger("routecast.client")

OPEN_TIMEOUT: Final = 10.0
# Who leaves need not wait long for a server that does not answer any more.
CLOSE_TIMEOUT: Final = 2.0
# A snapshot of all names that a server keeps apart, with room to spare.
_MAX_MESSAGE: Final = 64 * 1024 * 1024


class State(StrEnum):
    """How a client stands with its server."""

    CONNECTING = "connecting"  # for the first time
    CONNECTED = "connected"
    STALE = "stale"  # connected, but what is shown is not fresh
    RECONNECTING = "reconnecting"
    CLOSED = "closed"


@dataclass(slots=True)
class Link:
    """Keeps one WebSocket open. `changed` is called when `state` has changed.

    `trouble` says why the connection is not there, and `retry_at`, of the monotonic clock, when
    the next try is. Whoever uses it resets `backoff` once a connection was of use: a server that
    greets and closes is no reason to come back at once.
    """

    server: Server
    url: str
    changed: Callable[[], None]
    protocols: Sequence[str] = ()
    token: Token | None = None
    backoff: Backoff = field(default_factory=Backoff)
    state: State = State.CONNECTING
    trouble: str = ""
    retry_at: float | None = None
    _shown: str | None = None

    async def run(
        self,
        converse: Callable[[ClientConnection], Awaitable[NoReturn]],
        pause_asked: Callable[[], float | None] = lambda: None,
    ) -> NoReturn:
        """Have `converse` talk on each connection until it raises what ended that.

        `pause_asked` returns the seconds after which the server told to come back, if it did.
        Raises Refused when coming back cannot help.
        """
        while True:
            try:
                async with connect(
                    self.url,
                    subprotocols=[Subprotocol(name) for name in self.protocols] or None,
                    additional_headers=self._headers(),
                    open_timeout=OPEN_TIMEOUT,
                    close_timeout=CLOSE_TIMEOUT,
                    max_size=_MAX_MESSAGE,
                    proxy=None if self.server.loopback else True,
                ) as socket:
                    await converse(socket)
            except (WebSocketException, OSError, EOFError, msgspec.DecodeError) as error:
                pause = self._pause(error, pause_asked() or told_pause(error))
                why = describe(error)
            self.retry_at = time.monotonic() + pause
            self._move(State.RECONNECTING, why)
            logger.info("%s: %s; trying again in %.1f s", self.server, why, pause)
            await asyncio.sleep(pause)

    def alive(self) -> None:
        """Take note that the server said something that makes sense."""
        if self.state is not State.CONNECTED:
            self.retry_at = None
            self._move(State.CONNECTED, "")

    def close(self) -> None:
        """Take note that it is over."""
        self._move(State.CLOSED, self.trouble)

    def _move(self, state: State, trouble: str) -> None:
        self.state, self.trouble = state, trouble
        self.changed()

    def _headers(self) -> dict[str, str]:
        if self.token is None:
            return {}
        self._shown = bearer(self.token)
        return {"Authorization": self._shown}

    def _pause(self, error: Exception, asked: float | None) -> float:
        """Return how long to stay away. Raises Refused."""
        least = least_pause(error)
        if least is None:
            refused = refusal(error)
            if not (isinstance(refused, Unauthenticated) and self._has_new_token()):
                raise refused from None
            least = 0.0
        # Who was told when to come back was told so apart from others: chance was had already.
        return self.backoff.next(least) if asked is None else asked

    def _has_new_token(self) -> bool:
        return callable(self.token) and bearer(self.token) != self._shown
