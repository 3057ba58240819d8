"""The limits of tickets and of sessions that one client makes."""

import pytest

from routecast.adapters.records.memory import RECORD_OVERHEAD, MemoryRecords
from routecast.core.access import ANYONE, Principal, Scope
from routecast.core.client_limits import ClientLimit, LimitMode, LimitModes
from routecast.core.record_limit import RECORD_UNIT_BYTES, RecordLimit
from routecast.errors import OverLimit, Unavailable
from routecast.services.tickets import Tickets
from tests.support.clock import HeldClock

ANN = Principal("ann", frozenset({Scope.READ}))


def test_a_client_makes_no_more_than_its_quota() -> None:
    """Others are not concerned; the error says when it may go on."""
    limit = RecordLimit(ClientLimit.SESSIONS, 2, 60.0)
    for _ in range(2):
        assert limit.take("ann", b"x", 0.0) == 1
    with pytest.raises(OverLimit) as caught:
        limit.take("ann", b"x", 0.0)
    error = caught.value
    assert (error.limit, error.amount, error.seconds) == ("sessions", 2, 60)
    assert error.retry_after == 30
    assert limit.take("bob", b"x", 0.0) == 1
    assert limit.take("ann", b"x", 30.0) == 1


def test_a_large_record_counts_more() -> None:
    """A token may have a thousand projects, and the room is in bytes."""
    limit = RecordLimit(ClientLimit.TICKETS, 10, 60.0)
    assert limit.take("ann", bytes(RECORD_UNIT_BYTES), 0.0) == 1
    assert limit.take("ann", bytes(8 * RECORD_UNIT_BYTES + 1), 0.0) == 9
    with pytest.raises(OverLimit):
        limit.take("ann", b"x", 0.0)
    limit.give_back("ann", 9, 0.0)
    assert limit.take("ann", b"x", 0.0) == 1


def test_no_limit_and_dry_run() -> None:
    """Neither refuses, and the latter counts."""
    hits: list[tuple[ClientLimit, LimitMode]] = []
    modes = LimitModes({"tickets"}, lambda limit, mode: hits.append((limit, mode)))
    off = RecordLimit(ClientLimit.TICKETS, 0, 60.0, modes)
    dry = RecordLimit(ClientLimit.TICKETS, 1, 60.0, modes)
    for _ in range(3):
        assert off.take("ann", b"x", 0.0) == 0
        dry.take("ann", b"x", 0.0)
    assert hits == [(ClientLimit.TICKETS, LimitMode.DRY_RUN)] * 2


async def test_one_client_does_not_take_the_room_of_others(clock: HeldClock) -> None:
    """By its subject, whatever its credential; without authentication, by its address."""
    records = MemoryRecords(clock)
    tickets = Tickets(records, clock, RecordLimit(ClientLimit.TICKETS, 2, 60.0))
    other = Principal("ann", frozenset({Scope.READ}), credential="other")
    assert await tickets.make(ANN, "a") != await tickets.make(other, "b")
    with pytest.raises(OverLimit):
        await tickets.make(ANN, "a")
    await tickets.make(Principal("bob"), "a")
    for address in "ab":
        await tickets.make(ANYONE, address)
        await tickets.make(ANYONE, address)
        with pytest.raises(OverLimit):
            await tickets.make(ANYONE, address)
    clock.moment += 60_000_000
    await tickets.make(ANN, "a")


async def test_what_finds_no_room_is_not_counted(clock: HeldClock) -> None:
    """The client tries again."""
    records = MemoryRecords(clock, max_bytes=0)
    tickets = Tickets(records, clock, RecordLimit(ClientLimit.TICKETS, 1, 60.0))
    for _ in range(3):
        with pytest.raises(Unavailable) as caught:
            await tickets.make(ANN, "a")
        assert not isinstance(caught.value, OverLimit)


async def test_a_record_without_room_looks_at_no_other(
    clock: HeldClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that fills them could keep the node busy with each refusal otherwise."""
    looks = 0

    class Counting(dict[str, tuple[int, bytes]]):
        def __getitem__(self, name: str) -> tuple[int, bytes]:
            nonlocal looks
            looks += 1
            return super().__getitem__(name)

        def items(self) -> object:  # type: ignore[override]  # -- no look may call it
            raise AssertionError("it looks at all records")

    records = MemoryRecords(clock, max_bytes=100 * (RECORD_OVERHEAD + 4))
    monkeypatch.setattr(records, "_held", Counting())
    for number in range(100):
        await records.put(f"{number:03}", b"x", 60)
    before = looks
    for _ in range(10):
        with pytest.raises(Unavailable):
            await records.put("more", b"x", 60)
    assert looks == before
    clock.moment += 60_000_000
    await records.put("more", b"x", 60)
    assert await records.get(["000", "more"]) == [None, b"x"]


async def test_the_ends_of_records_that_are_gone_are_forgotten(
    clock: HeldClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ticket is taken before its end."""
    monkeypatch.setattr("routecast.adapters.records.memory.OLD_ENDS", 10)
    records = MemoryRecords(clock)
    await records.put("kept", b"1", 60)
    for number in range(1_000):
        await records.put(f"{number}", b"x", 60)
        assert await records.take(f"{number}") == b"x"
        await records.put("kept", b"1", 60 + number)
    assert len(records._ends) <= 2 + 10
    clock.moment += 60_000_000
    await records.put("more", b"x", 60)
    assert await records.get(["kept"]) == [b"1"]
