"""The sums of a window, added up from a snapshot's minutes and hours."""

from routecast.core.decision import MINUTE
from routecast.core.rollup import MINUTES_PER_HOUR, PeriodCells, merge_cells
from routecast.core.snapshot import Snapshot
from routecast.protocol import WINDOWS


def cells_in(snapshot: Snapshot, window: str, now: int) -> PeriodCells:
    """Return the sums of a window by key. Raises NotHeld if the snapshot lacks a part of it."""
    length = WINDOWS[window]
    if length is None:
        return snapshot.total
    snapshot.check_covers(now)
    sums: PeriodCells = {}
    minute, end = now // MINUTE - length, now // MINUTE + 1
    while minute < end:
        whole = not minute % MINUTES_PER_HOUR and minute + MINUTES_PER_HOUR <= end
        if whole and length > MINUTES_PER_HOUR:
            merge_cells(sums, snapshot.hour(minute // MINUTES_PER_HOUR))
            minute += MINUTES_PER_HOUR
        else:
            merge_cells(sums, snapshot.minute(minute))
            minute += 1
    return sums
