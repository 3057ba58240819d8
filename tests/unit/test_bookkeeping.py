"""Tests of `bookkeeping`: its checks find each kind of wrong answer and frame."""

from decimal import Decimal
from typing import Any

import pytest

from tests.support.bookkeeping import Batch, Outcome, check_batches, check_frames
from tests.support.fold import Decided, documents
from tests.support.server import Server
from tests.support.watch import Watch, text

ROWS = [
    Decided(1, "default", "r-0", "hybrid", "gemini", "high", Decimal("0.9"), Decimal("0.002")),
    Decided(1, "default", "r-1", "cost", "claude", None, None, None),
    Decided(2, "default", "r-2", "cost", "gemini", "low", Decimal("0.1"), None),
]
SENT: list[dict[str, Any]] = [
    {"id": "r-0", "strategy": "hybrid", "provider": "gemini", "confidence": 0.9, "cost": 0.002},
    {"id": "r-1", "strategy": "cost", "provider": "claude"},
    {"id": "r-2", "strategy": "cost", "provider": "gemini", "confidence": 0.1},
]
FIRST, SECOND = Batch(SENT[:2], "ok"), Batch(SENT[2:], "ok")
DOCUMENTS = {seq: text(document) for seq, document in documents(ROWS, [0, 1, 2])}


def watch(*seen: tuple[str, int, str]) -> Watch:
    """Return a watch that has seen these documents."""
    return Watch(Server.__new__(Server), seen=set(seen))


def test_correct_books_pass() -> None:
    """Correct answers pass; a batch of unknown outcome passes if all or none of it is stored."""
    check_batches([FIRST, SECOND], ROWS, "r-")
    check_batches([Batch(SENT[:2], "unknown"), SECOND], ROWS, "r-")
    check_batches([FIRST, Batch(SENT[2:], "unknown")], ROWS[:2], "r-")
    check_batches([FIRST, Batch(SENT[2:], "failed")], ROWS[:2], "r-")
    check_frames([watch(*(("e", seq, DOCUMENTS[seq]) for seq in (0, 1, 2)))], ROWS, "e", 2)


@pytest.mark.parametrize(
    ("batches", "rows", "why"),
    [
        ([FIRST, SECOND], ROWS[:2], "0 are stored"),
        ([FIRST, SECOND], ROWS[1:], "1 are stored"),
        ([Batch(SENT[:2], "unknown"), SECOND], ROWS[1:], "1 are stored"),
        ([FIRST, Batch(SENT[2:], "failed")], ROWS, "1 are stored"),
        ([FIRST], ROWS, "nobody has sent"),
        ([FIRST, SECOND], [*ROWS, ROWS[2]], "counts twice"),
        ([FIRST, SECOND], [ROWS[0]._replace(seq=2), *ROWS[1:]], "torn apart"),
        (
            [FIRST, SECOND],
            [ROWS[0]._replace(cost=Decimal("0.003")), *ROWS[1:]],
            "not as it was sent",
        ),
        ([FIRST, SECOND], [*ROWS[:2], ROWS[2]._replace(band="high")], "not as it was sent"),
    ],
)
def test_each_wrong_book_is_found(batches: list[Batch], rows: list[Decided], why: str) -> None:
    """A decision is missing, extra, doubled, never sent, in another commit or changed."""
    with pytest.raises(AssertionError, match=why):
        check_batches(batches, rows, "r-")


@pytest.mark.parametrize("outcome", ["ok", "failed", "unknown"])
def test_half_a_batch_is_wrong_with_any_outcome(outcome: Outcome) -> None:
    """A batch must be stored whole, or not at all."""
    with pytest.raises(AssertionError, match="1 are stored"):
        check_batches([Batch(SENT[:2], outcome), SECOND], ROWS[1:], "r-")


@pytest.mark.parametrize(
    "frame",
    [
        ("e", 1, DOCUMENTS[2]),  # early
        ("e", 2, DOCUMENTS[1]),  # late
        ("e", 3, DOCUMENTS[2]),  # with a future seq
        ("f", 2, DOCUMENTS[2]),  # of another epoch
        ("e", 2, DOCUMENTS[2].replace('"gemini": 2, "claude": 1', '"claude": 1, "gemini": 2')),
        ("e", 2, DOCUMENTS[2].replace("0.5", "0.500001")),
    ],
)
def test_each_wrong_frame_is_found(frame: tuple[str, int, str]) -> None:
    """A frame has another position, another order, or a number that is wrong by a millionth."""
    assert frame not in {("e", seq, document) for seq, document in DOCUMENTS.items()}
    with pytest.raises(AssertionError):
        check_frames([watch(("e", 1, DOCUMENTS[1]), frame)], ROWS, "e", 2)


def test_a_position_that_went_back_is_wrong() -> None:
    """The check reports what a watch noticed during the stream."""
    gone_back = watch(("e", 1, DOCUMENTS[1]))
    gone_back.wrong.append("from 2 to 1")
    with pytest.raises(AssertionError, match="from 2 to 1"):
        check_frames([gone_back], ROWS, "e", 2)
