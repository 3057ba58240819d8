"""What became of the decisions of one recorder, counted without a lock."""

import secrets
from dataclasses import dataclass
from itertools import count
from typing import Final


@dataclass(frozen=True, slots=True)
class Counters:
    """What became of all decisions recorded: each is in one count, but for `retried`.

    `sent` were accepted, `duplicates` known already, `rejected` not wanted by the server (or no
    decision at all), `dropped` lost for want of room or time; `conflicts` have the id of another
    decision, and are not counted by the server. `retried` counts each decision again whenever it
    was sent again.
    """

    sent: int = 0
    duplicates: int = 0
    rejected: int = 0
    dropped: int = 0
    waiting: int = 0
    retried: int = 0
    conflicts: int = 0


class LockFreeCount:
    """A count that threads, and signal handlers that interrupt them, add to without losing one.

    `add` returns what was counted before.
    """

    __slots__ = ("_count", "add")

    def __init__(self) -> None:
        self._count = count()
        self.add: Final = self._count.__next__

    @property
    def value(self) -> int:
        """The count now."""
        # Taking the next number would count; its text is what is left to read it by.
        return int(repr(self._count).removeprefix("count(").removesuffix(")"))


class Books:
    """The counts of one recorder in one process.

    Whoever records adds to `recorded`, whoever drops to `dropped`; all else is written by the one
    who sends. Once they are `over`, what is not settled counts as dropped.
    """

    __slots__ = (
        "conflicts",
        "dropped",
        "duplicates",
        "over",
        "prefix",
        "recorded",
        "rejected",
        "retried",
        "sent",
    )

    def __init__(self) -> None:
        # No two recorders, and no two processes, give the same id.
        self.prefix: Final = secrets.token_hex(8)
        self.recorded: Final = LockFreeCount()
        self.dropped: Final = LockFreeCount()
        self.sent = 0
        self.duplicates = 0
        self.conflicts = 0
        self.rejected = 0
        self.retried = 0
        self.over = False

    @property
    def settled(self) -> int:
        """How many are known to have come to their end."""
        known = self.duplicates + self.conflicts
        return self.sent + known + self.rejected + self.dropped.value

    @property
    def unsettled(self) -> int:
        """How many wait, or are being sent."""
        settled = self.settled  # read first: then it is never more than what was recorded
        return self.recorded.value - settled

    def counters(self) -> Counters:
        """Return the counts of now."""
        sent, duplicates, conflicts = self.sent, self.duplicates, self.conflicts
        rejected, dropped = self.rejected, self.dropped.value
        settled = sent + duplicates + conflicts + rejected + dropped
        unsettled = self.recorded.value - settled
        return Counters(
            sent=sent,
            duplicates=duplicates,
            rejected=rejected,
            dropped=dropped + unsettled if self.over else dropped,
            waiting=0 if self.over else unsettled,
            retried=self.retried,
            conflicts=conflicts,
        )
