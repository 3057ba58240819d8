"""Rescue of a database whose files were removed or cut off while a connection has them open.

The connection still has the files open, and most pages that it wrote recently in memory. Its view
of the database is copied. The copy is used only if it is sound and a recount finds no difference.
"""

import os
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import apsw

from routecast.adapters.store.sqlite.backup import Stop, copy, give_owner, opened, sync
from routecast.adapters.store.sqlite.connection import query, select
from routecast.adapters.store.sqlite.file_identity import LogCut
from routecast.adapters.store.sqlite.marks import shm_of, wal_of
from routecast.adapters.store.sqlite.verify import recount
from routecast.ports import Difference


def save(db: apsw.Connection, path: Path, seq: int | None) -> Path:
    """Copy the database that a connection sees to a new file beside `path`; return its path.

    `seq` is that of the last commit, None if it is not known. Raises LogCut if commits are missing.
    """
    fresh = path.with_name(f".{path.name}.saved-{os.getpid()}")
    try:
        fresh.unlink(missing_ok=True)
        copy(db, fresh, lambda _: None, Stop())
        with opened(fresh, Stop()) as saved:
            fault = None
            if seq is not None and query(saved, "history")[0][1] != seq:
                fault = "the last commits are missing"
            if fault is None:
                # Nothing was lost, so a new epoch must not begin: do not leave it marked as a copy.
                query(saved, "set_claimed", saved.pragma("schema_version"), 1)
                found = recount(saved, partial(select, saved), time.time_ns() // 1000)
                fault = next((one.what for one in found if isinstance(one, Difference)), None)
                if fault is not None:
                    kept = _keep(fresh, path)
                    raise LogCut(
                        f"{wal_of(path)} may have lost commits that are nowhere else ({fault}); "
                        f"what can be read is kept in {kept}"
                    )
    except (apsw.IOError, apsw.CorruptError, apsw.NotADBError) as error:
        fault = str(error)
    except BaseException:  # no error leaves an unfinished copy behind
        fresh.unlink(missing_ok=True)
        raise
    if fault is not None:
        fresh.unlink(missing_ok=True)
        raise LogCut(f"{wal_of(path)} lost commits that are nowhere else ({fault})")
    return fresh


def _keep(fresh: Path, path: Path) -> Path:
    """Keep a copy with differences under a name at which it can be examined."""
    kept = path.with_name(f"{path.name}.saved-{datetime.now(UTC):%Y%m%dT%H%M%SZ}")
    os.replace(fresh, kept)
    return kept


def put_in_place(fresh: Path, path: Path) -> None:
    """Put a saved file in the place of the database. No connection may be open."""
    give_owner(fresh, path if path.exists() else path.parent, mode=path.exists())
    sync(fresh)
    wal_of(path).unlink(missing_ok=True)  # its content is in the file
    shm_of(path).unlink(missing_ok=True)
    os.replace(fresh, path)
    sync(path.parent)
