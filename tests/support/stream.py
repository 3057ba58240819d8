"""Reading documents of the default stream."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

from websockets.asyncio.client import ClientConnection

Document = dict[str, Any]

WAIT_SECONDS = 30.0


async def receive(stream: ClientConnection) -> Document:
    """Return the next document."""
    async with asyncio.timeout(WAIT_SECONDS):
        document: Document = json.loads(await stream.recv())
    return document


async def receive_until(
    stream: ClientConnection, good: Callable[[Document], bool], seconds: float = WAIT_SECONDS
) -> Document:
    """Return the first document that satisfies a condition; on failure, show the last one."""
    seen: Document = {}
    try:
        async with asyncio.timeout(seconds):
            while True:
                seen = json.loads(await stream.recv())
                if good(seen):
                    return seen
    except TimeoutError:
        raise AssertionError(f"not within {seconds} s; the last document: {seen}") from None
