"""Tests of `DecisionBatch`: its decisions are validated, committed and counted in the receipt."""

import json
from collections.abc import Iterable
from typing import Any

import pytest
from msgspec import UNSET

from routecast.adapters.bus.memory import MemoryBus
from routecast.adapters.store.sqlite import SqliteStore
from routecast.core.cardinality import CardinalityLimiter
from routecast.core.decision import Rules
from routecast.core.decode import pieces
from routecast.errors import BadBody, Unavailable
from routecast.instruments import Instruments
from routecast.protocol import FieldWarning, Position, Rejection
from routecast.services.decision_batch import AllRejected, DecisionBatch
from routecast.services.ingest import Ingest
from tests.support.clock import HeldClock
from tests.support.decisions import NOW
from tests.support.running_services import running

GOOD: dict[str, Any] = {"strategy": "s", "provider": "p"}
MISSING = "provider: is required"


@pytest.fixture
def ingest(
    store: SqliteStore, bus: MemoryBus, clock: HeldClock, instruments: Instruments
) -> Ingest:
    """Ingest that does not run yet."""
    return Ingest(store, bus, clock, CardinalityLimiter(500, 5000), Rules(), instruments)


def batch_of(sent: Any) -> DecisionBatch:
    """Return a validated batch of a client's JSON."""
    batch = DecisionBatch(pieces(json.dumps(sent).encode(), lines=False), Rules(), NOW)
    while not batch.validate():
        pass
    return batch


def counted(instruments: Instruments) -> dict[str, float]:
    """Return the number of decisions of each outcome that occurred."""
    (family,) = [one for one in instruments.decisions.collect() if one.name.endswith("decisions")]
    return {one.labels["outcome"]: one.value for one in family.samples if one.value}


def test_good_decisions_are_separated_from_bad_ones() -> None:
    """A bad decision has its index, its reason and its id; a bad field is a warning."""
    batch = batch_of(
        [
            {**GOOD, "id": "a", "cost": -1},
            {"strategy": "s", "id": "b"},
            "nonsense",
            {**GOOD, "id": "c", "cost": -2, "latency_ms": "soon"},
            {**GOOD, "id": "d", "timestamp": -1},
        ]
    )
    assert [one.id for one in batch.decisions] == ["a", "c"]
    assert [(one.index, one.id) for one in batch.rejected] == [(1, "b"), (2, UNSET), (4, "d")]
    assert batch.rejected[0].error == MISSING
    assert batch.warned == {("cost", "negative"): 2, ("latency_ms", "wrong_type"): 1}
    assert [(one.index, one.field) for one in batch.warnings] == [
        (0, "cost"),
        (3, "cost"),
        (3, "latency_ms"),
    ]


def test_it_is_sorted_in_steps() -> None:
    """It reads the clock after every few decisions; the result is that of one step."""
    sent = [{**GOOD, "id": f"d{n}"} if n % 3 else {"id": f"d{n}"} for n in range(100)]
    batch = DecisionBatch(pieces(json.dumps(sent).encode(), lines=False), Rules(), NOW)
    steps = 1
    while not batch.validate(seconds=-1):
        steps += 1
    assert steps > 10
    at_once = batch_of(sent)
    assert batch.decisions == at_once.decisions
    assert batch.rejected == at_once.rejected


def test_a_receipt_lists_the_first_and_counts_all() -> None:
    """At most 100 rejections and 100 warnings are listed."""
    sent = [{**GOOD, "cost": -1} if n % 2 else {} for n in range(1000)]
    receipt = batch_of(sent).receipt(500, 0, Position("e", 1), {})
    assert (receipt.accepted, receipt.rejected_count, receipt.warnings_count) == (500, 500, 500)
    assert [one.index for one in receipt.rejected] == list(range(0, 200, 2))
    assert [one.index for one in receipt.warnings] == list(range(1, 201, 2))


def test_a_decision_that_a_full_sum_refuses_is_rejected_at_its_index() -> None:
    """It comes among the other rejections in order, with its own id."""
    sent = [{}, {**GOOD, "id": "a"}, {**GOOD, "id": "b"}, {}, {**GOOD, "id": "c"}]
    full = {("b", "default"): "cost"}
    receipt = batch_of(sent).receipt(1, 1, Position("e", 1), full)
    assert (receipt.accepted, receipt.duplicates, receipt.conflicts) == (1, 0, 1)
    assert [one.index for one in receipt.rejected] == [0, 2, 3]
    assert receipt.rejected[1] == Rejection(2, "cost: the sum of its series is at its limit", "b")


@pytest.mark.parametrize("sent", [[{}, {"strategy": "s"}], {}])
async def test_a_batch_of_bad_decisions_is_not_committed(
    ingest: Ingest, instruments: Instruments, sent: Any
) -> None:
    """The error has all rejections."""
    with pytest.raises(AllRejected, match=r"index 0\): strategy: is required") as found:
        ingest.accept(batch_of(sent))
    assert counted(instruments) == {"rejected": len(found.value.rejected)}


async def test_each_decision_is_counted_once_by_its_outcome(
    ingest: Ingest, instruments: Instruments
) -> None:
    """Metrics agree with the receipts; a decision refused for now counts as `refused`."""
    first = [{**GOOD, "id": "a"}, {**GOOD, "id": "b", "cost": -1}, {"id": "bad"}]
    second = [
        {**GOOD, "id": "a"},
        {**GOOD, "id": "b", "status": "error"},
        {**GOOD, "id": "c", "confidence": 7},
    ]
    async with running(ingest.run()):
        receipt = await ingest.accept(batch_of(first))
        assert (receipt.accepted, receipt.rejected_count) == (2, 1)
        assert receipt.warnings == [FieldWarning(1, "cost", "negative", "must be 0 or more")]
        receipt = await ingest.accept(batch_of(second))
        found = (receipt.accepted, receipt.duplicates, receipt.conflicts, receipt.warnings_count)
        assert found == (1, 1, 1, 1)
    with pytest.raises(Unavailable):
        ingest.accept(batch_of(first))
    assert counted(instruments) == {
        "accepted": 3,
        "duplicate": 1,
        "conflict": 1,
        "rejected": 1,
        "refused": 2,
    }
    warned = [one.value for one in warnings_of(instruments)]
    assert warned == [1, 1]


def warnings_of(instruments: Instruments) -> Iterable[Any]:
    """Return the counters of warnings."""
    (family,) = instruments.field_warnings.collect()
    return family.samples


async def test_the_batch_of_a_client_that_left_is_committed_and_counted(
    ingest: Ingest, instruments: Instruments
) -> None:
    """A cancelled wait does not cancel the commit."""
    gone = ingest.accept(batch_of([{**GOOD, "id": "a"}]))
    gone.cancel()
    async with running(ingest.run()):
        await ingest.accept(batch_of([{**GOOD, "id": "b"}]))
    assert counted(instruments) == {"accepted": 2}


def test_an_unreadable_body_is_refused() -> None:
    """No decision of it is kept."""
    batch = DecisionBatch(pieces(b"{]", lines=False), Rules(), NOW)
    with pytest.raises(BadBody):
        batch.validate()
