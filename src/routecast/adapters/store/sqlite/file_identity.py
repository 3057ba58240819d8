"""File identity: whether the files of a SQLite database are still those that were opened.

SQLite does not check this: it continues with files that were removed, replaced or cut off, and
later commits are lost when the process ends. So each commit and each read checks first.
"""

import os
from contextlib import suppress
from pathlib import Path

from routecast.adapters.store.sqlite.marks import shm_of, wal_of
from routecast.errors import Unavailable


class Shrunk(Unavailable):
    """A database file is shorter than it was."""


class Lost(Unavailable):
    """A file, or its content, was removed or replaced: the database must be opened again.

    While a connection has the lost file open, everything can be saved (`Writer.reopen`).
    """


class LogCut(Unavailable):
    """The write-ahead log has lost commits that cannot be saved."""


class FileIdentity:
    """The files of a database when it was opened, and the largest length of the main one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = (0, 0)
        self._beside = (wal_of(path), shm_of(path))
        self.accept()

    def accept(self) -> None:
        """Accept the present files as the right ones. Raises Unavailable."""
        found = self._stat_database()
        self._file, self._size = _identity(found), found.st_size
        self._logs = [(path, _identity(held)) for path in self._beside if (held := _stat(path))]

    @property
    def is_there(self) -> bool:
        """Whether the database file that was opened is still at its path."""
        found = _stat(self._path)
        return found is not None and _identity(found) == self._file

    def _stat_database(self) -> os.stat_result:
        found = _stat(self._path)
        if found is None:
            if _is_removed(self._file):
                raise Lost(f"the database file {self._path} was removed")
            raise Unavailable(f"the database file {self._path} is gone")
        return found

    def check(self) -> None:
        """Raise Unavailable if a file is not at its path any more: commits would be lost.

        Raises Lost if everything can be saved, and Shrunk if the database file is shorter than
        before, because another program has cut it off.
        """
        found = self._stat_database()
        if _identity(found) != self._file:
            raise Unavailable(f"the database file {self._path} was replaced")
        for path, identity in self._logs:
            held = _stat(path)
            if held is None or _identity(held) != identity:
                how = "removed" if held is None else "replaced"
                raise Lost(f"{path} was {how} while the database is in use")
        if found.st_size >= self._size:
            self._size = found.st_size
        # Another thread may have seen a longer file in the meantime: look again.
        elif self._stat_database().st_size < self._size:
            raise Shrunk("the database file is shorter than it was")


def _stat(path: Path) -> os.stat_result | None:
    try:
        return os.stat(path)
    except OSError:
        return None


def _is_removed(identity: tuple[int, int]) -> bool:
    """Whether a file that this process has open has no name any more, so that it cannot return."""
    for number in os.listdir("/dev/fd"):
        with suppress(OSError):
            found = os.fstat(int(number))
            if _identity(found) == identity:
                return found.st_nlink == 0
    return False


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino
