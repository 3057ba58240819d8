"""The refresh of the keys for tokens that come from an identity provider.

They are fetched at the start, then at regular intervals, so that a new key is known before it is
used and a withdrawn one is not used for long; and when a token names a key that is not known.
Anyone can send such tokens, so they cause one fetch in a while, and none waits for a second one.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from routecast.errors import Unavailable
from routecast.ports import Timers, TokenVerifier
from routecast.retry import Backoff, no_jitter
from routecast.services.supervisor import Supervisor

log = logging.getLogger(__name__)

# The name of the service, in `/health` and in the log.
KEY_SERVICE: Final = "jwks"
# Seconds between two fetches.
KEY_REFRESH_SECONDS: Final = 300.0
# A token with an unknown key causes a fetch if the last one began at least this long ago (seconds).
UNKNOWN_KEY_SECONDS: Final = 60.0
# Pauses after a failed fetch, in seconds: each is twice the one before.
FIRST_REFRESH_PAUSE: Final = 1.0
LONGEST_REFRESH_PAUSE: Final = 60.0
# A request waits for a fetch for at most this time, in seconds: longer than a fetch may take.
REFRESH_WAIT_SECONDS: Final = 7.0


class KeyRefresh:
    """Fetches keys. Run `run` as a service.

    `followers` are called when a fetch brought other keys than the one before.
    """

    def __init__(
        self,
        tokens: TokenVerifier,
        timers: Timers,
        supervisor: Supervisor,
        service: str = KEY_SERVICE,
    ) -> None:
        self._tokens = tokens
        self._timers = timers
        self._supervisor = supervisor
        self.service = service
        self.followers: list[Callable[[], object]] = []
        self._wanted = asyncio.Event()
        self._began: float | None = None
        self._fetching = False
        self._waiting: set[asyncio.Future[None]] = set()
        self.has_keys = False  # whether any fetch has succeeded

    @property
    def possible(self) -> bool:
        """Whether `wait` would wait for a fetch: one is under way, or may begin."""
        return (
            self._fetching
            or self._began is None
            or self._timers.now() - self._began >= UNKNOWN_KEY_SECONDS
        )

    async def wait(self) -> None:
        """Return after the fetch that is under way, or after a new one if that is possible.

        Raises Unavailable if it does not end.
        """
        if not self.possible:
            return
        if not self._fetching:
            self._wanted.set()
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(ended)
        try:
            async with asyncio.timeout(REFRESH_WAIT_SECONDS):
                await ended
        except TimeoutError:
            raise Unavailable("the keys for tokens cannot be fetched now") from None
        finally:
            self._waiting.discard(ended)

    async def run(self) -> None:
        """Fetch the keys whenever that is due. Never ends."""
        backoff = Backoff(FIRST_REFRESH_PAUSE, LONGEST_REFRESH_PAUSE, draw=no_jitter)
        while True:
            try:
                await self._fetch()
            except Unavailable as error:
                self._supervisor.failed(self.service, error)
                pause = backoff.next()
            else:
                self._supervisor.works(self.service)
                backoff.reset()
                pause = KEY_REFRESH_SECONDS
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wanted.wait()

    async def _fetch(self) -> None:
        self._wanted.clear()
        self._began, self._fetching = self._timers.now(), True
        try:
            changed = await self._tokens.fetch()
            if changed and self.has_keys:
                log.info("The identity provider has other keys for tokens than before")
            self.has_keys = True
            for follower in self.followers if changed else ():
                follower()
        finally:
            self._fetching = False
            for ended in self._waiting:
                if not ended.done():
                    ended.set_result(None)
