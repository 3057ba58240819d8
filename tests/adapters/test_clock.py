"""The system's timers: none fires early, on any event loop."""

import asyncio

import pytest
import uvloop

from routecast.adapters.clock import SystemTimers


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_no_timer_is_early(new_loop: type) -> None:
    """Event loops count in milliseconds, and from the start of their turn."""
    timers = SystemTimers()

    async def wait() -> list[float]:
        early = []
        for number in range(50):
            called = asyncio.Event()
            moment = timers.now() + number * 0.000_37
            timers.call_at(moment, called.set)
            await called.wait()
            early.append(moment - timers.now())
        return early

    with asyncio.Runner(loop_factory=new_loop) as runner:
        assert max(runner.run(wait())) <= 0
