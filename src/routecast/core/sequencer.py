"""The order of deltas: which one to apply now, and what to do if one is missing.

A state (a snapshot) is at a position. Deltas are applied to it strictly in order. An early delta
waits for those before it. A delta that does not arrive within a grace period is fetched. If it
cannot be fetched, or the epoch has changed, the state is loaded again. No delta is ever skipped.

There is no I/O here and no clock: `now` is in seconds on a monotonic clock.
"""

from enum import Enum
from typing import Final, NamedTuple

from routecast.core.delta import Delta
from routecast.protocol import Position

# Limits of the deltas that wait for those before them, and of their cells. Over a limit all of them
# are dropped, and fetched later.
MAX_EARLY: Final = 1_000
MAX_EARLY_CELLS: Final = 100_000


class Action(Enum):
    """What the owner of the state must do next."""

    APPLY = "apply"  # add the delta to the state, then call `applied`
    WAIT = "wait"  # nothing; if `due` is a moment, call `next_action` again then
    FETCH = "fetch"  # read the deltas of `gap`, pass each to `receive`, then call `fetched`
    RELOAD = "reload"  # call `begin_load`, load a state, then call `loaded` or `load_failed`


class Gap(NamedTuple):
    """Commits that are missing: those after a position, up to a seq at least."""

    after: Position
    until: int


