"""Waiting for the newest encoded document of a view of a `MetricsReader`."""

import asyncio

from routecast.core.document import EncodedDocument
from routecast.core.view import View
from routecast.services.metrics_reader import MetricsReader


async def document_of(reader: MetricsReader, view: View) -> EncodedDocument:
    """Return a view's newest document, once it can be made."""
    while True:
        found = await reader.encoded_documents({view: ""})
        if view in found:
            return found[view]
        await asyncio.sleep(0)
