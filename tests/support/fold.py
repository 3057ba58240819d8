"""The metrics after each commit, counted from decisions in the order of their commits.

Like the oracle, it shares no code with the server, and counts in exact decimals and fractions.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple

from tests.support.oracle import rounded

Document = dict[str, Any]


class Decided(NamedTuple):
    """A decision as the database has it; None is unknown."""

    seq: int
    project: str
    id: str
    strategy: str
    provider: str
    band: str | None
    confidence: Decimal | None
    cost: Decimal | None  # dollars


@dataclass
class _Mean:
    count: int = 0
    sum: Decimal = Decimal()

    def add(self, value: Decimal | None) -> None:
        if value is not None:
            self.count += 1
            self.sum += value

    def rounded(self, places: int) -> float | None:
        return rounded(Fraction(self.sum) / self.count, places) if self.count else None


@dataclass
class _Strategy:
    count: int = 0
    cost: _Mean = field(default_factory=_Mean)
    confidence: _Mean = field(default_factory=_Mean)

    def document(self) -> Document:
        return {
            "count": self.count,
            "avg_cost": self.cost.rounded(9),
            "avg_confidence": self.confidence.rounded(6),
        }


class Fold:
    """Sums of decisions, added one by one."""

    def __init__(self) -> None:
        self._total = 0
        self._confidence = _Mean()
        self._strategies: dict[str, _Strategy] = {}
        self._bands = {"high": 0, "medium": 0, "low": 0}
        self._providers: dict[str, int] = {}

    def add(self, one: Decided) -> None:
        self._total += 1
        self._confidence.add(one.confidence)
        strategy = self._strategies.setdefault(one.strategy, _Strategy())
        strategy.count += 1
        strategy.cost.add(one.cost)
        strategy.confidence.add(one.confidence)
        if one.band is not None:
            self._bands[one.band] += 1
        self._providers[one.provider] = self._providers.get(one.provider, 0) + 1

    def document(self) -> Document:
        """Return the document of the decisions so far, without a timestamp."""
        strategies = sorted(self._strategies.items(), key=lambda item: (-item[1].count, item[0]))
        providers = sorted(self._providers.items(), key=lambda item: (-item[1], item[0]))
        return {
            "total_decisions": self._total,
            "avg_confidence": self._confidence.rounded(6),
            "strategy_performance": {name: one.document() for name, one in strategies},
            "confidence_distribution": dict(self._bands),
            "provider_usage": dict(providers),
        }


def documents(rows: Iterable[Decided], wanted: Collection[int]) -> Iterator[tuple[int, Document]]:
    """Return the document after each wanted seq; both `wanted` and rows are in order."""
    fold, waiting = Fold(), iter(sorted(wanted))
    seq = next(waiting, None)
    for row in rows:
        while seq is not None and seq < row.seq:
            yield seq, fold.document()
            seq = next(waiting, None)
        fold.add(row)
    while seq is not None:
        yield seq, fold.document()
        seq = next(waiting, None)
