"""Why a connection was not to be had, or ended: in words, and whether to come back."""

import re
from http import HTTPStatus
from typing import Final

import msgspec
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Close

from routecast.errors import BadRequest, Refused, RoutecastError, Unauthenticated
from routecast.protocol import V1, CloseCode, Problem

AFTER_TOO_MANY: Final = 60.0
_TOLD: Final = re.compile(r"reconnect_after_ms=(\d{1,6})")
_LONGEST_ASKED: Final = 300.0
_AGAIN: Final = frozenset({408, 425, 429})
_SERVER_ERRORS: Final = 500
_NO_TOKEN: Final = frozenset({HTTPStatus.UNAUTHORIZED, CloseCode.UNAUTHENTICATED})


def least_pause(error: Exception) -> float | None:
    """Return how many seconds to stay away after an error; None: coming back cannot help."""
    if isinstance(error, InvalidStatus):
        status = _status(error)
        return _asked(error) if status in _AGAIN or status >= _SERVER_ERRORS else None
    if isinstance(error, ConnectionClosed) and error.rcvd:
        try:
            code = CloseCode(error.rcvd.code)
        except ValueError:
            return 0.0
        if not code.retry:
            return None
        return AFTER_TOO_MANY if code is CloseCode.TOO_MANY_MESSAGES else 0.0
    return 0.0


def told_pause(error: Exception) -> float | None:
    """Return after how many seconds a closing server said to come back, if it did."""
    if isinstance(error, ConnectionClosed) and error.rcvd:
        told = _TOLD.fullmatch(error.rcvd.reason)
        return int(told[1]) / 1000 if told else None
    return None


def refusal(error: Exception) -> RoutecastError:
    """Return what to raise where coming back cannot help."""
    code = _status(error) if isinstance(error, InvalidStatus) else _close_code(error)
    if isinstance(error, InvalidStatus) and code == HTTPStatus.BAD_REQUEST:
        return BadRequest("bad_request", _detail(error))
    kind = Unauthenticated if code in _NO_TOKEN else Refused
    return kind(code, describe(error))


def describe(error: Exception) -> str:
    """Say in a few words why a stream was not to be had, or ended."""
    match error:
        case InvalidStatus():
            return f"it answers {_status(error)}: {_detail(error)}"
        case ConnectionClosed(rcvd=Close(code=code, reason=reason)):
            reason = _TOLD.sub("", reason)
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
        case msgspec.DecodeError():
            return f"it does not speak {V1}: {error}"
    return f"it does not speak WebSocket: {error}"


def _close_code(error: Exception) -> int:
    assert isinstance(error, ConnectionClosed)
    assert error.rcvd
    return error.rcvd.code


def _status(error: InvalidStatus) -> int:
    return error.response.status_code


def _asked(error: InvalidStatus) -> float:
    asked = error.response.headers.get("Retry-After", "")
    return min(float(asked), _LONGEST_ASKED) if asked.isdecimal() else 0.0


def _detail(error: InvalidStatus) -> str:
    response = error.response
    try:
        return msgspec.json.decode(response.body or b"", type=Problem).detail
    except msgspec.DecodeError:
        return response.reason_phrase or "no word why"
