"""Times as they are written: text or Unix time in, microseconds since 1970 out.

In bodies of `POST /v1/decisions`, msgspec reads the usual RFC 3339 times, with the same result.
Leap seconds, fractions of more than six digits, and the times of all other entry points are read
here.

Digits beyond microseconds are cut off, never rounded: a time stays in its minute.
"""

import re
from datetime import UTC, datetime, timedelta
from decimal import ROUND_FLOOR, Decimal
from typing import Final

from routecast.core.numbers import product
from routecast.protocol import EPOCH, MICROSECOND

SECOND: Final = 1_000_000

# RFC 3339, 5.6. The colon of an offset may be absent, as in ISO 8601.
_RFC3339: Final = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d):(\d\d):(\d\d)(?:\.(\d+))?([Zz]|[-+]\d\d:?\d\d)?", re.ASCII
)
# The form that databases and data frames write into files.
_LENIENT_TIME: Final = re.compile(
    r"(\d{4}-\d\d-\d\d)(?:[T ](\d\d):(\d\d)(?::(\d\d)(?:[.,](\d+))?)?)?"
    r" ?(Z|UTC|[-+]\d\d(?::?\d\d)?)?",
    re.ASCII | re.IGNORECASE,
)
RULE: Final = "must be an RFC 3339 time such as 2026-01-31T12:34:56Z, or Unix seconds"
NO_OFFSET: Final = "must say its offset, such as Z or +00:00"


def read_time(text: str, *, lenient: bool = False) -> int:
    """Return the microseconds since 1970 of an RFC 3339 time with an offset.

    A leap second (`:60`) is the last microsecond of its minute. `lenient` also accepts a date
    without a time, a time without seconds, a decimal comma, an offset of hours alone, and a time
    without an offset, which is UTC. Raises ValueError with the rule that is broken.
    """
    found = (_LENIENT_TIME if lenient else _RFC3339).fullmatch(text)
    if found is None:
        raise ValueError(RULE)
    day, hour, minute, second, fraction, offset = found.groups(default="")
    if not offset and not lenient:
        raise ValueError(NO_OFFSET)
    leaps = second == "60"
    try:
        at = datetime.fromisoformat(f"{day}T{hour or '00'}:{minute or '00'}:00").replace(
            second=59 if leaps else int(second or 0),
            microsecond=999_999 if leaps else int(fraction[:6].ljust(6, "0")),
            tzinfo=UTC,
        )
        east = _east(offset)
    except ValueError:
        raise ValueError(RULE) from None
    return (at - EPOCH - east) // MICROSECOND


def _east(offset: str) -> timedelta:
    """Return an offset from UTC; positive is east."""
    if offset.upper() in ("", "Z", "UTC"):
        return timedelta()
    digits = offset[1:].replace(":", "").ljust(4, "0")
    hours, minutes = int(digits[:2]), int(digits[2:])
    if hours > 23 or minutes > 59:
        raise ValueError(RULE)
    east = timedelta(hours=hours, minutes=minutes)
    return -east if offset.startswith("-") else east


def has_offset(text: str) -> bool:
    """Whether a time, read leniently, has an offset."""
    found = _LENIENT_TIME.fullmatch(text)
    return found is None or found[6] is not None


def looks_like_time(text: str) -> bool:
    """Whether a text has the form of a time, read leniently."""
    return _LENIENT_TIME.fullmatch(text) is not None


def unix_time(value: float | Decimal, per_second: int = 1) -> int:
    """Return the microseconds since 1970 of a Unix time with `per_second` units a second.

    The digits of a float are the shortest that give the same float.
    """
    exact = Decimal(repr(value)) if isinstance(value, float) else Decimal(value)
    micros = product(exact, Decimal(SECOND) / per_second)
    return int(micros.to_integral_value(ROUND_FLOOR))
