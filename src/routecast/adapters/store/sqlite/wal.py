"""The write-ahead log of the writer: its mark, its checkpoints, and its size.

A checkpoint adds the log's pages to the database file, unless a reader still needs the old state.
After a complete checkpoint, the next transaction writes the log again from its beginning, with a
mark that tells it from other logs (`marks.py`). While a reader keeps an old state, the log grows;
after the reader has ended, the log is cut off.
"""

import logging
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import apsw

from routecast.adapters.store.sqlite.connection import add_cause, query, transaction
from routecast.adapters.store.sqlite.file_identity import FileIdentity, Lost
from routecast.adapters.store.sqlite.marks import HEADER, Mark, read_log, wal_of
from routecast.errors import Unavailable

log = logging.getLogger(__name__)

# A checkpoint is made when the log has CHECKPOINT_PAGES. After an incomplete one, the next is made
# after PAGES_TO_NEXT_TRY more pages.
CHECKPOINT_PAGES: Final = 4_000
PAGES_TO_NEXT_TRY: Final = 1_000
# A longer log, in bytes, is cut off after a complete checkpoint.
CUT_BYTES: Final = 32 << 20
# From this size on, in bytes, there is a warning if a reader prevents a checkpoint.
WARN_BYTES: Final = 64 << 20

_DATABASE, _LOG = 0, 1  # the file that `Connection.read` reads
_LOG_HEADER: Final = 32
_SALTS: Final = slice(16, 24)
_FRAME_BYTES: Final = 24


