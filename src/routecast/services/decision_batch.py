"""The decisions of one request: which of them are valid, and the receipt for all."""

import asyncio
import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Final

import msgspec

from routecast.core.access import ProjectRules
from routecast.core.cardinality import Combination
from routecast.core.decision import DecisionRecord, Rules, identity_of
from routecast.core.decode import DecodedItem
from routecast.core.decode_fields import BrokenDecision, Flaw, is_id
from routecast.core.overflow import Full
from routecast.errors import Invalid, RoutecastError
from routecast.protocol import (
    MAX_REJECTIONS_LISTED,
    MAX_WARNINGS_LISTED,
    FieldWarning,
    Position,
    Receipt,
    Rejection,
)

# Decisions are validated for about this time, in seconds; then other tasks get a turn.
SLICE_SECONDS: Final = 0.001
# The time is checked after this number of decisions. Each may take 0.3 ms if the price of a new
# model is looked up, as long as the budget for that lasts.
CLOCK_CHECK_DECISIONS: Final = 4


class AllRejected(RoutecastError):
    """No decision of a batch is valid: nothing was stored, and sending it again does not help."""

    def __init__(self, rejected: list[Rejection]) -> None:
        first = rejected[0]
        super().__init__(
            f"no decision was accepted; the first (index {first.index}): {first.error}"
        )
        self.rejected = rejected


class DecisionBatch:
    """The decisions of one request, and the future of their receipt.

    Call `validate` until it returns True, then `Ingest.accept`. `decisions` are those to commit;
    `rejected` says why the others are not committed. `warned` counts the warnings about the
    decisions to commit, by field and code; `warnings` are the first of them. `reserved` are the
    names that are reserved for the batch until its commit.
    """

    __slots__ = (
        "_flaws",
        "_index",
        "_left",
        "_now",
        "_pieces",
        "_rules",
        "decisions",
        "done",
        "rejected",
        "reserved",
        "warned",
        "warnings",
    )

    done: asyncio.Future[Receipt]  # from `accept` on

    def __init__(
        self, pieces: Iterable[Sequence[DecodedItem]], rules: Rules | ProjectRules, now: int
    ) -> None:
        self.decisions: list[DecisionRecord] = []
        self.rejected: list[Rejection] = []
        self.warnings: list[FieldWarning] = []
        self.warned: dict[tuple[str, str], int] = {}
        self.reserved: set[Combination] = set()
        self._flaws: list[Flaw] = []
        self._rules = rules
        self._now = now
        self._pieces = iter(pieces)
        self._left: Iterator[DecodedItem] = iter(())
        self._index = 0

    # -- before the commit ----------------------------------------------------------------------

    def validate(self, seconds: float = SLICE_SECONDS) -> bool:
        """Validate decisions for about `seconds`; return whether all are validated.

        Raises the errors of decoding (BadBody, TooLarge): then nothing may be stored.
        """
        until = time.perf_counter() + seconds
        while True:
            while self._validate_some():
                if time.perf_counter() > until:
                    return False
            piece = next(self._pieces, None)
            if piece is None:
                return True
            self._left = iter(piece)

    def _validate_some(self) -> bool:
        """Validate the next few decisions of a piece; return whether there were any."""
        now, normalise = self._now, self._rules.normalise
        index, flaws = self._index, self._flaws
        for item in islice(self._left, CLOCK_CHECK_DECISIONS):
            if isinstance(item, BrokenDecision):
                self.rejected.append(Rejection(index, item.error, item.id or msgspec.UNSET))
            else:
                try:
                    self.decisions.append(normalise(item, now, flaws))
                except Invalid as error:
                    named = item.id if is_id(item.id) else msgspec.UNSET
                    self.rejected.append(Rejection(index, str(error), named))
                    flaws.clear()
                if flaws:
                    self._warn(index, flaws)
                    flaws.clear()
            index += 1
        some = index > self._index
        self._index = index
        return some

    def _warn(self, index: int, flaws: Iterable[Flaw]) -> None:
        for flaw in flaws:
            cause = flaw.field, flaw.code
            self.warned[cause] = self.warned.get(cause, 0) + 1
            if len(self.warnings) < MAX_WARNINGS_LISTED:
                self.warnings.append(FieldWarning(index, *flaw))

    # -- after the commit -----------------------------------------------------------------------

    def receipt(self, inserted: int, conflicts: int, position: Position, full: Full) -> Receipt:
        """Return the receipt for what a commit stored.

        `inserted` decisions were new, `conflicts` differ from the stored decision with their id,
        and `full` names those for which a sum has no room. Raises AllRejected if no decision is
        left.
        """
        if full:
            self._reject_full(full)
            if self.rejected and not self.decisions:
                raise AllRejected(self.rejected)
        return Receipt(
            inserted,
            len(self.decisions) - inserted - conflicts,
            self.rejected[:MAX_REJECTIONS_LISTED],
            len(self.rejected),
            position,
            conflicts,
            self.warnings,
            sum(self.warned.values()),
        )

    def _reject_full(self, full: Full) -> None:
        """Reject the decisions for which a sum has no room."""
        bad = {one.index for one in self.rejected}
        indexes = (index for index in itertools.count() if index not in bad)
        decisions = []
        for index, decision in zip(indexes, self.decisions, strict=False):
            if field := full.get(identity_of(decision)):
                why = f"{field}: the sum of its series is at its limit"
                self.rejected.append(Rejection(index, why, decision.id))
            else:
                decisions.append(decision)
        self.decisions = decisions
        self.rejected.sort(key=lambda one: one.index)
