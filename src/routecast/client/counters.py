"""The counters of one recorder, which are kept without a lock."""

import secrets
from dataclasses import dataclass
from itertools import count
from typing import Final


@dataclass(frozen=True, slots=True)
class Counters:
    """The numbers of recorded decisions by outcome; each decision is in one, besides `retried`.

    Attributes:
        sent: Decisions that the server accepted.
        duplicates: Decisions that the server knew already.
        rejected: Decisions that the server refused, or that could not be encoded.
        dropped: Decisions that were lost, because there was no room or no time.
        waiting: Decisions that are not sent, or not answered for yet.
        retried: Decisions that were sent again, each counted every time.
        conflicts: Decisions whose id belongs to another one, so that the server does not count
            them.
    """

    sent: int = 0
    duplicates: int = 0
    rejected: int = 0
    dropped: int = 0
    waiting: int = 0
    retried: int = 0
    conflicts: int = 0


class LockFreeCount:
    """A count that threads and signal handlers increase without a lock, and without losing any.

    `add` returns the count before.
    """

    __slots__ = ("_count", "add")

    def __init__(self) -> None:
        self._count = count()
        self.add: Final = self._count.__next__

    @property
    def value(self) -> int:
        """The present count."""
        # `next` would count; only the text shows the number without counting.
        return int(repr(self._count).removeprefix("count(").removesuffix(")"))


class Tally:
    """The counts of one recorder in one process.

    Any thread may add to `recorded` and `dropped`; only the thread that sends writes the others.
    Once the recorder is `over`, unsettled decisions count as dropped.
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
        """The number of decisions whose outcome is known."""
        known = self.duplicates + self.conflicts
        return self.sent + known + self.rejected + self.dropped.value

    @property
    def unsettled(self) -> int:
        """The number of decisions that wait or are being sent."""
        settled = self.settled  # read first, so that it is never more than `recorded`
        return self.recorded.value - settled

    def counters(self) -> Counters:
        """Return the present counters."""
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
