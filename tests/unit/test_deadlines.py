"""Deadlines: waiting connections are limited in time, number and bytes."""

import asyncio
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from routecast.edge.http.deadlines import BodyDeadlines, ConnectionDeadlines


class Seen:
    """The numbers of connections that were called late or crowded."""

    def __init__(self) -> None:
        self.late: list[int] = []
        self.crowded: list[int] = []


async def test_deadlines_end_in_order() -> None:
    """One timer serves all connections, and a discarded one is never late."""
    late: asyncio.Queue[int] = asyncio.Queue()
    crowded: list[int] = []
    waiting = ConnectionDeadlines(0.01, late.put_nowait, crowded.append, max_count=9)
    for number in range(4):
        waiting.add(number)
    waiting.discard(1)
    waiting.discard(7)  # was never there
    assert [await late.get() for _ in range(3)] == [0, 2, 3]
    waiting.add(5)
    assert await late.get() == 5
    assert not waiting
    assert not crowded


async def test_the_oldest_is_closed_for_a_new_one() -> None:
    """It is the oldest of an address over its own limit, otherwise the oldest of all."""
    seen = Seen()
    waiting = ConnectionDeadlines(
        60, seen.late.append, seen.crowded.append, max_count=4, max_of_address=2
    )
    waiting.add(0)
    waiting.add(1, "a")
    waiting.add(2, "a")
    waiting.add(3, "a")
    assert seen.crowded == [1]
    waiting.add(4, "b")
    waiting.add(5, "b")
    assert seen.crowded == [1, 0]
    assert waiting.take_oldest() == 2
    assert [waiting.take_oldest() for _ in range(4)] == [3, 4, 5, None]


async def test_an_address_with_a_limit_of_one() -> None:
    """Each of its connections displaces the one before."""
    seen = Seen()
    waiting = ConnectionDeadlines(
        60, seen.late.append, seen.crowded.append, max_count=4, max_of_address=1
    )
    for number in range(5):
        waiting.add(number, "a")
    assert seen.crowded == [0, 1, 2, 3]
    assert len(waiting) == 1


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["add", "hold", "discard"]),
        st.integers(0, 5),
        st.sampled_from([None, "a", "b"]),
        st.integers(0, 60),
    ),
    max_size=60,
)


@given(STEPS)
def test_bytes_are_limited_at_all_times(steps: list[tuple[str, int, str | None, int]]) -> None:
    """`held` is the sum of all open connections, within the limits of all and of each address."""

    async def run() -> None:
        held: dict[int, tuple[str | None, int]] = {}
        bodies: BodyDeadlines[int] = BodyDeadlines(
            60,
            held.pop,
            held.pop,
            max_count=4,
            max_of_address=3,
            max_bytes=100,
            max_bytes_of_address=70,
        )
        for step, number, address, size in steps:
            if step == "add" and number not in held:
                bodies.add(number, address)
                held[number] = (address, 0)
            elif step == "hold" and number in held:
                address = held[number][0]
                held[number] = (address, size)
                bodies.hold(number, size)
            elif step == "discard":
                bodies.discard(number)
                held.pop(number, None)
            assert bodies.held == sum(size for _, size in held.values()) <= 100
            sums: Counter[str] = Counter()
            for owner, size in held.values():
                if owner is not None:
                    sums[owner] += size
            assert all(size <= 70 for size in sums.values())
            assert len(bodies) == len(held) <= 4

    asyncio.run(run())
