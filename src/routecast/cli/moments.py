"""Moments and spans of time, as operators write and read them."""

import re
from datetime import UTC, datetime
from typing import Final

from routecast.cli.terminal import BAD_USAGE, fail
from routecast.core.claims import LAST_SECOND
from routecast.core.decision import DAY, MINUTE
from routecast.core.times import SECOND, read_time

_UNITS: Final = {"s": SECOND, "m": MINUTE, "h": 60 * MINUTE, "d": DAY}
_SPAN: Final = re.compile(r"([1-9][0-9]{0,5})([smhd])", re.ASCII)


def span_of(option: str, text: str) -> int:
    """Return the microseconds of a span such as `12h`; exit if it is none."""
    found = _SPAN.fullmatch(text)
    if found is None:
        fail(f"{option}: must be like 90s, 15m, 12h or 30d", BAD_USAGE)
    return int(found[1]) * _UNITS[found[2]]


def past_moment(option: str, text: str, now: int) -> int:
    """Return a moment up to now, in microseconds since 1970; exit if it is none.

    It is written as `now`, as the span since then, or as an RFC 3339 time.
    """
    if text == "now":
        return now
    moment = now - span_of(option, text) if _SPAN.fullmatch(text) else _time(option, text, "now, ")
    if not 0 <= moment <= now:
        fail(f"{option}: must be after 1970 and not in the future", BAD_USAGE)
    return moment


def future_moment(option: str, text: str, now: int) -> int:
    """Return a moment after now, in microseconds since 1970; exit if it is none.

    It is written as the span until then, or as an RFC 3339 time.
    """
    moment = now + span_of(option, text) if _SPAN.fullmatch(text) else _time(option, text, "")
    if not now < moment <= LAST_SECOND * SECOND:
        fail(f"{option}: must be in the future, and before the year 10000", BAD_USAGE)
    return moment


def _time(option: str, text: str, other: str) -> int:
    try:
        return read_time(text)
    except ValueError:
        fail(f"{option}: must be {other}like 12h or 30d, or like 2027-01-31T12:00:00Z", BAD_USAGE)


def written(moment: int | None) -> str | None:
    """Return a moment in microseconds since 1970 as an RFC 3339 time of whole seconds."""
    if moment is None:
        return None
    return f"{datetime.fromtimestamp(moment // SECOND, UTC):%Y-%m-%dT%H:%M:%SZ}"


def in_minutes(moment: int | None, never: str = "") -> str:
    """Return a moment in microseconds since 1970 for a table."""
    if moment is None:
        return never
    return f"{datetime.fromtimestamp(moment // SECOND, UTC):%Y-%m-%d %H:%MZ}"
