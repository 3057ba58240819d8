"""Frames of `Latest`, for tests that have nothing else to do meanwhile."""

import asyncio

from routecast.core.frame import Frame
from routecast.core.view import View
from routecast.services.metrics_reader import Latest


async def frame_of(latest: Latest, view: View) -> Frame:
    """Return a view's newest frame, once it can be made."""
    while True:
        frames = await latest.frames({view: ""})
        if view in frames:
            return frames[view]
        await asyncio.sleep(0)
