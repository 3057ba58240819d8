"""Comparisons of a ledger with the database: every answer and every frame must be true."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tests.support.fold import Decided, documents
from tests.support.oracle import fact
from tests.support.watch import Watch, text

Outcome = Literal["ok", "failed", "unknown"]


@dataclass
class Batch:
    """Decisions that were sent together, and their known outcome."""

    decisions: list[dict[str, Any]]
    outcome: Outcome = "unknown"


def check_batches(batches: Iterable[Batch], rows: Sequence[Decided], run: str) -> None:
    """Assert that accepted batches are stored, failed ones not, unknown ones as a whole or not.

    Each id is stored once. `rows` are all rows of the database; ids that begin with `run` belong to
    these batches.
    """
    stored = {(row.project, row.id): row for row in rows}
    assert len(stored) == len(rows), "some id counts twice"
    for batch in batches:
        sent, found = len(batch.decisions), []
        for one in batch.decisions:
            meant = fact(one, 0)
            row = stored.pop((meant.project, one["id"]), None)
            if row is not None:
                found.append(row)
                assert (row.strategy, row.provider, row.band, row.confidence, row.cost) == (
                    *(meant.strategy, meant.provider, meant.band, meant.confidence, meant.cost),
                ), f"{row} is not as it was sent"
        expected = {"ok": {sent}, "failed": {0}, "unknown": {0, sent}}[batch.outcome]
        assert len(found) in expected, f"{len(found)} are stored of {batch}"
        assert len({row.seq for row in found}) <= 1, f"{batch} is torn apart: {found}"
    strange = [row for row in stored.values() if row.id.startswith(run)]
    assert not strange, f"nobody has sent {strange}"


def check_frames(watches: Iterable[Watch], rows: Sequence[Decided], epoch: str, seq: int) -> None:
    """Assert that every frame equals the sums of the database up to its seq.

    The database is at `epoch` and `seq`; `rows` are all its rows, in the order of their seq.
    """
    seen: set[tuple[str, int, str]] = set()
    for watch in watches:
        assert not watch.wrong, watch.wrong
        seen |= watch.seen
    assert {frame[0] for frame in seen} == {epoch}
    assert max(frame[1] for frame in seen) <= seq
    expected = {at: text(found) for at, found in documents(rows, {frame[1] for frame in seen})}
    for _, at, found in sorted(seen):
        assert found == expected[at], f"the frame at seq {at}"
