"""An oracle: the metrics that must result, counted directly from the decisions that were sent.

It shares no code with the server. Numbers are `Decimal` and `Fraction`, counting is a loop over all
decisions, and every rule is a sentence of the contract.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from fractions import Fraction
from typing import Any

MINUTE = 60 * 10**6

DEFAULT_FIELDS = (
    "total_decisions",
    "avg_confidence",
    "strategy_performance",
    "confidence_distribution",
    "provider_usage",
)
EXTRA_FIELDS = (
    "cost",
    "tokens",
    "latency_ms",
    "errors",
    "fallbacks",
    "models",
    "rate",
    "savings",
)
ALL_FIELDS = DEFAULT_FIELDS + EXTRA_FIELDS
WINDOW_MINUTES = {"5m": 5, "1h": 60, "24h": 1440, "7d": 10080}

# The maximum relative error of percentiles, which come from histograms.
TOLERANCE = Fraction(2, 100)


@dataclass(frozen=True)
class Fact:
    """One decision in exact decimals; None is unknown."""

    id: str | None
    project: str
    strategy: str
    provider: str
    model: str | None
    band: str | None
    failed: bool
    decided: int  # microseconds since 1970
    confidence: Decimal | None
    cost: Decimal | None  # dollars
    latency: Decimal | None  # milliseconds
    input_tokens: int | None
    output_tokens: int | None
    fallback: bool


@dataclass(frozen=True)
class Prices:
    """A baseline model, in dollars per million tokens."""

    model: str
    input: Decimal | int
    output: Decimal | int


def fact(
    sent: Mapping[str, Any],
    received: int,
    *,
    high: Decimal = Decimal("0.8"),
    medium: Decimal = Decimal("0.5"),
) -> Fact:
    """Read one decision as sent (JSON values), decided at `received` if it has no timestamp."""
    confidence = sent.get("confidence")
    band: str | None = None
    exact: Decimal | None = None
    if isinstance(confidence, str):
        band = confidence
    elif confidence is not None:
        digits = _decimal(confidence)
        band = "high" if digits >= high else "medium" if digits >= medium else "low"
        exact = _to_places(digits, 6)
    stamp = sent.get("timestamp")
    cost, latency = sent.get("cost"), sent.get("latency_ms")
    return Fact(
        id=sent.get("id"),
        project=sent.get("project") or "default",
        strategy=sent["strategy"],
        provider=sent["provider"],
        model=sent.get("model") or None,
        band=band,
        failed=sent.get("status") == "error",
        decided=received if stamp is None else _microseconds(stamp),
        confidence=exact,
        cost=None if cost is None else _to_places(_decimal(cost), 9),
        latency=None if latency is None else _to_places(_decimal(latency), 3),
        input_tokens=sent.get("input_tokens"),
        output_tokens=sent.get("output_tokens"),
        fallback=bool(sent.get("fallback")),
    )


def distinct(facts: Iterable[Fact]) -> list[Fact]:
    """Return the facts without those whose project has sent their id before."""
    seen: set[tuple[str, str]] = set()
    kept = []
    for one in facts:
        if one.id is not None:
            if (one.project, one.id) in seen:
                continue
            seen.add((one.project, one.id))
        kept.append(one)
    return kept


def expect(
    facts: Iterable[Fact],
    *,
    now: int,
    fields: Sequence[str] = DEFAULT_FIELDS,
    filters: Mapping[str, Collection[str]] | None = None,
    window: str = "all",
    baseline: Prices | None = None,
) -> dict[str, Any]:
    """Return the document, without its timestamp, that these facts must give at `now`."""
    matching = [
        one
        for one in facts
        if all((getattr(one, name) or "") in chosen for name, chosen in (filters or {}).items())
    ]
    inside = [one for one in matching if _within(one, window, now)]
    document: dict[str, Any] = {}
    for name in ALL_FIELDS:
        if name not in fields:
            continue
        if name == "rate":
            document[name] = _rate(matching, now)
        elif name == "savings":
            document[name] = _savings(inside, baseline)
        else:
            document[name] = _FIELDS[name](inside)
    return document


def stamped(document: Mapping[str, Any], now: int) -> dict[str, Any]:
    """Return a document with the timestamp it carries on the wire."""
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=now)
    return {**document, "timestamp": moment.strftime("%Y-%m-%dT%H:%M:%S.%f+00:00")}


def assert_agree(found: object, expected: object, path: str = "") -> None:
    """Assert that a document is the expected one: same keys in the same order, equal values.

    Only percentiles may be off, by TOLERANCE.
    """
    if isinstance(expected, dict):
        assert isinstance(found, dict), f"{path or 'document'}: {found!r} is no object"
        assert list(found) == list(expected), f"{path or 'document'}: keys"
        for name, value in expected.items():
            assert_agree(found[name], value, f"{path}.{name}")
    elif isinstance(expected, Fraction):
        assert isinstance(found, float), f"{path}: {found!r} is no number"
        error = abs(Fraction(found) - expected)
        assert error <= expected * TOLERANCE, f"{path}: {found} is not about {float(expected)}"
    else:
        assert found == expected, f"{path}: {found!r} is not {expected!r}"
        assert type(found) is type(expected), f"{path}: {found!r} is of another type"


# -- the rules ----------------------------------------------------------------------------------


def _decimal(number: float) -> Decimal:
    # The digits that were sent: the shortest ones with this value.
    return Decimal(repr(float(number)))


def _to_places(value: Decimal, places: int) -> Decimal:
    return value.quantize(Decimal(1).scaleb(-places), ROUND_HALF_EVEN)


def _microseconds(stamp: str | float) -> int:
    if isinstance(stamp, str):
        since = datetime.fromisoformat(stamp) - datetime(1970, 1, 1, tzinfo=UTC)
        return (since.days * 86400 + since.seconds) * 10**6 + since.microseconds
    return int(_to_places(_decimal(stamp), 6).scaleb(6))


def _within(one: Fact, window: str, now: int) -> bool:
    """Windows are whole minutes: as many as the window is long, and the unfinished one."""
    if window == "all":
        return True
    age = now // MINUTE - one.decided // MINUTE
    return 0 <= age <= WINDOW_MINUTES[window]


def _mean(values: Iterable[Decimal | None], places: int) -> float | None:
    known = [Fraction(value) for value in values if value is not None]
    return rounded(sum(known, Fraction()) / len(known), places) if known else None


def rounded(value: Fraction, places: int) -> float:
    """Return a fraction rounded to this number of places."""
    # Python rounds fractions half to even.
    return float(Decimal(round(value * 10**places)).scaleb(-places))


def _by_count(names: Iterable[str]) -> list[tuple[str, int]]:
    return sorted(Counter(names).items(), key=lambda item: (-item[1], item[0]))


def _performance(facts: Sequence[Fact], part: str) -> dict[str, Any]:
    names = [getattr(one, part) for one in facts if getattr(one, part) is not None]
    performance = {}
    for name, count in _by_count(names):
        theirs = [one for one in facts if getattr(one, part) == name]
        performance[name] = {
            "count": count,
            "avg_cost": _mean((one.cost for one in theirs), 9),
            "avg_confidence": _mean((one.confidence for one in theirs), 6),
        }
    return performance


def _cost(facts: Sequence[Fact]) -> dict[str, Any]:
    known = [one.cost for one in facts if one.cost is not None]
    return {
        "total": float(sum(known, Decimal())),
        "priced": len(known),
        "unpriced": len(facts) - len(known),
    }


def _latency(facts: Sequence[Fact]) -> dict[str, Any]:
    known = sorted(one.latency for one in facts if one.latency is not None)
    ranks = {percent: -(-percent * len(known) // 100) for percent in (50, 95, 99)}
    return {
        "avg": _mean(known, 3),
        **{f"p{p}": Fraction(known[rank - 1]) if known else None for p, rank in ranks.items()},
    }


def _errors(facts: Sequence[Fact]) -> dict[str, Any]:
    count = sum(one.failed for one in facts)
    return {"count": count, "rate": rounded(Fraction(count, len(facts)), 6) if facts else None}


def _rate(facts: Iterable[Fact], now: int) -> float:
    """The unfinished minute counts in full; the one before by its part of the last 60 seconds."""
    minute, elapsed = divmod(now, MINUTE)
    counts = Counter(one.decided // MINUTE for one in facts)
    before = counts[minute - 1] * Fraction(MINUTE - elapsed, MINUTE)
    return rounded((counts[minute] + before) / 60, 3)


def _savings(facts: Iterable[Fact], baseline: Prices | None) -> dict[str, Any] | None:
    if baseline is None:
        return None
    saved = Fraction()
    for one in facts:
        if one.cost is None or one.input_tokens is None or one.output_tokens is None:
            continue
        price = baseline.input * one.input_tokens + baseline.output * one.output_tokens
        saved += Fraction(price) / 10**6 - Fraction(one.cost)
    return {"baseline": baseline.model, "total": rounded(saved, 9)}


_FIELDS: dict[str, Callable[[Sequence[Fact]], Any]] = {
    "total_decisions": len,
    "avg_confidence": lambda facts: _mean((one.confidence for one in facts), 6),
    "strategy_performance": lambda facts: _performance(facts, "strategy"),
    "confidence_distribution": lambda facts: {
        band: sum(one.band == band for one in facts) for band in ("high", "medium", "low")
    },
    "provider_usage": lambda facts: dict(_by_count(one.provider for one in facts)),
    "cost": _cost,
    "tokens": lambda facts: {
        "input": sum(one.input_tokens or 0 for one in facts),
        "output": sum(one.output_tokens or 0 for one in facts),
    },
    "latency_ms": _latency,
    "errors": _errors,
    "fallbacks": lambda facts: sum(one.fallback for one in facts),
    "models": lambda facts: _performance(facts, "model"),
}


# -- sums of decisions in integers --------------------------------------------------------------


@dataclass(frozen=True)
class Tally:
    """Sums of some decisions of one key, and their latencies, smallest first."""

    count: int
    fallbacks: int
    confidence_count: int
    confidence_sum: int
    cost_count: int
    cost_sum: int
    latency_count: int
    latency_sum: int
    input_tokens: int
    output_tokens: int
    metered_cost: int
    metered_input: int
    metered_output: int
    latencies: list[int]


def tally(decisions: Iterable[Any]) -> dict[tuple[str, ...], Tally]:
    """Sum normalised decisions (integers) by project, strategy, provider, model, band, status."""
    groups: dict[tuple[str, ...], list[Any]] = {}
    for d in decisions:
        key = (d.project, d.strategy, d.provider, d.model, d.band, d.status)
        groups.setdefault(key, []).append(d)
    return {key: _tally_one(group) for key, group in groups.items()}


def _tally_one(group: Sequence[Any]) -> Tally:
    known = {
        name: [getattr(d, name) for d in group if getattr(d, name) is not None]
        for name in ("confidence", "cost", "latency", "input_tokens", "output_tokens")
    }
    metered = [d for d in group if None not in (d.cost, d.input_tokens, d.output_tokens)]
    return Tally(
        count=len(group),
        fallbacks=sum(bool(d.fallback) for d in group),
        confidence_count=len(known["confidence"]),
        confidence_sum=sum(known["confidence"]),
        cost_count=len(known["cost"]),
        cost_sum=sum(known["cost"]),
        latency_count=len(known["latency"]),
        latency_sum=sum(known["latency"]),
        input_tokens=sum(known["input_tokens"]),
        output_tokens=sum(known["output_tokens"]),
        metered_cost=sum(d.cost for d in metered),
        metered_input=sum(d.input_tokens for d in metered),
        metered_output=sum(d.output_tokens for d in metered),
        latencies=sorted(known["latency"]),
    )
