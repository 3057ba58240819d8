"""API keys and revocations on real servers: `routecast keys` and `routecast token revoke`."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.support.command import routecast
from tests.support.credentials import SIGNED, bearer, token
from tests.support.postgres import Postgres
from tests.support.redis import RedisServer
from tests.support.server import Server
from tests.support.waiting import until

PATIENCE = 180.0  # seconds, of a machine with other work
KEY = re.compile(r"rc_([0-9A-Za-z]{8})_[0-9A-Za-z]{43}\n")
DECISION = {"strategy": "hybrid", "provider": "gemini", "project": "search"}
METRICS = "/routing/metrics?fields=total_decisions"


def run(server: Server | str, *words: object) -> str:
    """Run a command on a database; return what it prints on standard output."""
    url = server if isinstance(server, str) else server.database_url
    done = routecast(*words, "--database", url, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return done.stdout


def new_key(server: Server | str, name: str, *words: object) -> str:
    """Create a key, with all scopes unless `words` name some."""
    scopes = () if "--scope" in words else ("--scope", "read write admin")
    return run(server, "keys", "create", "--name", name, *scopes, *words).strip()


def listed(server: Server | str) -> dict[str, dict[str, Any]]:
    """Return the stored keys by name; of several the last."""
    found = json.loads(run(server, "keys", "list", "--json"))["keys"]
    return {one["name"]: one for one in found}


def stored(server: Server) -> dict[str, dict[str, Any]]:
    """Return the stored keys by name, without their last use."""
    found = listed(server)
    return {name: {**one, "last_used": None} for name, one in found.items()}


def status(server: Server, key: str | None, path: str = METRICS) -> int:
    """Return the status of the answer to a request with a key, or without a credential."""
    return server.http.get(path, headers=bearer(key) if key else {}).status_code


def becomes(server: Server, key: str | None, expected: int) -> None:
    """Wait until requests with a key are answered with a status."""
    until(lambda: status(server, key) == expected)


class Watched:
    """A stream that is read, and the code that it was closed with; None while it is open."""

    def __init__(self, socket: ClientConnection) -> None:
        self.code: int | None = None
        self._socket = socket
        socket.recv()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        try:
            while True:
                self._socket.recv()
        except ConnectionClosed as closed:
            self.code = closed.rcvd.code if closed.rcvd else 1006


@contextmanager
def watching(server: Server, key: str | None) -> Iterator[Watched]:
    """A stream that is open at first."""
    headers = bearer(key) if key else {}
    with connect(f"{server.ws_url}?interval=0.1", additional_headers=headers) as socket:
        yield Watched(socket)


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, str]]:
    """A server that accepts keys only, and one of them."""
    folder = tmp_path_factory.mktemp("keyed")
    # The first key may be created before the first start, which makes the database.
    key = new_key(f"sqlite:///{folder / 'routecast.db'}", "tests")
    with Server(folder) as running:
        assert status(running, None) == 401
        assert status(running, key) == 200
        yield running, key


# -- keys ---------------------------------------------------------------------------------------


def test_first_key_turns_authentication_on(server: Server) -> None:
    """From then on nobody is served without one, not even on a stream that was open before."""
    server.post(DECISION)
    with watching(server, None) as stream:
        done = routecast(
            *("keys", "create", "--name", "first", "--scope", "read", "--scope", "write"),
            *("--database", server.database_url),
        )
        assert KEY.fullmatch(done.stdout)
        assert "authentication is on" in done.stderr
        key = done.stdout.strip()
        assert key not in done.stderr
        becomes(server, key, 200)
        becomes(server, None, 401)
        until(lambda: stream.code == 4401)
    assert server.http.post("/v1/decisions", json=DECISION).status_code == 401
    sent = server.http.post("/v1/decisions", json=DECISION, headers=bearer(key))
    assert sent.json()["accepted"] == 1
    assert server.http.get("/ready").status_code == 200
    server.stop()
    server.start()
    assert status(server, None) == 401
    assert status(server, key) == 200


def test_key_is_shown_once(keyed: tuple[Server, str]) -> None:
    """Neither the database, the log nor any later output has it."""
    server, key = keyed
    for word in ("list", "list --json"):
        assert key not in run(server, "keys", *word.split())
    secret = key.rpartition("_")[2].encode()
    for file in server.database.parent.iterdir():
        assert secret not in file.read_bytes(), file


def test_key_allows_what_it_was_made_for(keyed: tuple[Server, str]) -> None:
    """It has its scopes and projects; one with an end says so."""
    server, _ = keyed
    key = new_key(
        *(server, "producer", "--scope", "write", "--project", "search", "--project", "mail"),
        *("--expires", "90d"),
    )
    becomes(server, key, 403)
    sent = server.http.post("/v1/decisions", json=DECISION, headers=bearer(key))
    assert sent.status_code == 200
    assert sent.json()["accepted"] == 1
    other = {**DECISION, "project": "other"}
    refused = server.http.post("/v1/decisions", json=[other], headers=bearer(key))
    assert refused.json()["rejected_count"] == 1
    shown = listed(server)["producer"]
    assert (shown["scopes"], shown["projects"]) == (["write"], ["mail", "search"])
    assert (shown["state"], shown["id"]) == ("active", key[3:11])
    assert shown["expires"] > shown["created"]
    until(lambda: listed(server)["producer"]["last_used"])
    table = run(server, "keys", "list")
    assert re.search(rf"{shown['id']}.*\bactive\b", table)


def test_revoked_key_ends_its_streams(keyed: tuple[Server, str]) -> None:
    """Those of other keys go on."""
    server, key = keyed
    lost = new_key(server, "lost")
    becomes(server, lost, 200)
    with watching(server, lost) as ended, watching(server, key) as stays:
        assert "is revoked" in run(server, "keys", "revoke", "lost")
        until(lambda: ended.code == 4401)
        assert status(server, lost) == 401
        assert stays.code is None
    assert listed(server)["lost"]["state"] == "revoked"
    answer = server.http.get(METRICS, headers=bearer(lost))
    assert "was revoked" in answer.text
    assert lost not in answer.text


def test_rotated_key_is_accepted_during_the_overlap(keyed: tuple[Server, str]) -> None:
    """Then it is refused, and its streams end."""
    server, _ = keyed
    old = new_key(server, "rotated", "--scope", "read", "--project", "search")
    becomes(server, old, 200)
    with watching(server, old) as stream:
        new = run(server, "keys", "rotate", "rotated", "--overlap", "1h").strip()
        becomes(server, new, 200)
        assert status(server, old) == 200
        assert stream.code is None
        assert (listed(server)["rotated"]["projects"], len(new)) == (["search"], len(old))
        again = run(server, "keys", "rotate", new[3:11], "--overlap", "1s").strip()
        becomes(server, new, 401)
        assert status(server, again) == 200
        assert status(server, old) == 200
        run(server, "keys", "revoke", old[3:11])
        until(lambda: stream.code == 4401)


def test_keys_of_the_past_can_be_deleted(server: Server) -> None:
    """With the last one, authentication is off."""
    first, second = (new_key(server, name) for name in ("first", "second"))
    run(server, "keys", "revoke", "first")
    assert "1 keys are deleted" in run(server, "keys", "delete", "--ended")
    assert list(listed(server)) == ["second"]
    becomes(server, second, 200)
    assert status(server, first) == 401
    run(server, "keys", "revoke", "second")
    becomes(server, second, 401)
    asked = routecast("keys", "delete", "second", "--database", server.database_url, input="n\n")
    assert (asked.returncode, list(listed(server))) == (1, ["second"])
    run(server, "keys", "delete", "second", "--yes")
    becomes(server, None, 200)


def test_backup_brings_keys_back(server: Server, tmp_path: Path) -> None:
    """Also one that was revoked since."""
    key = new_key(server, "old")
    run(server, "backup", tmp_path / "backup")
    run(server, "keys", "revoke", "old")
    becomes(server, key, 401)
    server.stop()
    run(server, "restore", tmp_path / "backup")
    server.start()
    assert status(server, key) == 200
    assert "Rollups equal" in run(server, "verify")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("create --name a --scope fly", "scope: 'fly' is not one of read"),
        ("create --name a --scope read --expires soon", "expires: must be like 12h"),
        ("create --name a --scope read --expires 2020-01-01T00:00:00Z", "must be in the future"),
        ("create --name tests --scope read", "is active under the name `tests`"),
        ("create --name= --scope read", "name: must have 1 to 255 characters"),
        ("create --name a --scope read --project=", "project: must have 1 to 64 characters"),
        ("revoke nobody", "there is no key nobody"),
        ("rotate nobody", "there is no key nobody"),
        ("rotate tests --overlap 1x", "overlap: must be like"),
        ("delete tests", "is active: revoke it first"),
        ("delete", "name the keys to delete, or give --ended"),
    ],
)
def test_each_refusal_is_one_line(keyed: tuple[Server, str], words: str, reason: str) -> None:
    """The exit code is 2, and nothing changes but uses, which the server notes in its own time."""
    server, _ = keyed
    before = stored(server)
    done = routecast("keys", *words.split(" "), "--database", server.database_url)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert reason in done.stderr
    assert stored(server) == before


# -- revocations --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that accepts tokens."""
    with Server(tmp_path_factory.mktemp("signed"), env=SIGNED) as running:
        yield running


