"""Errors of a stream: what a client does next, which exception it raises, and a description."""

from http import HTTPStatus
from typing import Final

import msgspec
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Close

from routecast.client.answers import HttpAnswer, explain, plain
from routecast.client.auth import Token, advice
from routecast.errors import BadRequest, Refused, RoutecastError, Unauthenticated
from routecast.protocol import V1
from routecast.retry import (
    Outcome,
    Verdict,
    after_upgrade,
    close_verdict,
    without_reconnect_after,
)

# At most this number of causes of one outage is logged.
MAX_CAUSES_LOGGED: Final = 32
_NO_CLOSE_FRAME: Final = 1006  # RFC 6455, 7.1.5


def answer_of(error: InvalidStatus) -> HttpAnswer:
    """Return the answer that was given in place of an upgrade."""
    response = error.response
    return HttpAnswer(
        response.status_code, response.reason_phrase, response.headers, bytes(response.body or b"")
    )


def verdict_on(error: Exception, goodbye_ms: int | None = None) -> Verdict:
    """Return what to do after an error; `goodbye_ms` as in `close_verdict`."""
    if isinstance(error, InvalidStatus):
        answer = answer_of(error)
        found = after_upgrade(answer.status, own=answer.problem is not None)
        return Verdict(found, answer.retry_after)
    if isinstance(error, ConnectionClosed) and error.rcvd:
        return close_verdict(error.rcvd.code, error.rcvd.reason, goodbye_ms)
    return close_verdict(_NO_CLOSE_FRAME, goodbye_ms=goodbye_ms)


def refusal(error: Exception, token: Token | None = None) -> RoutecastError:
    """Return the exception to raise if the verdict on an error is not to reconnect.

    `token` is the client's.
    """
    if isinstance(error, InvalidStatus):
        answer = answer_of(error)
        if answer.problem is not None and answer.status == HTTPStatus.BAD_REQUEST:
            return BadRequest("bad_request", plain(answer.problem.detail))
        code = answer.status
    else:
        assert isinstance(error, ConnectionClosed)
        assert error.rcvd
        code = error.rcvd.code
    kind = Unauthenticated if needs_token(error) else Refused
    return kind(code, explained(error, token))


def needs_token(error: Exception) -> bool:
    """Whether a new token may help after an error."""
    return verdict_on(error).outcome is Outcome.NEW_TOKEN


def explained(error: Exception, token: Token | None, url: str = "") -> str:
    """Return `describe(error, url)` and, if a new token may help, how to give one."""
    words = describe(error, url)
    return f"{words}; {advice(token)}" if needs_token(error) else words


def describe(error: Exception, url: str = "") -> str:
    """Return in a few words why a stream at `url` could not be opened, or ended."""
    match error:
        case InvalidStatus():
            return f"it {explain(answer_of(error), url)}"
        case ConnectionClosed(rcvd=Close(code=code, reason=reason)):
            reason = plain(without_reconnect_after(reason))
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
