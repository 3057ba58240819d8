"""Keys that tokens are signed and verified with, by PyJWT and cryptography.

Each key has one algorithm, which follows from the key. A token's header only chooses among the
keys: it cannot have a key used with another algorithm (RFC 8725, 3.1).
"""

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import jwt
import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from msgspec import UNSET, Raw, UnsetType

from routecast.errors import BadCredential, BadSettings

HS256: Final = "HS256"
RS256: Final = "RS256"
ES256: Final = "ES256"
EDDSA: Final = "EdDSA"
_ALGORITHMS: Final = (HS256, RS256, ES256, EDDSA)
# Bytes of a secret, at least: the size of a hash of HS256 (RFC 7518, 3.2).
MIN_SECRET: Final = 32
# Bits of an RSA key: fewer can be broken (RFC 7518, 3.3), and more take milliseconds to verify.
MIN_RSA_BITS: Final = 2_048
MAX_RSA_BITS: Final = 8_192
# Bytes of a file with keys; an RSA key of 8,192 bits takes 1,500.
MAX_KEY_FILE: Final = 65_536
# Characters of a token's header, which are read before its signature is verified.
MAX_TOKEN_HEADER: Final = 4_096
# The types of tokens that are accepted (`typ`, without `application/`). Others are made for another
# purpose, such as signing out, even if the same issuer signs them (RFC 8725, 3.11).
_TOKEN_TYPES: Final = frozenset({"jwt", "at+jwt"})

_USED: Final = {name: jwt.get_algorithm_by_name(name) for name in _ALGORITHMS}
_BASE64URL_PART: Final = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
_PEM: Final = re.compile(r"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", re.DOTALL)
_KEY_KINDS: Final = "an RSA key of 2,048 to 8,192 bits, a P-256 key or an Ed25519 key"


@dataclass(frozen=True, slots=True)
class TokenKey:
    """A key, and the only algorithm that it is used with. `kid` is its id in a set of keys."""

    algorithm: str
    key: Any = field(repr=False)
    kid: str | None = None


def secret_key(secret: str) -> TokenKey:
    """Return the key for HS256 that a secret is. Raises BadSettings."""
    setting, key = "jwt_secret (ROUTECAST_JWT_SECRET)", secret.encode("utf-8", "surrogateescape")
    if len(key) < MIN_SECRET:
        raise BadSettings(
            f"{setting}: must be at least {MIN_SECRET} bytes, as from `openssl rand -base64 48`"
        )
    try:
        _USED[HS256].prepare_key(key)
    except jwt.InvalidKeyError:
        raise BadSettings(
            f"{setting}: is a public or private key; a public key belongs into "
            "ROUTECAST_JWT_PUBLIC_KEY"
        ) from None
    return TokenKey(HS256, key)


def public_keys(given: str) -> list[TokenKey]:
    """Return the public keys in PEM text, or in the PEM file that `given` names.

    Several keys allow for their rotation. Raises BadSettings.
    """
    setting = "jwt_public_key (ROUTECAST_JWT_PUBLIC_KEY)"
    # Some tools cannot set a variable of several lines, and write \n.
    text = given.replace("\\n", "\n") if "-----BEGIN" in given else _read(given, setting)
    keys = []
    for block in _PEM.finditer(text):
        if "PRIVATE" in block[1]:
            raise BadSettings(
                f"{setting}: is a private key, which the server must not have; make its public "
                "key with `openssl pkey -pubout`"
            )
        try:
            key = load_pem_public_key(block[0].encode())
        except (ValueError, UnsupportedAlgorithm):
            raise BadSettings(f"{setting}: cannot be read; it must be {_KEY_KINDS}") from None
        algorithm = algorithm_of(key)
        if algorithm is None:
            raise BadSettings(f"{setting}: must be {_KEY_KINDS}")
        keys.append(TokenKey(algorithm, key))
    if not keys:
        raise BadSettings(f"{setting}: has no PEM in it, which begins with -----BEGIN PUBLIC KEY")
    return keys


def private_key(path: str) -> TokenKey:
    """Return the private key in a PEM file. Raises BadSettings."""
    setting = f"key {path}"
    text = _read(path, setting)
    try:
        key = load_pem_private_key(text.encode(), password=None)
    except TypeError:
        raise BadSettings(f"{setting}: is encrypted; give a key without a password") from None
    except (ValueError, UnsupportedAlgorithm):
        raise BadSettings(f"{setting}: is not a private key in PEM") from None
    algorithm = algorithm_of(key)
    if algorithm is None:
        raise BadSettings(f"{setting}: must be {_KEY_KINDS}")
    return TokenKey(algorithm, key)


def _read(path: str, setting: str) -> str:
    try:
        with Path(path).open("rb") as file:
            return file.read(MAX_KEY_FILE).decode("latin-1")
    except (OSError, ValueError) as error:
        # A text that is no path may be a key, so it is not shown.
        reason = error.strerror if isinstance(error, OSError) else "it is no path"
        raise BadSettings(f"{setting}: the file cannot be read: {reason}") from None


def algorithm_of(key: object) -> str | None:
    """Return the algorithm that a public or private key is used with; None if it is not used."""
    if isinstance(key, RSAPublicKey | RSAPrivateKey):
        return RS256 if MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS else None
    if isinstance(key, EllipticCurvePublicKey | EllipticCurvePrivateKey):
        return ES256 if isinstance(key.curve, SECP256R1) else None
    return EDDSA if isinstance(key, Ed25519PublicKey | Ed25519PrivateKey) else None