class WriteAheadLog:
    """Manages the log of one connection, on its thread and between its transactions."""

    def __init__(
        self, db: apsw.Connection, path: Path, files: FileIdentity, wait: Callable[[int], bool]
    ) -> None:
        """`wait` is the busy handler of the connection `db`."""
        self._db = db
        self._wait = wait
        self._path = path
        self._wal = wal_of(path)
        self._files = files
        self._in_use = db.pragma("journal_mode") == "wal"
        self._page = int(db.pragma("page_size"))
        self._pages = 0  # in the log, after our last commit
        self._due = CHECKPOINT_PAGES
        self._may_begin = True  # whether the next transaction may be the first of the log
        self._blocked = False
        self._warned = False
        self._failure: str | None = None  # of the last checkpoint
        self._version = int(db.pragma("data_version"))  # changes when others commit
        self._accept_files()
        db.set_wal_hook(self._committed)  # it also turns off SQLite's own checkpoints

    # -- start and stop of the server -------------------------------------------------------------

    def claim(self, *, had_log: bool) -> None:
        """Record that a server uses this file; begin a new epoch if it is a copy or lost its log.

        `had_log`: whether a log with pages was beside it before it was opened.
        """
        db = self._db
        with transaction(db):
            _, of_schema, was_open = query(db, "mark")[0]
            version = db.pragma("schema_version")
            if was_open and not had_log:
                log.warning(
                    "%s was not closed in good order, and its write-ahead log %s is not there. If "
                    "no program has added it to the file since, the last decisions are lost. A new "
                    "epoch begins",
                    *(self._path, self._wal),
                )
            if of_schema != version or (was_open and not had_log):
                query(db, "begin_epoch", secrets.token_hex(8))
            query(db, "set_claimed", version, 1)
            self._write_mark()
            db.execute("COMMIT")
        self._may_begin = False
        # The mark must be in the file itself, so that the file differs from copies made earlier.
        self.checkpoint()

    def release(self) -> None:
        """Record in the file that the server closes it properly. Never fails."""
        with suppress(apsw.Error, Unavailable):
            self._files.check()
            with transaction(self._db):
                self.begin()
                query(self._db, "set_claimed", self._db.pragma("schema_version"), 0)
                self._db.execute("COMMIT")

    # -- around each transaction ------------------------------------------------------------------

    def check(self) -> None:
        """Raise Unavailable if another program has written to the files, or cut off the log."""
        if not self._in_use:
            return
        if (self.size or 0) < self._length(self._pages):
            self._require_uncut()
        version = int(self._db.pragma("data_version"))
        others, self._version = version != self._version, version
        if others:
            self._may_begin = True
            self._accept_files()
            return
        if not self._may_begin and self._read_salts() != self._salts:
            raise Lost(f"the content of {self._wal} was replaced")
        header = self._read_header()
        if header != self._header:
            self._require_own_header(header)

    def begin(self) -> None:
        """Mark the log if the transaction that has just begun is the first of the log.

        A transaction is also the first one after a checkpoint of another program.
        """
        if self._in_use and (self._may_begin or self._read_header() != self._header):
            self._write_mark()

    def end(self) -> None:
        """Update the state of the log after a commit. Never fails."""
        if not self._in_use:
            return
        self._may_begin = False
        self._salts = self._read_salts()
        if self._pages >= self._due:
            self.checkpoint()

    def _write_mark(self) -> None:
        held = query(self._db, "mark")
        mark = Mark.after(held[0][0] if held else None, self._read_header())
        query(self._db, "set_mark", mark.pack())

    def _committed(self, _db: apsw.Connection, name: str, pages: int) -> int:
        if name == "main":
            self._pages = pages
        return apsw.SQLITE_OK

    # -- checkpoints ------------------------------------------------------------------------------

    @property
    def size(self) -> int | None:
        """The present length of the log in bytes; None if there is none. Usable in any thread."""
        try:
            return os.stat(self._wal).st_size if self._in_use else None
        except OSError:
            return None

    @property
    def warning(self) -> str | None:
        """Why the log is too large, if it is."""
        size = self.size or 0
        if size < WARN_BYTES or not (self._blocked or self._failure):
            return None
        wal = self._wal
        if self._failure:
            return (
                f"{wal} has {size >> 20} MiB, and cannot be added to the database: {self._failure}"
            )
        return (
            f"{wal} has {size >> 20} MiB and grows, because another program has been reading the "
            "database for long (a backup tool, a database browser, an open transaction). It is cut "
            "off when that program ends its transaction"
        )

    @property
    def is_long(self) -> bool:
        """Whether `checkpoint` should be called again, even without a commit."""
        return self._in_use and (self._blocked or (self.size or 0) > CUT_BYTES)

    @property
    def is_whole(self) -> bool:
        """Whether the log that is open, even if its name is gone, still has all its commits."""
        pages, done = self._db.wal_checkpoint("main", apsw.SQLITE_CHECKPOINT_NOOP)
        if done == pages:
            return True
        last = self._db.read("main", _LOG, self._length(pages) - 1, 1)
        return self._read_salts() == self._salts and last[0]

    def add_all(self) -> None:
        """Add the whole log to the file. Raises Unavailable if a reader is in the way."""
        pages, done = self._db.wal_checkpoint("main", apsw.SQLITE_CHECKPOINT_FULL)
        if done < pages:
            raise Unavailable(f"what {self._wal} had cannot be added to the database yet")

    def checkpoint(self) -> None:
        """Add the log to the file as far as possible, and cut it off if it is long. Never fails.

        Do not call it in a transaction.
        """
        if not self._in_use:
            return
        self._failure = None
        try:
            pages, done = self._db.wal_checkpoint("main", apsw.SQLITE_CHECKPOINT_PASSIVE)
            self._blocked = done < pages
            self._due = self._pages + PAGES_TO_NEXT_TRY if self._blocked else CHECKPOINT_PAGES
            self._header = self._read_header()
            if not self._blocked:
                self._may_begin = True
                self._cut()
        except apsw.BusyError:
            self._blocked = True
            self._due = self._pages + PAGES_TO_NEXT_TRY
        except apsw.Error as error:
            if isinstance(error, apsw.IOError):
                add_cause(self._db, error)
            self._failure = str(error)
            self._due = self._pages + PAGES_TO_NEXT_TRY
        self._log_warning()

    def _cut(self) -> None:
        if (self.size or 0) <= CUT_BYTES:
            return
        self._db.set_busy_handler(None)  # do not wait for readers: the next try comes soon
        try:
            self._db.wal_checkpoint("main", apsw.SQLITE_CHECKPOINT_TRUNCATE)
            self._pages = 0
            # The log gets content at once: a log that is missing later, while the file is not
            # closed, was lost.
            with transaction(self._db):
                self._write_mark()
                self._db.execute("COMMIT")
            self._may_begin = False
            self._accept_files()
        except apsw.BusyError:
            pass
        finally:
            self._db.set_busy_handler(self._wait)

    def _log_warning(self) -> None:
        warning = self.warning
        if warning and not self._warned:
            log.warning("%s", warning)
        elif self._warned and not warning and not self._blocked:
            log.warning("%s was cut off: it has %d bytes", self._wal, self.size or 0)
        self._warned = bool(warning) or (self._warned and self._blocked)

    # -- other programs ---------------------------------------------------------------------------

    def _length(self, pages: int) -> int:
        return _LOG_HEADER + pages * (_FRAME_BYTES + self._page) if pages else 0

    def _require_uncut(self) -> None:
        """Raise Lost if the log was cut off before its pages were added to the file.

        Another process may have cut it off after a checkpoint: the log's index shows that.
        """
        pages, done = self._db.wal_checkpoint("main", apsw.SQLITE_CHECKPOINT_NOOP)
        if done < pages and (self.size or 0) < self._length(pages):
            raise Lost(f"{self._wal} was cut off while the database is in use")
        self._pages, self._may_begin = 0, True

    def _require_own_header(self, header: bytes) -> None:
        """Raise Unavailable if the beginning of the file was not written by the log.

        Another process may have added pages of the log to the file.
        """
        held = read_log(self._wal)
        if held is None or header not in held.headers:
            raise Unavailable(f"the content of the database file {self._path} was replaced")
        self._header = header

    def _accept_files(self) -> None:
        if self._in_use:
            self._header, self._salts = self._read_header(), self._read_salts()

    def _read_header(self) -> bytes:
        return self._db.read("main", _DATABASE, 0, HEADER)[1]

    def _read_salts(self) -> bytes:
        return self._db.read("main", _LOG, 0, _LOG_HEADER)[1][_SALTS]
