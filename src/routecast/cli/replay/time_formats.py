"""Reading times as databases, programs and spreadsheets write them.

Each form has one rule, which turns it into RFC 3339; `core/times.py` reads that. A form that leaves
something open, such as the order of day and month, gives one result per reading.
"""

import re
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

from routecast.core.numbers import product
from routecast.core.times import (
    SECOND,
    has_offset,
    looks_like_time,
    read_time,
    unix_time,
)

ORDERS: Final = ("dmy", "mdy", "ymd")
EXCEL: Final = "excel"
START: Final = "start"
UNITS: Final = {"s": 1, "ms": 1000, "us": 10**6, "ns": 10**9}

_MONTHS: Final = (
    "jan",
    "feb",
    "mar",
    "apr",
    "may",
    "jun",
    "jul",
    "aug",
    "sep",
    "oct",
    "nov",
    "dec",
)
_MONTH: Final = "(?:jan|feb|mar|apr|may|june?|july?|aug|sept?|oct|nov|dec)[a-z]*"
_FORM: Final = re.compile(
    rf"""
    (?:(?:mon|tue|wed|thu|fri|sat|sun)[a-z]*,?\s+)?
    (?: ([0-9]{{4}})([-/.])([0-9]{{1,2}})\2([0-9]{{1,2}})            # 2026/1/31
      | ((?:19|20)[0-9]{{2}})([0-9]{{2}})([0-9]{{2}})                # 20260131
      | ([0-9]{{1,2}})([-/.])([0-9]{{1,2}})\9([0-9]{{4}}|[0-9]{{2}}) # 31.01.2026, 1/31/26
      | ([0-9]{{1,2}})[-/\s]({_MONTH})[-/\s]([0-9]{{4}}|[0-9]{{2}})  # 31-JAN-26, 31 January 2026
      | ({_MONTH})\s+([0-9]{{1,2}}),?\s+([0-9]{{4}})                 # Jan 31, 2026
    )
    (?: (?:\s*[T:,]\s*|\s+|(?<=[0-9]{{8}}))
        (?P<hour>[0-9]{{1,2}})(?P<dot>[:.]?)(?P<minute>[0-9]{{2}})
        (?:(?P=dot)(?P<second>[0-9]{{2}})(?:[.,](?P<fraction>[0-9]+))?)?
        (?:\s*(?P<half>[ap])\.?m\.?)?
        (?: \s*(?:UTC|GMT)?\s*(?P<offset>[-+][0-9]{{2}}(?::?[0-9]{{2}})?)
            (?:\s+[-+0-9A-Z]{{2,5}}|\s*\[[\w/+-]+\]|\s*\([\w\s]+\))?     # a name for it
          | \s*(?P<utc>Z|UTC|GMT)(?:\[[\w/]+\])?
        )?
        (?:\sm=[-+][0-9.]+)?                                         # Go's monotonic clock
    )?
    """,
    re.VERBOSE | re.IGNORECASE,
)
# Days since 1899-12-30: 2000 to 2049. No router existed at Unix times below 10**8.
_SERIALS: Final = (36_526, 54_789)
_SERIAL_1970: Final = 25_569
_DAY: Final = Decimal(86_400)
_FIRST_UNIX: Final = 10**8
_LONGEST_OFFSET: Final = 10**7


def moments(text: str, number: Decimal | int | None) -> dict[str, int]:
    """Return microseconds since 1970 by reading: the orders of a date, `excel` or `start`.

    `number` is `text` as a number, if it is one. For `start` the result is microseconds since the
    start. A text that fits no reading has no result.
    """
    found: dict[str, int] = {}
    known: dict[str, int] = {}
    for order, written in _forms(text).items():
        with suppress(ValueError):
            if written not in known:
                known[written] = read_time(written, lenient=True)
            found[order] = known[written]
    if found or number is None:
        return found
    if number >= _FIRST_UNIX:
        # Seconds since 1970 reach 10**11 in the year 5138.
        unit = next((u for u in (1, 10**3, 10**6) if number < u * 10**11), 10**9)
        return dict.fromkeys(ORDERS, unix_time(number, unit))
    if _SERIALS[0] <= number <= _SERIALS[1]:
        # The digits of a serial end near a millisecond: 12:01:00 must not become 12:00:59.
        found[EXCEL] = round(product(number - _SERIAL_1970, _DAY) * 1000) * 1000
    if 0 <= number < _LONGEST_OFFSET:
        found[START] = unix_time(number)
    return found


def by_pattern(text: str, pattern: str) -> int:
    """Return microseconds since 1970 of a time in a `strptime` pattern; UTC if it has no offset."""
    written = datetime.strptime(text, pattern)  # noqa: DTZ007  # -- `read_time` handles its offset
    return read_time(written.isoformat(), lenient=True)


def written_as_time(text: str) -> bool:
    """Whether a text has the form of a date or time, which need not exist."""
    return bool(_forms(text))


def names_offset(text: str) -> bool:
    """Whether a time names its offset from UTC (a bare number does: it counts from 1970)."""
    return all(map(has_offset, _forms(text).values()))


def readable(at: int) -> str:
    """Return a time as a message shows it, to distinguish two readings."""
    return f"{datetime.fromtimestamp(at // SECOND, UTC):%-d %B %Y}"


def _forms(text: str) -> dict[str, str]:
    """Return the text as core reads it, by order of day and month."""
    if looks_like_time(text):
        return dict.fromkeys(ORDERS, text)
    found = _FORM.fullmatch(text)
    if found is None:
        return {}
    part = found.groupdict(default="")
    hour, minute, half = part["hour"], part["minute"], part["half"].lower()
    if hour and not part["dot"] and len(hour) < 2:
        return {}
    if half:
        if not 1 <= int(hour) <= 12:
            return {}
        hour = str(int(hour) % 12 + 12 * (half == "p"))
    clock = f"T{hour:0>2}:{minute}:{part['second'] or '00'}" if hour else ""
    fraction = f".{part['fraction']}" if part["fraction"] else ""
    zone = part["offset"] or ("Z" if part["utc"] else "")
    return {order: f"{date}{clock}{fraction}{zone}" for order, date in _dates(found).items()}


def _dates(found: re.Match[str]) -> dict[str, str]:
    group: Any = found.groups()
    if year := group[0]:
        return dict.fromkeys(ORDERS, _date(year, group[2], group[3]))
    if year := group[4]:
        return dict.fromkeys(ORDERS, _date(year, group[5], group[6]))
    if group[7]:
        first, separator, second, third = group[7:11]
        dates = {"dmy": _date(third, second, first)}
        if separator != ".":  # with dots, the day always comes first
            dates["mdy"] = _date(third, first, second)
            if len(third) == 2 and len(first) == 2:
                dates["ymd"] = _date(first, second, third)
        return dates
    day, month, year = group[11:14] if group[11] else (group[15], group[14], group[16])
    return dict.fromkeys(ORDERS, _date(year, str(_MONTHS.index(month[:3].lower()) + 1), day))


def _date(year: str, month: str, day: str) -> str:
    if len(year) == 2:
        year = f"{'20' if year < '70' else '19'}{year}"
    return f"{year}-{month:0>2}-{day:0>2}"
