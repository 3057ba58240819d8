"""Rotation: which member a tick serves first."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from routecast.core.rotation import rotated


@given(st.integers(0, 1000))
def test_all_have_their_turn_in_their_order(count: int) -> None:
    served = rotated(dict.fromkeys(range(count)))
    assert sorted(served) == list(range(count))
    assert all((after - before) % count == 1 for before, after in pairwise(served))


@given(st.integers(1, 10))
def test_anybody_may_be_last(count: int) -> None:
    """Of ten, one that is not in a thousand ticks is a chance of one in 10^44."""
    assert {rotated(range(count))[-1] for _ in range(1000)} == set(range(count))
