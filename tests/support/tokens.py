"""Keys and tokens for tests: good ones, and the ones that attackers make."""

import json
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from functools import cache
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from tests.support.decisions import NOW

SECRET = "a secret for tests, of more than 32 bytes"
# The moment of the held clock, in seconds.
SECOND = NOW // 10**6
ALGORITHMS = ("HS256", "RS256", "ES256", "EdDSA")


def private(algorithm: str, number: int = 0) -> Any:
    """Return a private key, or the secret; another one for each number."""
    return _made(algorithm, number)


@cache
def _made(algorithm: str, number: int) -> Any:
    if algorithm == "HS256":
        return f"{SECRET} {number}" if number else SECRET
    if algorithm == "RS256":
        return rsa.generate_private_key(65_537, 2_048)
    if algorithm == "ES256":
        return ec.generate_private_key(ec.SECP256R1())
    return ed25519.Ed25519PrivateKey.generate()


def public_pem(key: Any) -> str:
    """Return the public key of a private key as PEM."""
    info = PublicFormat.SubjectPublicKeyInfo
    pem: bytes = key.public_key().public_bytes(Encoding.PEM, info)
    return pem.decode()


def private_pem(key: Any) -> str:
    """Return a private key as PEM."""
    pem: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return pem.decode()


def jwk(algorithm: str, kid: str, number: int = 0, **members: object) -> dict[str, Any]:
    """Return the public key of a private key as an entry of a JWK set."""
    key = private(algorithm, number).public_key()
    entry = jwt.get_algorithm_by_name(algorithm).to_jwk(key, as_dict=True)
    return {**entry, "kid": kid, "use": "sig", **members}


def claims(**other: object) -> dict[str, Any]:
    """Return claims that are valid for an hour of the held clock; None removes one."""
    given = {"sub": "ada", "scope": "read", "exp": SECOND + 3_600, **other}
    return {name: value for name, value in given.items() if value is not None}


def token(
    algorithm: str = "HS256", *, number: int = 0, header: Mapping[str, Any] = {}, **other: object
) -> str:
    """Return a token; `other` are claims."""
    key = private(algorithm, number)
    return jwt.encode(claims(**other), key, algorithm, headers=dict(header))


def encoded(part: object) -> str:
    """Return a part of a token: bytes as they are, or an object as JSON."""
    data = part if isinstance(part, bytes) else json.dumps(part).encode()
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def forged(header: object, payload: object, sign: Any = lambda _: b"") -> str:
    """Return a token made by hand; `sign` returns the signature of its first two parts."""
    signed = f"{encoded(header)}.{encoded(payload)}"
    return f"{signed}.{encoded(sign(signed.encode()))}"