class DeltaSequencer:
    """Decides what to do with each delta and each announced position.

    `grace` is how long a known commit may lack its delta before that is fetched, in seconds: the
    delta may still be on its way.
    """

    def __init__(
        self, grace: float, *, max_early: int = MAX_EARLY, max_early_cells: int = MAX_EARLY_CELLS
    ) -> None:
        self._grace = grace
        self._max_early = max_early
        self._max_early_cells = max_early_cells
        self.position: Position | None = None  # of the state; None while there is none
        self.in_step = False  # whether deltas can be applied to the state
        self.announced: Position | None = None  # the newest position that was announced
        self._applying: Delta | None = None  # the delta that the owner is applying
        self._loading = False
        self._early: dict[int, Delta] = {}  # by seq; while loading, also deltas applied meanwhile
        self._early_cells = 0
        self._behind_since: float | None = None  # when the first missing commit became known

    # -- questions ------------------------------------------------------------------------------

    def next_action(self, now: float) -> Action:
        """Return what to do now: WAIT, FETCH or RELOAD."""
        if not self.in_step:
            return Action.WAIT if self._loading else Action.RELOAD
        if self.due is None or now < self.due:
            return Action.WAIT
        return Action.FETCH

    @property
    def due(self) -> float | None:
        """The moment from which a missing delta is fetched; None while none is missing."""
        if self._behind_since is None or self._applying is not None:
            return None
        return self._behind_since + self._grace

    @property
    def is_applying(self) -> bool:
        """Whether a delta is being applied: the state may hold a part of it."""
        return self._applying is not None

    @property
    def gap(self) -> Gap | None:
        """The commits that are missing; None while none is, and while a delta is being applied."""
        if self.position is None or self._applying is not None or not self._is_behind():
            return None
        announced = 0 if self.announced is None else self.announced.seq
        return Gap(self.position, max(announced, self._newest_early()))

    @property
    def unannounced(self) -> Position | None:
        """The position of a state in step, None if it or a newer one was announced."""
        ours, known = self.position, self.announced
        if ours is None or not self.in_step:
            return None
        is_known = known is not None and known.epoch == ours.epoch and known.seq >= ours.seq
        return None if is_known else ours

    # -- deltas and positions -------------------------------------------------------------------

    def receive(self, delta: Delta, now: float) -> Action:
        """Return what to do with a delta: APPLY it now, or continue without it.

        Returns RELOAD only if this delta is the reason for it.
        """
        position, theirs = self.position, delta.position
        if position is None or not self.in_step:
            self._keep(delta)
            return Action.WAIT
        if theirs.epoch != position.epoch:
            self.lose_step()
            self._keep(delta)
            self.announce(theirs, now)
            return Action.RELOAD
        ahead = theirs.seq - position.seq
        if self._loading or ahead > 1:  # a state that is being loaded may lack any
            self._keep(delta)
        if ahead == 1:
            if self._applying is not None:
                return Action.WAIT  # it came twice
            self._applying = delta
            return Action.APPLY
        if ahead > 1 and self._behind_since is None:
            self._behind_since = now
        return self.next_action(now)

    def applied(self) -> Delta | None:
        """Record that the delta is applied; return the next one to apply, if it waits here."""
        assert self._applying is not None
        self.position = self._applying.position
        self._applying = self._following(self.position) if self.in_step else None
        if self._applying is None and self._behind_since is not None and not self._is_behind():
            self._behind_since = None
        return self._applying

    def announce(self, position: Position, now: float) -> Action:
        """Record an announced position of the database; return what to do.

        Older positions of the same epoch are ignored, because nodes that are behind announce, too.
        Never returns RELOAD: the announced epoch may have ended already.
        """
        known = self.announced
        if known is None or known.epoch != position.epoch or known.seq < position.seq:
            self.announced = position
        if self._behind_since is None and self._is_behind():
            self._behind_since = now
        return self.next_action(now) if self.in_step else Action.WAIT

    # -- fetching -------------------------------------------------------------------------------

    def fetched(self, gap: Gap, now: float) -> Action:
        """Record that all deltas that could be fetched for a gap were received; return what to do.

        If something is still missing, its grace period begins now.
        """
        self._behind_since = now if self._is_behind() else None
        if self.in_step and self.position == gap.after and self._applying is None:
            self.lose_step()
        return self.next_action(now)

    def nothing_after(self, gap: Gap, now: float) -> Action:
        """Record that the database has no commit after a gap's position; return what to do.

        So the announced position was wrong, unless it was announced after the database was read.
        """
        if self.gap == gap:
            self.announced = gap.after
            self._clear_early()
        self._behind_since = now if self._is_behind() else None
        return self.next_action(now)

    def lose_step(self) -> None:
        """Record that the state lacks a delta that cannot be fetched: it must be loaded again."""
        self.in_step = False
        self._behind_since = None

    def forget(self) -> None:
        """Record that there is no state any more, because it may hold a part of a delta."""
        self.lose_step()
        self.position = self._applying = None

    # -- loading --------------------------------------------------------------------------------

    def begin_load(self) -> None:
        """Keep all deltas from now on, because the loaded state may need them.

        Meanwhile deltas are still applied to the old state while that is in step.
        """
        self._loading = True

    def loaded(self, position: Position, now: float) -> Delta | None:
        """Record that the state is now another one; return the next delta to apply to it, if any.

        No delta may be in the middle of being applied.
        """
        assert self._applying is None
        before, self.position = self.position, position
        self.in_step, self._loading = True, False
        self._drop_early(position)
        if self.announced is None or self.announced.epoch != position.epoch:
            self.announced = position
        if before is not None and before.epoch == position.epoch:
            self.announce(before, now)  # the state before was ahead of this one
        self._behind_since = now if self._is_behind() else None
        self._applying = self._following(position)
        return self._applying

    def load_failed(self) -> None:
        """Record that no state could be loaded; the old one stays."""
        self._loading = False
        if self.position is not None and self.in_step:
            self._drop_early(self.position)

    # -- early deltas ---------------------------------------------------------------------------

    def _is_behind(self) -> bool:
        ours, known = self.position, self.announced
        if ours is None or not self.in_step:
            return False
        if known is not None and (known.epoch != ours.epoch or known.seq > ours.seq):
            return True
        return self._newest_early() > ours.seq

    def _newest_early(self) -> int:
        return max(self._early, default=0)

    def _keep(self, delta: Delta) -> None:
        if len(self._early) >= self._max_early or self._early_cells >= self._max_early_cells:
            self._clear_early()
        before = self._early.get(delta.position.seq)
        self._early_cells += len(delta.cells) - (0 if before is None else len(before.cells))
        self._early[delta.position.seq] = delta

    def _following(self, position: Position) -> Delta | None:
        """Return the next delta if it is here; it is kept while a state is being loaded."""
        delta = self._early.get(position.seq + 1)
        if delta is not None and not self._loading:
            del self._early[position.seq + 1]
            self._early_cells -= len(delta.cells)
        return delta

    def _drop_early(self, position: Position) -> None:
        """Drop the deltas that a state at a position does not need."""
        kept = [
            delta
            for delta in self._early.values()
            if delta.position.epoch == position.epoch and delta.position.seq > position.seq
        ]
        self._early = {delta.position.seq: delta for delta in kept}
        self._early_cells = sum(len(delta.cells) for delta in kept)

    def _clear_early(self) -> None:
        self._early.clear()
        self._early_cells = 0
