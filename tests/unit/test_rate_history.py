"""`RateHistory`: rates over time, with zeros for a quiet stream and gaps for a lost one."""

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
    """Rates are decisions a second and dollars a minute; the first document gives none."""
    clock = Clock()
    history = RateHistory("all", 1.0, clock)
    history.arrived(metrics(10, 1.0))
    clock.now += 2
    history.arrived(metrics(30, 1.5))
    assert list(history.rates) == [10]
    assert list(history.costs) == [15]


def test_documents_close_together_are_one_sample() -> None:
    """Separate samples would be noise."""
    clock = Clock()
    history = RateHistory("all", 0.1, clock)
    history.arrived(metrics(0))
    for total in range(1, 11):
        clock.now += 0.1
        history.arrived(metrics(total))
    assert [round(rate or 0) for rate in history.rates] == [10, 10]


def test_a_quiet_stream_is_zero_and_a_lost_one_a_gap() -> None:
    """A rate counts from the last zero after silence, and from the first document after a loss."""
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
    """The total belongs to another history."""
    clock = Clock()
    history = RateHistory("all", 1.0, clock)
    history.arrived(metrics(10))
    clock.now += 1
    history.arrived(metrics(3))
    assert list(history.rates) == [None]


def test_rate_of_a_window_is_that_of_the_server() -> None:
    """It is the rate of the last minute; the cost is the window's mean cost a minute."""
    clock = Clock()
    history = RateHistory("5m", 1.0, clock)
    history.arrived(metrics(10, 5.0, rate=0.5))
    clock.now += 2
    history.passed(fresh=True)
    assert list(history.rates) == [0.5, 0.5]
    assert list(history.costs) == [1.0, 1.0]
