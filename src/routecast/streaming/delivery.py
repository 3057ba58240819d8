"""Delivery: when the members of a channel are sent something, and what. There are two policies.

`FullDocuments` is that of the default stream: the whole document every interval, changed or not.
`Changes` is that of routecast.v1: what changed, as soon as a commit has changed it, with at least
one interval between two messages.

Moments are in seconds on the clock of `ports.Timers`; `clock_now` is in microseconds since 1970.
"""

from math import ceil
from typing import Final, Protocol

from routecast.core.document import EncodedDocument
from routecast.core.message import AddressedMessage, Encoding
from routecast.core.payload import Payload
from routecast.core.versions import Version, full_document, message
from routecast.protocol import ALIVE_SECONDS, MIN_INTERVAL

# Ticks of the default stream fall on multiples of a quantum, so that clients that come together
# share them. An interval has QUANTA of them, but none is shorter than QUANTUM, in seconds.
QUANTA: Final = 20
QUANTUM: Final = 0.05
# A member of the default stream that was sent a document by itself is left out of a tick that comes
# before this part of the interval is over.
SOON: Final = 0.4
# A tick may be this much late, in seconds, and the stream still shows in time that it lives.
MARGIN: Final = 1.0
# Of an interval: a multiple of it is a rounded product, and counts as reached a little before.
ROUNDED: Final = 1e-6
# A channel that is served late by less than this part of its interval counts as served on time.
PUNCTUAL: Final = 0.1
# A commit that changes nothing of a view costs a look at the view. After that the channel rests for
# this part of its interval, and for at most this time, in seconds.
LOOKS: Final = 20
LONGEST_BRIEF_REST: Final = 0.05


class Receiver(Protocol):
    """A member of a channel, or several that are in step."""

    @property
    def base(self) -> Version | None:
        """The version it was sent last; None before its first.

        On the default stream it may be one that it was skipped by.
        """
        ...

    @property
    def encoding(self) -> Encoding | None:
        """How its messages are written; None for the default stream."""
        ...

    @property
    def identity(self) -> str:
        """The id of its subscription; "" for the default stream."""
        ...


class FullDocuments:
    """The whole document every interval, changed or not.

    Ticks are `phase` quanta after the multiples of the interval.
    """

    has_bases = False  # what a member is sent does not depend on what it was sent before

    __slots__ = ("_due", "_interval", "_latest", "_quantum", "is_put_off", "phase")

    def __init__(self, interval: float, phase: int, now: float) -> None:
        self._interval = interval
        self._quantum = quantum_of(interval)
        self.phase = phase
        self._latest: EncodedDocument | None = None  # of the last tick
        # Whether it was put off since its last tick: its clients had used up their rendering time.
        self.is_put_off = False
        self._due = now
        self._due = self._first_tick(now + interval / 2)

    def _first_tick(self, least: float) -> float:
        """Return the first tick at a moment or after it."""
        offset = self.phase * self._quantum
        return ceil((least - offset) / self._interval - ROUNDED) * self._interval + offset

    def due(self, now: float) -> float:
        return self._due

    def is_tick(self, now: float) -> bool:
        return now >= self._due - ROUNDED * self._interval

    def is_resting(self, now: float) -> bool:
        return True  # commits do not count

    def due_time(self, now: float) -> float:
        return now

    def rest(self, due_time: float) -> None:
        """Do nothing: the next message comes with the next tick."""

    def rest_briefly(self, now: float) -> None:
        """Do nothing."""

    def pass_tick(self, now: float) -> int:
        before = self._due
        self._due = self._first_tick(max(now, before) + self._interval / 2)
        return max(0, round((self._due - before) / self._interval) - 1)

    def put_off(self, now: float, wait: float) -> None:
        self.is_put_off = True
        self._due = now + wait

    def wake(self, now: float) -> None:
        self._due = min(self._due, now)

    def take_over(self, other: "FullDocuments") -> None:
        """Have members of another channel, which was served later, catch up with its document."""
        self._latest = other._latest

    def move_forward(self) -> None:
        """Go on one quantum earlier."""
        self.phase -= 1
        self._due -= self._quantum

    def is_too_soon(self, sent_at: float, now: float) -> bool:
        """Whether a tick leaves out those that were sent a document at a moment."""
        return now - sent_at < SOON * self._interval

    def is_in_step(self, one: float, other: float) -> bool:
        """Whether ticks treat those that were sent a document at two moments alike."""
        return abs(one - other) < SOON * self._interval

    def begin(self, version: Version, last: Version | None, now: float, clock_now: int) -> bool:
        self._latest = full_document(version, clock_now)
        self.is_put_off = False
        return True

    def must_repeat(self, now: float) -> bool:
        return False

    def payload(self, version: Version, receiver: Receiver, clock_now: int) -> Payload | None:
        return self._latest

    def base_of_skipped(self, base: Version | None) -> Version | None:
        return base

    def end(self, now: float) -> None:
        """Do nothing."""

    def first(self, version: Version, receiver: Receiver, clock_now: int) -> Payload | None:
        return full_document(version, clock_now)

    def missed(self, newest: Version | None, receiver: Receiver, clock_now: int) -> Payload | None:
        if self._latest is not None or newest is None:
            return self._latest
        return full_document(newest, clock_now)


