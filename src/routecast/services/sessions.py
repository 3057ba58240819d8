"""Sessions: browsers that are signed in.

Each node remembers the sessions that it has seen, and looks once a second whether any session was
ended, on any node. So a request costs no query, and the streams of a session end with it within two
seconds. While the records cannot be reached, the sessions that are known hold.
"""

import asyncio
import logging
import secrets
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Final

from routecast.core.access import Principal
from routecast.core.decision import SECOND
from routecast.core.stand_ins import (
    MAX_STAND_IN,
    SESSION_BYTES,
    SESSION_KIND,
    SESSION_SECONDS,
    pack_principal,
    record_name,
    unpack_principal,
)
from routecast.errors import BadCredential, Unavailable
from routecast.ports import Clock, TemporaryRecords

log = logging.getLogger(__name__)

# Sessions that a node remembers, more than it has streams by default. The streams of one that it
# forgets are closed, because nobody would notice its end.
MAX_KNOWN_SESSIONS: Final = 16_384
# Seconds between two looks at whether sessions were ended.
SESSION_LOOK_SECONDS: Final = 1.0
# Records that are read in one call.
RECORDS_AT_ONCE: Final = 500

_ENDED: Final = "the session has ended: sign in again"


class Sessions:
    """Starts, finds and ends sessions. Run `run` as a task.

    `check` raises BadCredential if the credential of a principal is revoked. `followers` are called
    with a predicate that tells whether the session of a principal has ended.
    """

    def __init__(
        self, records: TemporaryRecords, check: Callable[[Principal], None], clock: Clock
    ) -> None:
        self._records = records
        self._check = check
        self._clock = clock
        self._known: OrderedDict[str, Principal] = OrderedDict()  # by the id of the session
        self._version: str | None = None
        self._looks = 0  # at the sessions that are known, which are left to do
        self.followers: list[Callable[[Callable[[Principal], bool]], object]] = []
        self.failing: str | None = None

    async def start(self, principal: Principal) -> tuple[str, Principal]:
        """Start a session for a principal. Return its secret text, and its own principal.

        Raises BadCredential, Unavailable.
        """
        text = secrets.token_urlsafe(SESSION_BYTES)
        identity = record_name(SESSION_KIND, text)
        now = self._clock.now() / SECOND
        ends = now + SESSION_SECONDS
        # The end of a key is checked each time, and may be changed; a session that is renewed has
        # its own end in place of it.
        if principal.expires is not None and not principal.is_key:
            ends = min(ends, principal.expires)
        if ends <= now:  # within the leeway
            raise BadCredential("the credential has expired")
        ours = replace(principal, expires=ends, session=identity)
        await self._records.put(identity, pack_principal(ours), ends - now)
        self._remember(ours)
        return text, ours

    def recognise(self, text: str) -> Principal | None:
        """Return whose session it is, at once; None if `find` must be awaited. Raises as that."""
        if len(text) > MAX_STAND_IN or not text.isascii():
            raise BadCredential(_ENDED)
        principal = self._known.get(record_name(SESSION_KIND, text))
        return None if principal is None else self._valid(principal)

    async def find(self, text: str) -> Principal:
        """Return whose session it is. Raises BadCredential, Unavailable."""
        return self.recognise(text) or await self.find_by_id(record_name(SESSION_KIND, text))

    async def find_by_id(self, identity: str) -> Principal:
        """Return whose session it is, by its id. Raises BadCredential, Unavailable."""
        known = self._known.get(identity)
        if known is not None:
            return self._valid(known)
        (packed,) = await self._records.get([identity])
        if packed is None:
            raise BadCredential(_ENDED)
        try:
            principal, _ = unpack_principal(packed)
        except ValueError:
            raise BadCredential("the session cannot be read: sign in again") from None
        if principal.session != identity or principal.expires is None:
            raise BadCredential("the session cannot be read: sign in again")
        # Streams of one session share one object, and two requests may have come at once.
        known = self._known.get(identity)
        if known is None:
            self._remember(known := principal)
        return self._valid(known)

    def knows(self, principal: Principal) -> bool:
        """Whether the session of a principal goes on, as far as this node knows."""
        return principal.session in self._known

    async def end(self, principal: Principal) -> None:
        """End a principal's session, on all nodes, and close its streams. Raises Unavailable."""
        if principal.session:
            await self._records.delete(principal.session)
            self._forget([principal.session])

    def _valid(self, principal: Principal) -> Principal:
        assert principal.expires is not None
        if self._clock.now() / SECOND >= principal.expires:
            raise BadCredential(_ENDED)
        self._check(principal)
        self._known.move_to_end(principal.session)
        return principal

    def _remember(self, principal: Principal) -> None:
        self._known[principal.session] = principal
        if len(self._known) > MAX_KNOWN_SESSIONS:
            self._forget([next(iter(self._known))])

    def _forget(self, identities: Collection[str]) -> None:
        ended = frozenset(identities)
        for identity in ended:
            self._known.pop(identity, None)
        for follower in self.followers:
            follower(lambda principal: principal.session in ended)

    # -- keeping up -----------------------------------------------------------------------------

    async def run(self) -> None:
        """Notice sessions that other nodes have ended. Never ends."""
        while True:
            with suppress(Unavailable):
                await self.refresh()
            await asyncio.sleep(SESSION_LOOK_SECONDS)

    async def refresh(self) -> None:
        """End what was ended elsewhere. Raises Unavailable; sessions that are known then hold."""
        try:
            version = await self._records.version()
            if version != self._version:
                self._version = version
                # Twice: an answer that was on its way at the first look may have come after it.
                self._looks = 2
            if self._looks:
                await self._look()
                self._looks -= 1
        except Unavailable as error:
            if self.failing is None:
                log.error("Sessions cannot be looked up; those that are known hold: %s", error)
            self.failing = str(error)
            raise
        if self.failing is not None:
            log.warning("Sessions can be looked up again")
        self.failing = None

    async def _look(self) -> None:
        """Forget the sessions that are known here, and have no record any more."""
        known = list(self._known)
        for start in range(0, len(known), RECORDS_AT_ONCE):
            some: Sequence[str] = known[start : start + RECORDS_AT_ONCE]
            records = await self._records.get(some)
            ended = [each for each, record in zip(some, records, strict=True) if record is None]
            if ended:
                self._forget(ended)
