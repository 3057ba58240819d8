"""Connections to a SQLite file, the named queries run on them, and transactions."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Final

import apsw

from routecast.core.delta import Delta
from routecast.core.rollup import Key
from routecast.errors import Unavailable
from routecast.protocol import Position
from routecast.store.queries import load_queries

SQL: Final = load_queries("sqlite")
BUSY_MS: Final = 5_000

START_OF: Final = {"total": 0, "hour": 3600, "pruned": 3600, "minute": 60}


def select(db: apsw.Connection, name: str, *values: Any) -> Iterator[Any]:
    """Return the rows of a named query, read as they are asked for."""
    return db.execute(SQL[name], values)


def query(db: apsw.Connection, name: str, *values: Any) -> list[Any]:
    """Return all rows of a named query, which has then run to its end."""
    return list(select(db, name, *values))


def series_names(db: apsw.Connection) -> dict[int, Key]:
    """Return the key of each series by its number."""
    return {row[0]: Key(*row[1:]) for row in query(db, "series")}


def deltas_after(db: apsw.Connection, after: Position) -> Iterator[Delta]:
    """Yield the deltas of the commits after a position, in order."""
    for seq, packed in select(db, "deltas", after.seq):
        delta = Delta.unpack(packed)
        yield Delta(Position(after.epoch, seq), delta.cells, delta.received)


@contextmanager
def transaction(db: apsw.Connection, begin: str = "BEGIN IMMEDIATE") -> Iterator[None]:
    """A transaction that the body commits; left in any other way, it is undone."""
    db.execute(begin)
    try:
        yield
    except BaseException:
        _undo(db, suppress(apsw.Error))  # what went wrong first is what matters
        raise
    _undo(db, nullcontext())


def _undo(db: apsw.Connection, guard: AbstractContextManager[Any]) -> None:
    if db.in_transaction:  # a full disk ends it by itself
        with guard:
            db.execute("ROLLBACK")


class Shrunk(Unavailable):
    """A database file is shorter than it was."""


class Place:
    """Where a database file was when it was opened, and how long it has been since."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.accept()

    def accept(self) -> None:
        """Take the file as it is for the right one."""
        found = self._look()
        self._file, self._size = (found.st_dev, found.st_ino), found.st_size

    def _look(self) -> os.stat_result:
        try:
            return self._path.stat()
        except OSError:
            raise Unavailable(f"the database file {self._path} is gone") from None

    def check(self) -> None:
        """Raise Unavailable when the file is no longer where it was: it would be lost.

        Raises Shrunk when it is shorter than it was: something else has cut it off.
        """
        found = self._look()
        if (found.st_dev, found.st_ino) != self._file:
            raise Unavailable(f"the database file {self._path} was replaced")
        if found.st_size >= self._size:
            self._size = found.st_size
        # Another thread may have seen a longer file since: look again.
        elif self._look().st_size < self._size:
            raise Shrunk("the database file is shorter than it was")
