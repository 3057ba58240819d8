"""Samples over time: what happened, that nothing did, and that nobody knows."""

from routecast.cli.watch.rate_history import Movement
from routecast.client import Cost, Metrics


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def metrics(total: int, cost: float = 0.0, rate: float | None = None) -> Metrics:
    return Metrics(
        total_decisions=total,
        cost=Cost(cost, total, 0),
        rate=rate,
        timestamp="2026-01-31T00:00:00Z",
    )


def test_differences_of_totals_are_rates() -> None:
    """Decisions a second, dollars a minute; the first numbers say nothing of either."""
    clock = Clock()
    movement = Movement("all", 1.0, clock)
    movement.arrived(metrics(10, 1.0))
    clock.now += 2
    movement.arrived(metrics(30, 1.5))
    assert list(movement.rates) == [10]
    assert list(movement.costs) == [15]


def test_what_comes_close_together_is_one_sample() -> None:
    """Else it would be noise."""
    clock = Clock()
    movement = Movement("all", 0.1, clock)
    movement.arrived(metrics(0))
    for total in range(1, 11):
        clock.now += 0.1
        movement.arrived(metrics(total))
    assert [round(rate or 0) for rate in movement.rates] == [10, 10]


def test_a_quiet_stream_is_zero_and_a_lost_one_a_gap() -> None:
    """When numbers come again after silence, they count from its end; after a loss, from them."""
    clock = Clock()
    movement = Movement("all", 1.0, clock)
    movement.arrived(metrics(10))
    clock.now += 3
    movement.passed(fresh=True)
    assert list(movement.rates) == [0, 0]
    clock.now += 1
    movement.arrived(metrics(14))
    assert list(movement.rates) == [0, 0, 2]
    clock.now += 3
    movement.passed(fresh=False)
    movement.arrived(metrics(1_000))
    assert list(movement.rates) == [0, 0, 2, None, None]
    clock.now += 1
    movement.arrived(metrics(1_001))
    assert list(movement.rates)[5:] == [1]


def test_a_total_that_fell_is_a_gap() -> None:
    """It is another history."""
    clock = Clock()
    movement = Movement("all", 1.0, clock)
    movement.arrived(metrics(10))
    clock.now += 1
    movement.arrived(metrics(3))
    assert list(movement.rates) == [None]


def test_of_a_window_it_is_what_the_server_says() -> None:
    """The rate of the last minute, and the window's cost for each of its minutes."""
    clock = Clock()
    movement = Movement("5m", 1.0, clock)
    movement.arrived(metrics(10, 5.0, rate=0.5))
    clock.now += 2
    movement.passed(fresh=True)
    assert list(movement.rates) == [0.5, 0.5]
    assert list(movement.costs) == [1.0, 1.0]
