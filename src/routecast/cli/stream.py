"""A metrics stream that comes back by itself, told as events in the order they happen."""

import asyncio
import random
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Final

import msgspec
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.frames import Close

from routecast.protocol import CloseCode, Problem

# A person in front of a terminal wants it back sooner than a page in a forgotten tab.
_FIRST_PAUSE: Final = 1.0
_GROWTH: Final = 1.6
_LONGEST_PAUSE: Final = 30.0
_AFTER_TOO_MANY: Final = 60.0
_OPEN_TIMEOUT: Final = 10.0
_MAX_MESSAGE: Final = 64 * 1024 * 1024
_BAD_REQUEST: Final = 400
_SERVER_ERRORS: Final = 500


@dataclass(frozen=True, slots=True)
class Connecting:
    """A connection is being opened, for the first time or `again`."""

    again: bool


@dataclass(frozen=True, slots=True)
class Frame:
    """One document as it came."""

    text: str


@dataclass(frozen=True, slots=True)
class Silent:
    """The connection is open, and nothing has come for longer than it should."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """The connection is lost or was not to be had; the next try is in `seconds`."""

    why: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Refused:
    """The server does not want this client as it is; the last event. `bad_request`: our fault."""

    why: str
    bad_request: bool = False


Event = Connecting | Frame | Silent | Waiting | Refused


async def follow(url: str, *, interval: float, loopback: bool) -> AsyncGenerator[Event]:
    """Yield what happens on a stream of one document each `interval` seconds, for ever.

    Ends only after `Refused`. The caller closes it (`contextlib.aclosing`).
    """
    failures = 0
    while True:
        yield Connecting(again=failures > 0)
        try:
            async with connect(
                url,
                open_timeout=_OPEN_TIMEOUT,
                max_size=_MAX_MESSAGE,
                proxy=None if loopback else True,
            ) as socket:
                while True:
                    try:
                        text = await asyncio.wait_for(socket.recv(decode=True), 3 * interval + 1)
                    except TimeoutError:
                        yield Silent()
                        continue
                    failures = 0
                    yield Frame(text)
        except (WebSocketException, OSError, EOFError) as error:
            why = describe(error)
            least = least_pause(error)
            bad_request = isinstance(error, InvalidStatus) and _status(error) == _BAD_REQUEST
        if least is None:
            yield Refused(why, bad_request)
            return
        pause = max(least, min(_FIRST_PAUSE * _GROWTH**failures, _LONGEST_PAUSE))
        pause *= random.uniform(0.8, 1.2)
        failures += 1
        yield Waiting(why, pause)
        await asyncio.sleep(pause)


def least_pause(error: Exception) -> float | None:
    """Return how many seconds to stay away after an error; None: coming back cannot help."""
    if isinstance(error, InvalidStatus):
        return 0 if _status(error) >= _SERVER_ERRORS or _status(error) in (408, 429) else None
    if isinstance(error, ConnectionClosed) and error.rcvd:
        try:
            code = CloseCode(error.rcvd.code)
        except ValueError:
            return 0
        if not code.retry:
            return None
        return _AFTER_TOO_MANY if code is CloseCode.TOO_MANY_MESSAGES else 0
    return 0


def describe(error: Exception) -> str:
    """Say in a few words why a stream was not to be had, or ended."""
    match error:
        case InvalidStatus():
            return f"it answers {_status(error)}: {_detail(error)}"
        case ConnectionClosed(rcvd=Close(code=code, reason=reason)):
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
    return f"it does not speak WebSocket: {error}"


def _status(error: InvalidStatus) -> int:
    return error.response.status_code


def _detail(error: InvalidStatus) -> str:
    response = error.response
    try:
        return msgspec.json.decode(response.body or b"", type=Problem).detail
    except msgspec.DecodeError:
        return response.reason_phrase or "no word why"
