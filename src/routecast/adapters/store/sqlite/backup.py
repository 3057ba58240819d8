"""Backups of a SQLite file: made while servers use it, restored while none does.

A backup is one database file without a write-ahead log. It is marked as a copy, so that a server
that opens it begins a new epoch.
"""

import asyncio
import fcntl
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeVar

import apsw

from routecast.adapters.store.sqlite import schema
from routecast.adapters.store.sqlite.connection import BUSY_MS, leave_log, query, transaction
from routecast.adapters.store.sqlite.integrity import first_fault
from routecast.adapters.store.sqlite.marks import (
    COPY,
    HEADER,
    Mark,
    require_own_log,
    shm_of,
    wal_of,
)
from routecast.errors import BadDatabase, Damaged, InUse, RoutecastError, Unavailable
from routecast.ports import BackedUp, Checked, OnProgress, Restored
from routecast.protocol import Position

T = TypeVar("T")

# Pages that are copied at a time: 4 MiB. After each step Ctrl-C is handled and progress reported.
PAGES_PER_STEP: Final = 1_024
_FILE_MAGIC: Final = b"SQLite format 3\0"
_ARCHIVE: Final = b"PK\x03\x04"  # backups of PostgreSQL begin with this
# Steps of the engine between two checks whether to stop.
_STEPS: Final = 100_000
# Every open connection to a file has a lock there (SQLite's `SHARED_FIRST`).
_LOCKED_FROM, _LOCKED_BYTES = 0x4000_0002, 510


class SqliteBackups:
    """Backups of one SQLite file (`ports.Backups`)."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def holds(self, path: Path) -> bool:
        own = (self.path, wal_of(self.path), shm_of(self.path))
        return any(path.exists() and file.exists() and path.samefile(file) for file in own)

    async def backup(self, target: Path, on_progress: OnProgress) -> BackedUp:
        return await _in_thread(lambda stop: self._backup(target, on_progress, stop))

    async def restore(self, source: Path, on_progress: OnProgress) -> Restored:
        return await _in_thread(lambda stop: self._restore(source, on_progress, stop))

    # -- on a thread ----------------------------------------------------------------------------

    def _backup(self, target: Path, on_progress: OnProgress, stop: "Stop") -> BackedUp:
        require_own_log(self.path)
        if not self.path.exists():
            raise BadDatabase(f"there is no database {self.path}")
        with opened(self.path, stop) as source:
            leave_log(source)
            schema.require_ours(source, self.path)
            if source.pragma("user_version") < schema.FIRST_WITH_MARKS:
                raise BadDatabase(
                    f"{self.path} has the schema of an older Routecast: start this version's "
                    "server on it once, which brings it up to date"
                )
            copy(source, target, on_progress, stop)
        with opened(target, stop) as made:
            _mark_as_copy(made)
            position, decisions = _check(made, self.path, on_progress)
        shutil.copymode(self.path, target)
        sync(target)
        return BackedUp(position, decisions, target.stat().st_size)

    def _restore(self, source: Path, on_progress: OnProgress, stop: "Stop") -> Restored:
        if source.exists() and self.path.exists() and source.samefile(self.path):
            raise BadDatabase(f"{source} is the database itself")
        _require_backup(source)
        fresh = self.path.with_name(f".{self.path.name}.restoring-{os.getpid()}")
        try:
            if self.path.exists():
                with _alone(self.path):  # a first check, before the long work
                    pass
            with opened(source, stop, immutable=not wal_of(source).exists()) as held:
                schema.require_ours(held, source)
                copy(held, fresh, on_progress, stop)
            with opened(fresh, stop) as made:
                schema.migrate(made)
                _mark_as_copy(made)
                query(made, "begin_epoch", secrets.token_hex(8))
                position, decisions = _check(made, source, on_progress)
            kept = self._put_in_place(fresh)
        finally:
            fresh.unlink(missing_ok=True)
        return Restored(position, decisions, kept)

    def _put_in_place(self, fresh: Path) -> str | None:
        """Put a file in the place of the database; return the name under which that is kept."""
        if not self.path.exists():
            give_owner(fresh, self.path.parent, mode=False)
            sync(fresh)
            kept = None
            if wal_of(self.path).exists():  # the log of a file that is gone: not of this one
                kept = str(wal_of(_aside(self.path)))
                os.rename(wal_of(self.path), kept)
            shm_of(self.path).unlink(missing_ok=True)
            os.replace(fresh, self.path)
            sync(self.path.parent)
            return kept
        give_owner(fresh, self.path)
        sync(fresh)
        is_empty = _add_log(self.path)
        with _alone(self.path):
            kept = None if is_empty else _set_aside(self.path)
            os.replace(fresh, self.path)
            sync(self.path.parent)
        return kept


class Stop:
    """Whether the work must end."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self) -> bool:
        return self.asked


