"""Parts of a service that run at the same time: no part ends unnoticed."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any


async def run_part(run: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a part of a service in the current task.

    Raises RuntimeError if something that it waits for was cancelled, and not the part itself.
    """
    try:
        await run()
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise RuntimeError("something that it waited for was cancelled") from error


async def run_parts(*parts: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run parts of a service until all have ended. If one crashes, the others are cancelled."""
    # No TaskGroup: it takes a cancellation from inside a part for a normal end.
    tasks = [asyncio.create_task(run_part(part)) for part in parts]
    try:
        ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    for task in ended:
        task.result()
