"""Slices: long work takes turns on the event loop, one slice in each turn."""

import asyncio
from itertools import pairwise
from typing import Any

import pytest

from routecast import slices as module
from routecast.slices import Slices


async def test_one_slice_runs_in_each_turn_of_the_loop() -> None:
    """Other ready tasks run between any two slices, also of different work."""
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


async def test_cancelled_work_costs_no_turn() -> None:
    """The next work gets its turn."""
    slices = Slices()
    gone = asyncio.create_task(slices.turn())
    stays = asyncio.create_task(slices.turn())
    await asyncio.sleep(0)
    gone.cancel()
    async with asyncio.timeout(5):
        await stays
    assert gone.cancelled()
    await slices.turn()


async def test_slices_leave_room_to_short_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a while after such a request, the loop is free between two slices."""
    slices, loop = Slices(), asyncio.get_running_loop()
    delays: list[float] = []
    call_later = loop.call_later

    def noted(delay: float, callback: Any, *args: Any) -> asyncio.TimerHandle:
        delays.append(delay)
        return call_later(delay, callback, *args)

    monkeypatch.setattr(loop, "call_later", noted)
    await asyncio.gather(*(slices.turn() for _ in range(3)))
    assert delays == []
    slices.leave_room()
    await asyncio.gather(*(slices.turn() for _ in range(3)))
    assert delays == [module.ROOM_SECONDS] * 3
    monkeypatch.setattr(module, "COURTESY_SECONDS", 0.0)
    slices.leave_room()
    await slices.turn()
    assert len(delays) == 3