async def _in_thread(work: Callable[[Stop], T]) -> T:
    """Run work on a thread. If this call is cancelled, tell the work to stop, and wait for it."""
    stop = Stop()
    task = asyncio.ensure_future(asyncio.to_thread(work, stop))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        stop.asked = True
        await asyncio.wait([task])
        with suppress(RoutecastError, apsw.Error, OSError):
            task.result()
        raise
    except apsw.NotADBError as error:
        raise BadDatabase(f"this is no SQLite database ({error})") from None
    except apsw.CantOpenError as error:
        raise BadDatabase(f"cannot open the file ({error})") from None
    except apsw.FullError as error:
        raise Unavailable("the disk is full") from error
    except apsw.Error as error:
        raise Unavailable(f"SQLite: {error}") from error
    except OSError as error:
        raise Unavailable(f"{error.filename}: {error.strerror}") from error


@contextmanager
def opened(path: Path, stop: Stop, *, immutable: bool = False) -> Iterator[apsw.Connection]:
    name, flags = str(path), apsw.SQLITE_OPEN_READWRITE
    if immutable:  # the disk may be read-only then, and no file is created beside it
        name, flags = f"{path.absolute().as_uri()}?immutable=1", apsw.SQLITE_OPEN_READONLY
    db = apsw.Connection(name, flags=flags | apsw.SQLITE_OPEN_URI if immutable else flags)
    try:
        db.set_busy_timeout(BUSY_MS)
        db.set_progress_handler(stop, _STEPS)
        yield db
    finally:
        db.close()


def copy(source: apsw.Connection, target: Path, on_progress: OnProgress, stop: Stop) -> None:
    """Copy a database at one position; others may commit meanwhile."""
    target.touch(mode=0o600)
    made = apsw.Connection(str(target))
    try:
        with transaction(source, "BEGIN"):
            query(source, "history")  # from here on the connection sees one state
            with made.backup("main", source, "main") as backup:
                while not backup.done:
                    backup.step(PAGES_PER_STEP)
                    of = backup.page_count
                    on_progress(Checked("copying", of - backup.remaining, of))
                    if stop.asked:
                        raise Unavailable("it was interrupted")
        made.execute("PRAGMA journal_mode = DELETE")  # one file
    finally:
        made.close()


def _mark_as_copy(made: apsw.Connection) -> None:
    """Mark a copy, so that a server begins a new epoch; no write-ahead log belongs to it."""
    query(made, "set_claimed", COPY, 0)
    query(made, "set_mark", Mark.after(None, bytes(HEADER)).pack())


def _check(made: apsw.Connection, name: Path, on_progress: OnProgress) -> tuple[Position, int]:
    """Read all of a copy; return its position and number of decisions."""
    on_progress(Checked("checking", 0, 1))
    fault = first_fault(made)
    if fault is not None:
        raise Damaged(f"{name} is damaged, and was not copied: {fault}")
    epoch, seq, *_ = query(made, "history")[0]
    decisions = query(made, "count_decisions")[0][0]
    on_progress(Checked("checking", 1, 1))
    return Position(epoch, seq), decisions


def _require_backup(source: Path) -> None:
    try:
        with source.open("rb") as file:
            begin = file.read(len(_FILE_MAGIC))
    except OSError as error:
        raise BadDatabase(f"cannot read {source}: {error.strerror}") from None
    if begin.startswith(_ARCHIVE):
        raise BadDatabase(
            f"{source} is a backup of PostgreSQL: name a PostgreSQL database (--database "
            "postgresql://...) to restore it to"
        )
    if begin != _FILE_MAGIC:
        raise BadDatabase(f"{source} is no backup of a SQLite database")
    require_own_log(source)


def give_owner(file: Path, model: Path, *, mode: bool = True) -> None:
    """Give a file the owner, and the mode, of another, so that the server can use it."""
    found = model.stat()
    with suppress(PermissionError):
        os.chown(file, found.st_uid, found.st_gid)
    if mode:
        os.chmod(file, found.st_mode & 0o777)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep other programs from a database for the body. Raises InUse if one has it open."""
    # The file that holds the lock stays open until the body's end: closing it would release the
    # lock.
    with path.open("r+b") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, _LOCKED_BYTES, _LOCKED_FROM)
        except BlockingIOError:
            raise InUse(
                f"the database {path} is in use: stop the server, and whatever else has it open"
            ) from None
        yield


def _add_log(path: Path) -> bool:
    """Add the write-ahead log to a file if possible; return whether the file has no content."""
    with suppress(apsw.Error, RoutecastError):
        require_own_log(path)
        with opened(path, Stop()) as db:
            if query(db, "count_decisions")[0][0]:
                return False
            has_keys = db.pragma("user_version") >= schema.FIRST_SQLITE_WITH_KEYS
            return not (has_keys and query(db, "count_access")[0][0])
    return False


def _aside(path: Path) -> Path:
    return path.with_name(f"{path.name}.replaced-{datetime.now(UTC):%Y%m%dT%H%M%SZ}")


def _set_aside(path: Path) -> str:
    """Keep the files of a database under another name, which is returned."""
    kept = _aside(path)
    shm_of(path).unlink(missing_ok=True)  # SQLite makes it again
    if wal_of(path).exists():  # it has content that the file lacks
        os.rename(wal_of(path), wal_of(kept))
    try:
        os.link(path, kept)
    except OSError:  # a file system without links
        os.rename(path, kept)
    return str(kept)


def sync(path: Path) -> None:
    """Sync a file or a folder to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
