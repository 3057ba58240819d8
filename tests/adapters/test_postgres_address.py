"""URLs of PostgreSQL: each parameter is used, ignored with a log line, or refused."""

import pytest

from routecast.adapters.store.postgres.address import Address, Keepalives, read_address
from routecast.errors import BadDatabase

BASE = "postgresql://me:secret@db.example/routecast"


def read(query: str, base: str = BASE) -> Address:
    return read_address(f"{base}?{query}")


# URLs of hosting providers and libraries.
@pytest.mark.parametrize(
    ("url", "notes"),
    [
        (BASE, 0),
        ("postgres://me:secret@db.example:5432/d", 0),  # Heroku
        (f"{BASE}?sslmode=require", 0),
        (f"{BASE}?sslmode=require&channel_binding=prefer", 0),
        (f"{BASE}?sslmode=require&channel_binding=require", 1),  # Neon
        (f"{BASE}?sslmode=require&options=endpoint%3Dep-cool-123", 0),
        (f"{BASE}?pgbouncer=true&connection_limit=1", 1),  # Supabase, Prisma
        (f"{BASE}?schema=public&connection_limit=5&pool_timeout=10", 3),
        (f"{BASE}?sslmode=require&supa=base-pooler.x", 1),
        (f"{BASE}?ssl=true", 0),
        (f"{BASE}?gssencmode=disable&client_encoding=UTF8", 0),
        (f"{BASE}?keepalives=1&keepalives_idle=30&keepalives_interval=10&keepalives_count=5", 0),
        (f"{BASE}?connect_timeout=10&application_name=mine&target_session_attrs=read-write", 0),
        (f"{BASE}?load_balance_hosts=random&sslsni=1", 2),
    ],
)
def test_urls_of_providers_are_read(url: str, notes: int) -> None:
    """Each parameter without a meaning here has a note, which has no password."""
    address = read_address(url)
    assert len(address.notes) == notes
    assert "secret" not in "".join(address.notes)
    assert "secret" in address.urls[0]


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("gssencmode=require", "gssencmode"),
        ("client_encoding=LATIN1", "client_encoding"),
        ("require_auth=scram-sha-256", "require_auth"),
        ("hostaddr=10.0.0.1", "hostaddr"),
        ("sslmode=on", "sslmode"),
        ("sslrootcert=/nowhere.pem&sslmode=verify-full", "sslrootcert"),
        ("sslrootcert=system&sslmode=prefer", "sslmode=verify-full"),
        ("channel_binding=maybe", "channel_binding"),
        ("target_session_attrs=any-one", "target_session_attrs"),
        ("connect_timeout=soon", "connect_timeout"),
        ("connect_timeout=-1", "connect_timeout"),
        ("keepalives_idle=1e3", "keepalives_idle"),
        ("pgbouncer=perhaps", "pgbouncer"),
        ("statement_timeout=5000", "options=-c%20statement_timeout%3DVALUE"),
        ("aplication_name=me", "is it application_name?"),
        ("sslMode=require", "is it sslmode?"),
        ("port=1,2", "port"),
        ("nonsense", "the URL cannot be read"),
    ],
)
def test_parameters_that_cannot_be_used_are_refused(query: str, told: str) -> None:
    """The error has the parameter's name, the fix, and no password."""
    with pytest.raises(BadDatabase) as refused:
        read(query)
    assert told in str(refused.value)
    assert "secret" not in str(refused.value)


def test_parameters_are_used() -> None:
    """Each of these changes a field of the address."""
    address = read(
        "connect_timeout=10&application_name=mine&options=-c%20geqo=off&pgbouncer=true"
        "&keepalives_idle=7&keepalives_interval=8&keepalives_count=9&tcp_user_timeout=1000"
    )
    assert address.connect_seconds == 10
    assert address.application == "mine"
    assert address.options == "-c geqo=off"
    assert address.pooled
    assert address.keepalives == Keepalives(7, 8, 9, 1000)
    assert not read("keepalives=0").keepalives.on
    assert read("fallback_application_name=other").application == "other"
    assert read("connect_timeout=0").connect_seconds == read("").connect_seconds
    assert "sslmode=require" in read("ssl=true").urls[0]


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        ("postgresql://me:p@a:1,b:2/d", ["me:p@a:1/d", "me:p@b:2/d"]),
        ("postgresql://a,[::1]:5/d?sslmode=require", ["a/d?", "[::1]:5/d?"]),
        ("postgresql:///d?host=/run/a,/run/b&port=1,2", ["host=%2Frun%2Fa", "port=2"]),
        ("postgresql:///d?host=a,b&port=7", ["port=7&host=a", "host=b"]),
    ],
)
def test_each_host_has_a_url(url: str, hosts: list[str]) -> None:
    """A node needs the host that accepts writes, unless the URL says otherwise."""
    address = read_address(url)
    assert len(address.urls) == 2
    for found, part in zip(address.urls, hosts, strict=True):
        assert all(one in found for one in part.split("&"))
    assert address.roles == (False,)
    assert read_address(url + ("&" if "?" in url else "?") + "target_session_attrs=any").roles == (
        None,
    )


def test_required_channel_binding_checks_the_certificate() -> None:
    """Channel binding is asked for to exclude a proxy that reads along, and so does the check."""
    tls = read("sslmode=require&channel_binding=require").tls
    assert tls is not None
    assert tls.check_hostname
    assert read("sslmode=verify-full&sslrootcert=system").tls is not None
    assert read("sslmode=require").tls is None
