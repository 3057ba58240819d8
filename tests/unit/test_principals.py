"""Stream principals: no stream outlives its credential, and one timer serves all of them."""

from collections.abc import Sequence
from typing import Any, cast

import pytest

from routecast.core.access import Principal
from routecast.ports import Connection
from routecast.protocol import CloseCode
from routecast.streaming.principals import GROUP_SECONDS, SERVED_BATCH, StreamPrincipals
from tests.support.clock import HeldClock, HeldTimers
from tests.support.decisions import NOW

SECOND = 1_000_000
START = NOW / SECOND


class Stream:
    """A connection and its peer, which record what happens to them."""

    def __init__(self) -> None:
        self.warnings: list[int] = []
        self.codes: list[CloseCode] = []

    def stop(self, code: CloseCode, return_ms: int | None = None) -> None:
        self.codes.append(code)

    def warn_of_expiry(self, expires_in_ms: int) -> None:
        self.warnings.append(expires_in_ms)


class World:
    """The streams of a server whose clocks a test moves."""

    def __init__(self) -> None:
        self.clock, self.timers = HeldClock(), HeldTimers()
        self.principals = StreamPrincipals(self.clock, self.timers)

    def open(self, expires_in: float | None, subject: str = "ana") -> Stream:
        expires = None if expires_in is None else START + expires_in
        stream = Stream()
        self.principals.add(cast(Connection, stream), stream, Principal(subject, expires=expires))
        return stream

    def renew(self, stream: Stream, expires_in: float | None) -> None:
        expires = None if expires_in is None else START + expires_in
        self.principals.renew(cast(Connection, stream), Principal("ana", expires=expires))

    def close(self, stream: Stream) -> None:
        self.principals.remove(cast(Connection, stream))

    def pass_time(self, seconds: float) -> None:
        """Move both clocks to a moment, and stop at each pending call."""
        end = self.timers.moment + seconds
        while (due := self.timers.pending()) and due[0] <= end:
            self._go_to(due[0])
        self._go_to(end)

    def pass_one_turn(self) -> None:
        """Make the calls that are due next, and not those that follow from them."""
        self._go_to(self.timers.pending()[0])

    def _go_to(self, moment: float) -> None:
        self.clock.moment += round((moment - self.timers.moment) * SECOND)
        self.timers.go_to(moment)


@pytest.fixture
def world() -> World:
    """A server without streams."""
    return World()


def test_a_client_is_warned_half_a_minute_ahead_and_then_closed(world: World) -> None:
    """Once each, and at most half a second late."""
    stream = world.open(100)
    world.pass_time(69.4)
    assert (stream.warnings, stream.codes) == ([], [])
    world.pass_time(1)
    assert stream.warnings == [pytest.approx(30_000, abs=1000 * GROUP_SECONDS)]
    world.pass_time(29.5)
    assert stream.codes == []
    world.pass_time(0.6)
    assert stream.codes == [CloseCode.UNAUTHENTICATED]
    world.pass_time(1_000)
    assert (len(stream.warnings), stream.codes) == (1, [CloseCode.UNAUTHENTICATED])


@pytest.mark.parametrize("left", [0.001, 0.3, 0.5, 0.999, 12.25])
def test_a_short_time_is_announced_at_once(world: World, left: float) -> None:
    """The stream ends within a second of the end of the credential, and not before it."""
    stream = world.open(left)
    world.pass_time(0)
    assert stream.warnings == [round(1000 * left)]
    world.pass_time(left - 0.001)
    assert stream.codes == []
    world.pass_time(GROUP_SECONDS + 0.002)
    assert stream.codes == [CloseCode.UNAUTHENTICATED]


def test_an_expired_credential_closes_at_once(world: World) -> None:
    """As one within the leeway for clocks that differ."""
    stream = world.open(-5)
    world.pass_time(0.01)
    assert (stream.warnings, stream.codes) == ([], [CloseCode.UNAUTHENTICATED])


def test_a_renewed_stream_stays_open(world: World) -> None:
    """It is warned of the new end, and not of the old one."""
    stream = world.open(40)
    world.pass_time(15)
    assert len(stream.warnings) == 1
    world.renew(stream, 100)
    world.pass_time(50)
    assert (len(stream.warnings), stream.codes) == (1, [])
    world.pass_time(6)
    assert len(stream.warnings) == 2
    world.renew(stream, None)
    world.pass_time(1_000)
    assert stream.codes == []


def test_a_stream_that_has_ended_is_forgotten(world: World) -> None:
    """Nothing is kept of it, and it cannot be renewed."""
    stream, other = world.open(40), world.open(40)
    world.close(stream)
    world.renew(stream, 100)
    world.close(stream)
    assert cast(Connection, stream) not in world.principals
    world.pass_time(100)
    assert (stream.warnings, stream.codes) == ([], [])
    assert other.codes == [CloseCode.UNAUTHENTICATED]


def test_no_timer_runs_while_nothing_expires(world: World) -> None:
    """A stream that never expires needs none, and after the last one there is none."""
    world.open(None)
    assert world.timers.pending() == []
    stream = world.open(100)
    assert len(world.timers.pending()) == 1
    world.close(stream)
    world.pass_time(1)
    assert world.timers.pending() == []


def test_one_timer_serves_all(world: World) -> None:
    """However many streams there are, and however often they come and go."""
    for number in range(500):
        world.close(world.open(100 + number))
        world.open(50 + number / 100)
        assert len(world.timers.pending()) == 1
    assert len(world.principals._numbers) < 3 * len(world.principals._groups) + 2 * SERVED_BATCH


def test_the_clock_may_be_set(world: World) -> None:
    """A credential that is over by the clock ends its stream within a second."""
    stream = world.open(3_600)
    world.clock.moment += 3_700 * SECOND
    world.pass_time(1)
    assert stream.codes == [CloseCode.UNAUTHENTICATED]


def test_many_streams_are_closed_in_several_turns(world: World) -> None:
    """Others get a turn after SERVED_BATCH of them; one that was renewed meanwhile stays."""
    streams = [world.open(31) for _ in range(2 * SERVED_BATCH + 1)]
    world.pass_time(31)
    while not closed(streams):
        world.pass_one_turn()
    assert len(closed(streams)) == SERVED_BATCH
    world.renew(streams[-1], 500)
    world.pass_one_turn()
    assert len(closed(streams)) == 2 * SERVED_BATCH
    world.pass_time(10)
    assert streams[-1].codes == []


def test_the_streams_of_revoked_principals_are_closed(world: World) -> None:
    """Each principal is asked about once, however many streams it has."""
    ana = Principal("ana")
    hers, others = [Stream() for _ in range(SERVED_BATCH + 2)], [world.open(60, "bob")]
    for stream in hers:
        world.principals.add(cast(Connection, stream), stream, ana)
    asked: list[str] = []

    def is_revoked(principal: Principal) -> bool:
        asked.append(principal.subject)
        return principal.subject == "ana"

    world.principals.revoke(is_revoked)
    world.pass_time(0)
    assert sorted(asked) == ["ana", "bob"]
    assert len(closed(hers)) == len(hers)
    assert closed(others) == []


def closed(streams: Sequence[Stream]) -> list[Any]:
    """Return the streams that were told to close, with the only code that is right."""
    assert all(stream.codes in ([], [CloseCode.UNAUTHENTICATED]) for stream in streams)
    return [stream for stream in streams if stream.codes]
