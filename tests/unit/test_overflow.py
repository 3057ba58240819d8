"""Tests of overflow: which decisions fit into sums of 64 bits."""

from hypothesis import given
from hypothesis import strategies as st

from routecast.core.decision import DecisionRecord
from routecast.core.overflow import LARGEST_SUM, find_full
from routecast.core.rollup import Cells, Key
from tests.support.decisions import cells_of, kept
from tests.support.oracle import tally

LARGE = LARGEST_SUM // 3
amounts = st.none() | st.sampled_from([0, 1, LARGE, LARGE + 1, LARGEST_SUM, 2 * LARGEST_SUM])
decisions = st.lists(st.tuples(st.sampled_from("ab"), amounts, amounts, amounts), max_size=12).map(
    lambda rows: [
        kept(
            n, strategy=name, cost=cost, input_tokens=tokens, output_tokens=tokens, latency=None
        )._replace(confidence=confidence)
        for n, (name, cost, tokens, confidence) in enumerate(rows)
    ]
)


@given(decisions, decisions)
def test_exactly_the_decisions_that_fit_are_kept(
    held: list[DecisionRecord], sent: list[DecisionRecord]
) -> None:
    """A refused decision would exceed the named sum, after those before it that fit."""
    before = [one for one in held if (one.id, one.project) not in find_full(held, {})]
    totals = cells_of(before).total()
    full = find_full(sent, totals)
    counted = list(before)
    for one in sent:
        sums = tally([*counted, one])[one[1:7]]
        over = [
            field
            for field, total in (
                ("confidence", sums.confidence_sum),
                ("cost", sums.cost_sum),
                ("input_tokens", sums.input_tokens),
                ("output_tokens", sums.output_tokens),
            )
            if total > LARGEST_SUM
        ]
        assert full.get((one.id, one.project)) == (over[0] if over else None)
        if not over:
            counted.append(one)


def test_totals_are_not_changed() -> None:
    """They belong to the caller."""
    cells: Cells = cells_of([kept(1)])
    totals = cells.total()
    find_full([kept(2)], totals)
    (key,) = totals
    assert isinstance(key, Key)
    assert totals[key].count == 1
