"""Tests of the metrics document: it is exact to the last digit of the contract."""

from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from fractions import Fraction
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from routecast.core.metrics import Baseline, quotient, render
from routecast.core.view import View
from routecast.protocol import DEFAULT_FIELDS, EXTRA_FIELDS, FIELDS, Position
from tests.support.commit_history import CommitHistory, load
from tests.support.decisions import MINUTE, NOW, SECOND, kept, sent_decisions

moments = st.integers(-3 * MINUTE, 0)


def document(*decisions: Any, now: int = NOW, **view: Any) -> dict[str, Any]:
    return render(load(Position("e", 1), now, decisions), View(**view), now)


# -- the document -------------------------------------------------------------------------------


def test_default_document_equals_the_contract_byte_by_byte() -> None:
    """Keys have a fixed order; names come by count, then by name; the three bands in order."""
    decisions = [
        kept(1, strategy="complexity", provider="claude", band="low", confidence=400_000),
        kept(2, strategy="hybrid", provider="gemini", confidence=900_001, cost=2_300_000),
        kept(3, strategy="hybrid", provider="cerebras", confidence=900_000, cost=None),
        kept(4, strategy="angle", provider="claude", band="medium", confidence=None, cost=1),
    ]
    assert msgspec.json.encode(document(*decisions)) == (
        b'{"total_decisions":4,"avg_confidence":0.733334,'
        b'"strategy_performance":{'
        b'"hybrid":{"count":2,"avg_cost":0.0023,"avg_confidence":0.9},'
        b'"angle":{"count":1,"avg_cost":1e-9,"avg_confidence":null},'
        b'"complexity":{"count":1,"avg_cost":0.0023,"avg_confidence":0.4}},'
        b'"confidence_distribution":{"high":2,"medium":1,"low":1},'
        b'"provider_usage":{"claude":2,"cerebras":1,"gemini":1}}'
    )


def test_empty_document_has_nulls_for_unknown_values() -> None:
    """An average of nothing is null; a count of nothing is 0."""
    found = document(fields=FIELDS)
    assert found == {
        "total_decisions": 0,
        "avg_confidence": None,
        "strategy_performance": {},
        "confidence_distribution": {"high": 0, "medium": 0, "low": 0},
        "provider_usage": {},
        "cost": {"total": 0.0, "priced": 0, "unpriced": 0},
        "tokens": {"input": 0, "output": 0},
        "latency_ms": {"avg": None, "p50": None, "p95": None, "p99": None},
        "errors": {"count": 0, "rate": None},
        "fallbacks": 0,
        "models": {},
        "rate": 0.0,
        "savings": None,
    }
    assert list(found) == list(DEFAULT_FIELDS + EXTRA_FIELDS)


def test_unknown_values_are_in_no_average() -> None:
    """The average of one decision with a cost and three without is the cost of the one."""
    decisions = [kept(n, cost=4_000_000 if n == 0 else None, confidence=None) for n in range(4)]
    found = document(*decisions, fields=(*DEFAULT_FIELDS, "cost"))
    assert found["avg_confidence"] is None
    assert found["strategy_performance"]["hybrid"] == {
        "count": 4,
        "avg_cost": 0.004,
        "avg_confidence": None,
    }
    assert found["cost"] == {"total": 0.004, "priced": 1, "unpriced": 3}


def test_models_leave_out_decisions_without_one() -> None:
    """The empty name is not a model."""
    found = document(kept(1), kept(2, model=""), fields=("models",))
    assert list(found["models"]) == ["flash"]


def test_costs_add_up_to_exact_dollars() -> None:
    """Nano-dollars are added as integers."""
    decisions = [kept(n, cost=100_000_000) for n in range(3)]
    assert document(*decisions, fields=("cost",))["cost"]["total"] == 0.3


@given(sent=st.lists(sent_decisions(moments), max_size=25), window=st.sampled_from(["all", "5m"]))
def test_document_equals_that_of_the_oracle(sent: list[dict[str, Any]], window: str) -> None:
    """Every field equals a count in decimals and fractions, for any decisions."""
    history = CommitHistory()
    history.commit(sent)
    history.check(window)


