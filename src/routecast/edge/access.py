"""Access: whose request it is, by the credential in it; for all edges.

A credential (a token or an API key) comes as `Authorization: Bearer` (RFC 6750, 2.1). A browser
lets a page add nothing to a WebSocket but subprotocols, so there it may also be one of these:
`routecast.bearer.` and the credential in base64url. It is never accepted in a URL, because servers
and proxies log URLs, and browsers remember them.
"""

import asyncio
import re
from base64 import urlsafe_b64decode
from binascii import Error
from collections.abc import Sequence
from typing import Final
from urllib.parse import unquote_plus

from starlette.types import Scope as AsgiScope

from routecast.core.access import ANYONE, Principal
from routecast.errors import BadCredential, BadHead, CredentialInUrl, Unavailable
from routecast.services.authenticator import Authenticator

BEARER_PROTOCOL: Final = b"routecast.bearer."
# Parameters in which other servers take a credential.
CREDENTIAL_PARAMETERS: Final = frozenset({"token", "access_token", "key", "api_key"})
# Requests and handshakes whose credential is being verified elsewhere, for example because the keys
# of an identity provider are fetched; and the seconds for which each may wait.
MAX_VERIFYING: Final = 256
VERIFY_SECONDS: Final = 5.0

# The characters of a token (RFC 6750, 2.1), which are also those of API keys.
_BEARER: Final = re.compile(rb"bearer +([A-Za-z0-9._~+/-]+=*)", re.IGNORECASE)
_TOKEN: Final = re.compile(rb"[A-Za-z0-9._~+/-]+=*")
_BASE64URL: Final = re.compile(rb"[A-Za-z0-9_-]+")
_PRINCIPAL: Final = "routecast.principal"
_HOW: Final = "send a token or an API key as `Authorization: Bearer`"


class Access:
    """Tells whose request it is. Without an authenticator, authentication is off."""

    def __init__(self, authenticator: Authenticator | None = None) -> None:
        self._authenticator = authenticator
        self._verifying = 0

    @property
    def required(self) -> bool:
        """Whether authentication is on, or not known to be off."""
        return self._authenticator is not None and self._authenticator.required

    def recognise(self, credential: str | None) -> Principal | None:
        """Return whose credential it is, at once; None if `authenticate` must be awaited for that.

        Raises BadCredential, also if there is none, and Unavailable.
        """
        if self._authenticator is None:
            return ANYONE
        if credential is None:
            if not self.required:
                return ANYONE
            self._authenticator.require_known()  # otherwise the client would take it for final
            raise BadCredential(f"a credential is required: {_HOW}", invalid=False)
        return self._authenticator.recognise(credential)

    async def authenticate(self, credential: str) -> Principal:
        """Return whose credential it is, within VERIFY_SECONDS. Raises BadCredential, Unavailable.

        Cancelling it is safe.
        """
        assert self._authenticator is not None
        if self._verifying >= MAX_VERIFYING:
            raise Unavailable("too many credentials are being verified")
        self._verifying += 1
        try:
            async with asyncio.timeout(VERIFY_SECONDS):
                principal = await self._authenticator.authenticate(credential)
        except TimeoutError:
            raise Unavailable("the credential could not be verified in time") from None
        finally:
            self._verifying -= 1
        # It may have been revoked before this task had its turn.
        return self._authenticator.recognise(credential) or principal

    async def identify(self, credential: str | None) -> Principal:
        """Return whose credential it is. Raises as `recognise` does."""
        principal = self.recognise(credential)
        if principal is None:
            assert credential is not None
            principal = await self.authenticate(credential)
        return principal


def principal_of(scope: AsgiScope) -> Principal:
    """Return whose request an ASGI scope is, as `AccessControl` found it."""
    principal: Principal = scope.get(_PRINCIPAL, ANYONE)
    return principal


def with_principal(scope: AsgiScope, principal: Principal) -> AsgiScope:
    """Return an ASGI scope for `principal_of`."""
    return {**scope, _PRINCIPAL: principal}


# -- credentials in requests --------------------------------------------------------------------


def find_credential(authorization: bytes | None, bearers: Sequence[bytes] = ()) -> str | None:
    """Return the credential of a request; None if it has none.

    `authorization` is the value of that field, and `bearers` are the subprotocols of an upgrade
    that `split_bearers` found. Raises BadCredential if it is malformed, and BadHead if there are
    several: it would be unclear which one counts.
    """
    if len(bearers) + (authorization is not None) > 1:
        raise BadHead("a request must have one credential, and this one has several")
    if bearers:
        return _read_bearer(bearers[0])
    if authorization is None:
        return None
    found = _BEARER.fullmatch(authorization)
    if found is None:
        raise BadCredential(f"the field `Authorization` cannot be read: {_HOW}")
    return found[1].decode("ascii")


def split_bearers(protocols: bytes) -> tuple[bytes, list[bytes]]:
    """Return the field `Sec-WebSocket-Protocol` without credentials, and the credentials.

    The first is what may be remembered, answered and shown in errors.
    """
    if BEARER_PROTOCOL not in protocols:
        return protocols, []
    names = [name.strip() for name in protocols.split(b",")]
    kept = [name for name in names if BEARER_PROTOCOL not in name]
    return b", ".join(kept), [name for name in names if BEARER_PROTOCOL in name]


def _read_bearer(protocol: bytes) -> str:
    text = protocol.removeprefix(BEARER_PROTOCOL)
    if _BASE64URL.fullmatch(text):
        try:
            credential = urlsafe_b64decode(text + b"=" * (-len(text) % 4))
        except (Error, ValueError):
            pass
        else:
            if _TOKEN.fullmatch(credential):
                return credential.decode("ascii")
    shown = BEARER_PROTOCOL.decode()
    raise BadCredential(f"the subprotocol `{shown}` must end in a token or API key in base64url")


def refuse_in_query(query: bytes) -> None:
    """Raise CredentialInUrl if a query has a parameter for a credential."""
    for pair in query.split(b"&") if query else ():
        name = pair.partition(b"=")[0]
        if len(name) > 100:  # no name of a credential is so long, however it is written
            continue
        plain = unquote_plus(name.decode("latin-1")).strip().lower()
        if plain in CREDENTIAL_PARAMETERS:
            raise CredentialInUrl(
                plain,
                "a credential must not be in a URL, which is logged and remembered, so make a new "
                f"one; {_HOW}",
            )


def credential_of(scope: AsgiScope) -> str | None:
    """Return the credential of an ASGI request; None if it has none.

    Raises BadCredential, BadHead, and CredentialInUrl if it is in the URL.
    """
    refuse_in_query(scope["query_string"])
    authorization, bearers = None, []
    for name, value in scope["headers"]:
        if name == b"authorization":
            authorization = value
        elif name == b"sec-websocket-protocol" and scope["type"] == "websocket":
            bearers += split_bearers(value)[1]
    return find_credential(authorization, bearers)
