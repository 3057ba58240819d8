"""Delivery policies: when the members of a channel are sent a message, and which one.

`FullDocuments`, of the default stream: the whole document at each interval, changed or not.
`Changes`, of routecast.v1: what a commit has changed, at once, but at most once per interval.

Times are in seconds on the clock of `ports.Timers`; `clock_now` is in microseconds since 1970.
"""

from math import ceil, inf
from typing import Final, Protocol

from routecast.core.document import EncodedDocument
from routecast.core.message import AddressedMessage, Encoding
from routecast.core.payload import Payload
from routecast.core.versions import Version, full_document, message
from routecast.protocol import ALIVE_SECONDS, MIN_INTERVAL

# Ticks of the default stream fall on multiples of a quantum, so that clients that connect at about
# the same time share them. An interval has QUANTA quanta, each of at least QUANTUM seconds.
QUANTA: Final = 20
QUANTUM: Final = 0.05
# A tick of the default stream leaves out a member that was sent a document less than this part of
# the interval ago.
TOO_SOON: Final = 0.4
# A repeated snapshot is planned this time before ALIVE_SECONDS are over, in seconds: ticks may be
# late.
SNAPSHOT_MARGIN: Final = 1.0
# A multiple of the interval is a rounded product, so it counts as reached this part of an interval
# earlier.
ROUNDING: Final = 1e-6
# A channel that is served less than this part of its interval late counts as served on time.
ON_TIME: Final = 0.1
# After a commit that did not change its view, a channel rests for its interval divided by
# MAX_BRIEF_RESTS, and for at most LONGEST_BRIEF_REST seconds: checking a view has a cost.
MAX_BRIEF_RESTS: Final = 20
LONGEST_BRIEF_REST: Final = 0.05


