"""Redis URLs: how they are read, and which parts no message shows."""

import pytest

from routecast.adapters.redis_client import RedisAddress, parse_address
from routecast.errors import BadSettings


def address(**given: object) -> RedisAddress:
    fields: dict[str, object] = {
        "kind": "",
        "hosts": (("localhost", 6379),),
        "tls": False,
        "username": None,
        "password": None,
        "database": 0,
        "service": "",
        "socket": "",
        "options": {},
    }
    return RedisAddress(**{**fields, **given})  # type: ignore[arg-type]  # -- by name


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://localhost", address()),
        ("redis://", address()),
        ("redis://localhost/", address()),
        ("redis://:6379", address()),
        ("valkey://localhost:6380/2", address(hosts=(("localhost", 6380),), database=2)),
        ("redis://[::1]:7000", address(hosts=(("::1", 7000),))),
        ("redis://:p%40ss@localhost", address(password="p@ss")),
        ("redis://me:p:@localhost", address(username="me", password="p:")),
        ("rediss://localhost", address(tls=True)),
        (
            "valkeys://localhost?ssl_ca_certs=/ca.pem",
            address(tls=True, options={"ssl_ca_certs": "/ca.pem"}),
        ),
        ("unix:///run/redis.sock", address(socket="/run/redis.sock")),
        (
            "unix://:pass@/run/my%20redis.sock?db=3",
            address(socket="/run/my redis.sock", password="pass", database=3),
        ),
        (
            "redis+sentinel://a,b:1234/main",
            address(kind="sentinel", hosts=(("a", 26379), ("b", 1234)), service="main"),
        ),
        (
            "rediss+sentinel://u:p@a/main/1?sentinel_password=q",
            address(
                kind="sentinel",
                hosts=(("a", 26379),),
                tls=True,
                username="u",
                password="p",
                service="main",
                database=1,
                options={"sentinel_password": "q"},
            ),
        ),
        (
            "valkey+cluster://a:1,b:2",
            address(kind="cluster", hosts=(("a", 1), ("b", 2))),
        ),
    ],
)
def test_url_is_parsed(url: str, expected: RedisAddress) -> None:
    """The address has kind, hosts, login, database and options, each with a default."""
    assert parse_address(url) == expected


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://localhost", "must start with redis://"),
        ("localhost:6379", "must start with redis://"),
        ("redis+ring://localhost", "must start with redis://"),
        ("redis://a,b", "several hosts need"),
        ("redis+sentinel://a,b", "name the master"),
        ("redis://a/main", "number of a database"),
        ("redis://a/0/1", "number of a database"),
        ("redis+cluster://a/1", "no database but 0"),
        ("redis://a:port", "port"),
        ("redis://a:70000", "port"),
        ("redis://a?timeout=5", "takes are: none"),
        ("redis://a?ssl_ca_certs=/ca.pem", "takes are: none"),
        ("rediss://a?ca=/ca.pem", "takes are: ssl_ca_certs, "),
    ],
)
def test_bad_url_is_refused(url: str, words: str) -> None:
    """The error has the setting's name and the fix."""
    with pytest.raises(BadSettings, match=r"redis \(ROUTECAST_REDIS_URL\)") as told:
        parse_address(url)
    assert words.lower() in str(told.value).lower()


@pytest.mark.parametrize(
    "url",
    [
        "http://me:secret@h",
        "redis://me:secret@h/x",
        "redis://me:secret@h:70000",
        "redis://me:half/secret@h/x",
        "redis://me:secret?half@h/x",
        "redis://me:secret#half@h/x",
        "redis+sentinel://h?sentinel_password=secret",
        "redis+sentinel://h?sentinel_password=half@secret",
        "redis://me:secret@[::1/0",
        "redis://me:secret\u2100@h/0",
        "redis://me:secret",
        ":secret@h:6379",
        "secret:secret@://h",
        "redis://:12/secret@h/0",
    ],
)
def test_errors_show_no_secret(url: str) -> None:
    """The URL may have any mistake."""
    with pytest.raises(BadSettings) as told:
        parse_address(url)
    assert "secret" not in str(told.value)
