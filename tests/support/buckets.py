"""An oracle for history: it counts each bucket from the decisions, with exact fractions.

It shares no code with the product; decisions are its integers (`tests/support/decisions.py`).
"""

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any

from tests.support.oracle import TOLERANCE, rounded

SECOND = 10**6
FIELDS = (
    "count",
    "cost",
    "avg_cost",
    "avg_confidence",
    "input_tokens",
    "output_tokens",
    "errors",
    "fallbacks",
    "avg_latency_ms",
    "p50_latency_ms",
    "p95_latency_ms",
    "p99_latency_ms",
)


def assert_history(
    document: Mapping[str, Any],
    decisions: Sequence[Any],
    *,
    group_by: str | None = None,
    fields: Sequence[str] = FIELDS,
    filters: Mapping[str, Collection[str]] | None = None,
) -> None:
    """Assert that a history is exactly that of these decisions.

    Percentiles may be off by TOLERANCE. Every series with a decision must be present.
    """
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    first = (datetime.fromisoformat(document["from"]) - epoch) // timedelta(microseconds=1)
    step = document["step"] * SECOND
    end = first + step * document["points"]
    matching = [
        one
        for one in decisions
        if first <= one.decided < end
        and all(getattr(one, name) in chosen for name, chosen in (filters or {}).items())
    ]
    keys = {"all"} if group_by is None else {getattr(one, group_by) for one in matching}
    found = {series["key"]: series for series in document["series"]}
    assert len(found) == len(document["series"])
    assert keys <= set(found)
    for key, series in found.items():
        theirs = [one for one in matching if group_by is None or getattr(one, group_by) == key]
        by_bucket: dict[int, list[Any]] = {}
        for one in theirs:
            by_bucket.setdefault((one.decided - first) // step, []).append(one)
        assert list(series) == ["key", *fields]
        for name in fields:
            assert len(series[name]) == document["points"], name
            for number, value in enumerate(series[name]):
                _check(value, name, by_bucket.get(number, []), f"{key}.{name}[{number}]")


def _check(value: Any, name: str, decisions: Sequence[Any], path: str) -> None:
    expected = _expect(name, decisions)
    if isinstance(expected, Fraction):
        assert abs(Fraction(value) - expected) <= expected * TOLERANCE, (path, value, expected)
    else:
        assert value == expected, path
        assert type(value) is type(expected), path


def _expect(name: str, decisions: Sequence[Any]) -> Any:
    known = {
        part: [getattr(one, part) for one in decisions if getattr(one, part) is not None]
        for part in ("cost", "confidence", "latency", "input_tokens", "output_tokens")
    }
    if name == "count":
        return len(decisions)
    if name == "cost":
        return float(Fraction(sum(known["cost"]), 10**9)) if known["cost"] else None
    if name == "errors":
        return sum(one.status == "error" for one in decisions)
    if name == "fallbacks":
        return sum(one.fallback for one in decisions)
    if name.endswith("_tokens"):
        return sum(known[name])
    if name == "avg_cost":
        return _mean(known["cost"], 9, 9)
    if name == "avg_confidence":
        return _mean(known["confidence"], 6, 6)
    latencies = sorted(known["latency"])
    if name == "avg_latency_ms":
        return _mean(latencies, 3, 3)
    percent = int(name[1:3])
    rank = -(-percent * len(latencies) // 100)
    return Fraction(latencies[rank - 1], 1000) if latencies else None


def _mean(values: Sequence[int], scale: int, places: int) -> float | None:
    return rounded(Fraction(sum(values), len(values) * 10**scale), places) if values else None
