"""Why a stream ended, in words, and whether to come back: the contract's table of close codes."""

import pytest
from websockets.exceptions import ConnectionClosedError
from websockets.frames import Close

from routecast.client.retry_policy import describe, min_retry_delay, refusal, server_retry_delay
from routecast.errors import Refused, Unauthenticated


def closed(code: int, reason: str = "") -> ConnectionClosedError:
    """Return what a close frame with this code raises."""
    return ConnectionClosedError(Close(code, reason), None)


@pytest.mark.parametrize("code", [1003, 1007, 1008, 1009, 4400, 4401, 4403])
def test_codes_that_say_stay_away(code: int) -> None:
    """Coming back cannot help without a change on this side."""
    assert min_retry_delay(closed(code)) is None


@pytest.mark.parametrize("code", [1000, 1001, 1011, 1012, 1013, 4408, 4409, 4999])
def test_codes_that_say_come_back(code: int) -> None:
    """After the usual pause."""
    assert min_retry_delay(closed(code)) == 0


def test_too_many_messages_is_a_minute() -> None:
    """4429 asks for a minute's pause."""
    assert min_retry_delay(closed(4429)) == 60


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (closed(1012, "restart"), "closed with 1012: restart"),
        (closed(1000), "closed with 1000"),
        (closed(1012, "reconnect_after_ms=1830"), "closed with 1012"),
        (ConnectionClosedError(None, None), "the connection broke"),
        (TimeoutError(), "no answer in time"),
        (ConnectionRefusedError(111, "refused"), "connection refused"),
        (OSError("Multiple exceptions: [Errno 111] Connect call failed"), "connection refused"),
        (OSError(113, "No route to host"), "No route to host"),
    ],
)
def test_reasons_in_words(error: Exception, words: str) -> None:
    """A person reads what happened, not a class name."""
    assert describe(error) == words
    assert min_retry_delay(error) == 0


@pytest.mark.parametrize("code", [1003, 1007, 1008, 1009, 4400, 4403])
def test_a_refusal_has_the_code_and_the_words(code: int) -> None:
    """What is raised where coming back cannot help."""
    refused = refusal(closed(code, "because"))
    assert type(refused) is Refused
    assert refused.code == code
    assert str(refused) == f"closed with {code}: because"


def test_a_missing_token_is_a_refusal_of_its_own() -> None:
    """A new token can help."""
    assert isinstance(refusal(closed(4401)), Unauthenticated)


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (closed(1012, "reconnect_after_ms=1830"), 1.83),
        (closed(1012, "restart"), None),
        (closed(1012, "reconnect_after_ms=soon"), None),
        (ConnectionClosedError(None, None), None),
        (OSError(), None),
    ],
)
def test_a_close_may_say_when_to_come_back(error: Exception, seconds: float | None) -> None:
    """As the default stream does, which has no other way to."""
    assert server_retry_delay(error) == seconds
