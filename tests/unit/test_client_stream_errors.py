"""Texts that say why a stream ended, and whether the client reconnects."""

import pytest
from websockets.exceptions import ConnectionClosedError
from websockets.frames import Close

from routecast.client.stream_errors import describe, refusal, verdict_on
from routecast.errors import Refused, Unauthenticated
from routecast.retry import Outcome, Verdict
from tests.support.wire import ANSWERS

FINAL = [row["code"] for row in ANSWERS["close_codes"] if row["outcome"] == "final"]


def closed(code: int, reason: str = "") -> ConnectionClosedError:
    """Return what a close frame with this code raises."""
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
def test_reasons_in_words(error: Exception, words: str) -> None:
    """A person reads what happened, not a class name; the client comes back."""
    assert describe(error) == words
    assert verdict_on(error) == Verdict(Outcome.RETRY)


def test_when_to_come_back_is_taken_from_the_reason_and_not_shown() -> None:
    """As the default stream tells it, which has no other way to."""
    error = closed(1012, "reconnect_after_ms=1830")
    assert describe(error) == "closed with 1012"
    assert verdict_on(error) == Verdict(Outcome.RETRY, 1.83, exact=True)


@pytest.mark.parametrize("error", [closed(1012), ConnectionClosedError(None, None), OSError()])
def test_a_goodbye_holds_however_the_connection_ends(error: Exception) -> None:
    """The close frame that follows it may be lost."""
    assert verdict_on(error, 1830) == Verdict(Outcome.RETRY, 1.83, exact=True)


@pytest.mark.parametrize("code", FINAL)
def test_a_refusal_has_the_code_and_the_words(code: int) -> None:
    """What is raised where coming back cannot help."""
    assert verdict_on(closed(code)) == Verdict(Outcome.FINAL)
    refused = refusal(closed(code, "because"))
    assert type(refused) is Refused
    assert refused.code == code
    assert str(refused) == f"closed with {code}: because"


def test_a_missing_token_is_a_refusal_of_its_own() -> None:
    """A new token can help."""
    assert verdict_on(closed(4401)) == Verdict(Outcome.NEW_TOKEN)
    assert isinstance(refusal(closed(4401)), Unauthenticated)
