"""Slices: long works take turns on the event loop, one in each turn."""

import asyncio
from itertools import pairwise

from routecast.slices import Slices


async def test_one_slice_in_each_turn_of_the_loop() -> None:
    """Whoever else is ready runs between any two slices, of whichever work."""
    slices = Slices()
    seen: list[str] = []

    async def work(name: str) -> None:
        for _ in range(3):
            await slices.turn()
            seen.append(name)

    async def others() -> None:
        while len(seen) - seen.count(".") < 9:
            seen.append(".")
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        for name in "abc":
            group.create_task(work(name))
        group.create_task(others())
    assert [name for name in seen if name != "."] == [*"abcabcabc"]
    assert all("." in pair for pair in pairwise(seen))


async def test_a_work_that_is_cancelled_costs_no_turn() -> None:
    """The next one has it."""
    slices = Slices()
    gone = asyncio.create_task(slices.turn())
    stays = asyncio.create_task(slices.turn())
    await asyncio.sleep(0)
    gone.cancel()
    async with asyncio.timeout(5):
        await stays
    assert gone.cancelled()
    await slices.turn()
