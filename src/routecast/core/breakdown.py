"""Breakdowns: the sums that a document shows, kept up to date with a snapshot at little cost.

Adding up a view's cells costs as much as there are cells: 100 ms for 40,000. A breakdown does that
once, in small steps with turns of other tasks in between. From then on it only counts changes: new
commits, and the minutes that its window has entered and left. It is exact at every position,
because sums are integers that can be added and subtracted in any order.
"""

from collections import OrderedDict
from collections.abc import Generator
from itertools import count
from typing import Final

from routecast.core.commit_cells import CommitCells
from routecast.core.decision import MINUTE
from routecast.core.rollup import MINUTES_PER_HOUR, Key, PeriodCells, Sums
from routecast.core.snapshot import EMPTY_SPAN, Snapshot, Span
from routecast.core.view import FilterPart, Selection
from routecast.errors import MissingDeltas, NotHeld

# Cells handled in one step, which takes less than 1 ms.
CELLS_PER_STEP: Final = 256
# Steps that `Breakdowns.ready` makes at most: about 1 ms, for which all other tasks wait.
STEPS_AT_ONCE: Final = 2
# Sums held by all breakdowns together, about 0.5 KB each. The least recently used breakdown is
# dropped first.
MAX_HELD_SUMS: Final = 25_000

_ALL_TIME: Final = Span(-(2**62), 2**62)
_PROJECT: Final = Key._fields.index("project")
_stamps: Final = count(1)

# Runs while there is something to do; each iteration is one step.
_Work = Generator[None, None, None]


