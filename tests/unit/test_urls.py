"""URLs of engines: passwords in them are never shown."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routecast.urls import masked, split_url

SECRET = "hunter2"


def shown(url: str) -> str:
    """Return all that is shown of a URL."""
    try:
        split_url(url)
    except ValueError as error:
        return f"{masked(url)}: {error}"
    return masked(url)


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("redis://localhost:6379/0", "redis://localhost:6379/0"),
        ("redis://:secret@localhost", "redis://***@localhost"),
        ("redis+sentinel://me:secret@a:1,b:2/main", "redis+sentinel://***@a:1,b:2/main"),
        ("redis+sentinel://a/main?sentinel_password=secret", "redis+sentinel://a/main"),
        ("unix:///run/redis.sock?db=1", "unix:///run/redis.sock"),
        ("sqlite:////var/lib/routecast.db", "sqlite:////var/lib/routecast.db"),
        ("postgresql://me:secret@[::1]:5432/db", "postgresql://***@[::1]:5432/db"),
        ("routecast.db", "routecast.db"),
    ],
)
def test_masked_url_has_no_secret(url: str, kept: str) -> None:
    """The parts by which an operator recognises it stay."""
    assert masked(url) == kept


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://me:{SECRET}@[::1/db",
        f"sqlite://me:{SECRET}@host/x",
        f"postgresql://me:{SECRET}",
        f"postgresql://me:half?{SECRET}@host/db",
        f"postgresql://me:half#{SECRET}@host/db",
        f"postgresql://me:half/{SECRET}@host/db",
        f"postgresql://me:half@half?{SECRET}@host/db",
        f"postgresql://host/db?password=half@{SECRET}",
        f"postgresql://host/db?user=me&password={SECRET}",
        f"me:{SECRET}@host/db",
        f"host=db user=me password={SECRET}",
        f"{SECRET}:{SECRET}@://host",
        f"postgresql:/me:{SECRET}@host/db",
        f"redis://me:{SECRET}\u2100@host/0",
    ],
)
def test_no_part_of_a_password_is_shown(url: str) -> None:
    """This holds for correct URLs and for those with mistakes."""
    assert SECRET not in shown(url)


@given(
    scheme=st.sampled_from(["postgresql", "redis", "rediss+sentinel", "sqlite", "valkey"]),
    before=st.text(alphabet="ab1:/?#@[]%\u2100 ", max_size=8),
    after=st.text(alphabet="ab1:/?#@[]%\u2100 ", max_size=8),
    rest=st.sampled_from(["host/db", "[::1]:1/0", "a:1,b:2/main", "[::1/db", "host:x/db", ""]),
)
def test_a_password_with_any_characters_is_not_shown(
    scheme: str, before: str, after: str, rest: str
) -> None:
    """An @ must end the password, because nothing else shows that there is one."""
    url = f"{scheme}://me:{before}{SECRET}{after}@{rest}"
    assert SECRET not in shown(url)


@pytest.mark.parametrize(
    "url", ["postgresql://me:p/w@host/db", "redis://:p?w@host/0", "postgresql://me:1#w@host/db"]
)
def test_a_password_that_is_not_quoted_is_refused(url: str) -> None:
    """Otherwise a piece of the password would be used as the name of a server."""
    with pytest.raises(ValueError, match="%2F"):
        split_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://host:5432/db?user=me@tenant",
        "postgresql://me%40tenant:p%2Fw@host/db",
        "postgresql:///db?host=/run/@abstract",
        "unix:///run/a@b.sock",
        "sqlite:///a@b.db",
    ],
)
def test_an_at_sign_without_a_meaning_is_allowed(url: str) -> None:
    """It may be in options, in paths of files, and in quoted names."""
    split_url(url)
