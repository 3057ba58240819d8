"""The authenticator: it tells from a credential who a client is.

While authentication is off, everyone is `ANYONE`. It is on as soon as a setting names a key for
tokens, or there is an API key; while it is unknown whether there is one, it counts as on.
"""

from collections import OrderedDict
from collections.abc import Callable
from hashlib import sha256
from typing import Final, Protocol

from routecast.core.access import ANYONE, Principal
from routecast.core.claims import LEEWAY, MAX_TOKEN
from routecast.core.decision import SECOND
from routecast.core.keys import KEY_PREFIX
from routecast.errors import BadCredential, Unavailable
from routecast.ports import Clock, TokenVerifier
from routecast.services.key_refresh import KeyRefresh

# Verified tokens that are remembered, so that a client that comes back costs a lookup.
MAX_VERIFIED: Final = 4_096

# Whether a principal's credential is revoked.
IsRevoked = Callable[[Principal], bool]
OnRevoked = Callable[[IsRevoked], object]


class ClaimReader(Protocol):
    """Tells whom a token's claims describe (`core.claims.ClaimRules`)."""

    def read(self, payload: bytes, now: float) -> Principal:
        """Return the principal. Raises BadCredential; Forbidden if it may do nothing here."""
        ...


class KnownKeys(Protocol):
    """API keys and revocations, as this node knows them. No method waits."""

    # They are called whenever credentials are revoked, with a predicate over principals.
    followers: list[OnRevoked]

    @property
    def required(self) -> bool:
        """Whether there is a key, or there may be one.

        Revoked and expired keys count: the end of the last key must not let everyone in.
        """
        ...

    def require_known(self) -> None:
        """Raise Unavailable if it is unknown whether there are keys."""
        ...

    def identify(self, key: str) -> Principal:
        """Return the principal of an API key. Raises BadCredential; Unavailable while unknown."""
        ...

    def check(self, principal: Principal) -> None:
        """Raise BadCredential if a token is revoked; Unavailable while revocations are unknown.

        A token's id is `credential`, and `issued` when it was issued.
        """
        ...


class Authenticator:
    """Tells who a client is. `tokens` is None without a key for tokens, `keys` without a database.

    `refresh` is needed if `tokens` fetches keys. `signs_in` is whether an identity provider or a
    proxy signs people in, which turns authentication on, too.

    `followers` are called with a predicate over principals when credentials are revoked: close the
    streams of those for which it is true.
    """

    def __init__(
        self,
        tokens: TokenVerifier | None,
        keys: KnownKeys | None,
        rules: ClaimReader,
        clock: Clock,
        refresh: KeyRefresh | None = None,
        *,
        signs_in: bool = False,
    ) -> None:
        self._tokens = tokens
        self._keys = keys
        self._rules = rules
        self._clock = clock
        self._refresh = refresh
        self._is_on = tokens is not None or signs_in  # whatever the keys are
        self._verified: OrderedDict[bytes, Principal] = OrderedDict()
        self.followers: list[OnRevoked] = []
        if keys is not None:
            keys.followers.append(self._revoked)
        if refresh is not None:
            # A key that was withdrawn may have signed any of them.
            refresh.followers.append(self._verified.clear)

    @property
    def required(self) -> bool:
        """Whether authentication is on, or not known to be off."""
        return self._is_on or (self._keys is not None and self._keys.required)

    def require_known(self) -> None:
        """Raise Unavailable if authentication only counts as on, because that is unknown."""
        if not self._is_on and self._keys is not None:
            self._keys.require_known()

    def recognise(self, credential: str) -> Principal | None:
        """Return whose credential it is, at once; None if `authenticate` must be awaited for that.

        Raises BadCredential, Unavailable.
        """
        if not self.required:
            return ANYONE
        if len(credential) > MAX_TOKEN or not credential.isascii():
            raise BadCredential(f"a credential is ASCII, and has at most {MAX_TOKEN:,} characters")
        if credential.startswith(KEY_PREFIX):
            if self._keys is None:
                raise BadCredential("this node has no database, and takes no API keys")
            return self._keys.identify(credential)
        principal = self._of_token(credential)
        if principal is not None and self._keys is not None:
            self._keys.check(principal)
        return principal

    def check(self, principal: Principal) -> None:
        """Raise BadCredential if a credential that was accepted before is not any more.

        For tickets and sessions, which stand for it. Raises Unavailable while that is unknown.
        """
        now = self._clock.now() / SECOND
        if principal.expires is not None and principal.expires + LEEWAY <= now:
            raise BadCredential("the credential has expired")
        if self._keys is not None:
            self._keys.check(principal)

    async def authenticate(self, credential: str) -> Principal:
        """Return whose credential it is. Raises BadCredential, Unavailable."""
        principal = self.recognise(credential)
        if principal is None and self._refresh is not None:
            await self._refresh.wait()
            principal = self.recognise(credential)
        if principal is None:
            raise Unavailable("the keys for tokens cannot be fetched now")
        return principal

    def _of_token(self, token: str) -> Principal | None:
        if self._tokens is None:
            self.require_known()
            raise BadCredential("this server takes API keys, and no tokens")
        now = self._clock.now() / SECOND
        # The digest and not the token, so that a copy of the memory has no tokens in it.
        digest = sha256(token.encode("ascii")).digest()
        known = self._verified.get(digest)
        if known is not None:
            assert known.expires is not None  # no token is without
            if now < known.expires:
                self._verified.move_to_end(digest)
                return known
            del self._verified[digest]
        payload = self._tokens.verify(token)
        if payload is None:
            refresh = self._refresh
            if refresh is not None and refresh.possible:
                return None
            if refresh is not None and not refresh.has_keys:
                raise Unavailable("the keys for tokens cannot be fetched now")
            raise BadCredential("the token is signed with a key that is not known")
        principal = self._rules.read(payload, now)
        self._verified[digest] = principal
        if len(self._verified) > MAX_VERIFIED:
            self._verified.popitem(last=False)
        return principal

    def _revoked(self, is_revoked: IsRevoked) -> None:
        for follower in self.followers:
            follower(is_revoked)
