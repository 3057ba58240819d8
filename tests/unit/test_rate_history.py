"""`RateHistory`: rates over time, with zeros where nothing came and gaps where nothing is known."""

from routecast.cli.watch.rate_history import RateHistory
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
    history = RateHistory("all", 1.0, clock)
    history.arrived(metrics(10, 1.0))
    clock.now += 2
    history.arrived(metrics(30, 1.5))
    assert list(history.rates) == [10]
    assert list(history.costs) == [15]


def test_what_comes_close_together_is_one_sample() -> None:
    """Else it would be noise."""
    clock = Clock()
    history = RateHistory("all", 0.1, clock)
    history.arrived(metrics(0))
    for total in range(1, 11):
        clock.now += 0.1
        history.arrived(metrics(total))
    assert [round(rate or 0) for rate in history.rates] == [10, 10]


def test_a_quiet_stream_is_zero_and_a_lost_one_a_gap() -> None:
    """When numbers come again after silence, they count from its end; after a loss, from them."""
    clock = Clock()
    history = RateHistory("all", 1.0, clock)
    history.arrived(metrics(10))
    clock.now += 3
    history.passed(fresh=True)
    assert list(history.rates) == [0, 0]
    clock.now += 1
    history.arrived(metrics(14))
    assert list(history.rates) == [0, 0, 2]
    clock.now += 3
    history.passed(fresh=False)
    history.arrived(metrics(1_000))
    assert list(history.rates) == [0, 0, 2, None, None]
    clock.now += 1
    history.arrived(metrics(1_001))
    assert list(history.rates)[5:] == [1]


def test_a_total_that_fell_is_a_gap() -> None:
    """It is another history."""
    clock = Clock()
    history = RateHistory("all", 1.0, clock)
    history.arrived(metrics(10))
    clock.now += 1
    history.arrived(metrics(3))
    assert list(history.rates) == [None]


def test_of_a_window_it_is_what_the_server_says() -> None:
    """The rate of the last minute, and the window's cost for each of its minutes."""
    clock = Clock()
    history = RateHistory("5m", 1.0, clock)
    history.arrived(metrics(10, 5.0, rate=0.5))
    clock.now += 2
    history.passed(fresh=True)
    assert list(history.rates) == [0.5, 0.5]
    assert list(history.costs) == [1.0, 1.0]
