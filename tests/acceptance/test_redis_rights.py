"""A Redis whose user lacks rights, or that differs from the URL: TLS, password, master."""

import re
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from routecast.adapters import redis_check
from routecast.adapters.redis_check import COMMANDS, NEEDS, RedisCheck
from routecast.errors import BadSettings
from tests.acceptance.test_redis_urls import assert_shared
from tests.support.engines import SharedRedis
from tests.support.nonsense import NonsenseServer
from tests.support.proxy import Proxy
from tests.support.redis import RedisServer, RedisWithSentinels, start_cluster
from tests.support.running_services import running, until
from tests.support.server import Server

DOCS = Path(__file__).parents[2] / "docs" / "deploy.md"


def documented(name: str = "ACL SETUSER") -> list[str]:
    """Return the documented rules of the user, with a password of the tests."""
    (line,) = re.findall(rf"^{name} (.+)$", DOCS.read_text(), re.MULTILINE)
    return str(line).replace("PASSWORD", "word").split()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as started:
        yield started


def url_of(server: RedisServer, user: str = "routecast", word: str = "word") -> str:
    return f"redis://{user}:{word}@127.0.0.1:{server.port}/0"


async def checked(url: str, prefix: str = "routecast") -> RedisCheck:
    """Return a check of Redis that found something, or that all is well."""
    check = RedisCheck(SharedRedis(url, prefix).link())
    async with running(check.run()):
        await until(lambda: check.done)
    await check.close()
    return check


async def test_documented_rules_are_enough(server: RedisServer) -> None:
    """With the line of docs/deploy.md all parts of a node work, and nothing is missing."""
    server.ask("ACL", "SETUSER", *documented())
    assert (await checked(url_of(server))).problem is None
    await assert_shared(url_of(server), "routecast")


async def test_documented_rules_are_all_needed(server: RedisServer) -> None:
    """The rules allow exactly the commands that are checked."""
    allowed = {rule[1:].upper() for rule in documented() if rule.startswith("+")}
    assert allowed == COMMANDS


async def test_documented_rules_for_a_cluster(tmp_path: Path) -> None:
    """They include the commands that a client of Redis Cluster sends by itself."""
    extra = re.findall(r"Redis Cluster: `([^`]+)`", DOCS.read_text())
    with RedisServer(tmp_path, "--cluster-enabled", "yes") as cluster:
        start_cluster(cluster)
        cluster.ask("ACL", "SETUSER", *documented(), *extra[0].split())
        url = f"redis+cluster://routecast:word@127.0.0.1:{cluster.port}"
        assert (await checked(url)).problem is None
        await assert_shared(url, "routecast")


@pytest.mark.parametrize("command", sorted(COMMANDS))
async def test_missing_command_is_named(
    server: RedisServer, caplog: pytest.LogCaptureFixture, command: str
) -> None:
    """The check names the command and what does not work; once granted, it is used."""
    user = f"without-{command}".lower()
    rules = documented()[1:]
    server.ask("ACL", "SETUSER", user, *rules, f"-{command}")
    check = await checked(url_of(server, user))
    assert check.missing == {command}
    assert check.parts == [part for part, needed in NEEDS.items() if command in needed]
    assert f"does not let this node run {command}," in (check.problem or "")
    assert "docs/deploy.md" in caplog.text


