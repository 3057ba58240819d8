"""Sessions: who may open one, and what a client's messages mean."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routecast.core.session import check_origin, open_session
from routecast.core.view import parse_query
from routecast.errors import BadParameter, Forbidden


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        (None, "metrics.example"),
        (None, None),
        ("http://192.0.2.7:8000", "192.0.2.7:8000"),
        ("https://[2001:db8::7]:8443", "[2001:db8::7]:8443"),
        ("http://localhost:3000", "127.0.0.1:8000"),
        ("http://127.0.0.1:3000", "localhost:8000"),
        ("http://[::1]:3000", "[::1]:8000"),
        ("https://grafana.example", "metrics.example"),
    ],
    ids=str,
)
def test_origins_that_may_connect(origin: str | None, host: str | None) -> None:
    """No browser, our own page, one machine's pages among themselves, and those named."""
    allowed = frozenset({"https://grafana.example"})
    assert check_origin(origin, host, allowed) is None  # type: ignore[func-returns-value]


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("https://evil.example", "metrics.example"),
        ("https://evil.example", "localhost:8000"),
        ("https://evil.example", None),
        ("http://localhost.evil.example", "localhost:8000"),
        ("http://localhost:3000", "metrics.example"),
        # The page of a name that was made to point here, after the page was loaded elsewhere.
        ("http://metrics.example:8000", "metrics.example:8000"),
        ("http://192.0.2.8:8000", "192.0.2.7:8000"),
        ("https://metrics.example:444", "metrics.example"),
        ("http://grafana.example", "metrics.example"),
        ("null", "localhost:8000"),
        ("", "localhost:8000"),
        ("http://[", "localhost:8000"),
        ("http://localhost", "[::1"),
    ],
    ids=str,
)
def test_origins_that_may_not_connect(origin: str, host: str | None) -> None:
    """A page of somebody else's, and headers that make no sense; the error shows the setting."""
    with pytest.raises(Forbidden, match=r"may not connect; .* ROUTECAST_ALLOWED_ORIGINS"):
        check_origin(origin, host, frozenset({"https://grafana.example"}))


def test_star_allows_all_origins() -> None:
    """Where the network is trusted."""
    assert check_origin("null", None, frozenset("*")) is None  # type: ignore[func-returns-value]


@given(st.none() | st.text(), st.none() | st.text())
def test_any_headers_are_let_in_or_refused(origin: str | None, host: str | None) -> None:
    """Nothing but Forbidden is raised, and only where there is an origin."""
    try:
        check_origin(origin, host, frozenset())
    except Forbidden:
        assert origin is not None


def test_session_holds_what_was_asked_for() -> None:
    """The query's subscription; the server's interval where none was asked for."""
    session = open_session(b"window=1h", interval=7.0)
    assert session.subscription == parse_query("window=1h&interval=7")
    with pytest.raises(BadParameter, match="window"):
        open_session(b"window=1y")


@pytest.mark.parametrize("message", ["", "{", '{"type":"subscribe"}', b"\x00\xff", "x" * 10**6])
def test_default_stream_ignores_whatever_the_client_sends(message: str | bytes) -> None:
    """The first dashboards' contract."""
    session = open_session(b"fields=cost")
    session.receive(message)
    assert session == open_session(b"fields=cost")
