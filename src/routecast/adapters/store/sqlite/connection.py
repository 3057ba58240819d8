"""Connections to a SQLite file, the named queries run on them, and transactions."""

import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cache
from typing import Any, Final

import apsw

from routecast.adapters.store.queries import load_queries
from routecast.adapters.store.sqlite.columns import SQLITE_LISTS

SQLITE_SQL: Final = load_queries("sqlite", SQLITE_LISTS)
BUSY_MS: Final = 5_000

# Rows that one statement inserts: with more rows, the interpreter's lock changes hands less often.
# SQLite allows 32,766 values in a statement, and apsw caches only statements under 16 KB.
ROWS_PER_STEP: Final = (400, 100)
STATEMENTS_KEPT: Final = 3 * ROWS_PER_STEP[-1]  # one for each possible number of remaining rows


def select(db: apsw.Connection, name: str, *values: Any) -> Iterator[Any]:
    """Return the rows of a named query, read as they are asked for."""
    return db.execute(SQLITE_SQL[name], values)


def query(db: apsw.Connection, name: str, *values: Any) -> list[Any]:
    """Return all rows of a named query, which has then run to its end."""
    return list(select(db, name, *values))


def insert_rows(db: apsw.Connection, name: str, rows: Sequence[tuple[Any, ...]]) -> None:
    """Run a named query that inserts rows, many rows in each statement."""
    done = 0
    while done < len(rows):
        size = next((size for size in ROWS_PER_STEP if size <= len(rows) - done), len(rows) - done)
        sql = _statement(name, size, len(rows[0]))
        db.execute(sql, tuple(itertools.chain.from_iterable(rows[done : done + size])))
        done += size


@cache
def _statement(name: str, rows: int, columns: int) -> str:
    row = f"({','.join('?' * columns)})"
    return SQLITE_SQL[name].format(rows=",".join([row] * rows))


def leave_log(db: apsw.Connection) -> None:
    """Do not remove the write-ahead log if this is the last connection that is closed.

    For commands other than the server: a server that was killed must find its log when it starts;
    otherwise it has to assume that commits were lost.
    """
    db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)


@contextmanager
def transaction(db: apsw.Connection, begin: str = "BEGIN IMMEDIATE") -> Iterator[None]:
    """A transaction that the body must commit; otherwise it is undone."""
    try:
        db.execute(begin)
        yield
    except apsw.IOError as error:
        add_cause(db, error)
        _undo(db, suppress(apsw.Error))
        raise
    except BaseException:
        _undo(db, suppress(apsw.Error))  # the first error is the one that matters
        raise
    _undo(db, nullcontext())


def add_cause(db: apsw.Connection, error: apsw.IOError) -> None:
    """Add the system's error text: SQLite's own is just "disk I/O error"."""
    if db.system_errno:
        error.args = (f"{error}: {os.strerror(db.system_errno)}",)


def _undo(db: apsw.Connection, guard: AbstractContextManager[Any]) -> None:
    if db.in_transaction:  # a full disk ends the transaction by itself
        with guard:
            db.execute("ROLLBACK")
