"""The schema of a SQLite file: whether it is ours, and how it is brought up to date."""

import secrets
from pathlib import Path
from typing import Final

import apsw

from routecast.adapters.store.queries import load_migrations
from routecast.adapters.store.sqlite.connection import query, transaction
from routecast.errors import BadDatabase

APPLICATION_ID: Final = 0x52544341  # "RTCA", in the file's header
SQLITE_MIGRATIONS: Final = load_migrations("sqlite")
NEWEST: Final = SQLITE_MIGRATIONS[-1][0]
FIRST_WITH_MARKS: Final = 8
FIRST_SQLITE_WITH_KEYS: Final = 9


def require_ours(db: apsw.Connection, path: Path) -> None:
    """Raise BadDatabase if a file belongs to another program or to a newer Routecast."""
    ours, version = db.pragma("application_id"), db.pragma("user_version")
    if ours != APPLICATION_ID and db.execute("SELECT 1 FROM sqlite_schema").fetchone():
        raise BadDatabase(f"{path} is a database of another program")
    if version > NEWEST:
        raise BadDatabase(
            f"{path} was written by a newer Routecast (schema {version}; this one knows "
            f"{NEWEST}): upgrade this program"
        )


def migrate(db: apsw.Connection) -> None:
    """Bring the schema up to date in one transaction; do not write to an up-to-date file."""
    if db.pragma("user_version") == NEWEST:
        return
    with transaction(db):
        done = db.pragma("user_version")
        version = db.pragma("schema_version")
        is_marked = done >= FIRST_WITH_MARKS
        for number, script in SQLITE_MIGRATIONS:
            if number > done:
                db.execute(script)
                db.execute(f"PRAGMA user_version = {number}")
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        query(db, "begin_history", secrets.token_hex(8))
        migrated = db.pragma("schema_version")
        if not is_marked:
            query(db, "begin_marks", migrated)
        elif query(db, "mark")[0][1] == version:  # a copy stays a copy
            query(db, "set_claimed", migrated, query(db, "mark")[0][2])
        db.execute("COMMIT")