class Breakdown:
    """Sums of the decisions of a selection: in total, and by each part of the key that is shown.

    `strategies` and `models` have no histograms; `total` has one if the selection needs it.
    `providers`, `bands` and `statuses` are counts. Read it only after `steps` has run to its end.
    `stamp` gets a new number when one of them changes; no number is used twice.
    """

    __slots__ = (
        "_entering",
        "_moving",
        "_other_parts",
        "_projects",
        "_selection",
        "_spent",
        "_waiting",
        "bands",
        "epoch",
        "models",
        "now",
        "providers",
        "seq",
        "span",
        "stamp",
        "statuses",
        "strategies",
        "total",
    )

    def __init__(self, selection: Selection, now: int) -> None:
        self._selection = selection
        # The filter of projects, None if it has none; and the other filters.
        parts = selection.parts
        self._projects = next((names for field, names in parts if field == _PROJECT), None)
        self._other_parts = tuple(part for part in parts if part[0] != _PROJECT)
        self._spent = 0  # cells handled in this step
        self.now = now
        self.epoch = ""
        self._reset(EMPTY_SPAN)

    def _reset(self, span: Span) -> None:
        self.stamp = next(_stamps)
        self.seq = -1  # the position up to which commits are counted; -1 before the first step
        self.span = span  # the minutes counted
        # While a minute or an hour enters the span or leaves it: its minutes, the direction, and
        # its keys that must still be moved.
        self._moving: Span | None = None
        self._entering = True
        self._waiting: dict[Key, None] = {}
        self.total = Sums()
        self.strategies: dict[str, Sums] = {}
        self.models: dict[str, Sums] = {}
        self.providers: dict[str, int] = {}
        self.bands: dict[str, int] = {}
        self.statuses: dict[str, int] = {}

    @property
    def held_sums(self) -> int:
        """The number of sums held, as counted for MAX_HELD_SUMS."""
        counts = len(self.providers) // 4  # a count takes a quarter of the memory of sums
        return 1 + len(self.strategies) + len(self.models) + counts

    def steps(self, snapshot: Snapshot) -> _Work:
        """Catch up with a snapshot at `now`; yield after every CELLS_PER_STEP cells.

        Between two steps the snapshot may take commits, and `now` may be set. Raises NotHeld if the
        snapshot does not hold the window, and MissingDeltas if it does not remember the commits
        since the last time: then start with a new breakdown.
        """
        if self.seq < 0 or self.epoch != snapshot.position.epoch:
            self._reset(EMPTY_SPAN)
            self.epoch, self.seq = snapshot.position.epoch, snapshot.position.seq
        while True:
            yield from self._follow(snapshot)
            move = self._next_move(snapshot)
            if move is None:
                return
            yield from self._move(snapshot, *move)

    # -- commits --------------------------------------------------------------------------------

    def _follow(self, snapshot: Snapshot) -> _Work:
        """Count the new commits. There is no yield after the last of them."""
        while self.seq != snapshot.position.seq:
            cells = snapshot.cells_after(self.seq)
            if self._projects is None:
                yield from self._count_all(cells)
            else:
                yield from self._count_projects(cells, self._projects)
            self.seq += 1

    def _count_all(self, added: CommitCells) -> _Work:
        for minute, cells in added.minutes.items():
            if not self._holds(minute):
                if self._is_step():
                    yield
                continue
            for key, sums in cells.items():
                if self._is_step():
                    yield
                self._count(minute, key, sums)

    def _count_projects(self, added: CommitCells, projects: frozenset[str]) -> _Work:
        for _ in added.sorting():
            if self._is_step():
                yield
        for minute, key, sums in added.of_projects(projects):
            if self._is_step():
                yield
            if self._holds(minute):
                self._count(minute, key, sums)

    def _holds(self, minute: int) -> bool:
        """Whether some keys of a minute are counted: it is in the span, or moves in or out."""
        return self.span.holds(minute) or (self._moving is not None and self._moving.holds(minute))

    def _count(self, minute: int, key: Key, sums: Sums) -> None:
        """Count a new cell of a minute that `_holds`, if the selection has it."""
        # When a key moves, all its cells move, including those of this commit. So only keys that
        # have entered already, or have not left yet, are counted here.
        moves = self._moving is not None and self._moving.holds(minute)
        if moves and (key in self._waiting) == self._entering:
            return
        if _matches(key, self._other_parts):
            self._add(key, sums)

    def _is_step(self) -> bool:
        self._spent += 1
        if self._spent < CELLS_PER_STEP:
            return False
        self._spent = 0
        return True

    # -- the window -----------------------------------------------------------------------------

    def _next_move(self, snapshot: Snapshot) -> tuple[Span, PeriodCells, bool] | None:
        """Return the next minute or hour to enter the span (True) or leave it (False), if any."""
        length = self._selection.length
        if length is None or snapshot.is_sum_of(length):
            return None if self.span == _ALL_TIME else (_ALL_TIME, snapshot.total, True)
        snapshot.check_covers(self.now)
        goal = span_of(length, self.now)
        if not self._can_slide_to(goal, snapshot):
            seq = self.seq
            self._reset(Span(goal.first, goal.first))
            self.seq = seq
        first, start = self.span
        if first < goal.first:
            return Span(first, first + 1), snapshot.minute(first), False
        if start == goal.end:
            return None
        whole_hour = not start % MINUTES_PER_HOUR and start + MINUTES_PER_HOUR <= goal.end
        if length > MINUTES_PER_HOUR and whole_hour:
            hour = snapshot.hour(start // MINUTES_PER_HOUR)
            return Span(start, start + MINUTES_PER_HOUR), hour, True
        return Span(start, start + 1), snapshot.minute(start), True

    def _can_slide_to(self, goal: Span, snapshot: Snapshot) -> bool:
        """Whether only minutes at both ends must move; otherwise all cells are counted again."""
        first, end = self.span
        if not (first <= goal.first <= end <= goal.end):
            return False
        return all(snapshot.holds(minute) for minute in range(first, goal.first))

    def _move(self, snapshot: Snapshot, unit: Span, cells: PeriodCells, entering: bool) -> _Work:
        """Move the cells of a minute or hour in or out, key by key."""
        parts = self._selection.parts
        if cells is snapshot.total and parts:
            (field, names), *others = parts
            keys, parts = list(snapshot.keys_of(field, names)), tuple(others)
        else:
            keys = list(cells)
        self._waiting = dict.fromkeys(keys)
        self._moving, self._entering = unit, entering
        move = self._add if entering else self._subtract
        for key in keys:
            if self._is_step():
                yield
                yield from self._follow(snapshot)
            del self._waiting[key]
            if _matches(key, parts):
                move(key, cells[key])
        self._moving = None
        self._waiting = {}  # a dict that was emptied keeps the memory of all its keys
        if unit is _ALL_TIME:
            self.span = unit
        elif entering:
            self.span = Span(self.span.first, unit.end)
        else:
            self.span = Span(unit.end, self.span.end)

    # -- sums -----------------------------------------------------------------------------------

    def _add(self, key: Key, sums: Sums) -> None:
        self.stamp = next(_stamps)
        if self._selection.histogram:
            self.total.merge(sums)
        else:
            self.total.merge_scalars(sums)
        for name, by_name in ((key.strategy, self.strategies), (key.model, self.models)):
            of_name = by_name.get(name)
            if of_name is None:
                of_name = by_name[name] = Sums()
            of_name.merge_scalars(sums)
        self.providers[key.provider] = self.providers.get(key.provider, 0) + sums.count
        self.bands[key.band] = self.bands.get(key.band, 0) + sums.count
        self.statuses[key.status] = self.statuses.get(key.status, 0) + sums.count

    def _subtract(self, key: Key, sums: Sums) -> None:
        self.stamp = next(_stamps)
        if self._selection.histogram:
            self.total.subtract(sums)
        else:
            self.total.subtract_scalars(sums)
        for name, by_name in ((key.strategy, self.strategies), (key.model, self.models)):
            of_name = by_name[name]
            of_name.subtract_scalars(sums)
            if not of_name.count:
                del by_name[name]
        for name, counts in (
            (key.provider, self.providers),
            (key.band, self.bands),
            (key.status, self.statuses),
        ):
            counts[name] -= sums.count
            if not counts[name]:
                del counts[name]


def span_of(length: int, now: int) -> Span:
    """Return the minutes of a window: `length` whole minutes and the current one."""
    minute = now // MINUTE
    return Span(minute - length, minute + 1)


def _matches(key: Key, parts: tuple[FilterPart, ...]) -> bool:
    return not parts or all(key[field] in names for field, names in parts)


def break_down(snapshot: Snapshot, selection: Selection, now: int) -> Breakdown:
    """Return the breakdown of a selection, made in one step. Raises NotHeld."""
    breakdown = Breakdown(selection, now)
    for _ in breakdown.steps(snapshot):
        pass
    return breakdown


class _Held:
    """A breakdown, and its work while that is not finished."""

    __slots__ = ("breakdown", "held_sums", "snapshot", "work")

    def __init__(self, breakdown: Breakdown) -> None:
        self.breakdown = breakdown
        self.held_sums = 0  # as counted when its work was last finished
        self.snapshot: Snapshot | None = None  # the one that the work is for
        self.work: _Work | None = None


class Breakdowns:
    """The breakdowns of all views. Equal selections share one."""

    def __init__(self, max_sums: int = MAX_HELD_SUMS) -> None:
        self._max_sums = max_sums
        self._held_sums = 0
        self._held: OrderedDict[Selection, _Held] = OrderedDict()

    def ready(
        self, snapshot: Snapshot, selection: Selection, now: int, steps: int = STEPS_AT_ONCE
    ) -> Breakdown | None:
        """Return a breakdown that is up to date with a snapshot; None if that takes too long.

        If it takes `steps` steps or more, call again with the same snapshot after other tasks had a
        turn: the work continues. The result is right until the snapshot takes the next commit.
        Raises NotHeld if the snapshot does not hold the window.
        """
        held = self._hold(snapshot, selection, now)
        for _ in range(steps):
            if held.work is None:
                held.snapshot, held.work = snapshot, held.breakdown.steps(snapshot)
            try:
                next(held.work)
            except StopIteration:
                held.work = held.snapshot = None
                self._make_room(held)
                return held.breakdown
            except MissingDeltas:
                held.work, held.breakdown = None, Breakdown(selection, now)
            except NotHeld:
                self._forget(selection)
                raise
        return None

    def _hold(self, snapshot: Snapshot, selection: Selection, now: int) -> _Held:
        held = self._held.get(selection)
        if held is None:
            held = self._held[selection] = _Held(Breakdown(selection, now))
        elif held.work is not None and held.snapshot is not snapshot:
            held.work, held.breakdown = None, Breakdown(selection, now)
        held.breakdown.now = now
        self._held.move_to_end(selection)
        return held

    def _make_room(self, held: _Held) -> None:
        self._held_sums += held.breakdown.held_sums - held.held_sums
        held.held_sums = held.breakdown.held_sums
        while self._held_sums > self._max_sums and len(self._held) > 1:
            self._forget(next(iter(self._held)))

    def _forget(self, selection: Selection) -> None:
        self._held_sums -= self._held.pop(selection).held_sums
