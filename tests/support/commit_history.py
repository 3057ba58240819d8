"""A history of commits with its own clock, applied to a snapshot and to the oracle."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from routecast.core.decision import DecisionRecord
from routecast.core.delta import Delta
from routecast.core.metrics import Baseline, render
from routecast.core.rollup import Cells
from routecast.core.snapshot import Snapshot, Span, needed
from routecast.core.view import View
from routecast.protocol import FIELDS, Position, rfc3339
from tests.support.decisions import NOW, cells_of, keep
from tests.support.oracle import ALL_FIELDS, Fact, Prices, assert_agree, expect, fact


def load(position: Position, taken: int, decisions: Iterable[DecisionRecord]) -> Snapshot:
    """Return the snapshot of a store with these decisions at a moment."""
    cells, periods = cells_of(decisions), needed(taken)

    def within(number: int, spans: Sequence[Span]) -> bool:
        return any(first <= number < end for first, end in spans)

    return Snapshot(
        position,
        taken,
        cells.total(),
        {hour: b for hour, b in cells.hours().items() if within(hour, [periods.hours])},
        {minute: b for minute, b in cells.minutes.items() if within(minute, periods.minutes)},
    )


class CommitHistory:
    """A sequence of commits; their deltas are applied to `snapshot`."""

    def __init__(self, now: int = NOW) -> None:
        self.now = now
        self.facts: list[Fact] = []
        self.decisions: list[DecisionRecord] = []
        self.snapshot = Snapshot(Position("e", 0), now)

    def commit(self, sent: Sequence[Mapping[str, Any]]) -> None:
        """Commit decisions as sent, whose timestamps are given as microseconds from now."""
        timed = [{**one, "timestamp": rfc3339(max(0, self.now + one["timestamp"]))} for one in sent]
        new = keep(timed, self.now)
        self.decisions += new
        self.facts += [fact(one, self.now) for one in timed]
        self.snapshot.apply(self.delta(cells_of(new)))

    def delta(self, cells: Cells) -> Delta:
        held = self.snapshot.position
        return Delta(Position(held.epoch, held.seq + 1), cells, self.now)

    def reload(self) -> None:
        """Take a new snapshot of the store, as live state does each hour."""
        self.snapshot = load(self.snapshot.position, self.now, self.decisions)

    def count(self, window: str) -> int:
        """Return the number of decisions in a window, by the oracle."""
        found = expect(self.facts, now=self.now, fields=("total_decisions",), window=window)
        return int(found["total_decisions"])

    def check(self, window: str, filters: Mapping[str, frozenset[str]] | None = None) -> None:
        """Assert that every field of a window equals the oracle's."""
        view = View(fields=FIELDS, window=window, **(filters or {}))
        found = render(self.snapshot, view, self.now, Baseline("big", 3 * 10**9, 15 * 10**9))
        assert_agree(
            found,
            expect(
                self.facts,
                now=self.now,
                fields=ALL_FIELDS,
                filters=filters,
                window=window,
                baseline=Prices("big", 3, 15),
            ),
        )