def sign(claims: Mapping[str, object], key: TokenKey) -> str:
    """Return a token with some claims, signed with a secret or a private key."""
    return jwt.PyJWS(_ALGORITHMS).encode(
        msgspec.json.encode(claims), key.key, algorithm=key.algorithm
    )


class _Header(msgspec.Struct):
    """The header of a token. All members after `typ` are refused.

    They name a key (RFC 8725, 3.10), or change how the token must be read.
    """

    alg: str
    kid: str | UnsetType = UNSET
    typ: str = "JWT"
    crit: Raw | UnsetType = UNSET
    b64: Raw | UnsetType = UNSET
    jku: Raw | UnsetType = UNSET
    jwk: Raw | UnsetType = UNSET
    x5u: Raw | UnsetType = UNSET
    x5c: Raw | UnsetType = UNSET


_REFUSED_MEMBERS: Final = ("crit", "b64", "jku", "jwk", "x5u", "x5c")
_HEADER_DECODER: Final = msgspec.json.Decoder(_Header)


class JwtVerifier:
    """Verifies tokens with the keys of the settings, and with fetched ones (`ports.TokenVerifier`).

    `fetch_keys` returns the present keys of an identity provider; it raises Unavailable.
    """

    def __init__(
        self,
        keys: Sequence[TokenKey],
        fetch_keys: Callable[[], Awaitable[Sequence[TokenKey]]] | None = None,
    ) -> None:
        self._keys = tuple(keys)
        self._fetch_keys = fetch_keys
        self._fetched: dict[tuple[str, str | None], TokenKey] = {}

    @property
    def fetches(self) -> bool:
        return self._fetch_keys is not None

    def verify(self, token: str) -> bytes | None:
        parts = _read_token(token)
        algorithm = parts.header.alg
        if any(key.algorithm == algorithm and parts.is_signed_with(key) for key in self._keys):
            return parts.payload
        if not self.fetches or algorithm == HS256:  # no fetched key is a secret
            raise BadCredential("the token is signed with no key of this server")
        kid = None if parts.header.kid is UNSET else parts.header.kid
        known = self._fetched_key(algorithm, kid)
        if known is None:
            return None
        if not parts.is_signed_with(known):
            raise BadCredential("the token's signature is wrong")
        return parts.payload

    async def fetch(self) -> bool:
        if self._fetch_keys is None:
            return False
        fetched: dict[tuple[str, str | None], TokenKey] = {}
        for key in await self._fetch_keys():
            fetched.setdefault((key.algorithm, key.kid), key)
        changed, self._fetched = fetched != self._fetched, fetched
        return changed

    def _fetched_key(self, algorithm: str, kid: str | None) -> TokenKey | None:
        """Return the fetched key for a token; one without a key id may mean the only key."""
        if kid is not None:
            return self._fetched.get((algorithm, kid))
        fitting = [key for key in self._fetched.values() if key.algorithm == algorithm]
        return fitting[0] if len(fitting) == 1 else None


class _SignedToken:
    """The parts of a token (RFC 7515, 3.1); `signed` are the first two as they were sent."""

    __slots__ = ("_payload", "_signature", "_signed", "header")

    def __init__(self, header: _Header, signed: str, payload: str, signature: str) -> None:
        self.header = header
        self._signed = signed.encode("ascii")
        self._payload = payload
        self._signature = _decoded_part(signature, "signature")

    def is_signed_with(self, key: TokenKey) -> bool:
        """Whether a key made the signature, with the only algorithm that it is used with."""
        try:
            return _USED[key.algorithm].verify(self._signed, key.key, self._signature)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            return False

    @property
    def payload(self) -> bytes:
        """The claims as JSON. Raises BadCredential."""
        return _decoded_part(self._payload, "payload")


def _read_token(token: str) -> _SignedToken:
    """Return the parts of a token. Raises BadCredential if it cannot be read, or is refused.

    PyJWT's own function takes milliseconds for a long token, before it looks at the signature.
    """
    signed, _, signature = token.rpartition(".")
    first, _, payload = signed.partition(".")
    if not token.isascii() or "." in payload or not payload or len(first) > MAX_TOKEN_HEADER:
        raise BadCredential("this is no token: it must have three parts, with a dot between them")
    try:
        header = _HEADER_DECODER.decode(_decoded_part(first, "header"))
    except (msgspec.DecodeError, ValueError, RecursionError):
        raise BadCredential("the token's header cannot be read") from None
    if header.alg not in _ALGORITHMS:
        raise BadCredential(
            f"the token's algorithm (`alg`) must be one of {', '.join(_ALGORITHMS)}"
        )
    for member in _REFUSED_MEMBERS:
        if getattr(header, member) is not UNSET:
            raise BadCredential(f"the token's header must not have `{member}`")
    if header.typ.lower().removeprefix("application/") not in _TOKEN_TYPES:
        raise BadCredential("the token is of another type (`typ`) than JWT or at+jwt")
    return _SignedToken(header, signed, payload, signature)


def _decoded_part(part: str, name: str) -> bytes:
    """Return the bytes of a part in base64url, in its only spelling. Raises BadCredential."""
    if _BASE64URL_PART.fullmatch(part):
        try:
            data = urlsafe_b64decode(part + "=" * (-len(part) % 4))
        except ValueError:
            pass
        else:
            if urlsafe_b64encode(data).rstrip(b"=") == part.encode("ascii"):
                return data
    raise BadCredential(f"the token's {name} cannot be read")
