"""Keys that tokens are verified with, by PyJWT and cryptography (`ports.TokenVerifier`).

Each key has one algorithm, which follows from the key. A token's header only chooses among the
keys: it cannot have a key used with another algorithm (RFC 8725, 3.1).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import jwt

from routecast.errors import BadCredential, BadSettings

# Bytes of a secret: as many as HS256 makes of it (RFC 7518, 3.2).
MIN_SECRET: Final = 32


@dataclass(frozen=True, slots=True)
class TokenKey:
    """A key, and the only algorithm that it is used with. `kid` is its id in a set of keys."""

    algorithm: str
    key: Any = field(repr=False)
    kid: str | None = None


def secret_key(secret: str) -> TokenKey:
    """Return the key for HS256 that a secret is. Raises BadSettings."""
    key = secret.encode("utf-8", "surrogateescape")
    if len(key) < MIN_SECRET:
        raise BadSettings(
            f"jwt_secret (ROUTECAST_JWT_SECRET): must be at least {MIN_SECRET} bytes, as from "
            "`openssl rand -base64 48`"
        )
    return TokenKey("HS256", key)


class JwtVerifier:
    """Verifies tokens with the keys of the settings."""

    def __init__(self, keys: Sequence[TokenKey]) -> None:
        self._keys = tuple(keys)
        self._jws = jwt.PyJWS(algorithms=["HS256"])

    @property
    def fetches(self) -> bool:
        return False

    def verify(self, token: str) -> bytes | None:
        for key in self._keys:
            try:
                payload: bytes = self._jws.decode(token, key.key, algorithms=[key.algorithm])
            except jwt.PyJWTError:
                continue
            return payload
        raise BadCredential("the token is signed with no key of this server")

    async def fetch(self) -> None:
        return
