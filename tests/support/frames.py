"""Waiting for the newest encoded document of a view of a `MetricsReader`."""

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