class Changes:
    """What changed, at most once per interval; all of it at least every ALIVE_SECONDS.

    What moves with the clock is sent at ticks, which fall on multiples of the interval.
    """

    has_bases = True

    __slots__ = (
        "_interval",
        "_rested",
        "_sends_snapshots",
        "_served",
        "_snapshot_at",
        "_stretched",
        "_tick",
        "is_put_off",
    )

    def __init__(self, interval: float, now: float) -> None:
        self._interval = interval
        self._snapshot_at = now  # when all members had a whole document
        self._rested = now  # until when nothing is sent
        self._tick = now  # when what moves with the clock is sent next
        # When it was served last, and whether it was put off since: its clients had used up their
        # rendering time.
        self._served = now
        self.is_put_off = False
        # Of the running round: whether all members get a whole document, and the interval that they
        # really get, if it is longer than the one they asked for.
        self._sends_snapshots = False
        self._stretched: float | None = None
        self.rest(now)  # from the first message

    # -- when -----------------------------------------------------------------------------------

    def due(self, now: float) -> float:
        """Return when to look at the channel next, if no commit comes before."""
        return self._tick if now >= self._rested else min(self._rested, self._tick)

    def is_tick(self, now: float) -> bool:
        """Whether it is time to send what moves with the clock, too."""
        return now >= self._tick - ROUNDED * self._interval  # timers may be early

    def is_resting(self, now: float) -> bool:
        """Whether commits have to wait."""
        return now < self._rested

    def due_time(self, now: float) -> float:
        """Return the time at which the channel was due, if it is served now.

        Its next rest counts from then: timers are a little late, and that must not add up.
        """
        due = self._ticks(now) * self._interval if self.is_tick(now) else self._rested
        return due if 0 <= now - due < PUNCTUAL * self._interval else now

    def rest(self, due_time: float) -> None:
        """Send nothing for an interval, after a message to all members."""
        self._rested = due_time + self._interval
        self._tick_from(self._rested, due_time)

    def rest_briefly(self, now: float) -> None:
        """Ignore commits for a short time, after one that changed nothing."""
        self._rested = now + min(self._interval / LOOKS, LONGEST_BRIEF_REST)

    def pass_tick(self, now: float) -> int:
        """Move on to the next tick; return the number of ticks that were missed."""
        last, ticks = self._ticks(self._tick), self._ticks(max(now, self._tick))
        self._tick_from((ticks + 1) * self._interval, now)
        return ticks - last

    def put_off(self, now: float, wait: float) -> None:
        """Send nothing for `wait` seconds, except to show that the stream lives."""
        self.is_put_off = True
        self._rested = now + wait
        self._tick_from(self._rested, now)

    def wake(self, now: float) -> None:
        """Have the channel served now, as at a tick."""
        self._tick = min(self._tick, now)

    def _tick_from(self, least: float, now: float) -> None:
        """Set the next tick: at a multiple of the interval, or sooner to show life."""
        tick = ceil(least / self._interval - ROUNDED) * self._interval
        self._tick = min(tick, max(self._patience, now + MIN_INTERVAL))

    def _ticks(self, now: float) -> int:
        """Return the number of intervals since the start of the clock."""
        return int(now / self._interval + ROUNDED)

    @property
    def _patience(self) -> float:
        return self._snapshot_at + ALIVE_SECONDS - MARGIN

    # -- what -----------------------------------------------------------------------------------

    def is_too_soon(self, sent_at: float, now: float) -> bool:
        return False  # the channel rests as a whole

    def is_in_step(self, one: float, other: float) -> bool:
        return True  # what members are sent depends on their base alone

    def begin(self, version: Version, last: Version | None, now: float, clock_now: int) -> bool:
        seconds = round(now - self._served, 1)
        self._stretched = seconds if self.is_put_off and seconds > self._interval else None
        self._served, self.is_put_off = now, False
        self._sends_snapshots = self._is_snapshot_due(now)
        # If not, a member that was not sent the last version asks for it when it can.
        return version is not last or self._sends_snapshots

    def must_repeat(self, now: float) -> bool:
        """Begin a round with the last version, if only a repetition shows that the stream lives."""
        # `put_off` sees to it that there is a look at this moment.
        self._stretched, self._sends_snapshots = (
            None,
            now >= self._patience - ROUNDED * self._interval,
        )
        return self._sends_snapshots

    def _is_snapshot_due(self, now: float) -> bool:
        return now + self._interval > self._patience

    def payload(self, version: Version, receiver: Receiver, clock_now: int) -> Payload | None:
        base = receiver.base
        if self._sends_snapshots and (base is None or base.number <= version.number):
            return _addressed(version, None, receiver, clock_now, self._stretched)
        if is_newer(version, base):
            return _addressed(version, base, receiver, clock_now, self._stretched)
        return None

    def base_of_skipped(self, base: Version | None) -> Version | None:
        """Return the base of a skipped member; None if it still needs a whole document."""
        return None if self._sends_snapshots else base

    def end(self, now: float) -> None:
        if self._sends_snapshots:
            self._snapshot_at = now

    def first(self, version: Version, receiver: Receiver, clock_now: int) -> Payload | None:
        return _addressed(version, receiver.base, receiver, clock_now, None)

    def missed(self, newest: Version | None, receiver: Receiver, clock_now: int) -> Payload | None:
        if newest is None or not is_newer(newest, receiver.base):
            return None
        return _addressed(newest, receiver.base, receiver, clock_now, None)


Delivery = FullDocuments | Changes


def quantum_of(interval: float) -> float:
    """Return the seconds between the phases of the default stream's ticks."""
    return max(QUANTUM, interval / QUANTA)


def phase_of(interval: float, now: float) -> int:
    """Return the phase for a client of the default stream that comes now.

    Its first tick is then an interval from now, or up to a quantum sooner: never later, or the tick
    of those who came just before would bring it a second document right after its first.
    """
    phases = max(1, ceil(interval / quantum_of(interval) - ROUNDED))
    return int(now % interval / quantum_of(interval) + ROUNDED) % phases


def is_newer(version: Version, base: Version | None) -> bool:
    """Whether a version is newer than a member's base, and differs from it."""
    return base is None or (version.number > base.number and version.differs(base))


def _addressed(
    version: Version,
    base: Version | None,
    receiver: Receiver,
    clock_now: int,
    stretched: float | None,
) -> AddressedMessage | None:
    assert receiver.encoding is not None
    leading = message(version, base, receiver.encoding, clock_now, stretched)
    return None if leading is None else leading.for_id(receiver.identity)
