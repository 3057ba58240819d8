"""The one writer of a SQLite file: its connection, its transactions, and what it remembers.

`commit.py`, `retention.py`, `summaries.py`, `names.py` and `access.py` write in a transaction of
the writer, on its thread.

The writer remembers the rollups that it used last, and more (`_Memory`). Within `BEGIN IMMEDIATE`
no other process can write. SQLite's `data_version` shows whether one has written before that: only
then the writer forgets what it remembers.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import apsw

from routecast.adapters.store.names import folded_names
from routecast.adapters.store.sqlite import rescue, schema
from routecast.adapters.store.sqlite.connection import (
    BUSY_MS,
    STATEMENTS_KEPT,
    leave_log,
    query,
    transaction,
)
from routecast.adapters.store.sqlite.file_identity import FileIdentity, Lost
from routecast.adapters.store.sqlite.folding import Folding
from routecast.adapters.store.sqlite.marks import holds_pages, require_own_log, wal_of
from routecast.adapters.store.sqlite.rollups import Rollups
from routecast.adapters.store.sqlite.series import SeriesNumbers
from routecast.adapters.store.sqlite.totals import SqliteTotals
from routecast.adapters.store.sqlite.wal import WriteAheadLog
from routecast.core.cardinality import FoldedNames
from routecast.errors import BadDatabase, Unavailable
from routecast.protocol import Position

log = logging.getLogger(__name__)


# Seconds between two attempts to get a lock that another process holds.
LOCK_PAUSE: Final = 0.02


class _Memory:
    """What the writer remembers of the file, so that not every transaction reads it."""

    def __init__(self, db: apsw.Connection) -> None:
        self.series = SeriesNumbers(db)
        self.rollups = Rollups(db, self.series)
        self.totals = SqliteTotals(db, self.rollups)
        self.folding = Folding(db, self.series, self.rollups, self.totals)
        self.folded_names: FoldedNames = {}
        self.version = -1  # SQLite's data_version when it was read

    def forget(self) -> None:
        """Forget everything: the next transaction reads it again."""
        self.version = -1
        self.folded_names = {}
        self.series.forget()
        self.rollups.forget()
        self.totals.forget()
        self.folding.forget()


class WriterTransaction:
    """A transaction of the writer: it is undone unless the body calls `commit`.

    `position` is that of the last commit. What the writer remembers is undone, too.
    """

    def __init__(self, db: apsw.Connection, position: Position, memory: _Memory) -> None:
        self.db = db
        self.position = position
        self.folded_names = memory.folded_names
        self.series = memory.series
        self.rollups = memory.rollups
        self.totals = memory.totals
        self.folding = memory.folding

    @property
    def next_position(self) -> Position:
        """The position of the next commit."""
        return Position(self.position.epoch, self.position.seq + 1)

    def advance(self) -> None:
        """Make the next position the last one."""
        self.position = self.next_position
        query(self.db, "advance", self.position.seq)

    def commit(self) -> None:
        """End the transaction with success."""
        self.db.execute("COMMIT")


class Writer:
    """Writes to one SQLite file. Call all methods except `stop` on one thread.

    They raise apsw's errors, unless their docstrings name others.
    """

    def __init__(self, path: Path, *, create: bool) -> None:
        self._path = path
        self._create = create
        self._stopping = False
        self._db: apsw.Connection | None = None
        self._claimed = False  # whether the file says that it is open
        self._seq: int | None = None  # of the last commit, if it is known
        self._warned = False  # about another process that commits

    # -- opening --------------------------------------------------------------------------------

    def open(self) -> None:
        """Open the file and bring its schema up to date. Raises BadDatabase."""
        require_own_log(self._path)
        if not self._create and not self._path.exists():
            raise BadDatabase(f"there is no database {self._path}")
        self._open(had_log=holds_pages(wal_of(self._path)))

    def _open(self, *, had_log: bool) -> None:
        try:
            db = apsw.Connection(str(self._path), statementcachesize=STATEMENTS_KEPT)
        except apsw.CantOpenError as error:
            raise BadDatabase(f"cannot open {self._path} ({error}); is its folder there?") from None
        self._db = db
        try:
            db.set_busy_handler(self._wait_for_lock)
            schema.require_ours(db, self._path)
            if self._create:  # otherwise it may be a backup, which must stay one file
                db.execute("PRAGMA journal_mode = WAL")
            else:
                leave_log(db)
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA cache_size = -32768")
            schema.migrate(db)
            self.files = FileIdentity(self._path)
            self.wal = WriteAheadLog(db, self._path, self.files, self._wait_for_lock)
            if self._create:
                self.wal.claim(had_log=had_log)
                self._claimed = True
        except apsw.NotADBError:
            self.close()
            raise BadDatabase(f"{self._path} is not a SQLite database") from None
        except (apsw.CantOpenError, apsw.ReadOnlyError, apsw.PermissionsError) as error:
            self.close()
            raise BadDatabase(f"cannot write to {self._path} ({error})") from None
        except BaseException:  # no error leaves the file open
            self.close()
            raise
        self._memory = _Memory(db)

    def close(self, *, sound: bool = True) -> None:
        """Close the file if it was opened; `sound` says whether it may be written to."""
        db, self._db = self._db, None
        if db is not None:
            if self._claimed and sound:
                self.wal.release()
            db.close()
        self._claimed = False

    def reopen(self) -> None:
        """Open the file again after `Lost`, with all commits.

        No other connection of this process may be open. Raises LogCut if commits are lost,
        Unavailable if it cannot be done yet: then call it again.
        """
        if self._db is not None:
            saved = None
            if self.files.is_there and self.wal.is_whole:
                self.wal.add_all()
            else:
                saved = rescue.save(self._db, self._path, self._seq)
            self.close(sound=False)
            if saved is not None:
                rescue.put_in_place(saved, self._path)
        if holds_pages(wal_of(self._path)):
            raise Unavailable(f"another process uses {wal_of(self._path)}, which was not there")
        self._open(had_log=True)

    def stop(self) -> None:
        """Interrupt running work, and refuse all other work. It may be called on any thread.

        One call may fall between two statements, so call it until the writer's thread has ended.
        """
        self._stopping = True
        db = self._db
        if db is not None:
            with suppress(apsw.Error):  # it may just have been closed
                db.interrupt()

    def _wait_for_lock(self, tries: int) -> bool:
        """Wait for another process's lock; return whether to try again."""
        if self._stopping or self._db is None or tries * LOCK_PAUSE * 1000 >= BUSY_MS:
            return False
        time.sleep(LOCK_PAUSE)
        return True

    # -- transactions ---------------------------------------------------------------------------

    @contextmanager
    def transaction(self) -> Iterator[WriterTransaction]:
        """A transaction that the body must commit; otherwise it is undone."""
        with self._begun() as db:
            current = self._current(db)
            yield current
            if not db.in_transaction:
                self._seq = current.position.seq

    @contextmanager
    def _begun(self) -> Iterator[apsw.Connection]:
        """Begin a transaction without reading anything; the body must commit it."""
        db = self.connection()
        self.files.check()
        self.wal.check()
        self._memory.series.begin()
        try:
            with transaction(db):
                self.wal.begin()
                yield db
                committed = not db.in_transaction
        except BaseException:  # after any error, memory may differ from the file
            self.forget()
            raise
        if committed:
            self.wal.end()
        else:
            self._memory.series.undo()

    def connection(self) -> apsw.Connection:
        """Return the connection. Raises Unavailable if there is none, or it must not be used."""
        if self._stopping:
            raise Unavailable("the database is being closed", retry_after=5)
        if self._db is None:
            raise Lost("the database is being opened again")
        return self._db

    def _current(self, db: apsw.Connection) -> WriterTransaction:
        """Return the transaction that has begun; read the state again if others have written."""
        memory, version = self._memory, db.pragma("data_version")
        epoch, seq, _, folded, parts = query(db, "history")[0]
        if version != memory.version:
            self._warn_of_others(seq)
            memory.forget()
            memory.version = version
            memory.folding.read(folded, parts)
            memory.folded_names = folded_names(query(db, "folded_names"))
        return WriterTransaction(db, Position(epoch, seq), memory)

    def forget(self) -> None:
        """Forget what is remembered of the file: the next transaction reads it again."""
        self._memory.forget()

    def _warn_of_others(self, seq: int) -> None:
        """Warn if another process has committed decisions since the last commit here."""
        if self._seq is not None and seq > self._seq and not self._warned:
            log.warning(
                "Another process commits decisions to %s: each process shows those of the other "
                "up to 10 seconds late. Run one server for each SQLite file; several servers can "
                "share a PostgreSQL database",
                self._path,
            )
            self._warned = True
        self._seq = seq

    # -- maintenance ----------------------------------------------------------------------------

    @property
    def unfolded(self) -> int:
        """The number of cells of deltas that are not folded yet; 0 while it is not known."""
        return self._memory.folding.cells

    @property
    def should_fold(self) -> bool:
        """Whether `fold` should be called between commits."""
        return self._memory.folding.due

    def fold(self) -> bool:
        """Fold one step; return whether there is more to fold."""
        with self.transaction() as current:
            if current.folding.cells:
                current.folding.step()
                current.commit()
        return self.unfolded > 0

    def checkpoint(self) -> None:
        """Add the write-ahead log to the file, as far as readers allow it."""
        with self._begun():
            pass
        self.wal.checkpoint()

    def check(self) -> None:
        """Perform a durable write without meaning (`ports.Store.check`)."""
        with self._begun() as db:
            query(db, "touch")
            db.execute("COMMIT")
