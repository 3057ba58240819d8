"""Decisions that fill a database, and batches that are made to be expensive."""

import gzip
import itertools
import json
from collections.abc import Iterator
from typing import Any, Final

BANDS: Final = ("high", "medium", "low", None)
STATUSES: Final = ("success", "error")
COMBINATIONS: Final = 5_000  # the default of ROUTECAST_MAX_SERIES
PROJECT: Final = "steady"  # of the producers that behave well
STEADY: Final = {"project": PROJECT, "strategy": "s0", "provider": "p0", "model": "m0"}
DAY: Final = 86_400


def names(count: int = COMBINATIONS) -> Iterator[dict[str, str]]:
    """Yield combinations of names within the default limits; the first one is STEADY."""
    yield STEADY
    for number in range(1, count):
        yield {
            "strategy": f"s{number % 50}",
            "provider": f"p{number // 50 % 10}",
            "model": f"m{number // 500}",
        }


def every_series(timestamp: float | None = None) -> Iterator[dict[str, Any]]:
    """Yield a decision for each combination, band and status: eight times COMBINATIONS."""
    for name, band, status in itertools.product(names(), BANDS, STATUSES):
        yield {**name, "confidence": band, "status": status, "timestamp": timestamp}


def every_other_series(timestamp: float) -> Iterator[dict[str, Any]]:
    """Yield the same decisions without those of the project PROJECT."""
    return (each for each in every_series(timestamp) if each.get("project") != PROJECT)


def batches(decisions: Iterator[dict[str, Any]], size: int = 20_000) -> Iterator[bytes]:
    """Yield bodies, as JSON in gzip, of at most `size` decisions each."""
    while part := list(itertools.islice(decisions, size)):
        yield packed(part)


def packed(decisions: list[dict[str, Any]]) -> bytes:
    """Return a body as JSON in gzip."""
    return gzip.compress(json.dumps(decisions, separators=(",", ":")).encode(), 6)


def old_minutes(count: int, now: float, name: dict[str, str] = STEADY) -> bytes:
    """Return a body of decisions of one series, each in another past minute."""
    start = now // 60 * 60 - 60 * count
    some = ({**name, "project": "old", "timestamp": start + 60 * n} for n in range(count))
    return packed(list(some))


def request(path: str, body: bytes, *lines: str, method: str = "POST") -> bytes:
    """Return a complete request."""
    head = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}", *lines]
    return "\r\n".join([*head, "", ""]).encode() + body
