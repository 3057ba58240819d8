"""Tokens on a real server: made by the command, verified with each kind of key."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jwt
import pytest

from tests.support.command import routecast
from tests.support.server import Server
from tests.support.tokens import (
    ALGORITHMS,
    SECRET,
    encoded,
    jwk,
    private,
    private_pem,
    public_pem,
)
from tests.support.upstream import Upstream, upstream

METRICS = "/routing/metrics"


def create(*words: object, env: dict[str, str] | None = None) -> str:
    """Return the token that `routecast token create` prints, and nothing else."""
    given = {**os.environ, **(env or {})}
    done = routecast("token", "create", "--subject", "ada", *words, env=given)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    token, end, rest = done.stdout.partition("\n")
    assert (end, rest) == ("\n", "")
    return token


def status(server: Server, token: str | None) -> int:
    fields = {"Authorization": f"Bearer {token}"} if token is not None else {}
    return server.http.get(METRICS, headers=fields).status_code


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with private keys, and one file with their public keys."""
    folder = tmp_path_factory.mktemp("keys")
    for algorithm in ALGORITHMS[1:]:
        (folder / algorithm).write_text(private_pem(private(algorithm)))
        (folder / f"{algorithm}-other").write_text(private_pem(private(algorithm, 1)))
    (folder / "public.pem").write_text(
        "".join(public_pem(private(algorithm)) for algorithm in ALGORITHMS[1:])
    )
    return folder


@pytest.fixture(scope="module")
def provider() -> Iterator[Upstream]:
    """An identity provider that publishes another Ed25519 key."""
    with upstream() as site:
        body = json.dumps({"keys": [jwk("EdDSA", "one", 2)]}).encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        site.answer = lambda _: head + body
        yield site


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, keys: Path, provider: Upstream
) -> Iterator[Server]:
    """A server with keys of all kinds, reachable from other machines."""
    env = {
        "ROUTECAST_JWT_SECRET": SECRET,
        "ROUTECAST_JWT_PUBLIC_KEY": str(keys / "public.pem"),
        "ROUTECAST_JWKS_URL": f"http://127.0.0.1:{provider.port}/jwks.json",
        "ROUTECAST_JWT_AUDIENCE": "routecast",
    }
    folder = tmp_path_factory.mktemp("server")
    with Server(folder, "--host", "0.0.0.0", env=env) as running:
        yield running


AUDIENCE = {"ROUTECAST_JWT_AUDIENCE": "routecast"}


def test_a_token_of_each_kind_of_key(server: Server, keys: Path) -> None:
    """The command signs what the server verifies; another key of the kind does not count."""
    assert status(server, None) == 401
    assert status(server, create(env=AUDIENCE | {"ROUTECAST_JWT_SECRET": SECRET})) == 200
    assert status(server, create(env=AUDIENCE | {"ROUTECAST_JWT_SECRET": SECRET + "!"})) == 401
    for algorithm in ALGORITHMS[1:]:
        assert status(server, create("--key", keys / algorithm, env=AUDIENCE)) == 200
        assert status(server, create("--key", keys / f"{algorithm}-other", env=AUDIENCE)) == 401
    assert status(server, create("--key", keys / "EdDSA")) == 401  # without the audience


def test_a_token_of_the_identity_provider(server: Server) -> None:
    """Its key is fetched; a token with an unknown key id is refused."""
    claims = {"sub": "ada", "scope": "read", "aud": "routecast", "exp": 4_000_000_000}
    key = private("EdDSA", 2)
    assert status(server, jwt.encode(claims, key, "EdDSA", headers={"kid": "one"})) == 200
    assert status(server, jwt.encode(claims, key, "EdDSA", headers={"kid": "two"})) == 401
    assert status(server, jwt.encode(claims, private("EdDSA", 3), "EdDSA")) == 401


