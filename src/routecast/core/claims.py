"""Claims: what a verified token says about its bearer (RFC 7519), read without trust in their form.

The signature proves the author of the claims. It does not say that they are well formed.
"""

from dataclasses import dataclass
from typing import Annotated, Final

import msgspec
from msgspec import UNSET, UnsetType

from routecast.core.access import ALL_PROJECTS, Principal, Scope
from routecast.core.texts import is_allowed, spelling
from routecast.errors import BadCredential
from routecast.protocol import MAX_NAME

# Characters of a token. Proxies commonly accept header fields of 8 KiB, some of 16 KiB.
MAX_TOKEN: Final = 16_384
MAX_SUBJECT: Final = 255
MAX_TOKEN_ID: Final = 255
MAX_TOKEN_PROJECTS: Final = 1_000
# By this time the clocks of this machine and of the issuer may differ, in seconds.
LEEWAY: Final = 10.0
# The end of the year 9999, in seconds since 1970: the last moment that dates are written for.
LAST_SECOND: Final = 253_402_300_799

_SCOPES: Final = {str(scope): scope for scope in Scope}


class _Claims(msgspec.Struct):
    """The claims that are read; all others are ignored (RFC 7519, 4)."""

    sub: str
    exp: float
    nbf: float | UnsetType = UNSET
    iat: float | UnsetType = UNSET
    iss: str | UnsetType = UNSET
    aud: str | list[str] | UnsetType = UNSET
    jti: str = ""
    scope: str = ""
    projects: Annotated[list[str], msgspec.Meta(max_length=MAX_TOKEN_PROJECTS)] | UnsetType = UNSET


_DECODER: Final = msgspec.json.Decoder(_Claims)


@dataclass(frozen=True, slots=True)
class ClaimRules:
    """What the settings demand of all tokens.

    Attributes:
        audience: The name of this server in `aud`; None if it is not checked.
        issuer: The only issuer (`iss`) whose tokens are accepted; None if it is not checked.
    """

    audience: str | None = None
    issuer: str | None = None

    def read(self, payload: bytes, now: float) -> Principal:
        """Return the principal that the claims of a token describe.

        `payload` is the token's JSON, and `now` is in seconds since 1970. Raises BadCredential if a
        claim is missing or malformed, or says that the token is not valid here or now.
        """
        claims = _decoded(payload)
        for name, moment in (("exp", claims.exp), ("nbf", claims.nbf), ("iat", claims.iat)):
            # Also false for what is no number.
            if moment is not UNSET and not 0 <= moment <= LAST_SECOND:
                raise BadCredential(f"the token's `{name}` is not a time in seconds since 1970")
        if claims.exp + LEEWAY <= now:
            raise BadCredential("the token has expired")
        if claims.nbf is not UNSET and claims.nbf - LEEWAY > now:
            raise BadCredential("the token is not valid yet")
        if claims.iat is not UNSET and claims.iat - LEEWAY > now:
            raise BadCredential("the token was issued in the future")
        self._check_parties(claims)
        if not 0 < len(claims.sub) <= MAX_SUBJECT or not is_allowed(claims.sub):
            raise BadCredential(
                f"the token's `sub` must be 1 to {MAX_SUBJECT} characters, none of them invisible"
            )
        if len(claims.jti) > MAX_TOKEN_ID or not is_allowed(claims.jti):
            raise BadCredential(
                f"the token's `jti` must be up to {MAX_TOKEN_ID} characters, none of them invisible"
            )
        return Principal(
            subject=claims.sub,
            scopes=frozenset(_SCOPES[name] for name in claims.scope.split() if name in _SCOPES),
            projects=_projects(claims.projects),
            expires=claims.exp,
            credential=claims.jti,
            issued=None if claims.iat is UNSET else claims.iat,
        )

    def _check_parties(self, claims: _Claims) -> None:
        if self.issuer is not None and claims.iss != self.issuer:
            raise BadCredential("the token is from another issuer (`iss`)")
        if self.audience is not None:
            named = claims.aud if isinstance(claims.aud, list) else [claims.aud]
            if self.audience not in named:
                raise BadCredential("the token is for another audience (`aud`)")


def _decoded(payload: bytes) -> _Claims:
    try:
        return _DECODER.decode(payload)
    except msgspec.ValidationError as error:
        # Its text has the names of claims and of types, and nothing that the token contains.
        raise BadCredential(f"the token's claims are not as they must be: {error}") from None
    except (msgspec.DecodeError, ValueError, RecursionError):
        raise BadCredential("the token's claims are not JSON") from None


def _projects(names: list[str] | UnsetType) -> frozenset[str] | None:
    """Return the projects that a token names; None for all of them, which is also the default."""
    if names is UNSET or ALL_PROJECTS in names:
        return None
    for name in names:
        if not 0 < len(name) <= MAX_NAME or not is_allowed(name):
            raise BadCredential(
                f"the token's `projects` must be names of 1 to {MAX_NAME} characters"
            )
    return frozenset(map(spelling, names))
