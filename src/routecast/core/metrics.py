"""Metrics: the document people see, rendered from rollups. The only place with a ratio in it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from routecast.core.decision import MINUTE
from routecast.core.histogram import percentiles
from routecast.core.rollup import Key, Sums
from routecast.core.snapshot import Snapshot
from routecast.core.view import Part, View
from routecast.protocol import BANDS

Document = dict[str, Any]

PERCENTILES: Final = (50, 95, 99)


@dataclass(frozen=True, slots=True)
class Baseline:
    """The model that `savings` are measured against, in nano-dollars per million tokens."""

    model: str
    input_price: int
    output_price: int


def quotient(dividend: int, divisor: int, digits: int) -> float | None:
    """Return dividend / divisor / 10**digits, rounded half to even to `digits` decimals.

    None where there is nothing to divide by: an average over nothing is not zero.
    """
    if not divisor:
        return None
    whole, rest = divmod(dividend, divisor)
    if 2 * rest > divisor or (2 * rest == divisor and whole % 2):
        whole += 1
    # An integer over a power of ten: the nearest float, which prints as just these digits.
    nearest: float = whole / 10**digits
    return nearest


def render(snapshot: Snapshot, view: View, now: int, baseline: Baseline | None = None) -> Document:
    """Return the document of a view at `now`, without its timestamp, keys in contract order.

    Raises Uncovered when the snapshot is too old for the view's window.
    """
    cells = _select(snapshot, view, now)
    fold = _Fold(cells, histogram="latency_ms" in view.fields)
    document: Document = {}
    for name in view.fields:
        if name == "rate":
            document[name] = _rate(snapshot, view, now)
        elif name == "savings":
            document[name] = _savings(fold.total, baseline)
        else:
            document[name] = _FIELDS[name](fold)
    return document


def _select(snapshot: Snapshot, view: View, now: int) -> Mapping[Key, Sums]:
    """Return the sums of a view's window that its filters let through."""
    parts = view.parts
    if not parts or view.window != snapshot.scope:
        return _matching(snapshot.select(view.window, now), parts)
    (place, names), *others = parts
    return _matching(snapshot.total_of(place, names), others)


def _matching(cells: Mapping[Key, Sums], parts: Iterable[Part]) -> Mapping[Key, Sums]:
    for place, names in parts:
        cells = {key: sums for key, sums in cells.items() if key[place] in names}
    return cells


class _Fold:
    """Sums of cells, whole and along one part of the key."""

    def __init__(self, cells: Mapping[Key, Sums], *, histogram: bool) -> None:
        self._cells = cells
        self._strategies = self._sum_by("strategy")
        self.total = Sums()
        if histogram:
            for sums in cells.values():
                self.total.merge(sums)
        else:  # there are fewer strategies than cells
            for sums in self._strategies.values():
                self.total.merge_scalars(sums)

    def by(self, part: str) -> list[tuple[str, Sums]]:
        """Return sums by a part of the key, largest count first, then by name."""
        groups = self._strategies if part == "strategy" else self._sum_by(part)
        return sorted(groups.items(), key=lambda item: (-item[1].count, item[0]))

    def _sum_by(self, part: str) -> dict[str, Sums]:
        place = Key._fields.index(part)
        groups: dict[str, Sums] = {}
        for key, sums in self._cells.items():
            name = key[place]
            group = groups.get(name)
            if group is None:
                group = groups[name] = Sums()
            group.merge_scalars(sums)
        return groups

    def counts(self, part: str) -> dict[str, int]:
        """Return counts by a part of the key, in the same order."""
        place = Key._fields.index(part)
        counts: dict[str, int] = {}
        for key, sums in self._cells.items():
            name = key[place]
            counts[name] = counts.get(name, 0) + sums.count
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _performance(groups: Iterable[tuple[str, Sums]]) -> Document:
    return {
        name: {
            "count": sums.count,
            "avg_cost": quotient(sums.cost_sum, sums.cost_count, 9),
            "avg_confidence": quotient(sums.confidence_sum, sums.confidence_count, 6),
        }
        for name, sums in groups
    }


def _distribution(fold: _Fold) -> Document:
    counts = fold.counts("band")
    return {band: counts.get(band, 0) for band in BANDS}


def _latency(fold: _Fold) -> Document:
    total = fold.total
    found = percentiles(total.latency_bins, PERCENTILES)
    return {
        "avg": quotient(total.latency_sum, total.latency_count, 3),
        **{
            # To the nanosecond: coarser would cost short latencies their 2 %.
            f"p{percent}": None if value is None else round(value / 1000, 6)
            for percent, value in zip(PERCENTILES, found, strict=True)
        },
    }


def _errors(fold: _Fold) -> Document:
    count = fold.counts("status").get("error", 0)
    return {"count": count, "rate": quotient(count * 10**6, fold.total.count, 6)}


_FIELDS: Final[dict[str, Callable[[_Fold], Any]]] = {
    "total_decisions": lambda fold: fold.total.count,
    "avg_confidence": lambda fold: quotient(
        fold.total.confidence_sum, fold.total.confidence_count, 6
    ),
    "strategy_performance": lambda fold: _performance(fold.by("strategy")),
    "confidence_distribution": _distribution,
    "provider_usage": lambda fold: fold.counts("provider"),
    "cost": lambda fold: {
        "total": fold.total.cost_sum / 10**9,
        "priced": fold.total.cost_count,
        "unpriced": fold.total.count - fold.total.cost_count,
    },
    "tokens": lambda fold: {
        "input": fold.total.input_tokens,
        "output": fold.total.output_tokens,
    },
    "latency_ms": _latency,
    "errors": _errors,
    "fallbacks": lambda fold: fold.total.fallbacks,
    "models": lambda fold: _performance((name, sums) for name, sums in fold.by("model") if name),
}


def _rate(snapshot: Snapshot, view: View, now: int) -> float | None:
    """Decisions per second over the last minute.

    Rollups know whole minutes: the one that runs counts in full, the one before it by the part
    that lies in the last sixty seconds, as if its decisions were spread evenly.
    """
    minute, elapsed = divmod(now, MINUTE)

    parts = view.parts

    def count(number: int) -> int:
        return sum(sums.count for sums in _matching(snapshot.minute(number), parts).values())

    weighted = count(minute - 1) * (MINUTE - elapsed) + count(minute) * MINUTE
    return quotient(weighted * 1000, 60 * MINUTE, 3)


def _savings(total: Sums, baseline: Baseline | None) -> Document | None:
    if baseline is None:
        return None
    millionths = (
        total.metered_input * baseline.input_price + total.metered_output * baseline.output_price
    )
    saved = millionths - total.metered_cost * 10**6
    return {"baseline": baseline.model, "total": quotient(saved, 10**6, 9)}
