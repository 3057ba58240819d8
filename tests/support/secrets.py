"""The search for secrets: none may be in what a server leaves behind.

Each server of the tests is searched at its end (`server.Server`): its log, and the files of its
database. So a secret that any test sends or gets is looked for, where tests do not think of it.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

# What credentials look like: whichever test made them.
_SHAPES: Final = {
    "a token": re.compile(rb"eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,}"),
    "a token in a subprotocol": re.compile(rb"routecast\.bearer\.[\w-]{8,}"),
    "an API key": re.compile(rb"\brc_\w{8}_[\w-]{43}"),
    "a session": re.compile(rb"routecast_session=[\w-]{8,}"),
    "a private key": re.compile(rb"BEGIN [A-Z ]*PRIVATE KEY"),
}
_SETTINGS: Final = ("ROUTECAST_JWT_SECRET", "ROUTECAST_OIDC_CLIENT_SECRET")
# uvicorn by itself logs the URL of each WebSocket, in which tests send credentials by mistake.
_NOT_OURS: Final = re.compile(rb'^.* - "WebSocket /.*$', re.MULTILINE)
# Larger files are of tests about large files.
_LARGEST: Final = 2**25

_kept: set[str] = set()


def keep(secret: str) -> str:
    """Have a text that looks like nothing, such as a ticket, be searched for; return it."""
    if len(secret) >= 8:  # not the empty cookie of a person who has signed out
        _kept.add(secret)
    return secret


def found_in(where: str, text: bytes, env: Mapping[str, str]) -> list[str]:
    """Return what secrets a text contains; `env` is the environment of the server."""
    shapes = [name for name, shape in _SHAPES.items() if shape.search(text)]
    secrets = {*_kept, *(env[name] for name in _SETTINGS if name in env)}
    texts = [secret for secret in secrets if secret.encode() in text]
    return [f"{where} has {what}" for what in (*shapes, *texts)]


def found_in_files(files: Iterable[Path], env: Mapping[str, str]) -> list[str]:
    """Return what secrets some files contain; those that do not exist contain none."""
    found: list[str] = []
    for file in files:
        if file.is_file() and file.stat().st_size <= _LARGEST:
            found += found_in(file.name, _NOT_OURS.sub(b"", file.read_bytes()), env)
    return found
