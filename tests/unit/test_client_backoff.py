"""Pauses between tries: by chance, under a bound that grows."""

from hypothesis import given
from hypothesis import strategies as st

from routecast.client.backoff import Backoff


def test_the_bound_doubles_up_to_the_longest() -> None:
    """And begins anew after a success."""
    backoff = Backoff(first=1, longest=5, draw=lambda _, bound: bound)
    assert [backoff.next() for _ in range(5)] == [1, 2, 4, 5, 5]
    backoff.reset()
    assert backoff.next() == 1


@given(st.integers(0, 5000), st.floats(0, 100))
def test_a_pause_lies_anywhere_under_the_bound(failures: int, least: float) -> None:
    """On top of what the server asked for, after however many failures."""
    pause = Backoff(first=1, longest=30, failures=failures).next(least)
    assert least <= pause <= least + 30


def test_pauses_are_spread() -> None:
    """Clients that lost a server together come back apart: the pauses fill the range."""
    pauses = [Backoff(first=1).next() for _ in range(1000)]
    assert all(sum(low <= pause < low + 0.1 for pause in pauses) > 30 for low in (0, 0.4, 0.9))
