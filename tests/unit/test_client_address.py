"""Tests of the addresses of servers, in all forms that users write."""

import pytest

from routecast.client.url import Server
from routecast.errors import BadParameter


@pytest.mark.parametrize(
    ("text", "http", "stream"),
    [
        ("http://h:1", "http://h:1/x", "ws://h:1/ws/metrics"),
        ("https://h", "https://h/x", "wss://h/ws/metrics"),
        ("ws://h:1/ws/metrics", "http://h:1/x", "ws://h:1/ws/metrics"),
        ("wss://h/ws/metrics/", "https://h/x", "wss://h/ws/metrics"),
        (" h:8000 ", "http://h:8000/x", "ws://h:8000/ws/metrics"),
        (
            "https://h/app/routecast/",
            "https://h/app/routecast/x",
            "wss://h/app/routecast/ws/metrics",
        ),
        ("http://[::1]:8000", "http://[::1]:8000/x", "ws://[::1]:8000/ws/metrics"),
    ],
)
def test_one_address_gives_both_urls(text: str, http: str, stream: str) -> None:
    """The HTTP and the WebSocket URL come from either of them, with or without a path."""
    server = Server.parse(text)
    assert server.http("/x") == http
    assert server.stream() == stream
    assert server.stream([("fields", "a,b"), ("strategy", "ü&")]) == (
        f"{stream}?fields=a,b&strategy=%C3%BC%26"
    )


@pytest.mark.parametrize("text", ["", "http://", "ftp://h", "http://h:x", "http://h/?interval=1"])
def test_a_bad_address_is_refused_with_its_parameter(text: str) -> None:
    """The error begins with the name of the parameter."""
    with pytest.raises(BadParameter, match=r"^--server: "):
        Server.parse(text, "--server")


@pytest.mark.parametrize(
    "text",
    [
        "http://me:secret@h/app",
        "http://me:secret@h:x",
        "http://me:half/secret@h/app",
        "http://me:secret?half@h/app",
        "http://me:secret@[h",
        "http://me:secret\u2100@h",
    ],
)
def test_a_password_is_never_shown(text: str) -> None:
    """Neither the server's text nor the error about a bad address has it."""
    try:
        shown = str(Server.parse(text))
    except BadParameter as error:
        shown = str(error)
    assert "h" in shown
    assert "secret" not in shown
