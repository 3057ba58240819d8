"""The connections of one process that read a SQLite file, on any threads.

All of them have to be closed before the file can be opened anew: SQLite keeps what it knows of a
file for as long as one connection of the process is open.
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

# Between two calls that end what runs, in seconds: one may fall between two statements.
INTERRUPT_PAUSE: Final = 0.02


class Readers:
    """Connections that read: one of each thread, and others of those who ask for one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._changed = threading.Condition()
        self._busy = 0
        self._away = False
        self._open: list[apsw.Connection] = []
        self._local = threading.local()
        self._times_left = 0

    @contextmanager
    def using(self) -> Iterator[None]:
        """Keep the file from being opened anew. Raises Unavailable while it is."""
        with self._changed:
            if self._away:
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
        """The connection of this thread. Raises Unavailable while the file is opened anew."""
        with self.using():
            held = getattr(self._local, "held", None)
            if held is None or held[1] != self._times_left:
                held = self._local.held = self._connect(), self._times_left
                self._open.append(held[0])
            yield held[0]

    @contextmanager
    def own(self) -> Iterator[apsw.Connection]:
        """A connection for the body alone. Raises Unavailable while the file is opened anew."""
        with self.using():
            connection = self._connect()
            self._open.append(connection)
            try:
                yield connection
            finally:
                self._open.remove(connection)
                connection.close()

    def _connect(self) -> apsw.Connection:
        # It makes no file: one in the place of a file that was removed would be taken for it.
        try:
            connection = apsw.Connection(str(self._path), flags=apsw.SQLITE_OPEN_READWRITE)
        except apsw.CantOpenError as error:
            raise Unavailable(f"SQLite: {error}") from error
        connection.set_busy_timeout(BUSY_MS)
        connection.execute("PRAGMA query_only = 1")
        leave_log(connection)  # that is the writer's
        return connection

    def interrupt(self) -> None:
        """End what runs now: it raises apsw.InterruptError."""
        for connection in list(self._open):
            with suppress(apsw.Error):  # it was closed a moment ago
                connection.interrupt()

    def leave(self, seconds: float) -> bool:
        """Close all connections; return whether that was possible in time. `come_back` follows."""
        deadline = time.monotonic() + seconds
        with self._changed:
            self._away = True
            while self._busy and time.monotonic() < deadline:
                self.interrupt()
                self._changed.wait(INTERRUPT_PAUSE)
            if self._busy:
                return False
            self.close()
            self._times_left += 1
        return True

    def come_back(self) -> None:
        """Let readers in again."""
        with self._changed:
            self._away = False

    def close(self) -> None:
        """Close all connections; nothing may run on them."""
        while self._open:
            self._open.pop().close()
