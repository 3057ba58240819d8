"""Token buckets: what clients have left of a quota, and how long they wait for more."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routecast.core.token_bucket import Allowance, Allowances, Quota

QUOTA = Quota(60, 60.0)
# Steps of a client: the time that passes, and what it asks for.
STEPS = st.lists(
    st.tuples(st.floats(0, 100, allow_nan=False), st.integers(1, 200)), min_size=1, max_size=60
)
QUOTAS = st.builds(Quota, st.integers(1, 100), st.sampled_from([0.5, 1.0, 60.0]))


def test_the_whole_quota_may_be_spent_at_once_and_grows_back() -> None:
    """After that, as much as grew back."""
    allowance = Allowance(QUOTA, 100.0)
    assert allowance.wait_for(60, 100.0) == 0
    allowance.spend(60, 100.0)
    assert allowance.wait_for(1, 100.0) == pytest.approx(1.0)
    assert allowance.wait_for(10, 104.0) == pytest.approx(6.0)
    assert allowance.wait_for(10, 110.0) == 0
    assert allowance.left(1_000.0) == 60


def test_more_than_the_quota_needs_all_of_it_and_is_paid_back() -> None:
    """Otherwise a large batch could never be sent."""
    allowance = Allowance(QUOTA, 0.0)
    assert allowance.wait_for(100, 0.0) == 0
    allowance.spend(100, 0.0)
    assert allowance.left(0.0) == -40
    assert allowance.wait_for(100, 0.0) == pytest.approx(100.0)


def test_a_clock_that_goes_back_adds_nothing() -> None:
    """And takes nothing away."""
    allowance = Allowance(QUOTA, 100.0)
    allowance.spend(60, 100.0)
    assert allowance.left(0.0) == 0
    assert allowance.left(30.0) == pytest.approx(30)


@given(QUOTAS, STEPS)
def test_no_client_gets_more_than_its_quota(quota: Quota, steps: list[tuple[float, int]]) -> None:
    """In any time it gets what was there at the start and what grows back; one batch may be more
    than that, and then the next has to wait for it.
    """
    now = spent = 0.0
    allowance = Allowance(quota, now)
    largest = quota.amount
    for passed, asked in steps:
        now += passed
        if not allowance.wait_for(asked, now):
            allowance.spend(asked, now)
            spent += asked
            largest = max(largest, asked)
        assert spent <= largest + now * quota.rate + 1e-3
        assert allowance.left(now) <= quota.amount


@given(QUOTAS, STEPS)
def test_who_waits_as_long_as_told_is_served(quota: Quota, steps: list[tuple[float, int]]) -> None:
    """No wait is too short, and none is needed after it."""
    now = 0.0
    allowance = Allowance(quota, now)
    for passed, asked in steps:
        now += passed
        now += allowance.wait_for(asked, now)
        assert allowance.wait_for(asked, now) <= 1e-6
        allowance.spend(asked, now)


def test_the_client_that_was_away_longest_is_forgotten() -> None:
    """One that keeps asking is not: it could get a new quota otherwise."""
    allowances = Allowances(QUOTA, most=2)
    allowances.of("a", 0.0).spend(60, 0.0)
    allowances.of("b", 0.0)
    allowances.of("a", 0.0)
    allowances.of("c", 0.0)
    assert len(allowances) == 2
    assert allowances.known("b") is None
    assert allowances.of("a", 0.0).left(0.0) == 0


def test_what_is_left_can_be_replaced() -> None:
    """By what all nodes know; it is never more than the quota."""
    allowance = Allowance(QUOTA, 0.0)
    allowance.set_left(-5.0, 10.0)
    assert allowance.left(12.0) == pytest.approx(-3)
    allowance.set_left(1_000.0, 20.0)
    assert allowance.left(20.0) == 60
