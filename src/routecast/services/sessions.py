"""Sessions: browsers that are signed in.

Each node remembers the sessions that it has seen, and looks once a second whether any session was
ended, on any node. So a request costs no query, and the streams of a session end with it within two
seconds. While the records cannot be reached, the sessions that are known hold.

A person who signs out ends all sessions of their subject. An API key may be that of many screens,
so only one of its sessions ends. It can be renewed instead, which lets the same session go on.

A person whom a proxy signs in for each request has streams without a session. Each node remembers
such people, too, and closes these streams when the person has signed out.
"""

import asyncio
import logging
import secrets
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from typing import Final, NamedTuple

from routecast.core.access import Principal
from routecast.core.client_limits import client_name
from routecast.core.decision import SECOND
from routecast.core.record_limit import RecordLimit
from routecast.core.tickets_and_sessions import (
    MAX_SECRET_LENGTH,
    SESSION_BYTES,
    SESSION_KIND,
    SESSION_SECONDS,
    SIGN_OUT_BYTES,
    SIGN_OUT_KIND,
    SIGN_OUT_SECONDS,
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
# People that a node remembers whom a proxy signs in. It forgets the one that came longest ago, and
# closes the streams of that person, too.
MAX_KNOWN_PEOPLE: Final = 16_384
# Seconds between two looks at whether sessions were ended.
SESSION_LOOK_SECONDS: Final = 1.0
# Records that are read in one call.
RECORDS_AT_ONCE: Final = 500

_ENDED: Final = "the session has ended: sign in again"


class _Session(NamedTuple):
    """A session that is known, and the id of the last sign-out of its person before it."""

    principal: Principal
    after: str


class Sessions:
    """Starts, finds and ends sessions. Run `run` as a task.

    `check` raises BadCredential if the credential of a principal is revoked. `limit` limits the
    sessions that a subject starts. `followers` are called with a predicate that tells whether the
    session of a principal has ended.
    """

    def __init__(
        self,
        records: TemporaryRecords,
        check: Callable[[Principal], None],
        clock: Clock,
        limit: RecordLimit,
    ) -> None:
        self._records = records
        self._check = check
        self._clock = clock
        self._limit = limit
        self._known: OrderedDict[str, _Session] = OrderedDict()  # by the id of the session
        # The last sign-outs of people whom a proxy signs in, by subject; and the subjects whose
        # last sign-out was not looked up yet.
        self._people: OrderedDict[str, str | None] = OrderedDict()
        self._new_people: set[str] = set()
        self._version: str | None = None
        self._looks = 0  # looks at the known sessions that are left to do
        self.followers: list[Callable[[Callable[[Principal], bool]], object]] = []
        self.failing: str | None = None  # why sessions cannot be looked up

    async def start(self, principal: Principal) -> tuple[str, Principal]:
        """Start a session for a principal. Return its secret text, and its own principal.

        Raises BadCredential, OverLimit, Unavailable.
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
        session = _Session(ours, await self._last_sign_out(ours) or "")
        record = pack_principal(*session)
        client = client_name(ours)
        counted = self._limit.take(client, record, now)
        try:
            await self._records.put(identity, record, ends - now)
        except Unavailable:
            self._limit.give_back(client, counted, now)
            raise
        self._remember(session)
        return text, ours

    async def renew(self, principal: Principal) -> Principal:
        """Let the session of an API key last as long as a new one; return its new principal.

        Raises BadCredential, Unavailable.
        """
        assert principal.is_key
        ours = replace(principal, expires=self._clock.now() / SECOND + SESSION_SECONDS)
        record = pack_principal(ours)
        # Another node may have ended it, and this node does not know that yet.
        if not await self._records.replace(ours.session, record, SESSION_SECONDS):
            self._forget([ours.session])
            raise BadCredential(_ENDED)
        if ours.session not in self._known:  # forgotten meanwhile, perhaps because it has ended
            return await self.find_by_id(ours.session)
        self._remember(_Session(ours, ""))
        return ours

    def recognise(self, text: str) -> Principal | None:
        """Return whose session it is, at once; None if `find` must be awaited. Raises as that."""
        if len(text) > MAX_SECRET_LENGTH or not text.isascii():
            raise BadCredential(_ENDED)
        known = self._known_now(record_name(SESSION_KIND, text))
        return None if known is None else self._valid(known)

    async def find(self, text: str) -> Principal:
        """Return whose session it is. Raises BadCredential, Unavailable."""
        return self.recognise(text) or await self.find_by_id(record_name(SESSION_KIND, text))

    async def find_by_id(self, identity: str) -> Principal:
        """Return whose session it is, by its id. Raises BadCredential, Unavailable."""
        known = self._known_now(identity)
        if known is not None:
            return self._valid(known)
        (packed,) = await self._records.get([identity])
        if packed is None:
            raise BadCredential(_ENDED)
        try:
            found = _Session(*unpack_principal(packed))
        except ValueError:
            raise BadCredential("the session cannot be read: sign in again") from None
        if found.principal.session != identity or found.principal.expires is None:
            raise BadCredential("the session cannot be read: sign in again")
        if _is_over(found, await self._last_sign_out(found.principal)):
            raise BadCredential(_ENDED)
        # Streams of one session share one object, and two requests may have come at once.
        known = self._known_now(identity)
        if known is None:
            self._remember(known := found)
        return self._valid(known)

    def require(self, principal: Principal) -> None:
        """Raise BadCredential if the session that a principal came in by has ended."""
        known = self._known.get(principal.session)
        if known is None:
            raise BadCredential(_ENDED)
        self._valid(known)

    def notice(self, principal: Principal) -> None:
        """Have the streams of a person whom a proxy signs in closed once the person signs out."""
        subject = principal.subject
        if subject in self._people:
            self._people.move_to_end(subject)
            return
        self._people[subject] = None
        self._new_people.add(subject)
        if len(self._people) > MAX_KNOWN_PEOPLE:
            forgotten, _ = self._people.popitem(last=False)
            self._new_people.discard(forgotten)
            self._close_streams_of({forgotten})

    async def end(self, principal: Principal) -> None:
        """End all sessions of a person, on all nodes, and close their streams. Raises Unavailable.

        Of an API key, it ends the session of the principal alone.
        """
        if principal.is_key:
            if principal.session:
                await self._records.delete(principal.session)
                self._forget([principal.session])
            return
        sign_out = secrets.token_urlsafe(SIGN_OUT_BYTES)
        name = record_name(SIGN_OUT_KIND, principal.subject)
        await self._records.put(name, sign_out.encode(), SIGN_OUT_SECONDS)
        # To delete any record changes the version, so that other nodes look. Without a session it
        # is a record that is not there.
        await self._records.delete(principal.session or record_name(SESSION_KIND, ""))
        self._forget(
            [
                identity
                for identity, known in self._known.items()
                if known.principal.subject == principal.subject and _is_over(known, sign_out)
            ]
        )
        self._new_people.discard(principal.subject)  # all streams here are from before it
        self._dismiss({principal.subject: sign_out})

    def _known_now(self, identity: str) -> _Session | None:
        """Return a known session; None if its time is over: another node may have renewed it."""
        known = self._known.get(identity)
        return None if known is None or self._is_late(known) else known

    def _is_late(self, known: _Session) -> bool:
        assert known.principal.expires is not None
        return self._clock.now() / SECOND >= known.principal.expires

    def _valid(self, known: _Session) -> Principal:
        if self._is_late(known):
            raise BadCredential(_ENDED)
        self._check(known.principal)
        self._known.move_to_end(known.principal.session)
        return known.principal

    def _remember(self, session: _Session) -> None:
        self._known[session.principal.session] = session
        if len(self._known) > MAX_KNOWN_SESSIONS:
            self._forget([next(iter(self._known))])

    def _forget(self, identities: Collection[str]) -> None:
        ended = frozenset(identities)
        for identity in ended:
            self._known.pop(identity, None)
        for follower in self.followers:
            follower(lambda principal: principal.session in ended)

    def _dismiss(self, last: Mapping[str, str | None]) -> None:
        """Close the streams of people whom a proxy signs in, if they have signed out since.

        `last` has the last sign-outs of some people, by subject; they become the known ones.
        """
        gone = set()
        for subject, sign_out in last.items():
            if subject not in self._people:
                continue
            before, self._people[subject] = self._people[subject], sign_out
            if subject in self._new_people:  # it may have been before the streams
                self._new_people.discard(subject)
            elif sign_out is not None and sign_out != before:
                gone.add(subject)
        if gone:
            self._close_streams_of(gone)

    def _close_streams_of(self, subjects: Collection[str]) -> None:
        """Close the streams of people whom a proxy signs in."""
        for follower in self.followers:
            follower(lambda one: one.by_proxy and not one.session and one.subject in subjects)

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
                # Twice: a request may have read a session before its end, and have it remembered
                # after the first look.
                self._looks = 2
            if self._looks:
                await self._look()
                self._looks -= 1
            if self._new_people:
                some = list(islice(self._new_people, RECORDS_AT_ONCE))
                self._dismiss(await self._last_sign_outs(some))
        except Unavailable as error:
            if self.failing is None:
                log.error("Sessions cannot be looked up; those that are known hold: %s", error)
            self.failing = str(error)
            raise
        if self.failing is not None:
            log.warning("Sessions can be looked up again")
        self.failing = None

    async def _look(self) -> None:
        """Forget the sessions that are known here and have ended elsewhere."""
        known = list(self._known.items())
        for start in range(0, len(known), RECORDS_AT_ONCE):
            some = known[start : start + RECORDS_AT_ONCE]
            records = await self._records.get([identity for identity, _ in some])
            last = await self._last_sign_outs(
                session.principal.subject for _, session in some if not session.principal.is_key
            )
            ended = [
                identity
                for (identity, session), record in zip(some, records, strict=True)
                if record is None or _is_over(session, last.get(session.principal.subject))
            ]
            if ended:
                self._forget(ended)
        people = [each for each in self._people if each not in self._new_people]
        for start in range(0, len(people), RECORDS_AT_ONCE):
            some_people = people[start : start + RECORDS_AT_ONCE]
            self._dismiss(await self._last_sign_outs(some_people))

    async def _last_sign_out(self, principal: Principal) -> str | None:
        """Return the id of a person's last sign-out; None without one. Raises Unavailable."""
        if principal.is_key:
            return None
        return (await self._last_sign_outs([principal.subject]))[principal.subject]

    async def _last_sign_outs(self, subjects: Iterable[str]) -> dict[str, str | None]:
        """Return `_last_sign_out` of several subjects. Raises Unavailable."""
        asked = list(dict.fromkeys(subjects))
        found = await self._records.get([record_name(SIGN_OUT_KIND, each) for each in asked])
        ids = (None if each is None else each.decode("latin-1") for each in found)
        return dict(zip(asked, ids, strict=True))


def _is_over(session: _Session, last: str | None) -> bool:
    """Whether its person has signed out since a session began; `last` is the last sign-out's id."""
    return not session.principal.is_key and last is not None and last != session.after
