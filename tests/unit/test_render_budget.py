"""The rendering budget: a client waits for the time it used; other clients do not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routecast.core.render_budget import (
    BURST_SECONDS,
    CLIENT_SHARE,
    MAX_CLIENTS,
    SPARE_ENTRIES,
    TOTAL_SHARE,
    RenderBudget,
)


def test_a_client_that_was_quiet_has_time_for_a_burst() -> None:
    """A burst needs no wait; rendering after it does."""
    budget = RenderBudget()
    budget.charge("a", BURST_SECONDS, 0.0)
    assert budget.wait("a", 0.0) == 0.0
    budget.charge("a", 0.05, 0.0)
    assert budget.wait("a", 0.0) == pytest.approx(0.05 / CLIENT_SHARE)
    assert budget.wait("a", 0.05 / CLIENT_SHARE) == pytest.approx(0.0)


def test_one_client_does_not_cost_another() -> None:
    """The other client may use its own share at once."""
    budget = RenderBudget()
    budget.charge("greedy", 100.0, 0.0)
    assert budget.wait("greedy", 0.0) > 60
    assert budget.wait("other", 0.0) == 0.0
    assert budget.first(["greedy", "other"], 0.0) == ("other", 0.0)


def test_the_first_client_with_time_pays_for_a_shared_view() -> None:
    """If none has time, it is the one that has it soonest."""
    budget = RenderBudget()
    budget.charge("a", 3.0, 0.0)
    budget.charge("b", 2.0, 0.0)
    client, wait = budget.first(["a", "b", "a"], 0.0)
    assert client == "b"
    assert wait == budget.wait("b", 0.0) > 0
    assert budget.first([], 0.0) == ("", 0.0)


@given(st.integers(1, 60), st.floats(0.005, 0.2))
def test_all_clients_together_use_a_limited_share(clients: int, cost: float) -> None:
    """Any number of clients that render whenever they may leave most of the core to other work."""
    budget, now, used, seconds = RenderBudget(), 0.0, 0.0, 20.0
    while now < seconds:
        waits = []
        for client in map(str, range(clients)):
            wait = budget.wait(client, now)
            if not wait:
                budget.charge(client, cost, now)
                used += cost
            waits.append(budget.wait(client, now))
        now += max(min(waits), cost)
    # Each may use its saved burst in addition, and exceed it by one render.
    saved = clients * (BURST_SECONDS + 2 * cost)
    assert used <= TOTAL_SHARE * seconds * 1.05 + saved


def test_the_number_of_remembered_clients_is_limited() -> None:
    """Clients without debt are forgotten, then those that used time longest ago."""
    budget = RenderBudget()
    for number in range(MAX_CLIENTS + 50):
        budget.charge(str(number), 1_000.0, 0.0)
    assert len(budget._paid) <= MAX_CLIENTS
    budget.charge("new", 0.001, 1e9)
    assert len(budget._paid) == 1


def test_clients_that_have_paid_take_no_share() -> None:
    """This holds also while an earlier client still has a debt."""
    budget = RenderBudget()
    budget.charge("debtor", 10_000.0, 0.0)
    for number in range(1_000):
        budget.charge(str(number), 0.0001, 1.0 + number)
    budget.charge("late", 1.0, 5_000.0)
    alone = (1.0 - BURST_SECONDS) / min(CLIENT_SHARE, TOTAL_SHARE / 2)
    assert budget.wait("late", 5_000.0) <= alone + BURST_SECONDS / CLIENT_SHARE
    assert set(budget._paid) == {"debtor", "late"}


def test_charges_of_one_client_take_constant_memory() -> None:
    """It may be charged any number of times before its debt is over."""
    budget = RenderBudget()
    for _ in range(1_000):
        budget.charge("a", 1.0, 0.0)
    assert len(budget._soonest) <= 2 + SPARE_ENTRIES
