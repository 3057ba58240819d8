"""`RateLimitedSender`: sends messages below the server's limit of messages per minute."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from routecast.protocol import MAX_MESSAGES_A_MINUTE, ClientMessage, Refresh, Unsubscribe

# The parts of the limit that may be sent at once, and per minute after that: together 0.9, because
# messages may arrive closer together than they were sent.
_AT_ONCE: Final = 0.4
_A_MINUTE: Final = 0.5
_ROUNDING: Final = 1e-6  # messages


class TokenBucket:
    """A token bucket: some messages may be sent at once, and further ones at a steady rate.

    `limit` is the number of messages that the server accepts per minute.
    """

    def __init__(self, limit: int = MAX_MESSAGES_A_MINUTE) -> None:
        self.limit = limit
        self._level = 0.0  # messages sent, less those that have expired
        self._at = 0.0

    def next(self, now: float) -> float:
        """Return the seconds until the next message may be sent; 0 takes a token for it."""
        rate = max(self.limit, 1) * _A_MINUTE / 60
        self._level = max(self._level - (now - self._at) * rate, 0.0)
        self._at = now
        excess = self._level + 1 - max(int(self.limit * _AT_ONCE), 1)
        if excess > _ROUNDING:
            return excess / rate
        self._level += 1
        return 0.0


class RateLimitedSender:
    """Sends messages in order, below the server's rate limit; a `Refresh` before all others.

    If an `Unsubscribe` is queued while its request waits, neither is sent. So at most two messages
    of an id wait.
    """

    def __init__(
        self, socket: ClientConnection, encode: Callable[[ClientMessage], str | bytes]
    ) -> None:
        self.bucket = TokenBucket()
        self._socket = socket
        self._encode = encode
        self._waiting: deque[tuple[ClientMessage, str | bytes]] = deque()
        self._filled = asyncio.Event()

    def put(self, message: ClientMessage) -> None:
        """Queue a message. Raises the errors of encoding."""
        if isinstance(message, Unsubscribe):
            earlier = [item for item in self._waiting if _is_of(message.id, item[0])]
            for item in earlier:
                self._waiting.remove(item)
            if earlier and not isinstance(earlier[0][0], Unsubscribe):
                return  # the server has not received the request
        if isinstance(message, Refresh):  # the server waits for it only until the token expires
            if self._waiting and isinstance(self._waiting[0][0], Refresh):
                self._waiting.popleft()  # an older token
            self._waiting.appendleft((message, self._encode(message)))
        else:
            self._waiting.append((message, self._encode(message)))
        self._filled.set()

    async def run(self) -> None:
        """Send messages until the connection is lost."""
        with suppress(ConnectionClosed):
            while True:
                await self._filled.wait()
                if not self._waiting:  # the message was cancelled
                    self._filled.clear()
                elif seconds := self.bucket.next(time.monotonic()):
                    await asyncio.sleep(seconds)
                else:
                    await self._socket.send(self._waiting.popleft()[1])


def _is_of(identity: str, message: ClientMessage) -> bool:
    return not isinstance(message, Refresh) and message.id == identity
