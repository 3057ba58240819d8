"""A snapshot: the rollups at one position, kept up to date by deltas, for all windows.

It holds the total, the hours of the last week, and the minutes in which windows begin and end. The
minutes that it must hold move with the clock. So after `LIFETIME` another snapshot is loaded.

The total is always held. If hours and minutes need more memory than there is room for, the longest
window is dropped, with the periods that only this window needs; then the next longest.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from typing import Final, Literal, NamedTuple, Self

import msgspec

from routecast.core.commit_cells import CommitCells
from routecast.core.decision import MINUTE
from routecast.core.delta import Delta
from routecast.core.packing import Packing
from routecast.core.periods import CELL_BYTES, Keys, Periods
from routecast.core.rollup import (
    MINUTES_PER_HOUR,
    Key,
    PackedKey,
    PackedSums,
    PeriodCells,
    Sums,
    merge_cells,
    shared_key,
)
from routecast.errors import MissingDeltas, NotHeld
from routecast.protocol import WINDOWS, Position

HOUR: Final = MINUTES_PER_HOUR * MINUTE

# A snapshot is replaced after LIFETIME, and not used any more after COVERAGE; in microseconds.
LIFETIME: Final = HOUR
COVERAGE: Final = 2 * HOUR

# Cells that are added in one piece of a large commit: about 2 ms.
APPLY_STEP: Final = 500
# Cells of recent commits that are remembered at least. More are remembered beside a large total:
# half as many as it has.
MIN_RECENT: Final = 1_000

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

    def holds(self, number: int) -> bool:
        """Whether a minute (or an hour) is in the span."""
        return self.first <= number < self.end


class Needed(NamedTuple):
    """The periods that a snapshot taken at some moment must hold."""

    hours: Span
    minutes: tuple[Span, ...]


EMPTY_SPAN: Final = Span(0, 0)


def needed(taken: int, windows: Iterable[str] = BOUNDED) -> Needed:
    """Return the periods that windows need of a snapshot taken at a moment (microseconds).

    Windows up to an hour are made of minutes; longer ones of hours, with minutes at their
    beginning. All periods begin one minute (or hour) early, because clocks may be set back. They
    end with the snapshot's coverage.
    """
    hour, minute = taken // HOUR, taken // MINUTE
    end = hour + COVERAGE // HOUR + 1
    hours, minutes, recent = EMPTY_SPAN, [], None
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
    """Return the periods that a window of `length` minutes is the sum of at `now`.

    It has the whole minutes of its length, and the current minute.
    """
    first, end = now // MINUTE - length, now // MINUTE + 1
    if length <= MINUTES_PER_HOUR:
        return Parts(EMPTY_SPAN, (Span(first, end),))
    hours = Span(-(-first // MINUTES_PER_HOUR), end // MINUTES_PER_HOUR)
    return Parts(
        hours,
        (
            Span(first, hours.first * MINUTES_PER_HOUR),
            Span(hours.end * MINUTES_PER_HOUR, end),
        ),
    )


class Snapshot:
    """The rollups at a position. `taken` is when its periods were chosen, in microseconds.

    `room` is the memory that it may take, in bytes, None for no limit; `covered` are the windows
    whose periods it has. `total` are the sums of the window `scope`: `all`, unless the snapshot is
    the answer to a query for one window (`ports.Store.window`). Then it is `still`: it takes no
    deltas, and its documents are about the moment when it was taken.
    """

    def __init__(
        self,
        position: Position,
        taken: int,
        total: PeriodCells | None = None,
        hours: Mapping[int, PeriodCells] | None = None,
        minutes: Mapping[int, PeriodCells] | None = None,
        *,
        room: int | None = None,
        covered: Sequence[str] = BOUNDED,
        keys: Keys | None = None,
        scope: str | None = None,
    ) -> None:
        self.position = position
        self.taken = taken
        self.room = room
        self.total: PeriodCells = total if total is not None else {}
        self._keys = keys if keys is not None else Keys(self.total)
        self.hours = Periods(self._keys, hours)
        self.minutes = Periods(self._keys, minutes)
        self.covered = tuple(covered)
        self.scope = scope or "all"
        self.still = scope is not None
        self._needed = needed(taken, self.covered)
        # The cells of the last commits applied, from which breakdowns that are behind catch up
        # (`core/breakdown.py`), and how many they are.
        self._recent: deque[tuple[CommitCells, int]] = deque()
        self._recent_cells = 0
        self._packings: list[Packing] = []  # the ones that run now
        # For each field of a key: the total's keys by their name there, and how many of the keys
        # this index has.
        self._index: dict[int, dict[str, list[Key]]] = {}
        self._indexed: dict[int, int] = {}

    def share_keys(self, keys: Iterable[Key]) -> Keys:
        """Make these the key objects that cells share; return the keys with their numbers."""
        for key in keys:
            self._keys.number(key)
        return self._keys

    @property
    def size(self) -> int:
        """The approximate memory that it takes, in bytes."""
        return len(self.total) * CELL_BYTES + self.hours.size + self.minutes.size

    @property
    def cells(self) -> int:
        """The number of cells that it holds."""
        return len(self.total) + self.hours.cells + self.minutes.cells

    @property
    def uncovered(self) -> int:
        """The number of windows that it has no room for."""
        return len(BOUNDED) - len(self.covered)

    def cover(self, windows: Sequence[str]) -> None:
        """Hold the periods of these windows, the first ones of BOUNDED; drop all other periods."""
        self.covered = tuple(windows)
        self._needed = needed(self.taken, self.covered)
        self.hours.keep([self._needed.hours])
        self.minutes.keep(self._needed.minutes)

    def fit(self) -> None:
        """Drop the longest windows until the rest fits into the room."""
        while self.room is not None and self.covered and self.size > self.room:
            self.cover(self.covered[:-1])

    def covers(self, window: str, now: int, *, rate: bool = False) -> bool:
        """Whether a window (a key of WINDOWS), and a rate if wanted, can be answered at `now`."""
        if self.still:
            return window == self.scope
        if window == "all" and not rate:
            return True
        if not -MINUTE <= now - self.taken < COVERAGE:
            return False
        # A rate needs the last two minutes, which every window needs, too.
        return window in self.covered or (window == "all" and bool(self.covered))

    def is_sum_of(self, length: int) -> bool:
        """Whether the total is that of a window of `length` minutes alone."""
        return self.still and WINDOWS[self.scope] == length

    def document_time(self, now: int) -> int:
        """Return the time that a document made of this snapshot at `now` is about."""
        return self.taken if self.still else now

    def apply(self, delta: Delta) -> bool:
        """Add a delta; return False if it is in the snapshot already.

        Raises MissingDeltas, changing nothing, if the delta is not the next one.
        """
        if delta.position.epoch != self.position.epoch:
            raise MissingDeltas(f"epoch {delta.position.epoch} after {self.position.epoch}")
        if delta.position.seq <= self.position.seq:
            return False
        if delta.position.seq != self.position.seq + 1:
            raise MissingDeltas(f"seq {delta.position.seq} after {self.position.seq}")
        for _ in self.applying(delta):
            pass
        return True

    def applying(self, delta: Delta) -> Iterator[None]:
        """Add the next delta in pieces of APPLY_STEP cells, with a yield between them.

        Do not read the snapshot before the last piece is added: until then it is at no position.
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
        self.fit()

    def _add(self, minute: int, added: Mapping[Key, Sums]) -> None:
        cells = self._keys.shared(added)
        for packing in self._packings:
            packing.save(minute, cells.keys())
        merge_cells(self.total, cells)
        if self._holds_hour(minute // MINUTES_PER_HOUR):
            self.hours.add(minute // MINUTES_PER_HOUR, cells)
        if self.holds(minute):
            self.minutes.add(minute, cells)

    def _remember(self, delta: Delta) -> None:
        count = len(delta.cells)
        self._recent.append((CommitCells(delta.cells), count))
        self._recent_cells += count
        # A breakdown that must count more changed cells than this is cheaper to make again.
        room = max(len(self.total) // 2, MIN_RECENT)
        while self._recent_cells > room and len(self._recent) > 1:
            self._recent_cells -= self._recent.popleft()[1]

    def cells_after(self, seq: int) -> CommitCells:
        """Return the cells of the commit after a seq. Raises MissingDeltas if they were dropped."""
        index = len(self._recent) - (self.position.seq - seq)
        if not 0 <= index < len(self._recent):
            raise MissingDeltas(f"the commit after seq {seq} is not remembered")
        return self._recent[index][0]

    def forget_commits(self) -> None:
        """Drop the last commits: not all that they added was applied."""
        self._recent.clear()
        self._recent_cells = 0

    def continues(self, before: "Snapshot") -> None:
        """Take over the last commits from an older snapshot of the same position."""
        if before.position == self.position:
            self._recent, self._recent_cells = before._recent.copy(), before._recent_cells

    def minute(self, minute: int) -> PeriodCells:
        """Return the cells of a minute since 1970. Raises NotHeld."""
        if not self.holds(minute):
            raise NotHeld(f"minute {minute} is not held in memory")
        return self.minutes.get(minute, {})

    def hour(self, hour: int) -> PeriodCells:
        """Return the cells of an hour since 1970. Raises NotHeld."""
        if not self._holds_hour(hour):
            raise NotHeld(f"hour {hour} is not held in memory")
        return self.hours.get(hour, {})

    def check_covers(self, now: int) -> None:
        """Raise NotHeld if windows cannot be answered at `now`, because of the snapshot's age."""
        if not self.still and not -MINUTE <= now - self.taken < COVERAGE:
            raise NotHeld(f"taken {(now - self.taken) / 1e6:.0f} s ago")

    def keys_of(self, field: int, names: Iterable[str]) -> Iterator[Key]:
        """Yield the total's keys that have one of these names in a field, given by its index."""
        index = self._index.setdefault(field, {})
        known = self._indexed.get(field, 0)
        if known < len(self.total):  # keys are never removed
            for key in islice(self.total, known, None):
                index.setdefault(key[field], []).append(key)
            self._indexed[field] = len(self.total)
        return chain.from_iterable(index.get(name, ()) for name in names)

    def holds(self, minute: int) -> bool:
        """Whether the cells of a minute since 1970 are held."""
        return any(first <= minute < end for first, end in self._needed.minutes)

    def _holds_hour(self, hour: int) -> bool:
        return self._needed.hours.first <= hour < self._needed.hours.end

    # -- as bytes, for a cache ------------------------------------------------------------------

    @contextmanager
    def packing(self) -> Iterator[Packing]:
        """Pack the snapshot as it is now, in steps between which it may take commits.

        Do not begin while a delta is being applied. Run `Packing.steps` to its end in the body.
        """
        packed = self.total, self.hours, self.minutes, self._keys
        packing = Packing(self.position, self.taken, self.covered, *packed)
        self._packings.append(packing)
        try:
            yield packing
        finally:
            self._packings.remove(packing)

    def pack(self) -> bytes:
        """Return the snapshot as bytes. This takes long: on the event loop, use `packing`."""
        with self.packing() as packing:
            for _ in packing.steps():
                pass
        return b"".join(packing.pieces())

    @classmethod
    def unpack(cls, packed: bytes, room: int | None = None) -> Self:
        """Return the snapshot that `pack` wrote, with as many windows as there is room for.

        Raises ValueError on anything else, including bytes of another version of this program.
        """
        read = _decoder.decode(packed)
        if read.covered != BOUNDED[: len(read.covered)]:
            raise ValueError("it covers other windows than this program has")
        keys = Keys(shared_key(key) for key in read.keys)
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
        """Yield every key of the total."""
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
    """What `Packing.pieces` writes."""

    form: Literal[2]  # FORM
    position: Position
    taken: int
    covered: tuple[str, ...]
    total: list[PackedSums]
    hours: dict[int, list[msgspec.Raw]]
    minutes: dict[int, list[msgspec.Raw]]
    keys: list[PackedKey]


_decoder: Final = msgspec.msgpack.Decoder(_Packed)
