"""Rotation: which member a tick serves first."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from routecast.core.rotation import rotated


@given(st.integers(0, 1000))
def test_all_members_are_served_in_order(count: int) -> None:
    served = rotated(dict.fromkeys(range(count)))
    assert sorted(served) == list(range(count))
    assert all((after - before) % count == 1 for before, after in pairwise(served))


@given(st.integers(1, 10))
def test_any_member_may_be_last(count: int) -> None:
    """With ten members, the chance that one is never last in 1000 ticks is about 10^-45."""
    assert {rotated(range(count))[-1] for _ in range(1000)} == set(range(count))
