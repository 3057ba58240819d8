"""The search for secrets finds them, and nothing else."""

from pathlib import Path
from typing import Final

import pytest

from tests.support.credentials import SECRET, SIGNED, token
from tests.support.keys import text_of
from tests.support.secrets import found_in, found_in_files, keep

QUIET: Final = b"INFO routecast: Listening on http://127.0.0.1:8000, /sse/metrics?ticket=***"


@pytest.mark.parametrize(
    "secret",
    [
        token("read"),
        f"/metrics?x={token('read')}",
        f"routecast.bearer.{'YWJj' * 20}",
        text_of(7),
        f"Cookie: routecast_session={'x' * 43}",
        "-----BEGIN PRIVATE KEY-----",
        SECRET,
        keep("a ticket that a test keeps"),
    ],
)
def test_a_secret_is_found(secret: str, tmp_path: Path) -> None:
    """In a text, and in a file, between other bytes."""
    text = b"\0before " + secret.encode() + b" after\n"
    assert found_in("log", text, SIGNED)
    assert found_in_files([tmp_path / "none"], SIGNED) == []
    file = tmp_path / "log"
    file.write_bytes(text)
    assert found_in_files([file], SIGNED)


def test_nothing_else_is_found(tmp_path: Path) -> None:
    """Neither the id of a key nor what uvicorn by itself logs of a WebSocket."""
    assert found_in("log", QUIET + text_of(7)[:11].encode(), SIGNED) == []
    file = tmp_path / "log"
    file.write_text(f'x\nINFO: 127.0.0.1 - "WebSocket /ws/metrics?token={token()}" 400\ny')
    assert found_in_files([file], SIGNED) == []
