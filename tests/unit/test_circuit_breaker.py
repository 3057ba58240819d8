"""The circuit breaker: when it lets calls through, and what it reports."""

import asyncio
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routecast.circuit_breaker import FAILURES, LONGEST_WAIT, SHORTEST_WAIT, CircuitBreaker
from routecast.errors import Declined, Unavailable

# With jitter at its longest.
FIRST_WAIT = 2 * SHORTEST_WAIT


class World:
    """A breaker with a clock that stands still and, unless told otherwise, the longest jitter."""

    def __init__(self, jitter: float = 1.0) -> None:
        self.now = 1000.0
        self.breaker = CircuitBreaker("The engine", lambda: self.now, lambda _, most: jitter * most)
        self.tried = 0

    def call(self, fails: bool) -> bool:
        """Call the engine; return whether the call was let through."""
        before = self.tried
        try:
            with self.breaker.call():
                self.tried += 1
                if fails:
                    raise Unavailable("it is down")
        except Unavailable:
            pass
        return self.tried > before

    def break_it(self) -> None:
        for _ in range(FAILURES):
            assert self.call(fails=True)


@pytest.fixture
def world() -> World:
    return World()


def test_stays_closed_while_calls_succeed_now_and_then(world: World) -> None:
    """Only failures in a row open it."""
    for _ in range(5):
        for _ in range(FAILURES - 1):
            assert world.call(fails=True)
        assert world.call(fails=False)
    assert world.breaker.failing is None


def test_opens_after_failures_in_a_row(world: World) -> None:
    """After that the engine is not called, and the caller gets the reason."""
    world.break_it()
    assert not world.call(fails=False)
    assert world.breaker.failing == "it is down"
    with pytest.raises(Unavailable, match="The engine is unavailable: it is down"):
        world.breaker.call().__enter__()


def test_probe_closes_it(world: World) -> None:
    """After one success at the end of the wait, all calls go through."""
    world.break_it()
    world.now += FIRST_WAIT
    assert world.breaker.wait == 0
    assert world.call(fails=False)
    assert world.breaker.failing is None
    assert world.call(fails=True)
    assert world.call(fails=True)


def test_waits_grow_to_the_longest(world: World) -> None:
    """Each failed probe doubles the random part of the wait, up to a limit."""
    world.break_it()
    waits = []
    for _ in range(8):
        waits.append(world.breaker.wait)
        world.now += world.breaker.wait
        assert world.call(fails=True)
    assert waits[:4] == pytest.approx([SHORTEST_WAIT * (1 + 2**tries) for tries in range(4)])
    assert waits[-1] == pytest.approx(LONGEST_WAIT)


def test_waits_start_again_after_it_closed(world: World) -> None:
    """The first wait after a recovery is as short as the very first."""
    world.break_it()
    for fails in (True, True, True, False):
        world.now += world.breaker.wait
        assert world.call(fails)
    world.break_it()
    assert world.breaker.wait == pytest.approx(FIRST_WAIT)


def test_one_probe_at_a_time(world: World) -> None:
    """Calls during a probe are refused, and count neither as success nor as failure."""
    world.break_it()
    world.now += FIRST_WAIT
    with world.breaker.call():
        assert not world.call(fails=False)
        assert not world.call(fails=True)
    assert world.breaker.failing is None


def test_late_failures_do_not_lengthen_the_wait(world: World) -> None:
    """Failures of calls that began before it opened do not count."""
    late = [world.breaker.call() for _ in range(5)]
    for call in late:
        call.__enter__()
    world.break_it()
    for call in late:
        error = Unavailable("late")
        assert not call.__exit__(Unavailable, error, None)
    assert world.breaker.wait == pytest.approx(FIRST_WAIT)
    assert world.breaker.failing == "it is down"


def test_an_answer_is_no_failure(world: World) -> None:
    """An engine that answers with an error is available."""
    world.break_it()
    world.now += FIRST_WAIT
    with pytest.raises(Declined), world.breaker.call():
        raise Declined("no memory left")
    assert world.breaker.failing is None


def test_next_call_is_the_probe_after_a_cancelled_one(world: World) -> None:
    """A cancelled probe leaves the breaker open."""
    world.break_it()
    world.now += FIRST_WAIT
    with pytest.raises(asyncio.CancelledError), world.breaker.call():
        raise asyncio.CancelledError
    assert world.breaker.failing == "it is down"
    assert world.call(fails=False)
    assert world.breaker.failing is None


def test_logs_once_that_it_opened_and_once_that_it_closed(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """The number of calls meanwhile, and the time, make no difference."""
    with caplog.at_level(logging.DEBUG):
        world.break_it()
        for _ in range(10):
            world.now += 1
            world.call(fails=True)
        world.now += LONGEST_WAIT
        world.call(fails=False)
        world.call(fails=False)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("ERROR", "The engine is unavailable and will be tried again: it is down"),
        ("WARNING", "The engine is available again, after 13.0 s"),
    ]


@given(
    st.lists(st.tuples(st.floats(0, 5), st.booleans())),
    st.floats(0, 1, exclude_max=True),
)
def test_open_engine_is_asked_neither_too_often_nor_too_seldom(
    steps: list[tuple[float, bool]], jitter: float
) -> None:
    """No probe comes before the shortest wait, and no call after the longest is refused."""
    world = World(jitter)
    row, last = 0, world.now  # failures in a row, and the time of the last call
    for seconds, fails in steps:
        world.now += seconds
        through = world.call(fails)
        if row < FAILURES:
            assert through
        elif through:
            assert world.now - last >= SHORTEST_WAIT
        else:
            assert world.now - last < LONGEST_WAIT
        if through:
            row, last = (row + 1 if fails else 0), world.now
        assert (world.breaker.failing is not None) == (row >= FAILURES)
