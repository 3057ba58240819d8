"""Why a stream was not to be had, or ended: in words, and whether to come back."""

import re
from http import HTTPStatus
from typing import Final

import msgspec
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Close

from routecast.client.answers import (
    HttpAnswer,
    Outcome,
    explain,
    outcome,
    outcome_of_close,
    plain,
)
from routecast.errors import BadRequest, Refused, RoutecastError, Unauthenticated
from routecast.protocol import V1, CloseCode

AFTER_TOO_MANY: Final = 60.0
# Causes of one outage that are told.
MAX_CAUSES_TOLD: Final = 32
# Whatever a server asks for, a client looks again after so long.
LONGEST_SERVER_DELAY: Final = 300.0
_TOLD: Final = re.compile(r"reconnect_after_ms=(\d{1,6})")


def answer_of(error: InvalidStatus) -> HttpAnswer:
    """Return the answer that was given in place of an upgrade."""
    response = error.response
    return HttpAnswer(
        response.status_code, response.reason_phrase, response.headers, bytes(response.body or b"")
    )


def min_retry_delay(error: Exception) -> float | None:
    """Return how many seconds to stay away after an error; None: coming back cannot help."""
    if isinstance(error, InvalidStatus):
        answer = answer_of(error)
        own = answer.problem is not None
        # A stream has no batch to make smaller: of Routecast's own, that is a refusal.
        again = outcome(answer.status, own=own) is Outcome.RETRY or not own
        return float(answer.asked) if again else None
    if isinstance(error, ConnectionClosed) and error.rcvd:
        if outcome_of_close(error.rcvd.code) is not Outcome.RETRY:
            return None
        return AFTER_TOO_MANY if error.rcvd.code == CloseCode.TOO_MANY_MESSAGES else 0.0
    return 0.0


def server_retry_delay(error: Exception) -> float | None:
    """Return after how many seconds a closing server said to come back, if it did."""
    if isinstance(error, ConnectionClosed) and error.rcvd:
        told = _TOLD.fullmatch(error.rcvd.reason)
        return min(int(told[1]) / 1000, LONGEST_SERVER_DELAY) if told else None
    return None


def refusal(error: Exception) -> RoutecastError:
    """Return what to raise where coming back cannot help."""
    if isinstance(error, InvalidStatus):
        answer = answer_of(error)
        if answer.problem is not None and answer.status == HTTPStatus.BAD_REQUEST:
            return BadRequest("bad_request", plain(answer.problem.detail))
        code = answer.status
        found = outcome(code, own=True)
    else:
        assert isinstance(error, ConnectionClosed)
        assert error.rcvd
        code = error.rcvd.code
        found = outcome_of_close(code)
    kind = Unauthenticated if found is Outcome.NEW_TOKEN else Refused
    return kind(code, describe(error))


def describe(error: Exception, url: str = "") -> str:
    """Say in a few words why a stream at `url` was not to be had, or ended."""
    match error:
        case InvalidStatus():
            return f"it {explain(answer_of(error), url)}"
        case ConnectionClosed(rcvd=Close(code=code, reason=reason)):
            reason = plain(_TOLD.sub("", reason))
            return f"closed with {code}" + (f": {reason}" if reason else "")
        case ConnectionClosed():
            return "the connection broke"
        case TimeoutError():
            return "no answer in time"
        case ConnectionRefusedError():
            return "connection refused"
        case OSError():
            refused = "connect call failed" in str(error).lower()
            return "connection refused" if refused else error.strerror or str(error)
        case RecursionError():
            return f"it does not speak {V1}: a message is nested too deeply"
        case msgspec.DecodeError():
            return f"it does not speak {V1}: {plain(str(error))}"
    return f"it does not speak WebSocket: {plain(str(error))}"
