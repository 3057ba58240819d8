"""Delivery: the times of ticks, also where floating-point numbers are rounded."""

import pytest

from routecast.streaming.delivery import Changes, FullDocuments, phase_of, quantum_of

INTERVALS = [0.1, 0.2, 0.3, 0.7, 1.1, 2.5, 7.3]
START = 1_000_003.3


@pytest.mark.parametrize("interval", INTERVALS)
def test_a_punctual_tick_of_changes_is_not_merged(interval: float) -> None:
    """No tick comes twice, and a punctual message does not move the next one."""
    delivery = Changes(interval, START)
    now = START
    for count in range(1000):
        delivery._snapshot_at = now  # so that no early snapshot of a quiet channel is due
        tick = delivery.due(delivery.due(now))  # at the end of its rest
        now = tick + (0.0005 if count % 3 else -1e-9)
        assert delivery.is_tick(now)
        due_time = delivery.due_time(now)
        assert delivery.pass_tick(now) == 0
        if count % 2:
            delivery.rest(due_time)
        assert delivery.due(delivery.due(now)) == pytest.approx(tick + interval)
    assert delivery.pass_tick(delivery.due(delivery.due(now)) + 3.5 * interval) == 3


@pytest.mark.parametrize("interval", INTERVALS)
def test_a_punctual_tick_of_full_documents_is_not_merged(interval: float) -> None:
    """At any phase, each tick comes one interval after the last one."""
    for place in range(20):
        came = START + place * interval / 20
        delivery = FullDocuments(interval, phase_of(interval, came), came)
        first = delivery.due(came)
        assert came + interval - quantum_of(interval) - 1e-6 <= first <= came + interval + 1e-6
        for count in range(1, 200):
            now = delivery.due(came) + (0.0005 if count % 3 else -1e-9)
            assert delivery.is_tick(now)
            assert delivery.pass_tick(now) == 0
            assert delivery.due(now) == pytest.approx(first + count * interval)
    assert delivery.pass_tick(delivery.due(now) + 3.3 * interval) == 3
