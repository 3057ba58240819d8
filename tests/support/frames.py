"""Frames of `MetricsReader`, for tests that can wait for them."""

import asyncio

from routecast.core.document import EncodedDocument
from routecast.core.view import View
from routecast.services.metrics_reader import MetricsReader


async def frame_of(reader: MetricsReader, view: View) -> EncodedDocument:
    """Return a view's newest frame, once it can be made."""
    while True:
        frames = await reader.frames({view: ""})
        if view in frames:
            return frames[view]
        await asyncio.sleep(0)
