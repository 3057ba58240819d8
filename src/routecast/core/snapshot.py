"""A snapshot: the rollups at one position, kept in step by deltas, answering for every window.

It holds the total, the hours of the last week, and those minutes that windows begin and end in.
The minutes it must hold move on with the clock, so a snapshot is good for `LIFETIME`; then load
another.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from typing import Final, NamedTuple, Self

import msgspec

from routecast.core.decision import MINUTE
from routecast.core.delta import Delta
from routecast.core.rollup import (
    MINUTES_PER_HOUR,
    Bucket,
    Key,
    PackedKey,
    PackedSums,
    Sums,
    bucket_merge,
)
from routecast.errors import Gap, Uncovered
from routecast.protocol import WINDOWS, Position

HOUR: Final = MINUTES_PER_HOUR * MINUTE

# Load again after the first, at the latest after the second (in microseconds).
LIFETIME: Final = HOUR
COVERAGE: Final = 2 * HOUR

# Cells added in one piece of a large commit: some 2 ms.
APPLY_STEP: Final = 500
# Cells of recent commits that are remembered in any case; of a large total, half as many as it has.
MIN_RECENT: Final = 1_000


class Span(NamedTuple):
    """Minutes (or hours) since 1970 from `first` up to, not including, `end`."""

    first: int
    end: int


class Needed(NamedTuple):
    """Which periods a snapshot taken at some moment must hold."""

    hours: Span
    minutes: tuple[Span, ...]


_FOREVER: Final = 2**40  # a minute no timestamp reaches


def needed(taken: int) -> Needed:
    """Return the periods a snapshot taken at a moment (microseconds) must hold.

    Windows up to an hour are made of minutes; longer ones of hours, with minutes where they begin.
    All begin a minute early: clocks are set back, too.
    """
    hour = taken // HOUR
    longest = max(length or 0 for length in WINDOWS.values())
    recent = Span((hour - 1) * MINUTES_PER_HOUR - 1, _FOREVER)
    edges = []
    for length in WINDOWS.values():
        if length and length > MINUTES_PER_HOUR:
            first = (hour - length // MINUTES_PER_HOUR) * MINUTES_PER_HOUR
            edges.append(Span(first - 1, first + 3 * MINUTES_PER_HOUR))
    return Needed(
        hours=Span(hour - longest // MINUTES_PER_HOUR - 1, _FOREVER),
        minutes=(recent, *sorted(edges)),
    )


class Snapshot:
    """The rollups at a position. `taken` is when its periods were chosen, in microseconds."""

    def __init__(
        self,
        position: Position,
        taken: int,
        total: Bucket | None = None,
        hours: dict[int, Bucket] | None = None,
        minutes: dict[int, Bucket] | None = None,
    ) -> None:
        self.position = position
        self.taken = taken
        self.total: Bucket = total if total is not None else {}
        self.hours: dict[int, Bucket] = hours if hours is not None else {}
        self.minutes: dict[int, Bucket] = minutes if minutes is not None else {}
        self._needed = needed(taken)
        # The last commits applied, for those who are to come into step (`core/breakdown.py`).
        self._recent: deque[Delta] = deque()
        self._recent_cells = 0
        # The total's keys by the name they have at a place, and how many of them are in there.
        self._index: dict[int, dict[str, list[Key]]] = {}
        self._indexed: dict[int, int] = {}
        # As `pack` has them: the number of each key, and periods as they were when last packed.
        self._numbers: dict[Key, int] = {}
        self._hours: dict[int, msgspec.Raw] = {}
        self._minutes: dict[int, msgspec.Raw] = {}

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
        for _ in self.applying(delta):
            pass
        return True

    def applying(self, delta: Delta) -> Iterator[None]:
        """Add what the next commit added, in pieces of APPLY_STEP cells with a yield between them.

        Read nothing of the snapshot before the last piece is added: its sums are at no position.
        """
        spent = 0
        for minute, cells in delta.cells.minutes.items():
            for piece in _pieces(cells):
                spent += len(piece)
                if spent > APPLY_STEP:
                    yield
                    spent = len(piece)
                self._add(minute, piece)
        self.position = delta.position
        self._remember(delta)

    def _add(self, minute: int, cells: Mapping[Key, Sums]) -> None:
        bucket_merge(self.total, cells)
        if minute // MINUTES_PER_HOUR >= self._needed.hours.first:
            bucket_merge(self.hours.setdefault(minute // MINUTES_PER_HOUR, {}), cells)
            self._hours.pop(minute // MINUTES_PER_HOUR, None)
        if self.holds(minute):
            bucket_merge(self.minutes.setdefault(minute, {}), cells)
            self._minutes.pop(minute, None)

    def _remember(self, delta: Delta) -> None:
        self._recent.append(delta)
        self._recent_cells += len(delta.cells)
        # To add up all cells costs no more than to take as many that changed.
        room = max(len(self.total) // 2, MIN_RECENT)
        while self._recent_cells > room and len(self._recent) > 1:
            self._recent_cells -= len(self._recent.popleft().cells)

    def delta_after(self, seq: int) -> Delta:
        """Return what the commit after a seq added. Raises Gap when it is not remembered."""
        place = len(self._recent) - (self.position.seq - seq)
        if not 0 <= place < len(self._recent):
            raise Gap(f"the commit after seq {seq} is not remembered")
        return self._recent[place]

    def continues(self, before: "Snapshot") -> None:
        """Take over what an older snapshot of this position remembers of the last commits."""
        if before.position == self.position:
            self._recent, self._recent_cells = before._recent.copy(), before._recent_cells

    def minute(self, minute: int) -> Bucket:
        """Return the sums of a minute since 1970. Raises Uncovered when it is not held."""
        if not self.holds(minute):
            raise Uncovered(f"minute {minute} is not held in memory")
        return self.minutes.get(minute, {})

    def hour(self, hour: int) -> Bucket:
        """Return the sums of an hour since 1970. Raises Uncovered when it is not held."""
        if hour < self._needed.hours.first:
            raise Uncovered(f"hour {hour} is not held in memory")
        return self.hours.get(hour, {})

    def check_covers(self, now: int) -> None:
        """Raise Uncovered when windows cannot be answered at `now`: load a new snapshot."""
        if not -MINUTE <= now - self.taken < COVERAGE:
            raise Uncovered(f"taken {(now - self.taken) / 1e6:.0f} s ago")

    def keys_of(self, place: int, names: Iterable[str]) -> Iterator[Key]:
        """Yield the total's keys that have one of these names at a place of the key."""
        index = self._index.setdefault(place, {})
        known = self._indexed.get(place, 0)
        if known < len(self.total):  # no key ever goes
            for key in islice(self.total, known, None):
                index.setdefault(key[place], []).append(key)
            self._indexed[place] = len(self.total)
        return chain.from_iterable(index.get(name, ()) for name in names)

    def holds(self, minute: int) -> bool:
        """Whether the sums of a minute since 1970 are held."""
        return any(first <= minute < end for first, end in self._needed.minutes)

    # -- as bytes, for a cache ------------------------------------------------------------------

    def pack(self) -> bytes:
        """Return the snapshot as bytes. Periods that did not change since are not packed again."""

        def rows(bucket: Bucket) -> msgspec.Raw:
            numbers = self._numbers
            return msgspec.Raw(
                _encode([(numbers.setdefault(k, len(numbers)), s.row()) for k, s in bucket.items()])
            )

        for periods, packed in ((self.hours, self._hours), (self.minutes, self._minutes)):
            for number in periods.keys() - packed.keys():
                packed[number] = rows(periods[number])
        total = rows(self.total)
        # In the order of _Packed, and as it.
        return _encode(
            (self.position, self.taken, total, self._hours, self._minutes, list(self._numbers))
        )

    @classmethod
    def unpack(cls, packed: bytes) -> Self:
        """Return the snapshot that `pack` wrote. Raises ValueError on anything else."""
        read = _decoder.decode(packed)
        keys = [Key(*key) for key in read.keys]

        def bucket(rows: list[PackedSums]) -> Bucket:
            return {keys[number]: Sums.from_row(row) for number, row in rows}

        try:
            return cls(
                read.position,
                read.taken,
                bucket(read.total),
                {hour: bucket(rows) for hour, rows in read.hours.items()},
                {minute: bucket(rows) for minute, rows in read.minutes.items()},
            )
        except IndexError:
            raise ValueError("a row names a key that is not there") from None

    def keys(self) -> Iterator[Key]:
        """Yield every key ever counted."""
        return iter(self.total)


def _pieces(cells: Mapping[Key, Sums]) -> Iterator[Mapping[Key, Sums]]:
    """Yield cells in pieces of at most APPLY_STEP."""
    if len(cells) <= APPLY_STEP:
        yield cells
        return
    rest = iter(cells.items())
    while piece := dict(islice(rest, APPLY_STEP)):
        yield piece


class _Packed(msgspec.Struct, array_like=True):
    position: Position
    taken: int
    total: list[PackedSums]
    hours: dict[int, list[PackedSums]]
    minutes: dict[int, list[PackedSums]]
    keys: list[PackedKey]


_encode: Final = msgspec.msgpack.Encoder().encode
_decoder: Final = msgspec.msgpack.Decoder(_Packed)
