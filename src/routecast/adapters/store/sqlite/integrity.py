"""Integrity: whether a SQLite file is sound, by the errors of its users and a check of all tables.

The check runs when a store opens, on its own connection and thread. It checks one table at a time,
because a running statement keeps the write-ahead log from being started again. It rests most of the
time.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Final

import apsw

from routecast.adapters.store.sqlite.file_identity import LogCut, Shrunk
from routecast.errors import Unavailable
from routecast.ports import Condition

log = logging.getLogger(__name__)

# Opening a store waits at most this time, in seconds, for the check; the rest runs in the
# background.
OPEN_CHECK_SECONDS: Final = 1.0
# Then the check alternates between work and rest, for these times in seconds, so that others need
# not wait.
WORK_SECONDS: Final = 0.01
CHECK_REST_SECONDS: Final = 0.03
# The time is checked after this number of steps of SQLite, which take about a millisecond.
CHECK_STEPS: Final = 10_000

# Errors that mean that the file cannot be used any more.
_CORRUPT: Final = (apsw.CorruptError, apsw.NotADBError)
# Read errors that may pass: the check shows whether they did.
_READ_FAILURES: Final = frozenset(
    {
        apsw.SQLITE_IOERR_READ,
        apsw.SQLITE_IOERR_SHORT_READ,
        apsw.SQLITE_IOERR_CORRUPTFS,
        apsw.SQLITE_IOERR_DATA,
    }
)


class Integrity:
    """Decides whether a file may be written to. Call all methods on the event loop."""

    def __init__(
        self,
        connect: Callable[[], AbstractContextManager[apsw.Connection]],
        accept: Callable[[], None],
    ) -> None:
        """`connect` opens the file for reading; `accept` is called after a check without faults."""
        self._connect = connect
        self._accept = accept
        self._thread = ThreadPoolExecutor(1, "sqlite-check")
        self._task: asyncio.Task[None] | None = None
        self._resting = threading.Event()
        self._stopping = threading.Event()
        self._check: str | None = None
        self._error: str | None = None
        self._final = False  # whether the error stays even if a check finds nothing
        self._again = False  # whether a check was requested since the last one began

    @property
    def condition(self) -> Condition:
        """What is known about the file now."""
        return Condition(self._check, self._error)

    def refuse_if_damaged(self) -> None:
        """Raise Unavailable if the file must not be written to."""
        if self._error is not None:
            raise Unavailable(f"the database file is corrupt ({self._error})", retry_after=30)

    async def open(self) -> None:
        """Check a file that was just opened; return after OPEN_CHECK_SECONDS at the latest."""
        self._error, self._final = None, False
        self._begin()
        assert self._task is not None
        await asyncio.wait({self._task}, timeout=OPEN_CHECK_SECONDS)
        self._resting.set()

    async def close(self) -> None:
        """Stop the check, finished or not."""
        self._stopping.set()
        if self._task is not None:
            await asyncio.wait({self._task})
        self._thread.shutdown()

    def record_error(self, error: Exception) -> None:
        """Record an error of a read or a write of the file."""
        if isinstance(error, (*_CORRUPT, LogCut)):
            self._damaged(str(error), final=True)
        elif isinstance(error, Shrunk) or getattr(error, "extendedresult", 0) in _READ_FAILURES:
            shrunk = isinstance(error, Shrunk)
            self._damaged("it is shorter than it was" if shrunk else str(error), final=False)
            if self._check is not None:  # not before it is opened
                self._begin()

    def _damaged(self, error: str, *, final: bool) -> None:
        if self._error is None:
            log.critical(
                "The database file is corrupt, and decisions are refused: %s. Restore it from a "
                "backup and restart, or see docs/deploy.md",
                error,
            )
        if self._error is None or (final and not self._final):
            self._error, self._final = error, final

    def _begin(self) -> None:
        self._again = True
        if self._task is None or self._task.done():
            self._check = "running"
            self._task = asyncio.create_task(self._run(), name="database check")

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        found: str | None = None
        try:
            # A check that began before the damage was seen does not show that there is none.
            while self._again and found is None:
                self._again = False
                found = await loop.run_in_executor(self._thread, self._quick_check)
        except apsw.InterruptError:
            self._check = "unfinished"  # the file is being closed; it may be opened again
            return
        except (*_CORRUPT, apsw.IOError) as error:
            found = str(error)
        except Exception as error:
            log.warning("The check of the database file could not be finished: %s", error)
            self._check = "unfinished"
            return
        if found is not None:
            self._check = "failed"
            self._damaged(found, final=True)
            return
        self._check = "ok"
        if self._error is not None and not self._final:
            log.warning("The database file was checked and is sound")
            self._accept()
            self._error = None

    # -- on the thread --------------------------------------------------------------------------

    def _quick_check(self) -> str | None:
        """Return the first fault of the file, None if there is none."""
        with self._connect() as db:
            db.set_progress_handler(self._pace(), CHECK_STEPS)
            tables = "SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY rootpage"
            for (table,) in list(db.execute(tables)):
                found = str(next(db.execute(f"PRAGMA quick_check({table})"))[0])
                if found != "ok":
                    return " ".join(found.split())[:200]
        return None

    def _pace(self) -> Callable[[], bool]:
        since = time.monotonic()

        def pace() -> bool:
            nonlocal since
            if self._resting.is_set() and time.monotonic() - since > WORK_SECONDS:
                self._stopping.wait(CHECK_REST_SECONDS)
                since = time.monotonic()
            return self._stopping.is_set()

        return pace


def first_fault(db: apsw.Connection) -> str | None:
    """Return the first fault that SQLite's own check of a whole file finds, or None."""
    try:
        found = str(db.execute("PRAGMA integrity_check(1)").get)
    except _CORRUPT as error:
        return str(error)
    return None if found == "ok" else " ".join(found.split())[:200]
