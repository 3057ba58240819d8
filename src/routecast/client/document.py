"""A document as a client holds it, read with names and types."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from routecast.patch import Document
from routecast.protocol import FIELDS, Position, Source


@dataclass(frozen=True, slots=True)
class ReceivedDocument:
    """A document, and what the server said of it; the default stream does not say all of it."""

    data: Document
    timestamp: str
    position: Position | None = None
    source: str | None = None
    age_ms: int | None = None


class _DocumentPart(msgspec.Struct, frozen=True):
    """Part of a document. What is None is not known; it is never zero."""


class Performance(_DocumentPart, frozen=True):
    """Decisions of one strategy or model; `avg_cost` in dollars, `avg_confidence` of 0 to 1."""

    count: int
    avg_cost: float | None = None
    avg_confidence: float | None = None


class Cost(_DocumentPart, frozen=True):
    """Dollars in all, of the `priced` decisions."""

    total: float
    priced: int
    unpriced: int


class Tokens(_DocumentPart, frozen=True):
    """Tokens in all."""

    input: int
    output: int


class Latency(_DocumentPart, frozen=True):
    """Milliseconds; percentiles are within 2 %."""

    avg: float | None = None
    p50: float | None = None
    p95: float | None = None
    p99: float | None = None


class Errors(_DocumentPart, frozen=True):
    """Decisions that failed, and which part of all that is."""

    count: int
    rate: float | None = None


class Savings(_DocumentPart, frozen=True):
    """Dollars saved against the model that the server was told to compare with."""

    baseline: str
    total: float | None = None


class Metrics(msgspec.Struct, frozen=True, kw_only=True):
    """The metrics at one moment, as of `position`. What was not asked for is None or empty.

    Names come largest count first. `data` is the document itself, with all that the server sent.
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
    # What the default stream does not tell is None.
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
    """Return a document in the order of the contract, which a patch does not keep."""
    known = {name: document[name] for name in FIELDS if name in document}
    for name, rank in _BY_COUNT.items():
        if name in known:
            known[name] = dict(sorted(known[name].items(), key=rank))
    return known | {name: value for name, value in document.items() if name not in known}


def read(held: ReceivedDocument) -> Metrics:
    """Return a document with names and types. Raises msgspec.ValidationError if it is none."""
    about = {name: getattr(held, name) for name in ("timestamp", "position", "source", "age_ms")}
    # Read before it is arranged: what is no document is told as such.
    metrics = msgspec.convert({**held.data, **about, "data": {}}, Metrics)
    data = arranged(held.data)
    ranked = {name: getattr(metrics, name) for name in _BY_COUNT if name in data}
    return msgspec.structs.replace(
        metrics,
        data=data,
        **{name: {key: found[key] for key in data[name]} for name, found in ranked.items()},
    )
