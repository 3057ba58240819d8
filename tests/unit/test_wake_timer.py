"""`WakeTimer`: it wakes the task that waits, at a given time or earlier."""

import asyncio

import pytest

from routecast.wake_timer import WakeTimer
from tests.support.clock import HeldTimers


@pytest.fixture
def timers() -> HeldTimers:
    """Timers at 1000 s."""
    return HeldTimers(1_000.0)


async def test_it_wakes_a_task_at_the_given_time(timers: HeldTimers) -> None:
    """The result is how late it was."""
    task = asyncio.create_task(WakeTimer(timers).wait_until(1_005.0))
    await asyncio.sleep(0)
    timers.go_to(1_004.9)
    await asyncio.sleep(0)
    assert not task.done()
    timers.go_to(1_007.0)
    assert await task == pytest.approx(2.0)


async def test_it_wakes_a_task_earlier(timers: HeldTimers) -> None:
    """The earliest time counts, and the other timers are cancelled."""
    wake_timer = WakeTimer(timers)
    task = asyncio.create_task(wake_timer.wait_until(1_005.0))
    await asyncio.sleep(0)
    wake_timer.wake_by(1_002.0)
    wake_timer.wake_by(1_003.0)
    assert timers.pending() == [1_002.0]
    timers.go_to(1_002.0)
    assert await task == pytest.approx(0.0)
    assert timers.pending() == []


async def test_it_wakes_a_task_at_once(timers: HeldTimers) -> None:
    """A wake that comes before the wait counts too, and counts once."""
    wake_timer = WakeTimer(timers)
    wake_timer.wake()
    assert await wake_timer.wait_until(1_005.0) == pytest.approx(-5.0)
    task = asyncio.create_task(wake_timer.wait_until(1_006.0))
    await asyncio.sleep(0)
    assert not task.done()
    wake_timer.wake()
    assert await task == pytest.approx(-6.0)
    assert timers.pending() == []


async def test_a_time_for_a_task_that_does_not_wait_is_ignored(timers: HeldTimers) -> None:
    """The task finds out what is due before it waits again."""
    wake_timer = WakeTimer(timers)
    wake_timer.wake_by(1_000.0)
    assert timers.pending() == []


async def test_cancelled_task_leaves_no_timer(timers: HeldTimers) -> None:
    """The next task waits as if there had been none."""
    wake_timer = WakeTimer(timers)
    task = asyncio.create_task(wake_timer.wait_until(1_005.0))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert timers.pending() == []