class Receiver(Protocol):
    """A member of a channel, or a cohort of them."""

    @property
    def base(self) -> Version | None:
        """The version that it was sent last; None before the first.

        On the default stream, it may be a version that was skipped because the socket was full.
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
        # Whether its last tick was put off, because its clients had used up their rendering time.
        self.is_put_off = False
        self._due = now
        self._due = self._first_tick(now + interval / 2)

    def _first_tick(self, earliest: float) -> float:
        """Return the first tick at or after a time."""
        offset = self.phase * self._quantum
        return ceil((earliest - offset) / self._interval - ROUNDING) * self._interval + offset

    def due(self, now: float) -> float:
        return self._due

    def is_tick(self, now: float) -> bool:
        return now >= self._due - ROUNDING * self._interval

    def is_resting(self, now: float) -> bool:
        return True  # commits do not make it due

    def due_time(self, now: float) -> float:
        return now

    def rest(self, due_time: float) -> None:
        """Do nothing: the next message comes with the next tick."""

    def rest_briefly(self, now: float) -> None:
        """Do nothing."""

    def end_rest(self) -> None:
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
        """Take over the latest document of another channel, which was served later."""
        self._latest = other._latest

    def move_forward(self) -> None:
        """Move all ticks one quantum earlier."""
        self.phase -= 1
        self._due -= self._quantum

    def is_too_soon(self, sent_at: float, now: float) -> bool:
        """Whether a tick leaves out members that were sent a document at `sent_at`."""
        return now - sent_at < TOO_SOON * self._interval

    def is_in_step(self, one: float, other: float) -> bool:
        """Whether the same ticks leave out members that were sent a document at these two times."""
        return abs(one - other) < TOO_SOON * self._interval

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
    """What has changed, at most once per interval; the whole document every ALIVE_SECONDS.

    What changes with time alone is sent at ticks, which fall on multiples of the interval.
    """

    has_bases = True

    __slots__ = (
        "_interval",
        "_next_tick",
        "_real_interval",
        "_rest_until",
        "_sends_snapshots",
        "_served",
        "_snapshot_at",
        "is_put_off",
    )

    def __init__(self, interval: float, now: float) -> None:
        self._interval = interval
        self._snapshot_at = now  # when all members were sent a whole document
        self._rest_until = now  # until then, nothing is sent
        self._next_tick = now  # when what changes with time is sent next
        # When it was served last, and whether it was put off since then, because its clients had
        # used up their rendering time.
        self._served = now
        self.is_put_off = False
        # For the current round: whether all members get a whole document, and the real interval, if
        # it is longer than the one that they asked for.
        self._sends_snapshots = False
        self._real_interval: float | None = None
        self.rest(now)  # from the first message

    # -- when -----------------------------------------------------------------------------------

    def due(self, now: float) -> float:
        """Return when to serve the channel if no commit makes it due earlier."""
        if now >= self._rest_until:
            return self._next_tick
        return min(self._rest_until, self._next_tick)

    def is_tick(self, now: float) -> bool:
        """Whether it is time to send what changes with time, too."""
        return now >= self._next_tick - ROUNDING * self._interval  # timers may be early

    def is_resting(self, now: float) -> bool:
        """Whether commits have to wait."""
        return now < self._rest_until

    def due_time(self, now: float) -> float:
        """Return the time from which the next rest counts, if the channel is served now.

        This is when it was due: timers are a little late, and that must not add up. After
        `end_rest`, a commit made it due just now.
        """
        due = self._ticks(now) * self._interval if self.is_tick(now) else self._rest_until
        return due if 0 <= now - due < ON_TIME * self._interval else now

    def rest(self, due_time: float) -> None:
        """Send nothing for an interval, because all members were sent a message."""
        self._rest_until = due_time + self._interval
        self._set_next_tick(self._rest_until, due_time)

    def rest_briefly(self, now: float) -> None:
        """Ignore commits for a short time, because the last one changed nothing."""
        self._rest_until = now + min(self._interval / MAX_BRIEF_RESTS, LONGEST_BRIEF_REST)

    def end_rest(self) -> None:
        """Record that the rest is over, and that there was nothing to send at its end."""
        self._rest_until = -inf

    def pass_tick(self, now: float) -> int:
        """Move on to the next tick; return the number of ticks that were missed."""
        last, ticks = self._ticks(self._next_tick), self._ticks(max(now, self._next_tick))
        self._set_next_tick((ticks + 1) * self._interval, now)
        return ticks - last

    def put_off(self, now: float, wait: float) -> None:
        """Send nothing for `wait` seconds, except a repeated snapshot if one is due."""
        self.is_put_off = True
        self._rest_until = now + wait
        self._set_next_tick(self._rest_until, now)

    def wake(self, now: float) -> None:
        """Make the channel due now, as at a tick. If nothing is sent then, it does not rest."""
        self._next_tick = min(self._next_tick, now)
        self._rest_until = min(self._rest_until, now)

    def _set_next_tick(self, earliest: float, now: float) -> None:
        """Set the next tick: at a multiple of the interval, or earlier if a snapshot is due."""
        tick = ceil(earliest / self._interval - ROUNDING) * self._interval
        self._next_tick = min(tick, max(self._snapshot_due, now + MIN_INTERVAL))

    def _ticks(self, now: float) -> int:
        """Return the number of intervals since the start of the clock."""
        return int(now / self._interval + ROUNDING)

    @property
    def _snapshot_due(self) -> float:
        return self._snapshot_at + ALIVE_SECONDS - SNAPSHOT_MARGIN

    # -- what -----------------------------------------------------------------------------------

    def is_too_soon(self, sent_at: float, now: float) -> bool:
        return False  # the channel rests as a whole

    def is_in_step(self, one: float, other: float) -> bool:
        return True  # what members are sent depends on their base alone

    def begin(self, version: Version, last: Version | None, now: float, clock_now: int) -> bool:
        seconds = round(now - self._served, 1)
        self._real_interval = seconds if self.is_put_off and seconds > self._interval else None
        self._served, self.is_put_off = now, False
        self._sends_snapshots = self._is_snapshot_due(now)
        # If False, a member that was skipped catches up when its socket has drained.
        return version is not last or self._sends_snapshots

    def must_repeat(self, now: float) -> bool:
        """If a snapshot is overdue, begin a round that repeats the last version; return whether."""
        # `put_off` has set a tick for this time.
        self._real_interval = None
        self._sends_snapshots = now >= self._snapshot_due - ROUNDING * self._interval
        return self._sends_snapshots

    def _is_snapshot_due(self, now: float) -> bool:
        return now + self._interval > self._snapshot_due

    def payload(self, version: Version, receiver: Receiver, clock_now: int) -> Payload | None:
        base = receiver.base
        if self._sends_snapshots and (base is None or base.number <= version.number):
            return _addressed(version, None, receiver, clock_now, self._real_interval)
        if is_newer(version, base):
            return _addressed(version, base, receiver, clock_now, self._real_interval)
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
    """Return the phase for a client of the default stream that connects now.

    Its first tick is then an interval from now, or up to a quantum earlier. It is never later:
    otherwise the tick of clients that connected just before would bring a second document right
    after the first.
    """
    phases = max(1, ceil(interval / quantum_of(interval) - ROUNDING))
    return int(now % interval / quantum_of(interval) + ROUNDING) % phases


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
