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
    """Move the clock forward, and run all timers that become due."""
    end = timers.moment + seconds
    while (pending := timers.pending()) and pending[0] <= end:
        timers.go_to(max(pending[0], timers.moment))
    timers.go_to(end)


def test_each_connection_is_pinged_every_20_seconds(
    timers: HeldTimers, heartbeat: Heartbeat
) -> None:
    """The gap is never longer, with any number of connections."""
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
    """It is aborted when the time for an answer is over, and no other connection is."""
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
    """After a delay of the process, received bytes are read before connections are aborted."""
    connection = Pinged(timers)
    connection.is_silent = True
    heartbeat.add(connection)
    while not connection.pings:
        timers.go_to(timers.pending()[0])
    timers.go_to(timers.pending()[0] + 60)  # due timers run; then the socket is read
    connection.awaits_pong = False
    go(timers, 0)
    assert connection.aborted is None


def test_many_connections_are_not_pinged_at_once(timers: HeldTimers, heartbeat: Heartbeat) -> None:
    """At most one slot is pinged at a time, and slots are spread over the interval."""
    connections = [Pinged(timers) for _ in range(20 * SLOT_SIZE)]
    for connection in connections:
        heartbeat.add(connection)
    go(timers, PING_SECONDS)
    moments = sorted({connection.pings[0] for connection in connections})
    assert len(moments) == 20
    gaps = [after - before for before, after in pairwise(moments)]
    assert min(gaps) > PING_SECONDS / 60
    assert max(gaps) < PING_SECONDS / 6


def test_slots_with_few_connections_are_merged(timers: HeldTimers, heartbeat: Heartbeat) -> None:
    """Few connections then cost few timers, and are still pinged in time."""
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
    """A server whose connections all left has no timer either, at any moment."""
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
    """Pings that were missed while the machine slept are not repeated."""
    connection = Pinged(timers)
    heartbeat.add(connection)
    timers.go_to(START + 3_600)
    go(timers, PING_SECONDS - 1)
    assert len(connection.pings) == 1
