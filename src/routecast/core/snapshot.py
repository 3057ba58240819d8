"""A snapshot: the rollups at one position, kept in step by deltas, answering for windows.

It holds the total, the hours of the last week, and those minutes that windows begin and end in.
The minutes it must hold move on with the clock, so a snapshot is good for `LIFETIME`; then load
another.

The total is always held. Where hours and minutes take more memory than there is room for, the
longest window is given up, with the periods that only this window needs; then the next longest.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Final, Literal, NamedTuple, Self

import msgspec

from routecast.core.decision import MINUTE
from routecast.core.delta import Delta
from routecast.core.periods import CELL_BYTES, Keys, Periods, pack_bucket
from routecast.core.rollup import (
    MINUTES_PER_HOUR,
    Bucket,
    Key,
    PackedKey,
    PackedSums,
    Sums,
    bucket_merge,
    bucket_subtract,
)
from routecast.errors import Gap, Uncovered
from routecast.protocol import WINDOWS, Position

HOUR: Final = MINUTES_PER_HOUR * MINUTE

# Load again after the first, at the latest after the second (in microseconds).
LIFETIME: Final = HOUR
COVERAGE: Final = 2 * HOUR

# All windows that have a length in minutes, shortest first.
BOUNDED: Final = tuple(
    sorted(
        (name for name, length in WINDOWS.items() if length), key=lambda name: WINDOWS[name] or 0
    )
)


class Span(NamedTuple):
    """Minutes (or hours) since 1970 from `first` up to, not including, `end`."""

    first: int
    end: int


class Needed(NamedTuple):
    """Which periods a snapshot taken at some moment must hold."""

    hours: Span
    minutes: tuple[Span, ...]


_NOTHING: Final = Span(0, 0)


def needed(taken: int, windows: Iterable[str] = BOUNDED) -> Needed:
    """Return the periods that windows need of a snapshot taken at a moment (microseconds).

    Windows up to an hour are made of minutes; longer ones of hours, with minutes where they begin.
    All begin a minute early, because clocks are set back, too. They end with the snapshot's
    coverage.
    """
    hour, minute = taken // HOUR, taken // MINUTE
    end = hour + COVERAGE // HOUR + 1
    hours, minutes, recent = _NOTHING, [], None
    for length in sorted(WINDOWS[name] or 0 for name in windows):
        if length < MINUTES_PER_HOUR:
            recent = Span(minute - length - 1, end * MINUTES_PER_HOUR)
        elif length == MINUTES_PER_HOUR:
            recent = Span((hour - 1) * MINUTES_PER_HOUR - 1, end * MINUTES_PER_HOUR)
        else:
            first = hour - length // MINUTES_PER_HOUR
            hours = Span(first - 1, end)
            start = first * MINUTES_PER_HOUR
            minutes.append(Span(start - 1, start + 3 * MINUTES_PER_HOUR))
    return Needed(hours, tuple(sorted([*minutes, *([recent] if recent else [])])))


class Parts(NamedTuple):
    """The periods that a window is the sum of."""

    hours: Span
    minutes: tuple[Span, ...]


def parts_of(length: int, now: int) -> Parts:
    """Return the periods that a window of so many minutes is the sum of at `now`.

    It has the whole minutes of its length, and the one that runs.
    """
    first, end = now // MINUTE - length, now // MINUTE + 1
    if length <= MINUTES_PER_HOUR:
        return Parts(_NOTHING, (Span(first, end),))
    hours = Span(-(-first // MINUTES_PER_HOUR), end // MINUTES_PER_HOUR)
    return Parts(
        hours,
        (
            Span(first, hours.first * MINUTES_PER_HOUR),
            Span(hours.end * MINUTES_PER_HOUR, end),
        ),
    )


class Window:
    """The sums of a span of minutes that slides with the clock."""

    def __init__(self, length: int, snapshot: "Snapshot", now: int) -> None:
        self._length = length
        self._snapshot = snapshot
        self.span = self._span(now)
        self.sums: Bucket = {}
        self._fill()

    def _span(self, now: int) -> Span:
        # The whole minutes of its length, and the one that runs.
        minute = now // MINUTE
        return Span(minute - self._length, minute + 1)

    def _fill(self) -> None:
        first, end = self.span
        if self._length <= MINUTES_PER_HOUR:
            edges: Iterable[int] = range(first, end)
        else:
            first_hour, end_hour = -(-first // MINUTES_PER_HOUR), end // MINUTES_PER_HOUR
            for hour in range(first_hour, end_hour):
                bucket_merge(self.sums, self._snapshot.hours.get(hour, {}))
            edges = (
                *range(first, first_hour * MINUTES_PER_HOUR),
                *range(end_hour * MINUTES_PER_HOUR, end),
            )
        for minute in edges:
            bucket_merge(self.sums, self._snapshot.minute(minute))

    def slide(self, now: int) -> None:
        """Move on to the minute of `now`. Raises Uncovered past what the snapshot holds."""
        old, new = self.span, self._span(now)
        if new == old:
            return
        # The minutes that leave must be at hand, and there must be something left to keep.
        if not old.first < new.first < old.end:
            self.__init__(self._length, self._snapshot, now)  # type: ignore[misc]  # -- start again
            return
        leaving = [self._snapshot.minute(minute) for minute in range(old.first, new.first)]
        for bucket in leaving:
            bucket_subtract(self.sums, bucket)
        # Decisions stamped in the future were not counted until their time came.
        for minute in range(old.end, new.end):
            bucket_merge(self.sums, self._snapshot.minute(minute))
        self.span = new

    def add(self, minute: int, cells: Mapping[Key, Sums]) -> None:
        """Count new cells of a minute in, if the window covers it."""
        if self.span.first <= minute < self.span.end:
            bucket_merge(self.sums, cells)


class Snapshot:
    """The rollups at a position. `taken` is when its periods were chosen, in microseconds.

    `room` is how many bytes it may take, None for any number; `covered` are the windows whose
    periods it has. `total` are the sums of the window `scope`: of all time, unless the snapshot is
    the answer to a question about one window (`ports.Store.window`). Then it is `still`: its rate,
    too, is that of the moment when it was taken.
    """

    def __init__(
        self,
        position: Position,
        taken: int,
        total: Bucket | None = None,
        hours: Mapping[int, Bucket] | None = None,
        minutes: Mapping[int, Bucket] | None = None,
        *,
        room: int | None = None,
        covered: Sequence[str] = BOUNDED,
        keys: Keys | None = None,
        scope: str | None = None,
    ) -> None:
        self.position = position
        self.taken = taken
        self.room = room
        self.total: Bucket = total if total is not None else {}
        self._keys = keys if keys is not None else Keys(self.total)
        self.hours = Periods(self._keys, hours)
        self.minutes = Periods(self._keys, minutes)
        self.covered = tuple(covered)
        self.scope = scope or "all"
        self.still = scope is not None
        self._needed = needed(taken, self.covered)
        self._windows: dict[str, Window] = {}
        # The total's keys by the name they have at a place, and how many of them are in there.
        self._index: dict[int, dict[str, list[Key]]] = {}
        self._indexed: dict[int, int] = {}

    def share_keys(self, keys: Iterable[Key]) -> Keys:
        """Use these key objects from now on, and return the numbers that cells have them by."""
        for key in keys:
            self._keys.number(key)
        return self._keys

    @property
    def size(self) -> int:
        """About how many bytes of memory it takes."""
        return len(self.total) * CELL_BYTES + self.hours.size + self.minutes.size

    @property
    def cells(self) -> int:
        """How many cells it holds."""
        return len(self.total) + self.hours.cells + self.minutes.cells

    @property
    def uncovered(self) -> int:
        """How many windows it has no room for."""
        return len(BOUNDED) - len(self.covered)

    def cover(self, windows: Sequence[str]) -> None:
        """Hold what these windows need, the first ones of BOUNDED; drop all other periods."""
        self.covered = tuple(windows)
        self._needed = needed(self.taken, self.covered)
        self.hours.keep([self._needed.hours])
        self.minutes.keep(self._needed.minutes)
        for window in self._windows.keys() - set(self.covered):
            del self._windows[window]

    def fit(self) -> None:
        """Give up the longest windows until the rest is within the room."""
        while self.room is not None and self.covered and self.size > self.room:
            self.cover(self.covered[:-1])

    def covers(self, window: str, now: int, *, rate: bool = False) -> bool:
        """Whether a window (a key of WINDOWS) can be answered at `now`, and with it a rate."""
        if self.still:
            return window == self.scope
        if window == "all" and not rate:
            return True
        if not -MINUTE <= now - self.taken < COVERAGE:
            return False
        # A rate is made of the last two minutes, which any window needs.
        return window in self.covered or (window == "all" and bool(self.covered))

    def moment(self, now: int) -> int:
        """Return the moment that documents made of this snapshot at `now` are about."""
        return self.taken if self.still else now

    def apply(self, delta: Delta) -> bool:
        """Add what a commit added; return False when it was in already.

        Raises Gap, changing nothing, when the delta is not the next one: load a new snapshot.
        """
        if delta.position.epoch != self.position.epoch:
            raise Gap(f"epoch {delta.position.epoch} after {self.position.epoch}")
        if delta.position.seq <= self.position.seq:
            return False
        if delta.position.seq != self.position.seq + 1:
            raise Gap(f"seq {delta.position.seq} after {self.position.seq}")
        for minute, added in delta.cells.minutes.items():
            cells = self._keys.shared(added)
            bucket_merge(self.total, cells)
            if self._covers_hour(minute // MINUTES_PER_HOUR):
                self.hours.add(minute // MINUTES_PER_HOUR, cells)
            if self._covers(minute):
                self.minutes.add(minute, cells)
            for window in self._windows.values():
                window.add(minute, cells)
        self.position = delta.position
        self.fit()
        return True

    def minute(self, minute: int) -> Bucket:
        """Return the sums of a minute since 1970. Raises Uncovered when it is not held."""
        if not self._covers(minute):
            raise Uncovered(f"minute {minute} is not held in memory")
        return self.minutes.get(minute, {})

    def hour(self, hour: int) -> Bucket:
        """Return the sums of an hour since 1970. Raises Uncovered when it is not held."""
        if not self._covers_hour(hour):
            raise Uncovered(f"hour {hour} is not held in memory")
        return self.hours.get(hour, {})

    def select(self, window: str, now: int) -> Bucket:
        """Return the sums of a window (a key of WINDOWS) as it stands at `now`.

        The caller must not change them. Raises Uncovered: load a new snapshot.
        """
        length = WINDOWS[window]
        if window == self.scope or length is None:
            return self.total
        if not self.covers(window, now):
            raise Uncovered(f"{window} is not held in memory, or not at this moment")
        held = self._windows.get(window)
        if held is None:
            held = self._windows[window] = Window(length, self, now)
        else:
            held.slide(now)
        return held.sums

    def total_of(self, place: int, names: Iterable[str]) -> Bucket:
        """Return the total of those keys that have one of these names at a place.

        The caller must not change the sums.
        """
        index = self._index.setdefault(place, {})
        known = self._indexed.get(place, 0)
        if known < len(self.total):  # no key ever goes
            for key in islice(self.total, known, None):
                index.setdefault(key[place], []).append(key)
            self._indexed[place] = len(self.total)
        return {key: self.total[key] for name in names for key in index.get(name, ())}

    def _covers(self, minute: int) -> bool:
        return any(first <= minute < end for first, end in self._needed.minutes)

    def _covers_hour(self, hour: int) -> bool:
        return self._needed.hours.first <= hour < self._needed.hours.end

    # -- as bytes, for a cache ------------------------------------------------------------------

    def pack(self) -> bytes:
        """Return the snapshot as bytes. Periods that did not change since are not packed again."""
        total = msgspec.Raw(pack_bucket(self.total, self._keys))
        hours, minutes = self.hours.pack(), self.minutes.pack()
        # In the order of _Packed, and as it.
        return _encode(
            (FORM, self.position, self.taken, self.covered, total, hours, minutes, self._keys.all)
        )

    @classmethod
    def unpack(cls, packed: bytes, room: int | None = None) -> Self:
        """Return the snapshot that `pack` wrote, as much of it as there is room for.

        Raises ValueError on anything else, such as what another version of this program wrote.
        """
        read = _decoder.decode(packed)
        if read.covered != BOUNDED[: len(read.covered)]:
            raise ValueError("it covers other windows than this program has")
        keys = Keys(Key(*key) for key in read.keys)
        try:
            total = {keys.all[number]: Sums.from_row(row) for number, row in read.total}
        except IndexError:
            raise ValueError("a row names a key that is not there") from None
        snapshot = cls(read.position, read.taken, total, room=room, covered=read.covered, keys=keys)
        snapshot.hours.take(read.hours)
        snapshot.minutes.take(read.minutes)
        snapshot.fit()
        return snapshot

    def keys(self) -> Iterator[Key]:
        """Yield every key ever counted."""
        return iter(self.total)


# Changes with what is packed and how, so that no version takes what it would read wrongly.
FORM: Final = 2


class _Packed(msgspec.Struct, array_like=True):
    form: Literal[2]
    position: Position
    taken: int
    covered: tuple[str, ...]
    total: list[PackedSums]
    hours: dict[int, list[msgspec.Raw]]
    minutes: dict[int, list[msgspec.Raw]]
    keys: list[PackedKey]


_encode: Final = msgspec.msgpack.Encoder().encode
_decoder: Final = msgspec.msgpack.Decoder(_Packed)
