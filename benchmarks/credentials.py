"""Tokens and an API key for benchmarks of authentication, and servers that ask for them."""

import dataclasses
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from benchmarks.cases import Broken
from benchmarks.servers import Running
from benchmarks.stage import Stage
from benchmarks.streams import routecast

RSA_BITS: Final = 2_048
LIFETIME_SECONDS: Final = 6 * 3_600


class Issuer:
    """Signs tokens by RS256; each one has a new RSA key."""

    def __init__(self) -> None:
        self._key = rsa.generate_private_key(public_exponent=65_537, key_size=RSA_BITS)

    @property
    def public_key(self) -> str:
        """The key that verifies the tokens, as PEM."""
        return (
            self._key.public_key()
            .public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
            .decode()
        )

    def token(
        self, number: int = 0, scope: str = "read", projects: Sequence[str] | None = None
    ) -> str:
        """Return a token; another `number` is another token."""
        now = int(time.time())
        claims: dict[str, Any] = {
            "sub": f"subject-{number}",
            "jti": str(number),
            "scope": scope,
            "iat": now,
            "exp": now + LIFETIME_SECONDS,
        }
        if projects is not None:
            claims["projects"] = list(projects)
        return jwt.encode(claims, self._key, algorithm="RS256")


class Secured:
    """A server that asks for credentials, which it has from the same document as `stage`.

    Its database is a copy, because with a key in the database authentication is on.
    """

    def __init__(self, stage: Stage, settings: Mapping[str, str] | None = None) -> None:
        self.issuer = Issuer()
        self._settings = {"ROUTECAST_JWT_PUBLIC_KEY": self.issuer.public_key, **(settings or {})}
        self._stage = dataclasses.replace(stage, database=stage.folder / "secured.db")
        with (
            closing(sqlite3.connect(stage.database)) as source,
            closing(sqlite3.connect(self._stage.database)) as copy,
        ):
            source.backup(copy)

    def __call__(self, _: Stage, interval: float) -> AbstractContextManager[Running]:
        """Run `routecast serve` with authentication: a server like those of `streams`."""
        return routecast(self._stage, interval, self._settings)

    def tokens(self, count: int) -> Path:
        """Return a file of `count` different tokens with the scope `read`."""
        return self.file(f"tokens-{count}", map(self.issuer.token, range(count)))

    def key(self) -> Path:
        """Return a file of one new API key with the scope `read`."""
        command = [sys.executable, "-m", "routecast", "keys", "create", "--name", "benchmark"]
        database = f"sqlite:///{self._stage.database}"
        options = ["--scope", "read", "--database", database]
        done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
        if done.returncode:
            raise Broken(f"no key was created:\n{done.stderr.strip()}")
        return self.file("key", [done.stdout.split()[-1]])

    def file(self, name: str, credentials: Iterator[str] | Sequence[str]) -> Path:
        """Write credentials to a file, one a line, as `Subscribers` reads them; return its path."""
        path = self._stage.folder / name
        path.write_text("".join(f"{each}\n" for each in credentials))
        return path
