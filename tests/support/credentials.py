"""Tokens as an identity provider makes them, by a library of others, for servers with `SIGNED`."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import jwt

from tests.support.server import Edge, Server

SECRET: Final = "a secret of these tests that has more than 32 bytes"
# The setting with which a server accepts these tokens.
SIGNED: Final = {"ROUTECAST_JWT_SECRET": SECRET}


def token(*scopes: str, seconds: int = 3600, **claims: Any) -> str:
    """Return a token with these scopes that expires after `seconds`."""
    expires = int(time.time()) + seconds
    return jwt.encode(
        {"sub": "ann", "scope": " ".join(scopes), "exp": expires, **claims}, SECRET, "HS256"
    )


def bearer(text: str) -> dict[str, str]:
    """Return the header that sends a token or an API key."""
    return {"Authorization": f"Bearer {text}"}


@contextmanager
def signed_server(folder: Path, edge: Edge) -> Iterator[Server]:
    """Run a server that takes tokens, with a decision of each of two projects; we may do all."""
    with Server(folder, env=SIGNED, edge=edge) as running:
        running.http.headers.update(bearer(token("read", "write", "admin")))
        running.post({"strategy": "s", "provider": "p", "project": "ours"})
        running.post({"strategy": "s", "provider": "p", "project": "theirs"})
        yield running