async def test_granted_command_is_noticed(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command that is granted later is used without a restart."""
    monkeypatch.setattr(redis_check, "RIGHTS_CHECK_SECONDS", 0.02)
    server.ask("ACL", "SETUSER", "later", *documented()[1:], "-xadd")
    check = RedisCheck(SharedRedis(url_of(server, "later"), "routecast").link())
    async with running(check.run()):
        await until(lambda: check.missing == {"XADD"})
        server.ask("ACL", "SETUSER", "later", "+xadd")
        await until(lambda: check.problem is None)
        assert not check.missing
    await check.close()


async def test_keys_of_another_prefix(server: RedisServer) -> None:
    """A user with rights to other keys can use no command that has a key."""
    server.ask("ACL", "SETUSER", *documented())
    check = await checked(url_of(server), "other")
    assert check.missing == COMMANDS - {"TIME"}


async def test_command_that_was_renamed(tmp_path: Path) -> None:
    """A command that a hosted service renamed counts as missing."""
    with RedisServer(tmp_path, "--rename-command", "HGETALL", "") as server:
        check = await checked(server.url)
        assert check.missing == {"HGETALL"}
        assert check.parts == ["census"]


@pytest.mark.parametrize("kind", ["redis://{}", "redis+cluster://{}", "redis+sentinel://{}/main"])
async def test_tls_that_the_url_does_not_speak(
    server: RedisServer, certificate: Path, kind: str
) -> None:
    """redis:// at a TLS port is reported as such."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    async with Proxy(server.port, context) as proxy:
        place = f"127.0.0.1:{proxy.port}"
        check = await checked(kind.format(place))
    assert f"{place} speaks TLS: write rediss://" in (check.problem or "")


@pytest.mark.parametrize("kind", ["rediss://{}", "rediss+cluster://{}", "rediss+sentinel://{}/a"])
async def test_tls_that_the_server_does_not_speak(server: RedisServer, kind: str) -> None:
    """rediss:// at a plain port is reported, though the port may never answer."""
    check = await checked(kind.format(f"127.0.0.1:{server.port}"))
    assert f"127.0.0.1:{server.port} does not speak TLS" in (check.problem or "")


async def test_certificate_of_an_unknown_authority(server: RedisServer, certificate: Path) -> None:
    """The error says what to check."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    async with Proxy(server.port, context) as proxy:
        check = await checked(f"rediss://127.0.0.1:{proxy.port}/0")
    assert "certificate verify failed" in (check.problem or "")
    assert "ssl_ca_certs" in (check.problem or "")


async def test_wrong_password(server: RedisServer) -> None:
    """The error says that the password is wrong, and does not show it."""
    server.ask("ACL", "SETUSER", *documented())
    check = await checked(url_of(server, word="wrong-word"))
    assert "check the user and the password in the URL" in (check.problem or "")
    assert "wrong-word" not in (check.problem or "")


async def test_something_else_at_the_address() -> None:
    """A server that does not answer as Redis does is reported as such."""
    async with NonsenseServer(b"+OK\r\n") as strange:
        check = await checked(f"redis://127.0.0.1:{strange.port}")
    assert "does not answer as Redis does" in (check.problem or "")


async def test_sentinels(tmp_path: Path) -> None:
    """An unknown master, a wrong password and a server that is no sentinel are reported."""
    with RedisWithSentinels(tmp_path) as redis:
        assert (await checked(redis.url)).problem is None
        unknown = await checked(redis.url.replace("/routecast/", "/main/"))
        assert "knows no master 'main'; it knows: 'routecast'" in (unknown.problem or "")
        for sentinel in redis.sentinels:
            sentinel.ask("ACL", "SETUSER", "default", "resetpass", ">word")
        wrong = await checked(f"{redis.url}?sentinel_password=wrong-word")
        first = redis.sentinels[0].port
        assert f"sentinel 127.0.0.1:{first}: invalid username-password" in (wrong.problem or "")
        assert "wrong-word" not in (wrong.problem or "")
        missing = await checked(redis.url)
        assert "authentication required" in (missing.problem or "").lower()
        plain = await checked(f"redis+sentinel://127.0.0.1:{redis.replica.port}/routecast")
        assert "unknown command" in (plain.problem or "").lower()
        assert "object at" not in (wrong.problem or "")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("ssl_ca_certs=/no/such.pem", "ssl_ca_certs: /no/such.pem: No such file"),
        ("ssl_ca_certs=/etc/hostname", "PEM"),
        ("ssl_certfile=/no/such.pem", "ssl_certfile"),
        ("ssl_keyfile=/no/such.pem", "needs ssl_certfile"),
        ("ssl_cert_reqs=maybe", "none, optional, required"),
    ],
)
def test_files_of_tls_are_read_at_the_start(options: str, words: str) -> None:
    """A bad TLS file is a wrong setting, and ends the start."""
    with pytest.raises(BadSettings, match="ROUTECAST_REDIS_URL") as told:
        SharedRedis(f"rediss://user:secret@localhost/0?{options}").link()
    assert words in str(told.value)
    assert "secret" not in str(told.value)


def test_node_reports_what_is_missing_and_goes_on(tmp_path: Path, server: RedisServer) -> None:
    """The node stays ready; `/ready`, `/health`, `/metrics` and the log name the commands."""
    server.ask("ACL", "SETUSER", "least", *documented()[1:], "-eval", "-pexpire")
    with Server(tmp_path, redis_url=url_of(server, "least")) as node:
        node.wait_for_log("Redis does not let this node run EVAL, PEXPIRE, so these do not work")
        assert node.post({"strategy": "s", "provider": "p"})["accepted"] == 1
        ready = node.http.get("/ready")
        assert ready.status_code == 200
        assert ready.json()["ready"] is True
        assert any("EVAL, PEXPIRE" in text for text in ready.json()["degraded"])
        health = node.http.get("/health").json()
        assert health["status"] == "degraded"
        assert any("EVAL, PEXPIRE" in text for text in health["degraded"])
        assert health["components"]["cache"] == health["components"]["census"] == "failing"
        assert node.instrument("routecast_redis_up") == 0
        assert "word" not in node.log.read_text().replace("password", "")
