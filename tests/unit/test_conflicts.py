"""Tests of conflicts: a decision differs from another one with the same id."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routecast.core.conflicts import Content, content_of, count_conflicts, differs
from routecast.core.decision import DecisionRecord, identity_of
from tests.support.decisions import kept


def paid(**values: Any) -> DecisionRecord:
    """Return a decision whose cost was sent."""
    given: dict[str, Any] = {"id": "d", "model": "m", "status": "success", "cost": 5, **values}
    return kept(**given)._replace(cost_sent=True)


def test_a_retry_is_the_same() -> None:
    """Time, latency and reason may differ."""
    assert not differs(paid(), content_of(paid()))
    assert not differs(paid(decided=1, latency=7, reason="again"), content_of(paid()))


@pytest.mark.parametrize("values", [{"status": "error"}, {"cost": 6}, {"cost": 0}, {"model": "n"}])
def test_another_status_cost_or_model_differs(values: dict[str, Any]) -> None:
    """A cost of 0 is compared like any other."""
    assert differs(paid(**values), content_of(paid()))
    assert differs(paid(), content_of(paid(**values)))


def test_a_cost_that_was_unknown_differs_from_one_that_was_sent() -> None:
    """The first attempt failed without a cost, and the second one was paid."""
    assert differs(paid(), Content("success", "m", None))


def test_prices_are_not_compared() -> None:
    """Prices may have changed when the same decision is sent again."""
    priced = paid(cost=4)._replace(cost_sent=False)
    assert not differs(priced, content_of(paid()))
    assert not differs(paid(cost=None)._replace(cost_sent=False), content_of(paid()))


def test_a_model_that_counts_as_other_is_not_compared() -> None:
    """Any model may count as `other`, over the limit of names or folded."""
    assert not differs(paid(), content_of(paid(model="other")))
    assert not differs(paid(model="other"), content_of(paid()))


sent = st.builds(
    lambda identity, cost, status: paid(id=identity, cost=cost, status=status),
    st.sampled_from("abcd"),
    st.integers(0, 2),
    st.sampled_from(["success", "error"]),
)


@given(st.lists(st.lists(sent, max_size=8), max_size=4), st.lists(sent, max_size=4))
def test_conflicts_are_counted_for_each_batch(
    batches: list[list[DecisionRecord]], before: list[DecisionRecord]
) -> None:
    """The counts are those of decisions that came one after the other."""
    stored: dict[tuple[str, str], Content] = {}
    for decision in before:
        stored.setdefault(identity_of(decision), content_of(decision))
    expected, first = [], dict(stored)
    for batch in batches:
        found = [d for d in batch if first.setdefault(identity_of(d), content_of(d)) is not None]
        expected.append(sum(content_of(d) != first[identity_of(d)] for d in found))
    assert count_conflicts(batches, stored) == expected
    everything = {identity_of(d) for batch in batches for d in batch}
    assert count_conflicts(batches, stored, everything) == [0] * len(batches)
