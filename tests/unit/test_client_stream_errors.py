"""Tests of the texts that say why a stream ended, and of whether the client reconnects."""

import pytest
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosedError, InvalidStatus
from websockets.frames import Close
from websockets.http11 import Response

from routecast.client.auth import Token
from routecast.client.stream_errors import describe, refusal, verdict_on
from routecast.errors import Refused, Unauthenticated
from routecast.retry import Outcome, Verdict
from tests.support.wire import ANSWERS

FINAL = [row["code"] for row in ANSWERS["close_codes"] if row["outcome"] == "final"]


def closed(code: int, reason: str = "") -> ConnectionClosedError:
    """Return the exception that a close frame with this code raises."""
    return ConnectionClosedError(Close(code, reason), None)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (closed(1011, "a fault"), "closed with 1011: a fault"),
        (closed(1000), "closed with 1000"),
        (ConnectionClosedError(None, None), "the connection broke"),
        (TimeoutError(), "no answer in time"),
        (ConnectionRefusedError(111, "refused"), "connection refused"),
        (OSError("Multiple exceptions: [Errno 111] Connect call failed"), "connection refused"),
        (OSError(113, "No route to host"), "No route to host"),
    ],
)
def test_each_reason_is_described_in_words(error: Exception, words: str) -> None:
    """The text has the reason and no class name, and the client reconnects."""
    assert describe(error) == words
    assert verdict_on(error) == Verdict(Outcome.RETRY)


def test_the_delay_in_a_close_reason_is_used_and_not_shown() -> None:
    """The default stream has no other way to send the delay."""
    error = closed(1012, "reconnect_after_ms=1830")
    assert describe(error) == "closed with 1012"
    assert verdict_on(error) == Verdict(Outcome.RETRY, 1.83, exact=True)


@pytest.mark.parametrize("error", [closed(1012), ConnectionClosedError(None, None), OSError()])
def test_the_delay_of_a_goodbye_holds_with_any_end(error: Exception) -> None:
    """The close frame after a goodbye may be lost."""
    assert verdict_on(error, 1830) == Verdict(Outcome.RETRY, 1.83, exact=True)


@pytest.mark.parametrize("code", FINAL)
def test_a_refusal_has_the_code_and_the_words(code: int) -> None:
    """After a final close code, the client raises `Refused`."""
    assert verdict_on(closed(code)) == Verdict(Outcome.FINAL)
    refused = refusal(closed(code, "because"))
    assert type(refused) is Refused
    assert refused.code == code
    assert str(refused) == f"closed with {code}: because"


@pytest.mark.parametrize(
    ("token", "advice"),
    [
        (None, "give a token or an API key, as `token` in a program, in ROUTECAST_API_KEY for a"),
        ("secret", "give another token or API key, as `token` in a program"),
        (lambda: "secret", "the function `token` must return another one"),
    ],
)
def test_a_missing_token_raises_unauthenticated(token: Token | None, advice: str) -> None:
    """The client reconnects if it gets a new token; if not, the text says how to give one."""
    assert verdict_on(closed(4401)) == Verdict(Outcome.NEW_TOKEN)
    refused = refusal(closed(4401, "the token has expired"), token)
    assert isinstance(refused, Unauthenticated)
    assert refused.code == 4401
    assert str(refused).startswith(f"closed with 4401: the token has expired; {advice}")
    assert "secret" not in str(refused)


@pytest.mark.parametrize(
    ("challenge", "advice"),
    [
        ('Bearer error="insufficient_scope", scope="read"', "; use a token or an API key that has"),
        ("", ""),
    ],
)
def test_a_missing_scope_is_explained(challenge: str, advice: str) -> None:
    """The answer's `WWW-Authenticate` tells it from other refusals (RFC 6750, 3.1)."""
    kind = {"Content-Type": "application/problem+json", "WWW-Authenticate": challenge}
    body = b'{"title":"Forbidden","status":403,"detail":"this needs the scope `read`"}'
    error = InvalidStatus(Response(403, "Forbidden", Headers(kind), body))
    refused = refusal(error, "secret")
    assert type(refused) is Refused
    wanted = f"it answered 403: this needs the scope `read`{advice}"
    assert str(refused) == wanted if not advice else str(refused).startswith(wanted)
