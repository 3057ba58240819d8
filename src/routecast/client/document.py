"""`Metrics`: a received document, with names and types."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from routecast.patch import Document
from routecast.protocol import FIELDS, Position, Source


@dataclass(frozen=True, slots=True)
class ReceivedDocument:
    """A document, and what the server said about it; the default stream leaves some of it out."""

    data: Document
    timestamp: str
    position: Position | None = None
    source: str | None = None
    age_ms: int | None = None


class _DocumentPart(msgspec.Struct, frozen=True):
    """Part of a document. None means unknown, never zero."""


class Performance(_DocumentPart, frozen=True):
    """Decisions of one strategy or model; `avg_cost` in dollars, `avg_confidence` from 0 to 1."""

    count: int
    avg_cost: float | None = None
    avg_confidence: float | None = None


class Cost(_DocumentPart, frozen=True):
    """The sum of the costs of the `priced` decisions, in dollars."""

    total: float
    priced: int
    unpriced: int


class Tokens(_DocumentPart, frozen=True):
    """The sums of tokens."""

    input: int
    output: int


class Latency(_DocumentPart, frozen=True):
    """Latency in milliseconds; percentiles are exact to 2 %."""

    avg: float | None = None
    p50: float | None = None
    p95: float | None = None
    p99: float | None = None


class Errors(_DocumentPart, frozen=True):
    """The number of failed decisions, and their part of all decisions, from 0 to 1."""

    count: int
    rate: float | None = None


class Savings(_DocumentPart, frozen=True):
    """Dollars saved in comparison with the server's baseline model."""

    baseline: str
    total: float | None = None


class Metrics(msgspec.Struct, frozen=True, kw_only=True):
    """The metrics as of `position`. Fields that were not asked for are None or empty.

    Names are in the order of their counts, largest first. `data` is the whole
    document, with the fields that this version does not know.
    """

    total_decisions: int | None = None
    avg_confidence: float | None = None
    strategy_performance: dict[str, Performance] = {}
    confidence_distribution: dict[str, int] = {}
    provider_usage: dict[str, int] = {}
    cost: Cost | None = None
    tokens: Tokens | None = None
    latency_ms: Latency | None = None
    errors: Errors | None = None
    fallbacks: int | None = None
    models: dict[str, Performance] = {}
    rate: float | None = None
    savings: Savings | None = None

    timestamp: str
    # On the default stream, these are None.
    position: Position | None = None
    source: Source | None = None
    age_ms: int | None = None
    data: Document = {}


_BY_COUNT: Final[dict[str, Any]] = {
    "strategy_performance": lambda item: (-item[1]["count"], item[0]),
    "models": lambda item: (-item[1]["count"], item[0]),
    "provider_usage": lambda item: (-item[1], item[0]),
}


def arranged(document: Mapping[str, Any]) -> Document:
    """Return a document with its fields and names in their documented order."""
    known = {name: document[name] for name in FIELDS if name in document}
    for name, rank in _BY_COUNT.items():
        if name in known:
            known[name] = dict(sorted(known[name].items(), key=rank))
    return known | {name: value for name, value in document.items() if name not in known}


def read(held: ReceivedDocument) -> Metrics:
    """Return a document as `Metrics`. Raises msgspec.ValidationError if it is not valid."""
    about = {name: getattr(held, name) for name in ("timestamp", "position", "source", "age_ms")}
    # Before `arranged`, so that an invalid document raises ValidationError.
    metrics = msgspec.convert({**held.data, **about, "data": {}}, Metrics)
    data = arranged(held.data)
    ranked = {name: getattr(metrics, name) for name in _BY_COUNT if name in data}
    return msgspec.structs.replace(
        metrics,
        data=data,
        **{name: {key: found[key] for key in data[name]} for name, found in ranked.items()},
    )