@given(
    sent=st.lists(sent_decisions(moments), max_size=15),
    part=st.sampled_from(["strategy", "provider", "model", "project"]),
    chosen=st.frozensets(st.sampled_from(["hybrid", "cost", "gemini", "flash", "search", "none"])),
)
def test_filters_select_the_decisions_that_they_name(
    sent: list[dict[str, Any]], part: str, chosen: frozenset[str]
) -> None:
    """A decision needs one of the values of each filter."""
    history = CommitHistory()
    history.commit(sent)
    history.check("all", {part: chosen})
    history.check("5m", {part: chosen, "project": frozenset({"default"})})


@given(st.sets(st.sampled_from(FIELDS), min_size=1))
def test_only_the_fields_asked_for_are_there(fields: set[str]) -> None:
    """They have the order of the view."""
    asked = tuple(name for name in FIELDS if name in fields)
    assert tuple(document(kept(), fields=asked)) == asked


# -- latencies, rates, savings ------------------------------------------------------------------


@given(st.lists(st.integers(0, 300) | st.integers(0, 604_800 * 10**6), min_size=1, max_size=30))
def test_percentiles_are_within_two_percent_in_milliseconds(latencies: list[int]) -> None:
    """This holds also for a few microseconds, where rounding could cost more."""
    decisions = [kept(n, latency=latency) for n, latency in enumerate(latencies)]
    found = document(*decisions, fields=("latency_ms",))["latency_ms"]
    for percent in (50, 95, 99):
        exact = Fraction(sorted(latencies)[-(-percent * len(latencies) // 100) - 1], 1000)
        assert abs(Fraction(found[f"p{percent}"]) - exact) <= exact * Fraction(2, 100)


@pytest.mark.parametrize(
    ("elapsed", "rate"), [(0, 1.5), (15 * SECOND, 1.25), (30 * SECOND, 1.0), (59_999_999, 0.5)]
)
def test_rate_weighs_the_minute_before_by_its_rest(elapsed: int, rate: float) -> None:
    """The minute before has 60 decisions and this one 30, while the clock moves through it."""
    start = NOW // MINUTE * MINUTE
    before = [kept(n, decided=start - 1 - n * SECOND) for n in range(60)]
    current = [kept(n, decided=start) for n in range(30)]
    found = document(*before, *current, now=start + elapsed, fields=("rate",))
    assert found == {"rate": rate}


def test_rate_is_that_of_the_last_minute_with_any_window() -> None:
    """Decisions two minutes ago are in the window and not in the rate."""
    old = [kept(n, decided=NOW - 2 * MINUTE) for n in range(60)]
    found = document(*old, window="5m", fields=("total_decisions", "rate"))
    assert found == {"total_decisions": 60, "rate": 0.0}


def test_savings_compare_only_decisions_with_cost_and_tokens() -> None:
    """Decisions without cost or tokens are left out; losses are negative."""
    baseline = Baseline("big", 3 * 10**9, 15 * 10**9)
    metered = kept(1, cost=1_000_000, input_tokens=1000, output_tokens=100)
    others = [kept(2, cost=None), kept(3, input_tokens=None), kept(4, output_tokens=None)]
    snapshot = load(Position("e", 1), NOW, [metered, *others])
    view = View(fields=("savings",))
    assert render(snapshot, view, NOW, baseline) == {
        "savings": {"baseline": "big", "total": 0.0035}
    }
    dear = load(Position("e", 1), NOW, [metered._replace(cost=5_000_000_000)])
    assert render(dear, view, NOW, baseline)["savings"]["total"] == -4.9955


# -- rounding -----------------------------------------------------------------------------------


@given(st.integers(-(10**18), 10**18), st.integers(1, 10**6), st.sampled_from([3, 6, 9]))
def test_quotient_is_the_exact_one_rounded_half_to_even(a: int, b: int, digits: int) -> None:
    """Python's rounding of fractions and of decimals gives the same."""
    found = quotient(a, b, digits)
    assert found == round(Fraction(a, b)) / 10**digits
    with localcontext(prec=60):
        exact = (Decimal(a) / b).quantize(Decimal(1), ROUND_HALF_EVEN)
        assert found == float(exact.scaleb(-digits))


@pytest.mark.parametrize(
    ("dividend", "found"), [(1, 0.0), (3, 2e-6), (5, 2e-6), (7, 4e-6), (-1, 0.0), (-3, -2e-6)]
)
def test_quotient_breaks_ties_to_even(dividend: int, found: float) -> None:
    """A half goes to the even neighbour, on both sides of 0."""
    assert quotient(dividend, 2, 6) == found


def test_quotient_by_zero_is_none() -> None:
    """It is neither 0 nor an error."""
    assert quotient(0, 0, 6) is None
