"""The minutes that recent commits added to, so that holders of older sums can update them."""

from typing import Final

from routecast.core.delta import Delta
from routecast.errors import MissingDeltas
from routecast.protocol import Position

# Minutes remembered: a week. If commits add to more, all are forgotten.
MAX_MINUTES: Final = 10_080


class DirtyMinutes:
    """The last commit that added to each minute, over a sequence of consecutive commits."""

    def __init__(self) -> None:
        self._epoch = ""
        self._first = 0  # all commits after this seq are known
        self._last = 0
        self._seqs: dict[int, int] = {}  # by minute; the one that was added to last comes last

    def note(self, delta: Delta) -> None:
        """Record a commit. A commit that does not follow the last one begins a new sequence."""
        epoch, seq = delta.position.epoch, delta.position.seq
        if epoch == self._epoch and seq <= self._last:
            return
        if epoch != self._epoch or seq != self._last + 1 or len(self._seqs) >= MAX_MINUTES:
            self._seqs.clear()
            self._epoch, self._first = epoch, seq - 1
        for minute in delta.cells.minutes:
            self._seqs.pop(minute, None)
            self._seqs[minute] = seq
        self._last = seq

    def between(self, after: Position, until: Position) -> list[int]:
        """Return the minutes since 1970 that the commits after a position added to.

        It covers at least the commits up to `until`, maybe later ones. Raises MissingDeltas if not
        all of them are known.
        """
        if after == until:
            return []
        if not (
            after.epoch == until.epoch == self._epoch
            and self._first <= after.seq <= until.seq <= self._last
        ):
            raise MissingDeltas(
                f"the commits from seq {after.seq} to {until.seq} are not all known"
            )
        minutes = []
        for minute in reversed(self._seqs):
            if self._seqs[minute] <= after.seq:
                break
            minutes.append(minute)
        return minutes
