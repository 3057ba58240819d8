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
from websockets.exceptions import InvalidStatus, WebSocketException
from websockets.typing import Subprotocol

from routecast.client.answers import followed
from routecast.client.auth import Token, bearer
from routecast.client.stream_errors import (
    MAX_CAUSES_TOLD,
    answer_of,
    describe,
    refusal,
    verdict_on,
)
from routecast.client.url import Server
from routecast.errors import Unauthenticated
from routecast.retry import Backoff, Outcome, Verdict

logger: Final = logging.getLogger("routecast.client")

OPEN_TIMEOUT: Final = 10.0
# Who leaves need not wait long for a server that does not answer any more.
CLOSE_TIMEOUT: Final = 2.0
# A snapshot of all names that a server keeps apart, with room to spare.
MAX_MESSAGE: Final = 64 * 1024 * 1024


class _Connect(connect):
    """Leaves redirects to `ReconnectingConnection`; `websockets` would follow them elsewhere."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


# What may end a connection, or a try to make one: RecursionError by JSON that is nested deeply.
_ENDS: Final = (WebSocketException, OSError, EOFError, msgspec.DecodeError, RecursionError)


class State(StrEnum):
    """How a client stands with its server."""

    CONNECTING = "connecting"  # for the first time
    CONNECTED = "connected"
    STALE = "stale"  # connected, but what is shown is not fresh
    RECONNECTING = "reconnecting"
    CLOSED = "closed"


@dataclass(slots=True)
class ReconnectingConnection:
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
    # Where a redirect led, why it is asked there, and what was warned of.
    _redirected: str | None = None
    _because: str = ""
    _warned: set[str] = field(default_factory=set)
    _told: bool = False

    async def run(
        self,
        converse: Callable[[ClientConnection], Awaitable[NoReturn]],
        goodbye_ms: Callable[[], int | None] = lambda: None,
    ) -> NoReturn:
        """Have `converse` talk on each connection until it raises what ended that.

        `goodbye_ms` returns the milliseconds of the `goodbye` of that connection, if there was one.
        Raises Refused when coming back cannot help.
        """
        while True:
            try:
                async with _Connect(
                    self._redirected or self.url,
                    subprotocols=[Subprotocol(name) for name in self.protocols] or None,
                    additional_headers=self._headers(),
                    open_timeout=OPEN_TIMEOUT,
                    close_timeout=CLOSE_TIMEOUT,
                    max_size=MAX_MESSAGE,
                    proxy=None if self.server.loopback else True,
                ) as socket:
                    await converse(socket)
            except _ENDS as error:
                if self._follow(error):
                    continue
                pause = self._pause(error, verdict_on(error, goodbye_ms()))
                why = describe(error, self.url)
                strange = isinstance(error, InvalidStatus)
                if self._redirected is not None and self.state is not State.CONNECTED:
                    # A redirect is believed only as long as it works.
                    self._redirected, why = None, f"{self._because} (there: {why})"
                    strange = True
                level = logging.WARNING if strange and self._is_new(why) else logging.INFO
            self.retry_at = time.monotonic() + pause
            self._move(State.RECONNECTING, why)
            logger.log(level, "%s: %s; trying again in %.1f s", self.server, why, pause)
            await asyncio.sleep(pause)

    def _follow(self, error: Exception) -> bool:
        """Whether to connect at once where a redirect leads."""
        if not isinstance(error, InvalidStatus) or self._redirected is not None:
            return False
        self._redirected = followed(answer_of(error), self.url)
        if self._redirected is None:
            return False
        self._because = describe(error, self.url)
        return True

    def _is_new(self, why: str) -> bool:
        """Whether this is the first time of late; what may need a person is warned of once."""
        if why in self._warned or len(self._warned) >= MAX_CAUSES_TOLD:
            return False
        self._warned.add(why)
        return True

    def alive(self) -> None:
        """Take note that the server said something that makes sense."""
        if self.state is not State.CONNECTED:
            self._warned.clear()
            if self._redirected is not None and not self._told:
                self._told = True
                logger.warning("%s: %s; following it", self.server, self._because)
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

    def _pause(self, error: Exception, verdict: Verdict) -> float:
        """Return how many seconds to stay away. Raises Refused."""
        if verdict.outcome is not Outcome.RETRY:
            refused = refusal(error)
            if not (isinstance(refused, Unauthenticated) and self._has_new_token()):
                raise refused from None
        return self.backoff.after(verdict)

    def _has_new_token(self) -> bool:
        return callable(self.token) and bearer(self.token) != self._shown
