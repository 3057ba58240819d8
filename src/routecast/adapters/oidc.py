"""An OpenID Connect provider: signing in by the authorization code with PKCE, with Authlib.

Authlib makes the requests and checks the claims of ID tokens. Their signatures are verified with
the keys that tokens are verified with (`jwt_keys.py`), and answers are fetched within limits of
time and size (`jwks.py`).
"""

import asyncio
import time
from base64 import urlsafe_b64decode
from collections.abc import Mapping
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit
from urllib.request import Request

import msgspec
from authlib.oauth2.auth import ClientAuth
from authlib.oauth2.rfc6749.parameters import prepare_grant_uri, prepare_token_request
from authlib.oauth2.rfc7636 import create_s256_code_challenge
from authlib.oidc.core import CodeIDToken
from joserfc.errors import JoseError

from routecast.adapters.jwks import (
    JWKS_SECONDS,
    BadAnswer,
    Download,
    Downloads,
    JwkSet,
    is_loopback,
)
from routecast.adapters.jwt_keys import JwtVerifier
from routecast.core.claims import LEEWAY
from routecast.errors import BadCredential, BadSettings, Unavailable
from routecast.ports import SignInAttempt

# What the provider says about itself is read again after this time, in seconds.
DISCOVERY_SECONDS: Final = 3_600.0
# Codes that are redeemed at once. Anyone can send some, and each takes a thread of this node and a
# request of the provider; the others wait, for at most JWKS_SECONDS.
MAX_REDEEMED: Final = 2
# Codes that wait for their turn.
MAX_WAITING_CODES: Final = 64
_DISCOVERY_PATH: Final = "/.well-known/openid-configuration"
T = TypeVar("T")
_FORM_TYPE: Final = {"Content-Type": "application/x-www-form-urlencoded"}


class _Discovery(msgspec.Struct):
    """What is needed of a provider's description (OpenID Connect Discovery, 3)."""

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    userinfo_endpoint: str = ""
    token_endpoint_auth_methods_supported: tuple[str, ...] = ()


class _Tokens(msgspec.Struct):
    id_token: str
    access_token: str = ""


