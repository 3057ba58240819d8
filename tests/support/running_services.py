"""Running a service beside a test, breaking its database, and waiting for conditions."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import apsw

PATIENCE = 30.0


@asynccontextmanager
async def running(service: Coroutine[Any, Any, None]) -> AsyncIterator[asyncio.Task[None]]:
    """Run a service during the body, and cancel it at the end. Its exceptions are raised."""
    task = asyncio.create_task(service)
    try:
        yield task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def until(reached: Callable[[], object]) -> None:
    """Return when a condition is true; fail after a long time."""
    async with asyncio.timeout(PATIENCE):
        while not reached():  # noqa: ASYNC110  # -- the condition has no event of its own
            await asyncio.sleep(0.002)


@contextmanager
def broken(path: Path, table: str = "history") -> Iterator[None]:
    """Break a database during the body: every query on a table fails."""
    other = apsw.Connection(str(path))
    other.set_busy_timeout(10_000)
    other.execute(f"ALTER TABLE {table} RENAME TO taken_away")
    try:
        yield
    finally:
        other.execute(f"ALTER TABLE taken_away RENAME TO {table}")
        other.close()
