"""Metrics: the document of a view, rendered from breakdowns. All ratios are computed here."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from routecast.core.breakdown import Breakdown, break_down
from routecast.core.decision import MINUTE
from routecast.core.histogram import percentiles
from routecast.core.rollup import Sums
from routecast.core.snapshot import Snapshot
from routecast.core.view import View
from routecast.patch import Document
from routecast.protocol import BANDS

PERCENTILES: Final = (50, 95, 99)


@dataclass(frozen=True, slots=True)
class Baseline:
    """The model that `savings` are compared with, in nano-dollars per million tokens."""

    model: str
    input_price: int
    output_price: int


def quotient(dividend: int, divisor: int, digits: int) -> float | None:
    """Return dividend / divisor / 10**digits, rounded half to even to `digits` decimals.

    None if the divisor is 0: the average of no values is not zero.
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
    """Return the document of a view, adding up all of its cells in one step. Raises NotHeld."""
    made = [break_down(snapshot, selection, now) for selection in view.selections]
    return document(view, made, now, baseline)


def document(
    view: View, made: Sequence[Breakdown], now: int, baseline: Baseline | None = None
) -> Document:
    """Return the document of a view at `now`, without its timestamp, keys in contract order.

    `made` are the breakdowns of the view's selections, up to date with one snapshot.
    """
    shown, *minutes = made
    found: Document = {}
    for name in view.fields:
        if name == "rate":
            running, both = (each.total.count for each in minutes)
            found[name] = _rate(running, both, now)
        elif name == "savings":
            found[name] = _savings(shown.total, baseline)
        else:
            found[name] = _FIELD_VALUES[name](shown)
    return found


def _by_count(by_name: Mapping[str, Sums]) -> list[tuple[str, Sums]]:
    """Return sums by name, largest count first, then by name."""
    return sorted(by_name.items(), key=lambda item: (-item[1].count, item[0]))


def _performance(named: Iterable[tuple[str, Sums]]) -> Document:
    return {
        name: {
            "count": sums.count,
            "avg_cost": quotient(sums.cost_sum, sums.cost_count, 9),
            "avg_confidence": quotient(sums.confidence_sum, sums.confidence_count, 6),
        }
        for name, sums in named
    }


def _latency(shown: Breakdown) -> Document:
    total = shown.total
    found = percentiles(total.latency_bins, PERCENTILES)
    return {
        "avg": quotient(total.latency_sum, total.latency_count, 3),
        **{
            # To the nanosecond: rounding more would add to the 2 % error of short latencies.
            f"p{percent}": None if value is None else round(value / 1000, 6)
            for percent, value in zip(PERCENTILES, found, strict=True)
        },
    }


def _errors(shown: Breakdown) -> Document:
    count = shown.statuses.get("error", 0)
    return {"count": count, "rate": quotient(count * 10**6, shown.total.count, 6)}


_FIELD_VALUES: Final[dict[str, Callable[[Breakdown], Any]]] = {
    "total_decisions": lambda shown: shown.total.count,
    "avg_confidence": lambda shown: quotient(
        shown.total.confidence_sum, shown.total.confidence_count, 6
    ),
    "strategy_performance": lambda shown: _performance(_by_count(shown.strategies)),
    "confidence_distribution": lambda shown: {band: shown.bands.get(band, 0) for band in BANDS},
    "provider_usage": lambda shown: dict(
        sorted(shown.providers.items(), key=lambda item: (-item[1], item[0]))
    ),
    "cost": lambda shown: {
        "total": shown.total.cost_sum / 10**9,
        "priced": shown.total.cost_count,
        "unpriced": shown.total.count - shown.total.cost_count,
    },
    "tokens": lambda shown: {
        "input": shown.total.input_tokens,
        "output": shown.total.output_tokens,
    },
    "latency_ms": _latency,
    "errors": _errors,
    "fallbacks": lambda shown: shown.total.fallbacks,
    "models": lambda shown: _performance(
        (name, sums) for name, sums in _by_count(shown.models) if name
    ),
}


def _rate(running: int, both: int, now: int) -> float | None:
    """Return decisions per second over the last minute.

    Rollups have whole minutes: the current minute counts in full, the one before by the part that
    lies in the last 60 seconds, as if its decisions were spread evenly. `running` is the count of
    the current minute, `both` that of the two together.
    """
    elapsed = now % MINUTE
    weighted = (both - running) * (MINUTE - elapsed) + running * MINUTE
    return quotient(weighted * 1000, 60 * MINUTE, 3)


def _savings(total: Sums, baseline: Baseline | None) -> Document | None:
    if baseline is None:
        return None
    millionths = (
        total.metered_input * baseline.input_price + total.metered_output * baseline.output_price
    )
    saved = millionths - total.metered_cost * 10**6
    return {"baseline": baseline.model, "total": quotient(saved, 10**6, 9)}
