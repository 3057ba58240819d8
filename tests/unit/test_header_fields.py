"""Header fields: which may come twice, and which values of `Host` are valid."""

import pytest

from routecast.edge.header_fields import ONCE, read_fields
from routecast.errors import BadHead

HOST = (b"host", b"localhost:8000")


@pytest.mark.parametrize("name", sorted(ONCE))
def test_a_field_that_must_not_come_twice(name: bytes) -> None:
    """The error has the field's name, also if both values are equal."""
    for second in (b"a", b"b"):
        with pytest.raises(BadHead, match=name.decode().title()):
            read_fields([HOST, (name, b"a"), (b"x", b"y"), (name, second)], "1.1")


def test_other_fields_may_come_more_than_once() -> None:
    """The last value counts."""
    fields = read_fields([HOST, (b"accept", b"a"), (b"accept", b"b")], "1.1")
    assert fields == {b"host": b"localhost:8000", b"accept": b"b"}


def test_a_request_id_that_comes_more_than_once_is_not_used() -> None:
    """Also if both are equal, as in the audit log."""
    for second in (b"a", b"b"):
        ids = [(b"x-request-id", b"a"), (b"x-request-id", second)]
        assert read_fields([HOST, *ids], "1.1") == dict([HOST])
    assert read_fields([HOST, ids[0]], "1.1") == dict([HOST, ids[0]])


@pytest.mark.parametrize("version", ["1.1", "1.0", "2"])
def test_a_request_without_host(version: str) -> None:
    """Only HTTP/1.1 must have one (RFC 9112, 3.2)."""
    if version == "1.1":
        with pytest.raises(BadHead, match="Host"):
            read_fields([], version)
    else:
        assert read_fields([], version) == {}


@pytest.mark.parametrize(
    "host",
    [
        b"a",
        b"a.example",
        b"a:80",
        b"127.0.0.1:8000",
        b"[::1]",
        b"[::1]:80",
        b"a_b",
        b"xn--e1a.com",
        b"a:",
        b"[fe80::1%eth0]:80",
    ],
)
def test_a_good_host_is_accepted(host: bytes) -> None:
    """Names, addresses and ports have the syntax of RFC 3986."""
    assert read_fields([(b"host", host)], "1.1") == {b"host": host}


@pytest.mark.parametrize(
    "host",
    [
        b"",
        b" ",
        b"a b",
        b"a/b",
        b"a@b",
        b"http://a",
        b"a:b",
        b"a:1:2",
        b"[::1",
        b"::1",
        b"a\xff",
        b"a:123456",
        b"a?b",
        b"a#b",
        b"a\\b",
        b"a" * 301,
    ],
)
def test_a_bad_host_is_refused(host: bytes) -> None:
    """It is refused also if a proxy would accept it."""
    with pytest.raises(BadHead, match="Host"):
        read_fields([(b"host", host)], "1.1")
