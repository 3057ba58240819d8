"""An alarm: it wakes the task that waits, at a moment or earlier."""

import asyncio

import pytest

from routecast.alarm import Alarm
from tests.support.clock import HeldTimers


@pytest.fixture
def timers() -> HeldTimers:
    """Timers at 1000 s."""
    return HeldTimers(1_000.0)


async def test_it_rings_at_its_moment(timers: HeldTimers) -> None:
    """The result tells how late it was."""
    task = asyncio.create_task(Alarm(timers).wait_until(1_005.0))
    await asyncio.sleep(0)
    timers.go_to(1_004.9)
    await asyncio.sleep(0)
    assert not task.done()
    timers.go_to(1_007.0)
    assert await task == pytest.approx(2.0)


async def test_it_rings_earlier_where_it_is_reported_to(timers: HeldTimers) -> None:
    """The earliest moment counts; none of the others rings afterwards."""
    alarm = Alarm(timers)
    task = asyncio.create_task(alarm.wait_until(1_005.0))
    await asyncio.sleep(0)
    alarm.ring_by(1_002.0)
    alarm.ring_by(1_003.0)
    assert timers.pending() == [1_002.0]
    timers.go_to(1_002.0)
    assert await task == pytest.approx(0.0)
    assert timers.pending() == []


async def test_it_rings_at_once(timers: HeldTimers) -> None:
    """Also for a task that is yet to wait; then it is silent again."""
    alarm = Alarm(timers)
    alarm.ring()
    assert await alarm.wait_until(1_005.0) == pytest.approx(-5.0)
    task = asyncio.create_task(alarm.wait_until(1_006.0))
    await asyncio.sleep(0)
    assert not task.done()
    alarm.ring()
    assert await task == pytest.approx(-6.0)
    assert timers.pending() == []


async def test_a_moment_for_a_task_that_does_not_wait_is_ignored(timers: HeldTimers) -> None:
    """It knows by itself what is due when it waits again."""
    alarm = Alarm(timers)
    alarm.ring_by(1_000.0)
    assert timers.pending() == []


async def test_cancelled_task_leaves_no_timer(timers: HeldTimers) -> None:
    """The next one waits as if there had been none."""
    alarm = Alarm(timers)
    task = asyncio.create_task(alarm.wait_until(1_005.0))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert timers.pending() == []
