"""`ReconnectingConnection`: reconnects when it is lost, unless the server refuses the client."""

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
from routecast.client.auth import Token, text_of
from routecast.client.stream_errors import (
    MAX_CAUSES_LOGGED,
    answer_of,
    describe,
    refusal,
    verdict_on,
)
from routecast.client.tickets import ask_for_ticket
from routecast.client.url import Server, stream_of, tickets_of, with_ticket
from routecast.errors import Unauthenticated
from routecast.retry import Backoff, Outcome, Verdict

logger: Final = logging.getLogger("routecast.client")

OPEN_TIMEOUT: Final = 10.0
# The time for the server's answer to a close frame, in seconds.
CLOSE_TIMEOUT: Final = 2.0
# Larger than a snapshot with the maximum number of names.
MAX_MESSAGE: Final = 64 * 1024 * 1024


class _Connect(connect):
    """Leaves redirects to `ReconnectingConnection`; `websockets` would follow them elsewhere."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


# The errors that end a connection or an attempt; deeply nested JSON raises RecursionError.
_ENDS: Final = (WebSocketException, OSError, EOFError, msgspec.DecodeError, RecursionError)


class State(StrEnum):
    """The state of a client's connection.

    Attributes:
        CONNECTING: It is being opened for the first time.
        CONNECTED: It is open.
        STALE: It is open, and the metrics of the subscription are not fresh.
        RECONNECTING: It was lost or could not be opened, and the client tries again.
        CLOSED: It is closed, and is not opened again.
    """

    CONNECTING = "connecting"
    CONNECTED = "connected"
    STALE = "stale"
    RECONNECTING = "reconnecting"
    CLOSED = "closed"


@dataclass(slots=True)
class ReconnectingConnection:
    """Keeps one WebSocket open. `changed` is called when `state` has changed.

    With `tickets`, each attempt fetches a ticket, and sends that in place of the token. `reason`
    says why there is no connection, and `retry_at` when the next attempt is (monotonic clock). The
    caller must reset `backoff` when a connection has delivered a value: if a server only says hello
    and closes, delays must still grow.
    """

    server: Server
    url: str
    changed: Callable[[], None]
    protocols: Sequence[str] = ()
    token: Token | None = None
    tickets: bool = False
    backoff: Backoff = field(default_factory=Backoff)
    state: State = State.CONNECTING
    reason: str = ""
    retry_at: float | None = None
    # The token of the present connection, the one it was refreshed with, and that of the next one.
    _sent_token: str | None = None
    _refreshed_with: str | None = None
    _next_token: str | None = None
    # The target of a redirect, its cause, and the logged warnings.
    _redirected: str | None = None
    _redirect_reason: str = ""
    _warned: set[str] = field(default_factory=set)
    _is_redirect_logged: bool = False

    async def run(
        self,
        handle: Callable[[ClientConnection], Awaitable[NoReturn]],
        goodbye_ms: Callable[[], int | None] = lambda: None,
    ) -> NoReturn:
        """Call `handle` with each connection; it must raise the error that ends the connection.

        `goodbye_ms` returns the milliseconds of that connection's `goodbye`, if there was one.
        Raises Refused if reconnecting cannot help.
        """
        while True:
            asked = target = self._redirected or self.url
            try:
                headers = self._headers()
                if self.tickets:
                    asked, headers = tickets_of(asked), {}
                    ticket = await ask_for_ticket(self.server, asked, self._sent_token)
                    asked, target = target, with_ticket(target, ticket)
                async with _Connect(
                    target,
                    subprotocols=[Subprotocol(name) for name in self.protocols] or None,
                    additional_headers=headers,
                    open_timeout=OPEN_TIMEOUT,
                    close_timeout=CLOSE_TIMEOUT,
                    max_size=MAX_MESSAGE,
                    proxy=None if self.server.loopback else True,
                ) as socket:
                    await handle(socket)
            except _ENDS as error:
                if self._follow(error, asked):
                    continue
                pause = self._pause(error, self._verdict_on(error, asked, goodbye_ms()))
                why = describe(error, asked)
                unexpected = isinstance(error, InvalidStatus)
                if self._redirected is not None and self.state is not State.CONNECTED:
                    # A redirect is followed only while it works.
                    self._redirected, why = None, f"{self._redirect_reason} (there: {why})"
                    unexpected = True
                level = logging.WARNING if unexpected and self._is_new(why) else logging.INFO
            self.retry_at = time.monotonic() + pause
            self._move(State.RECONNECTING, why)
            logger.log(level, "%s: %s; trying again in %.1f s", self.server, why, pause)
            await asyncio.sleep(pause)

    def _follow(self, error: Exception, asked: str) -> bool:
        """Whether to connect to the target of a redirect at once."""
        if not isinstance(error, InvalidStatus) or self._redirected is not None:
            return False
        target = followed(answer_of(error), asked)
        if target is None:
            return False
        self._redirected = target if asked == self.url else stream_of(target, self.url)
        self._redirect_reason = describe(error, asked)
        return True

    def _verdict_on(self, error: Exception, asked: str, goodbye_ms: int | None) -> Verdict:
        verdict = verdict_on(error, goodbye_ms)
        is_of_ticket = self.tickets and isinstance(error, InvalidStatus) and asked.startswith("ws")
        if is_of_ticket and verdict.outcome is Outcome.NEW_TOKEN:
            # The ticket came too late, or to another node. The token was accepted just before.
            return Verdict(Outcome.RETRY)
        return verdict

    def _is_new(self, why: str) -> bool:
        """Whether a cause is new since the last connection: a cause is logged as a warning once."""
        if why in self._warned or len(self._warned) >= MAX_CAUSES_LOGGED:
            return False
        self._warned.add(why)
        return True

    def alive(self) -> None:
        """Record that the server has sent a valid message."""
        if self.state is not State.CONNECTED:
            self._warned.clear()
            if self._redirected is not None and not self._is_redirect_logged:
                self._is_redirect_logged = True
                logger.warning("%s: %s; following it", self.server, self._redirect_reason)
            self.retry_at = None
            self._move(State.CONNECTED, "")

    def close(self) -> None:
        """Record that the connection is closed for good."""
        self._move(State.CLOSED, self.reason)

    def _move(self, state: State, reason: str) -> None:
        self.state, self.reason = state, reason
        self.changed()

    def _headers(self) -> dict[str, str]:
        """Return the header fields of an attempt, with the token that is asked for now."""
        if self.token is None:
            return {}
        self._sent_token = self._next_token or text_of(self.token)
        self._refreshed_with = self._next_token = None
        return {"Authorization": f"Bearer {self._sent_token}"}

    def _pause(self, error: Exception, verdict: Verdict) -> float:
        """Return the seconds until the next attempt. Raises Refused."""
        if verdict.outcome is not Outcome.RETRY:
            refused = refusal(error, self.token)
            if not (isinstance(refused, Unauthenticated) and self._has_new_token()):
                raise refused from None
        return self.backoff.after(verdict)

    def _has_new_token(self) -> bool:
        """Ask for the token of the next attempt; return whether it may be a new one."""
        if not callable(self.token):
            return False
        try:
            found = text_of(self.token)
        except OSError:  # the next attempt asks again
            return True
        if found == self._sent_token:
            return False
        self._next_token = found
        return True

    def refreshed_token(self) -> str | None:
        """Ask for a new token for the open connection; return None if there is none.

        Errors of the function are only logged: when the token expires, the server closes the
        connection, and the function is called again.
        """
        if not callable(self.token):
            return None
        try:
            found = text_of(self.token)
        except Exception as error:  # of the program's function
            words = "%s: there is no new token yet (%s: %s)"
            logger.warning(words, self.server, type(error).__name__, error)
            return None
        if found in (self._sent_token, self._refreshed_with):
            return None
        self._refreshed_with = found
        return found
