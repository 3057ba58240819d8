"""Heartbeat: each connection is pinged in time, and a silent one is aborted."""

from itertools import pairwise

import pytest

from routecast.protocol import CloseCode
from routecast.streaming.heartbeat import PING_SECONDS, PONG_SECONDS, SLOT_SIZE, Heartbeat
from tests.support.clock import HeldTimers

START = 1_000.0


class Pinged:
    """A connection whose client answers, unless it is silent (`heartbeat.PingedConnection`)."""

    def __init__(self, timers: HeldTimers) -> None:
        self._timers = timers
        self.awaits_pong = False
        self.is_silent = False
        self.pings: list[float] = []
        self.aborted: tuple[float, CloseCode] | None = None

    def ping(self) -> None:
        self.pings.append(self._timers.now())
        self.awaits_pong = self.is_silent

    def abort(self, code: CloseCode) -> None:
        self.aborted = self._timers.now(), code


@pytest.fixture
def timers() -> HeldTimers:
    return HeldTimers(START)


@pytest.fixture
def heartbeat(timers: HeldTimers) -> Heartbeat:
    return Heartbeat(timers)


def go(timers: HeldTimers, seconds: float) -> None:
    """Move the clock on; all timers on the way ring."""
    end = timers.moment + seconds
    while (pending := timers.pending()) and pending[0] <= end:
        timers.go_to(max(pending[0], timers.moment))
    timers.go_to(end)


def test_each_connection_is_pinged_every_20_seconds(
    timers: HeldTimers, heartbeat: Heartbeat
) -> None:
    """Whenever it came, and however many others there are."""
    connections = []
    for _ in range(3 * SLOT_SIZE):
        connection = Pinged(timers)
        heartbeat.add(connection)
        connections.append((timers.moment, connection))
        go(timers, 0.01)
    go(timers, 100)
    for came, connection in connections:
        times = [came, *connection.pings, timers.moment]
        gaps = [after - before for before, after in pairwise(times)]
        assert len(connection.pings) >= 5
        assert max(gaps) <= PING_SECONDS + 1e-6
        assert connection.aborted is None


def test_a_silent_connection_is_aborted(timers: HeldTimers, heartbeat: Heartbeat) -> None:
    """Once the time for an answer is over, and no other is."""
    connections = [Pinged(timers) for _ in range(200)]
    for connection in connections:
        heartbeat.add(connection)
    silent = connections[::2]
    for connection in silent:
        connection.is_silent = True
    go(timers, PING_SECONDS + PONG_SECONDS)
    for connection in silent:
        assert connection.aborted is not None
        moment, code = connection.aborted
        assert code is CloseCode.SILENT
        assert moment == pytest.approx(connection.pings[0] + PONG_SECONDS)
    assert not any(connection.aborted for connection in connections[1::2])


def test_an_answer_that_is_read_late_counts(timers: HeldTimers, heartbeat: Heartbeat) -> None:
    """After a hold-up of the process, what came in meanwhile is read before it is judged."""
    connection = Pinged(timers)
    connection.is_silent = True
    heartbeat.add(connection)
    while not connection.pings:
        timers.go_to(timers.pending()[0])
    timers.go_to(timers.pending()[0] + 60)  # all that was due rings; then the socket is read
    connection.awaits_pong = False
    go(timers, 0)
    assert connection.aborted is None


def test_crowds_are_not_pinged_at_once(timers: HeldTimers, heartbeat: Heartbeat) -> None:
    """At most a slot, and slots are spread over the interval."""
    connections = [Pinged(timers) for _ in range(20 * SLOT_SIZE)]
    for connection in connections:
        heartbeat.add(connection)
    go(timers, PING_SECONDS)
    moments = sorted({connection.pings[0] for connection in connections})
    assert len(moments) == 20
    gaps = [after - before for before, after in pairwise(moments)]
    assert min(gaps) > PING_SECONDS / 60
    assert max(gaps) < PING_SECONDS / 6


def test_slots_that_became_sparse_are_merged(timers: HeldTimers, heartbeat: Heartbeat) -> None:
    """So that few connections cost few timers; those that stay are pinged in time all along."""
    connections = [Pinged(timers) for _ in range(10 * SLOT_SIZE)]
    for connection in connections:
        heartbeat.add(connection)
    go(timers, PING_SECONDS)
    stays = connections[:: SLOT_SIZE // 4]
    for connection in connections:
        if connection not in stays:
            heartbeat.remove(connection)
    assert len(timers.pending()) == 10
    go(timers, 5 * PING_SECONDS)
    assert len(timers.pending()) == 1
    for connection in stays:
        times = [*connection.pings, timers.moment]
        gaps = [after - before for before, after in pairwise(times)]
        assert max(gaps) <= PING_SECONDS + 1e-6


def test_an_idle_server_has_no_timer(timers: HeldTimers, heartbeat: Heartbeat) -> None:
    """Nor has one whose connections all left, at any moment."""
    for seconds in (0.0, PING_SECONDS, PING_SECONDS + PONG_SECONDS / 2):
        assert not timers.pending()
        connection = Pinged(timers)
        heartbeat.add(connection)
        go(timers, seconds)
        assert timers.pending()
        heartbeat.remove(connection)
        heartbeat.remove(connection)
    assert not timers.pending()


def test_after_a_long_pause_there_is_one_ping(timers: HeldTimers, heartbeat: Heartbeat) -> None:
    """Not one for each that was missed while the machine slept."""
    connection = Pinged(timers)
    heartbeat.add(connection)
    timers.go_to(START + 3_600)
    go(timers, PING_SECONDS - 1)
    assert len(connection.pings) == 1
