"""Person rules: the principal of a person whom a proxy has signed in."""

from collections.abc import Collection
from dataclasses import replace

import msgspec

from routecast.core.access import Principal
from routecast.core.claims import ClaimRules
from routecast.core.decision import SECOND
from routecast.core.group_rules import GroupRules
from routecast.core.tickets_and_sessions import SESSION_SECONDS
from routecast.errors import BadCredential
from routecast.ports import Clock
from routecast.services.authenticator import Authenticator


class AssertionRules:
    """Reads the claims of a token in which a proxy names a person (`ClaimReader`)."""

    def __init__(self, claims: ClaimRules, groups: GroupRules) -> None:
        self._claims = claims
        self._groups = groups

    def read(self, payload: bytes, now: float) -> Principal:
        """Return the principal of the person. Raises BadCredential, Forbidden."""
        valid = self._claims.read(payload, now)
        try:
            given = msgspec.json.decode(payload)
        except (msgspec.DecodeError, ValueError, RecursionError):  # in a claim that is not read
            raise BadCredential("the token's claims are not JSON") from None
        person = self._groups.read(given, now)
        return replace(
            person,
            expires=valid.expires,
            credential=valid.credential,
            issued=valid.issued,
            by_proxy=True,
        )


class PersonRules:
    """Finds the principal of a person; `assertions` verifies the tokens of a proxy."""

    def __init__(self, groups: GroupRules, assertions: Authenticator, clock: Clock) -> None:
        self._groups = groups
        self._clock = clock
        self.assertions = assertions

    def named(self, name: str, groups: Collection[str]) -> Principal:
        """Return the principal of a person whom a proxy names. Raises BadCredential, Forbidden.

        Its streams end after the longest time of a session, and may then be opened again.
        """
        now = self._clock.now() / SECOND
        person = self._groups.principal(name, groups, now)
        return replace(person, expires=now + SESSION_SECONDS, by_proxy=True)
