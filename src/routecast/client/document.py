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
    """The decisions of one strategy or model.

    Attributes:
        count: The number of decisions.
        avg_cost: The average of the known costs, in US dollars; None if none is known.
        avg_confidence: The average of the known confidences, 0 to 1; None if none is known.
    """

    count: int
    avg_cost: float | None = None
    avg_confidence: float | None = None


class Cost(_DocumentPart, frozen=True):
    """The costs of decisions.

    Attributes:
        total: The sum of the known costs, in US dollars.
        priced: The number of decisions with a known cost.
        unpriced: The number of decisions without one.
    """

    total: float
    priced: int
    unpriced: int


class Tokens(_DocumentPart, frozen=True):
    """The sums of the known numbers of tokens.

    Attributes:
        input: The tokens that went into models.
        output: The tokens that models produced.
    """

    input: int
    output: int


class Latency(_DocumentPart, frozen=True):
    """The known latencies; each field is None if there are none.

    Attributes:
        avg: The average, in milliseconds.
        p50: The median, in milliseconds, exact to 2 %.
        p95: The 95th percentile, in milliseconds, exact to 2 %.
        p99: The 99th percentile, in milliseconds, exact to 2 %.
    """

    avg: float | None = None
    p50: float | None = None
    p95: float | None = None
    p99: float | None = None


class Errors(_DocumentPart, frozen=True):
    """The decisions with the status `error`.

    Attributes:
        count: Their number.
        rate: Their part of all decisions, 0 to 1; None if there are no decisions.
    """

    count: int
    rate: float | None = None


class Savings(_DocumentPart, frozen=True):
    """What was saved in comparison with the server's baseline model.

    Attributes:
        baseline: The name of the baseline model.
        total: The price of the baseline model for the same tokens, less the paid cost, in US
            dollars, over the decisions with known cost and tokens; None if there are none.
    """

    baseline: str
    total: float | None = None


class Metrics(msgspec.Struct, frozen=True, kw_only=True):
    """The numbers of a view. A field is None or empty if it is unknown, or was not asked for.

    Attributes:
        total_decisions: The number of decisions.
        avg_confidence: The average of the known confidences, 0 to 1.
        strategy_performance: The decisions of each strategy, by name, largest count first.
        confidence_distribution: The number of decisions in each band: `high`, `medium`, `low`.
        provider_usage: The number of decisions of each provider, by name, largest first.
        cost: The costs of decisions, in US dollars.
        tokens: The sums of tokens.
        latency_ms: The latencies, in milliseconds.
        errors: The failed decisions.
        fallbacks: The number of decisions with a fallback.
        models: The decisions of each model, by name, largest count first; decisions without a model
            are left out.
        rate: The decisions per second over the last minute.
        savings: What was saved; None also if the server has no baseline model.
        timestamp: When the server sent the document, as RFC 3339 in UTC.
        position: The position up to which decisions count; None on the default stream.
        source: The source of the numbers; None on the default stream.
        age_ms: The age of the numbers at `timestamp`, in milliseconds; None on the default stream.
        data: The document itself, with the fields that this version of the client does not know.
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
