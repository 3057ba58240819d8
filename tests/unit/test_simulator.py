"""Simulated traffic: it is like the traces it is fitted to, and the same for the same seed."""

import csv
import os
import random
import statistics
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import islice, pairwise
from pathlib import Path

import msgspec
import pytest

from routecast.adapters.prices import GenaiPrices
from routecast.cli.demo.simulator import (
    ARRIVAL_SHARES,
    CHAT,
    CODE,
    NATURAL_RATE,
    Quantiles,
    Service,
    arrivals,
    draw,
)
from routecast.core.decision import Rules
from routecast.protocol import DecisionIn
from tests.support.needs import skip_without

DATA = Path(
    os.environ.get("ROUTECAST_SHARED_DATA", Path(__file__).parents[2].parent / "shared" / "data")
)
DRAWS = 200_000
# In a sample of this size, the share below a quantile is wrong by less than this.
SHARE_TOLERANCE = 0.005
SERVICES = {"conv": CHAT, "code": CODE}
NOW = 1_700_000_000_000_000


def share_below(values: Sequence[float], limit: float) -> float:
    """Return the share of the values that are at most the limit."""
    return sum(value <= limit for value in values) / len(values)


@pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES)
@pytest.mark.parametrize("figure", ["gaps", "prompts", "answers"])
def test_draws_have_the_quantiles_of_their_service(service: Service, figure: str) -> None:
    """The share of draws up to each quantile is right, and all draws are within the extremes."""
    quantiles: Quantiles = getattr(service, figure)
    rng = random.Random(7)
    drawn = [draw(quantiles, rng) for _ in range(DRAWS)]
    assert quantiles[0] <= min(drawn)
    assert max(drawn) <= quantiles[-1]
    for index, figure_at in enumerate(quantiles[:-1]):
        # Equal quantiles are one step of the distribution, whose upper end counts.
        share = max(
            s for s, value in zip(ARRIVAL_SHARES, quantiles, strict=True) if value == figure_at
        )
        assert share_below(drawn, figure_at) == pytest.approx(share, abs=SHARE_TOLERANCE), index


@pytest.mark.parametrize(("name", "service"), SERVICES.items(), ids=SERVICES)
def test_quantiles_are_those_of_the_traces(name: str, service: Service) -> None:
    """The constants are the quantiles of the files; draws have the mean and spread of the files."""
    path = DATA / f"azure_llm_{name}_2023.csv"
    if not path.exists():
        skip_without("the Azure traces", "set ROUTECAST_SHARED_DATA to their folder")
    times, prompts, answers = _trace(path)
    gaps = [round(later - earlier, 6) for earlier, later in pairwise(times)]
    measured = {"gaps": gaps, "prompts": prompts, "answers": answers}
    for figure, values in measured.items():
        ranked = sorted(values)
        for share, value in zip(ARRIVAL_SHARES, getattr(service, figure), strict=True):
            assert value == pytest.approx(ranked[round(share * (len(ranked) - 1))], rel=0.01), (
                figure
            )
    rng = random.Random(3)
    drawn = [draw(service.gaps, rng) for _ in range(DRAWS)]
    mean, spread = statistics.fmean(gaps), statistics.pstdev(gaps)
    assert statistics.fmean(drawn) == pytest.approx(mean, rel=0.1)
    assert statistics.pstdev(drawn) / statistics.fmean(drawn) == pytest.approx(
        spread / mean, rel=0.1
    )


def _trace(path: Path) -> tuple[list[float], list[float], list[float]]:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    stamps = [row["TIMESTAMP"] for row in rows]
    times = [
        datetime.fromisoformat(f"{s[:19]}+00:00").timestamp() + float(f"0{s[19:]}") for s in stamps
    ]
    return (
        times,
        [float(row["ContextTokens"]) for row in rows],
        [float(row["GeneratedTokens"]) for row in rows],
    )


def some(seed: int, rate: float = NATURAL_RATE) -> Iterator[tuple[float, dict[str, object]]]:
    """Return the first 20,000 arrivals of a seed."""
    return islice(arrivals(seed, rate), 20_000)


def test_the_same_seed_gives_the_same_traffic() -> None:
    """Another seed gives other traffic."""
    first = list(some(1))
    assert list(some(1)) == first
    assert list(some(2)) != first


@pytest.mark.parametrize("rate", [NATURAL_RATE, 50.0])
def test_arrivals_have_the_given_rate_and_come_in_bursts(rate: float) -> None:
    """Times rise, and counts a second vary far more than those of independent arrivals."""
    times = [at for at, _ in some(5, rate)]
    assert times == sorted(times)
    assert len(times) / times[-1] == pytest.approx(rate, rel=0.15)
    window = 10 * NATURAL_RATE / rate
    counts = [0] * (int(times[-1] / window) + 1)
    for at in times:
        counts[int(at / window)] += 1
    assert statistics.pvariance(counts) > 3 * statistics.fmean(counts)


def test_every_decision_is_a_valid_one_of_the_demo_project() -> None:
    """A server accepts all of them, and each kind that the dashboard shows is among them."""
    decisions = [decision for _, decision in some(11)]
    assert {decision["project"] for decision in decisions} == {"demo"}
    rules = Rules(price=GenaiPrices().cost)
    kept = [rules.normalise(msgspec.convert(d, DecisionIn), NOW) for d in decisions]
    assert {d.band for d in kept} == {"high", "medium", "low", "none"}
    assert len({d.strategy for d in kept}) == 5
    assert {"gemini", "claude", "cerebras", "openrouter"} < {d.provider for d in kept}
    errors = [d for d in kept if d.status == "error"]
    assert 0.005 < len(errors) / len(kept) < 0.02
    assert any(d.fallback for d in kept)
    assert all(d.cost is None for d in errors)
    sent_cost = sum("cost" in decision for decision in decisions)
    priced = sum(d.cost is not None for d in kept)
    assert 0 < sent_cost < priced < len(kept)