class OidcProvider:
    """Signs people in at a provider (`ports.IdentityProvider`). Raises BadSettings.

    `needed` is a claim that is asked for at the provider's user info if the ID token has none.
    """

    def __init__(
        self, issuer: str, client_id: str, secret: str | None, *, scopes: str, needed: str
    ) -> None:
        self._issuer = issuer
        self._client_id = client_id
        self._secret = secret
        self._scopes = scopes
        self._needed = needed
        try:
            _require_safe(issuer)
        except ValueError as error:
            raise BadSettings(f"oidc_issuer (ROUTECAST_OIDC_ISSUER) {issuer!r}: {error}") from None
        self._known: tuple[float, _Discovery, JwtVerifier] | None = None
        # It reads what the provider says about itself; all who need that wait for it.
        self._reading: asyncio.Task[tuple[_Discovery, JwtVerifier]] | None = None
        self._turns = asyncio.Semaphore(MAX_REDEEMED)
        # A code that is given up may keep its thread, so codes have no more threads than turns.
        self._code_downloads = Downloads(MAX_REDEEMED)
        self._discovery_downloads = Downloads(1)
        self._waiting = 0

    async def address(self, attempt: SignInAttempt) -> str:
        discovery, _ = await self._discover()
        challenge = create_s256_code_challenge(  # type: ignore[no-untyped-call]  # -- untyped stub
            attempt.verifier
        )
        address: str = prepare_grant_uri(
            discovery.authorization_endpoint,
            client_id=self._client_id,
            response_type="code",
            redirect_uri=attempt.redirect,
            scope=self._scopes,
            state=attempt.state,
            nonce=attempt.nonce,
            code_challenge=challenge,
            code_challenge_method="S256",
        )
        return address

    async def claims(self, attempt: SignInAttempt, code: str) -> Mapping[str, Any]:
        await self._take_turn()
        try:
            return await self._claims(attempt, code)
        finally:
            self._turns.release()

    async def _take_turn(self) -> None:
        """Return when a code may be redeemed. Raises Unavailable if others take too long."""
        if self._waiting >= MAX_WAITING_CODES:
            raise Unavailable("too many people sign in by the identity provider at once")
        self._waiting += 1
        try:
            async with asyncio.timeout(JWKS_SECONDS):
                await self._turns.acquire()
        except TimeoutError:
            raise Unavailable("others sign in by the identity provider, which is slow") from None
        finally:
            self._waiting -= 1

    async def _claims(self, attempt: SignInAttempt, code: str) -> Mapping[str, Any]:
        discovery, keys = await self._discover()
        tokens = await self._redeem(discovery, attempt, code)
        claims = await self._verified(tokens, attempt, keys)
        if self._needed not in claims and discovery.userinfo_endpoint and tokens.access_token:
            return {**await self._user_info(discovery, tokens, claims["sub"]), **claims}
        return claims

    async def _redeem(self, discovery: _Discovery, attempt: SignInAttempt, code: str) -> _Tokens:
        """Return the tokens for a code. Raises BadCredential, Unavailable."""
        body = prepare_token_request(
            "authorization_code",
            redirect_uri=attempt.redirect,
            code=code,
            code_verifier=attempt.verifier,
        )
        methods = discovery.token_endpoint_auth_methods_supported
        method = "none"
        if self._secret is not None:
            # The other one reads a secret with special characters in more than one way.
            post = "client_secret_post"
            method = post if post in methods else "client_secret_basic"
        auth = ClientAuth(self._client_id, self._secret, method)
        url, headers, body = auth.prepare(  # type: ignore[no-untyped-call]  # -- untyped stub
            "POST", discovery.token_endpoint, dict(_FORM_TYPE), body
        )
        try:
            answer = await _ask(self._code_downloads, url, headers, body.encode())
        except BadAnswer as error:
            if error.status is not None and 400 <= error.status < 500:
                raise BadCredential("the identity provider does not accept the code") from None
            raise Unavailable(f"the identity provider: {error}") from None
        return _decoded(answer, _Tokens)

    async def _verified(
        self, tokens: _Tokens, attempt: SignInAttempt, keys: JwtVerifier
    ) -> dict[str, Any]:
        """Return the claims of an ID token that is for us, and for this attempt."""
        payload = keys.verify(tokens.id_token)
        if payload is None:
            await keys.fetch()
            payload = keys.verify(tokens.id_token)
        if payload is None:
            raise BadCredential("the ID token is signed with a key that is not known")
        claims = _decoded(payload, dict[str, Any])
        options = {
            "iss": {"essential": True, "value": self._issuer},
            "aud": {"essential": True, "value": self._client_id},
        }
        expected = {
            "nonce": attempt.nonce,
            "client_id": self._client_id,
            "access_token": tokens.access_token,
        }
        try:
            CodeIDToken(claims, _header_of(tokens.id_token), options, expected).validate(
                leeway=int(LEEWAY)
            )
        except (JoseError, ValueError, TypeError) as error:
            raise BadCredential(f"the ID token is not valid: {type(error).__name__}") from None
        return claims

    async def _user_info(
        self, discovery: _Discovery, tokens: _Tokens, subject: object
    ) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {tokens.access_token}"}
        try:
            answer = await _ask(self._code_downloads, discovery.userinfo_endpoint, headers)
        except BadAnswer as error:
            raise Unavailable(f"the identity provider: {error}") from None
        info = _decoded(answer, dict[str, Any])
        if info.get("sub") != subject:  # OpenID Connect Core, 5.3.2
            raise BadCredential("the identity provider answers about another person")
        return info

    async def _discover(self) -> tuple[_Discovery, JwtVerifier]:
        """Return what the provider says about itself, and its keys. Raises Unavailable."""
        if self._known is not None and time.monotonic() < self._known[0]:
            return self._known[1:]
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read_discovery())
            self._reading.add_done_callback(_take_error)
        return await asyncio.shield(self._reading)  # it is for all who wait

    async def _read_discovery(self) -> tuple[_Discovery, JwtVerifier]:
        now = time.monotonic()
        try:
            url = self._issuer.rstrip("/") + _DISCOVERY_PATH
            answer = await _ask(self._discovery_downloads, url, {})
            found = _decoded(answer, _Discovery)
            if found.issuer != self._issuer:
                raise BadAnswer("it names another issuer than ROUTECAST_OIDC_ISSUER")
            for url in (
                *(found.authorization_endpoint, found.token_endpoint, found.jwks_uri),
                *([found.userinfo_endpoint] if found.userinfo_endpoint else []),
            ):
                _require_safe(url)
        except (BadAnswer, BadCredential, ValueError) as error:
            if self._known is not None:  # it worked before
                return self._known[1:]
            raise Unavailable(f"the identity provider: {error}") from None
        keys = JwtVerifier([], JwkSet(found.jwks_uri).fetch)
        self._known = now + DISCOVERY_SECONDS, found, keys
        return found, keys


def _take_error(done: asyncio.Task[Any]) -> None:
    """Take the error of a task, also if all who waited for it are gone."""
    if not done.cancelled():
        done.exception()


async def _ask(
    downloads: Downloads, url: str, headers: Mapping[str, str], body: bytes | None = None
) -> bytes:
    """Return the body of an answer. Raises BadAnswer."""
    given = {"Accept": "application/json", **headers}
    request = Request(url, body, given)  # noqa: S310  -- `_require_safe` has checked it
    download = Download(request, is_loopback(urlsplit(url).hostname or ""))
    try:
        return await downloads.run(download, download.run)
    except TimeoutError:
        raise BadAnswer(f"no answer within {JWKS_SECONDS:g} s") from None


def _decoded(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise BadCredential("the answer of the identity provider cannot be read") from None


def _header_of(token: str) -> dict[str, Any]:
    """Return the header of a token that is verified."""
    part = token.partition(".")[0]
    return _decoded(urlsafe_b64decode(part + "=" * (-len(part) % 4)), dict[str, Any])


def _require_safe(url: str) -> None:
    """Raise ValueError if secrets must not be sent to a URL."""
    parts = urlsplit(url)
    local = parts.scheme == "http" and is_loopback(parts.hostname or "")
    _ = parts.port  # raises ValueError for a port over 65535
    if not parts.hostname or "@" in parts.netloc or not url.isascii():
        raise ValueError("an address must be like https://login.example")
    if parts.scheme != "https" and not local:
        raise ValueError("an address must begin with https://")