def test_what_the_command_puts_into_a_token() -> None:
    """Scopes and projects may be repeated; each token has an id by which it can be revoked."""
    env = {"ROUTECAST_JWT_SECRET": SECRET, "ROUTECAST_JWT_ISSUER": "here"}
    words = ("--scope", "write", "--scope", "read decisions", "--project", "a", "--project", "b")
    tokens = [create(*words, "--lifetime", "15m", env=env) for _ in range(2)]
    first, second = (jwt.decode(one, SECRET, ["HS256"], issuer="here") for one in tokens)
    assert first["sub"] == "ada"
    assert first["scope"] == "read decisions write"
    assert first["projects"] == ["a", "b"]
    assert first["exp"] - first["iat"] == 900
    assert first["jti"] != second["jti"]
    plain = jwt.decode(create(env=env), SECRET, ["HS256"], issuer="here")
    assert (plain["scope"], plain["projects"]) == ("read", ["*"])
    assert plain["exp"] - plain["iat"] == 3_600


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--scope", "everything"], "'everything' is not one of read, decisions, write, admin"),
        (["--lifetime", "soon"], "lifetime"),
        (["--lifetime", "0h"], "lifetime"),
        (["--lifetime", "9999999d"], "exp|lifetime"),
        (["--project", "a\nb"], "projects"),
        (["--project", "x" * 65], "projects"),
        (["--subject", ""], "sub"),
        (["--subject", "x" * 256], "sub"),
        (["--key", "/no/such/key.pem"], "No such file"),
    ],
)
def test_a_token_that_servers_would_refuse_is_not_made(words: list[str], message: str) -> None:
    """One line says why; nothing is printed that could be taken for a token."""
    env = {**os.environ, "ROUTECAST_JWT_SECRET": SECRET}
    done = routecast("token", "create", "--subject", "ada", *words, env=env)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert any(part in done.stderr for part in message.split("|")), done.stderr
    assert SECRET not in done.stderr
    assert "Traceback" not in done.stderr


def test_without_a_key_there_is_nothing_to_sign_with() -> None:
    """The line names what to set."""
    done = routecast("token", "create", "--subject", "ada")
    assert (done.returncode, done.stdout) == (2, "")
    assert "ROUTECAST_JWT_SECRET" in done.stderr


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("JWT_SECRET", "hunter2", "at least 32 bytes"),
        ("JWT_SECRET", "", "at least 32 bytes"),
        ("JWT_PUBLIC_KEY", "hunter2, which is no path", "No such file"),
        ("JWT_PUBLIC_KEY", "", "cannot be read"),
        ("JWT_PUBLIC_KEY", "-----BEGIN PRIVATE KEY-----x-----END PRIVATE KEY-----", "pubout"),
        ("JWKS_URL", "http://login.example/", "must begin with https"),
        ("JWKS_URL", "https://ada:hunter2@login.example/", "no password"),
    ],
)
def test_wrong_keys_are_reported_in_a_line(
    tmp_path: Path, variable: str, value: str, words: str
) -> None:
    """The line names the setting, and shows no secret."""
    env = {**os.environ, f"ROUTECAST_{variable}": value}
    done = routecast("serve", "--port", "0", env=env, cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert f"ROUTECAST_{variable}" in done.stderr
    assert words in done.stderr
    assert "hunter2" not in done.stderr
    assert "BEGIN" not in done.stderr


def test_a_server_for_others_says_what_to_set(tmp_path: Path) -> None:
    """Without a key for tokens, it does not start."""
    done = routecast("serve", "--port", "0", "--host", "0.0.0.0", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    for name in ("JWT_SECRET", "JWT_PUBLIC_KEY", "JWKS_URL"):
        assert f"ROUTECAST_{name}" in done.stderr
    assert "--insecure" in done.stderr


STARTED = """
import asyncio, sys
from routecast.server.app import create_app
from routecast.server.config import Settings
from routecast.server.engines import open_engines

async def start():
    settings = Settings(database_url=sys.argv[1], prices=False)
    app = create_app(settings, open_engines(settings))
    async with app.state.services.running():
        print(*(name for name in ("jwt", "cryptography") if name in sys.modules))

asyncio.run(start())
"""


def test_a_server_without_tokens_does_not_import_them(tmp_path: Path) -> None:
    """Its start and its memory stay as they were."""
    command = [sys.executable, "-c", STARTED, f"sqlite:///{tmp_path}/routecast.db"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == ("", 0), done.stderr
    env = {**os.environ, "ROUTECAST_JWT_SECRET": SECRET}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.stdout.split() == ["jwt", "cryptography"], done.stderr


def test_a_secret_does_not_get_into_the_log(server: Server) -> None:
    """Neither a key nor a token does."""
    log = server.log.read_text()
    assert SECRET not in log
    assert encoded({"sub": "ada"})[:8] not in log
