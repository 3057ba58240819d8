"""The session of the default stream: the meaning of a client's request and messages."""

import pytest

from routecast.core.default_session import open_session
from routecast.core.view import parse_query
from routecast.errors import BadParameter


def test_session_holds_the_subscription_of_the_query() -> None:
    """Without an interval in the query, it has the server's interval."""
    session = open_session(b"window=1h", interval=7.0)
    assert session.subscription == parse_query("window=1h&interval=7")
    with pytest.raises(BadParameter, match="window"):
        open_session(b"window=1y")


@pytest.mark.parametrize("message", ["", "{", '{"type":"subscribe"}', b"\x00\xff", "x" * 10**6])
def test_default_stream_ignores_all_messages_of_the_client(message: str | bytes) -> None:
    """The contract of the first dashboards says so."""
    session = open_session(b"fields=cost")
    session.receive(message)
    assert session == open_session(b"fields=cost")