def test_tokens_are_revoked(signed: Server) -> None:
    """One token, those of a subject, or those issued before a moment; streams end."""
    one = token("read", sub="bob", jti="one")
    two = token("read", sub="bob", jti="two")
    other = token("read", sub="cleo", jti="three")
    with watching(signed, one) as ended, watching(signed, two) as stays:
        assert "revoked" in run(signed, "token", "revoke", "--jti", "one")
        until(lambda: ended.code == 4401)
        assert status(signed, one) == 401
        assert stays.code is None
        run(signed, "token", "revoke", "--subject", "bob", "--until", "1h")
        until(lambda: stays.code == 4401)
    assert [status(signed, each) for each in (two, other)] == [401, 200]
    signed.stop()
    signed.start()
    assert [status(signed, each) for each in (one, two, other)] == [401, 401, 200]
    run(signed, "token", "allow", "--subject", "bob")
    becomes(signed, two, 200)
    assert status(signed, one) == 401


def test_tokens_issued_before_a_moment_are_revoked(signed: Server) -> None:
    """Those issued later are accepted, and those that do not say when are not."""
    moment = 1_700_000_000
    old = token("read", sub="dora", iat=moment - 1)
    new = token("read", sub="dora", iat=moment)
    unknown = token("read", sub="dora")
    run(signed, "token", "revoke", "--subject", "dora", "--issued-before", "2023-11-14T22:13:20Z")
    becomes(signed, old, 401)
    assert [status(signed, each) for each in (new, unknown)] == [200, 401]
    run(signed, "token", "revoke", "--issued-before", "now")
    becomes(signed, new, 401)
    found = json.loads(run(signed, "token", "revocations", "--json"))["revocations"]
    kinds = [(one["jti"], one["subject"], one["until"]) for one in found]
    assert kinds[-2:] == [(None, "dora", None), (None, None, None)]
    assert "Tokens of dora issued before 2023-11-14T22:13:20Z" in run(
        signed, "token", "revocations"
    ).replace("\n", " ")
    run(signed, "token", "allow", "--everyone")
    becomes(signed, new, 200)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("revoke", "say which tokens"),
        ("revoke --jti a --subject b", "--jti names one token"),
        ("revoke --issued-before 2099-01-01T00:00:00Z", "not in the future"),
        ("revoke --subject a --until yesterday", "until: must be like"),
        ("allow --subject nobody", "no such tokens are revoked"),
        ("allow --jti a --everyone", "give one of"),
    ],
)
def test_each_refused_revocation_is_one_line(signed: Server, words: str, reason: str) -> None:
    """The exit code is 2."""
    done = routecast("token", *words.split(), "--database", signed.database_url)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert reason in done.stderr


# -- many nodes ---------------------------------------------------------------------------------


def test_all_nodes_know_keys(postgres: Postgres, tmp_path: Path) -> None:
    """Those that only stream learn them through Redis; without it they keep what they know."""
    with RedisServer(tmp_path / "redis") as redis:
        shared: dict[str, Any] = {"database_url": postgres.create(), "redis_url": redis.url}
        key = new_key(shared["database_url"], "first")
        with (
            Server(tmp_path / "one", **shared) as one,
            Server(tmp_path / "two", **shared) as two,
            Server(tmp_path / "stream", redis_url=redis.url, role="stream") as streaming,
        ):
            nodes = one, two, streaming
            for node in nodes:
                becomes(node, key, 200)
                assert status(node, None) == 401
            second = new_key(shared["database_url"], "second")
            for node in nodes:
                becomes(node, second, 200)
            with watching(two, second) as there, watching(streaming, second) as far:
                run(shared["database_url"], "keys", "revoke", "second")
                until(lambda: there.code == far.code == 4401)
            for node in nodes:
                becomes(node, second, 401)
            redis.kill()
            for node in nodes:
                assert [status(node, each) for each in (key, second)] == [200, 401]
