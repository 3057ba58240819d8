"""The retry policy: what a client does after an answer or a close code, and when.

docs/protocol.md is the contract. `tests/wire/answers.json` has the same tables as data, for the
tests of clients in any language.
"""

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from routecast.protocol import CloseCode

# The maximum time that a client waits because a server asked it to, in seconds.
MAX_SERVER_DELAY: Final = 300
# The delay after TOO_MANY_MESSAGES, in seconds: the limit counts messages per minute.
TOO_MANY_MESSAGES_DELAY: Final = 60.0

# Also from a proxy, which may have a limit of its own.
TOO_LARGE: Final = 413
_NO_TOKEN: Final = 401
# Statuses of Routecast's own problem documents that are temporary, besides those from 500 on. 426
# means that an upgrade would be accepted, but that a proxy has removed it.
_PASSING: Final = frozenset({408, 425, 426, 429})
_SERVER_ERRORS: Final = 500

_RECONNECT_AFTER: Final = re.compile(r"reconnect_after_ms=([0-9]+)")


class Outcome(StrEnum):
    """What to do after an error answer or a close code."""

    RETRY = "retry"
    FINAL = "final"
    NEW_TOKEN = "token"  # noqa: S105  # -- final, unless another token is available
    SMALLER = "halve"  # the batch; one decision alone is rejected


_AFTER_CLOSE: Final[Mapping[int, Outcome]] = {
    CloseCode.DONE: Outcome.RETRY,
    CloseCode.GOING_AWAY: Outcome.RETRY,
    CloseCode.PROTOCOL_ERROR: Outcome.FINAL,
    CloseCode.UNSUPPORTED_DATA: Outcome.FINAL,
    CloseCode.NOT_UTF8: Outcome.FINAL,
    CloseCode.POLICY: Outcome.FINAL,
    CloseCode.TOO_BIG: Outcome.FINAL,
    CloseCode.INTERNAL_ERROR: Outcome.RETRY,
    CloseCode.RESTART: Outcome.RETRY,
    CloseCode.FULL: Outcome.RETRY,
    CloseCode.NOT_PROTOCOL: Outcome.FINAL,
    CloseCode.UNAUTHENTICATED: Outcome.NEW_TOKEN,
    CloseCode.FORBIDDEN: Outcome.FINAL,
    CloseCode.SILENT: Outcome.RETRY,
    CloseCode.TOO_SLOW: Outcome.RETRY,
    CloseCode.TOO_MANY_MESSAGES: Outcome.RETRY,
}


def after_close(code: int) -> Outcome:
    """Return what to do after a close code; after an unknown one, retry."""
    return _AFTER_CLOSE.get(code, Outcome.RETRY)


def after_batch(status: int, *, own: bool) -> Outcome:
    """Return what a producer does after an answer that is not a receipt.

    `own` says whether it is Routecast's own problem document. Any other answer comes from a proxy
    or a sign-in page, and may be temporary.
    """
    if status == TOO_LARGE:
        return Outcome.SMALLER
    if not own or status >= _SERVER_ERRORS or status in _PASSING:
        return Outcome.RETRY
    return Outcome.NEW_TOKEN if status == _NO_TOKEN else Outcome.FINAL


def after_upgrade(status: int, *, own: bool) -> Outcome:
    """Return what a stream does after an error answer to an upgrade; `own` as in `after_batch`."""
    found = after_batch(status, own=own)
    if found is not Outcome.SMALLER:  # there is no batch
        return found
    return Outcome.FINAL if own else Outcome.RETRY


# -- when ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a client does next, and the minimum `seconds` before it.

    `exact` means that the server chose this time for this client, so no random delay is added.
    """

    outcome: Outcome
    seconds: float = 0.0
    exact: bool = False


def close_verdict(code: int, reason: str = "", goodbye_ms: int | None = None) -> Verdict:
    """Return what to do after a close code.

    `goodbye_ms` are the milliseconds of the `goodbye` before it, if there was one; the default
    stream has them in the `reason`.
    """
    outcome = after_close(code)
    if outcome is not Outcome.RETRY:
        return Verdict(outcome)
    if code == CloseCode.TOO_MANY_MESSAGES:
        return Verdict(outcome, TOO_MANY_MESSAGES_DELAY)
    if goodbye_ms is None:
        found = _RECONNECT_AFTER.fullmatch(reason)
        goodbye_ms = int(found[1]) if found else 0
    seconds = min(max(goodbye_ms / 1000, 0.0), MAX_SERVER_DELAY)
    return Verdict(outcome, seconds, exact=seconds > 0)


def without_reconnect_after(reason: str) -> str:
    """Return a close reason without its `reconnect_after_ms`."""
    return _RECONNECT_AFTER.sub("", reason)


def retry_after(text: str) -> int:
    """Return the seconds of a `Retry-After`; 0 for a date, which some proxies send."""
    # A longer text is not a sensible number, and Python refuses to read thousands of digits.
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        return 0
    return min(int(text), MAX_SERVER_DELAY)


@dataclass(slots=True)
class Backoff:
    """Delays between attempts, in seconds: random, from 0 to a bound that doubles up to `longest`.

    This is called full jitter: clients that lost a server together reconnect at different times,
    the first ones at once. Call `reset` after a success. `renewed` says whether an attempt with a
    new token was made since then.
    """

    first: float = 1.0
    longest: float = 30.0
    failures: int = 0
    renewed: bool = False
    draw: Callable[[float, float], float] = field(default=random.uniform, repr=False)

    def next(self, least: float = 0.0) -> float:
        """Return the next delay: a random one, added to the `least` that the server asked for."""
        # The exponent is bounded too: a float overflows after a thousand failures.
        bound = min(self.first * 2.0 ** min(self.failures, 32), self.longest)
        self.failures += 1
        return least + self.draw(0.0, bound)

    def after(self, verdict: Verdict) -> float:
        """Return the delay that follows from a verdict.

        The first attempt with a new token is made at once. If that is refused too, the next new
        token waits: it may be refused for another reason than its age.
        """
        if verdict.outcome is Outcome.NEW_TOKEN and not self.renewed:
            self.renewed = True
            return verdict.seconds
        return verdict.seconds if verdict.exact else self.next(verdict.seconds)

    def reset(self) -> None:
        """Forget the failures so far."""
        self.failures = 0
        self.renewed = False


def no_jitter(_: float, bound: float) -> float:
    """Return the bound: for `Backoff.draw` if no other client retries at the same time."""
    return bound
