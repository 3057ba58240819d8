"""Readers: the connections of one process that read a SQLite file, on any thread.

All of them must be closed before a lost file is opened again: SQLite keeps what it knows of a file
as long as the process has a connection to it.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import apsw

from routecast.adapters.store.sqlite.connection import BUSY_MS, leave_log
from routecast.errors import Unavailable

# Seconds between two interrupts of running work. One is not enough: it may fall between two
# statements.
INTERRUPT_PAUSE: Final = 0.02


class Readers:
    """The reading connections: one for each thread, and separate ones on request."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._changed = threading.Condition()
        self._busy = 0
        self._suspended = False
        self._open: list[apsw.Connection] = []
        self._local = threading.local()
        self._suspensions = 0

    @contextmanager
    def using(self) -> Iterator[None]:
        """Keep the file open during the body. Raises Unavailable while it is opened again."""
        with self._changed:
            if self._suspended:
                raise Unavailable("the database is being opened again")
            self._busy += 1
        try:
            yield
        finally:
            with self._changed:
                self._busy -= 1
                self._changed.notify_all()

    @contextmanager
    def connection(self) -> Iterator[apsw.Connection]:
        """The connection of this thread. Raises Unavailable while the file is opened again."""
        with self.using():
            held = getattr(self._local, "held", None)
            if held is None or held[1] != self._suspensions:
                held = self._local.held = self._connect(), self._suspensions
                self._open.append(held[0])
            yield held[0]

    @contextmanager
    def own(self) -> Iterator[apsw.Connection]:
        """A connection for the body alone. Raises Unavailable while the file is opened again."""
        with self.using():
            connection = self._connect()
            self._open.append(connection)
            try:
                yield connection
            finally:
                self._open.remove(connection)
                connection.close()

    def _connect(self) -> apsw.Connection:
        # It must not create a file: that would be taken for the one that was removed.
        try:
            connection = apsw.Connection(str(self._path), flags=apsw.SQLITE_OPEN_READWRITE)
        except apsw.CantOpenError as error:
            raise Unavailable(f"SQLite: {error}") from error
        connection.set_busy_timeout(BUSY_MS)
        connection.execute("PRAGMA query_only = 1")
        leave_log(connection)  # the writer takes care of it
        return connection

    def interrupt(self) -> None:
        """Interrupt all running statements: they raise apsw.InterruptError."""
        for connection in list(self._open):
            with suppress(apsw.Error):  # it may just have been closed
                connection.interrupt()

    def suspend(self, seconds: float) -> bool:
        """Close all connections within `seconds`, and open none; return whether that succeeded.

        Running statements are interrupted. Call `resume` later in any case.
        """
        deadline = time.monotonic() + seconds
        with self._changed:
            self._suspended = True
            while self._busy and time.monotonic() < deadline:
                self.interrupt()
                self._changed.wait(INTERRUPT_PAUSE)
            if self._busy:
                return False
            self.close()
            self._suspensions += 1
        return True

    def resume(self) -> None:
        """Allow connections again."""
        with self._changed:
            self._suspended = False

    def close(self) -> None:
        """Close all connections; none may be in use."""
        while self._open:
            self._open.pop().close()
