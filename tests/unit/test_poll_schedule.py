"""The poll schedule: nodes poll in turn while they hear the bus, and each by itself otherwise."""

from dataclasses import dataclass

import pytest

from routecast.core.poll_schedule import SILENT_POLLS, STEP_SECONDS, Poll, PollSchedule
from routecast.core.topology import (
    ALONE_POLL_SECONDS,
    NO_BUS_POLL_SECONDS,
    POLL_SECONDS,
    Topology,
)

WITH_BUS = Topology(has_bus=True)
ALONE = Topology()
START = 1_000.0


@dataclass
class Health:
    """The health of a bus."""

    failing: str | None = None
    outages: int = 0


@pytest.mark.parametrize(
    ("topology", "seconds"),
    [
        (Topology(has_bus=True), POLL_SECONDS),
        (Topology(has_bus=True, shares_store=True), POLL_SECONDS),
        (Topology(has_bus=True, has_store=False), POLL_SECONDS),
        (Topology(), ALONE_POLL_SECONDS),
        (Topology(shares_store=True), NO_BUS_POLL_SECONDS),
    ],
)
def test_seconds_between_polls_depend_on_what_nodes_share(
    topology: Topology, seconds: float
) -> None:
    """With a bus, a poll finds only commits that the bus lost."""
    assert topology.poll_seconds == seconds


def test_nodes_that_hear_each_other_take_turns() -> None:
    """A turn lasts as long as the time between two polls."""
    schedule, bus = PollSchedule(WITH_BUS), Health()
    schedule.record_position(START)
    assert schedule.decide(bus, START, failing=False) is Poll.IN_TURN
    assert schedule.turn_seconds == POLL_SECONDS


def test_turn_of_a_single_node_ends_before_its_next_poll() -> None:
    """Otherwise a late poll would make the node skip the next one."""
    assert PollSchedule(ALONE).turn_seconds < ALONE_POLL_SECONDS


def test_node_that_hears_no_other_polls_by_itself() -> None:
    """It polls at the same interval as in turn."""
    schedule, bus = PollSchedule(WITH_BUS), Health()
    assert not schedule.is_bus_healthy(bus, START)
    assert schedule.decide(bus, START, failing=False) is Poll.NOW
    schedule.begin(bus, START)
    assert schedule.decide(bus, START + POLL_SECONDS - 1, failing=False) is Poll.NO
    assert schedule.decide(bus, START + POLL_SECONDS, failing=False) is Poll.NOW


def test_silence_counts_as_an_outage_after_some_polls() -> None:
    """Before that, one poll may have failed, or the node whose turn it was."""
    schedule, bus = PollSchedule(WITH_BUS), Health()
    schedule.record_position(START)
    assert schedule.is_bus_healthy(bus, START + SILENT_POLLS * POLL_SECONDS - 1)
    assert not schedule.is_bus_healthy(bus, START + SILENT_POLLS * POLL_SECONDS)
    assert not schedule.is_bus_healthy(Health("gone"), START)


def test_failing_database_is_tried_at_each_step() -> None:
    """Its return is noticed soon."""
    schedule, bus = PollSchedule(ALONE), Health()
    schedule.record_position(START)
    schedule.begin(bus, START)
    schedule.failed(START)
    assert schedule.decide(bus, START + STEP_SECONDS / 2, failing=True) is Poll.NO
    assert schedule.decide(bus, START + STEP_SECONDS, failing=True) is Poll.NOW
    assert schedule.next_step(START, failing=True) == START + STEP_SECONDS


def test_each_node_polls_once_after_an_outage_of_the_bus() -> None:
    """It polls at once, also if the outage was over before it was noticed."""
    schedule, bus = PollSchedule(WITH_BUS), Health()
    schedule.record_position(START)
    bus.failing, bus.outages = "gone", 1
    assert schedule.decide(bus, START, failing=False) is Poll.NOW  # by itself
    schedule.begin(bus, START)
    assert schedule.decide(bus, START + 1, failing=False) is Poll.NO
    bus.failing = None
    assert schedule.decide(bus, START + 1, failing=False) is Poll.NOW
    schedule.begin(bus, START + 1)
    assert schedule.decide(bus, START + 1, failing=False) is Poll.IN_TURN


def test_process_that_was_suspended_polls_at_once() -> None:
    """It may have missed any number of commits."""
    schedule, bus = PollSchedule(WITH_BUS), Health()
    schedule.record_position(START)
    schedule.suspect()
    assert schedule.decide(bus, START, failing=False) is Poll.NOW
    schedule.begin(bus, START)
    assert schedule.decide(bus, START, failing=False) is Poll.IN_TURN


def test_suspicion_lasts_until_the_bus_is_back() -> None:
    """A poll during an outage cannot find everything that was missed."""
    schedule, bus = PollSchedule(WITH_BUS), Health("gone")
    schedule.record_position(START)
    schedule.suspect()
    schedule.begin(bus, START)
    bus.failing = None
    assert schedule.decide(bus, START + 1, failing=False) is Poll.NOW


@pytest.mark.parametrize(
    ("now", "due"), [(1_000.0, 1_010.0), (1_009.9, 1_010.0), (1_009.96, 1_020.0)]
)
def test_single_node_polls_at_multiples_of_the_interval(now: float, due: float) -> None:
    """A step that comes a little early counts as the due one."""
    assert PollSchedule(ALONE).next_step(now, failing=False) == pytest.approx(due)


def test_node_with_a_bus_steps_more_often_than_it_polls() -> None:
    """It announces its position at each step."""
    assert PollSchedule(WITH_BUS).next_step(START, failing=False) == START + STEP_SECONDS
