"""The store, or the backups, of the database that a URL names."""

from pathlib import Path

from routecast.adapters.store.sqlite import SqliteBackups, SqliteStore
from routecast.errors import BadSettings
from routecast.ports import Backups, Database
from routecast.urls import masked, split_url

# The modules of PostgreSQL are imported in the functions that use them: they are slow to import.


def open_store(url: str, *, create: bool = True, connections: int = 5) -> Database:
    """Return the store that a database URL names, not yet opened. Raises BadSettings.

    Without `create`, opening it fails if there is no such database. `connections` is the maximum
    number of connections to a database server.
    """
    path = file_of(url)
    if path is not None:
        return SqliteStore(path, create=create)
    from routecast.adapters.store.postgres import PostgresStore

    return PostgresStore(url, create=create, connections=connections)


async def create_database(url: str) -> None:
    """Make the database that a URL names, unless there is one. Raises BadSettings, Unavailable."""
    path = file_of(url)
    if path is not None and path.exists():  # a server may have it open
        return
    store = open_store(url)
    try:
        await store.open()
    finally:
        await store.close()


def open_backups(url: str) -> Backups:
    """Return the backups of the database that a URL names. Raises BadSettings."""
    path = file_of(url)
    if path is not None:
        return SqliteBackups(path)
    from routecast.adapters.store.postgres import PostgresBackups

    return PostgresBackups(url)


def file_of(url: str) -> Path | None:
    """Return the file that a database URL names; None for PostgreSQL. Raises BadSettings."""
    shown = f"database (ROUTECAST_DATABASE_URL) {masked(url)!r}"
    scheme, separator, rest = url.partition("://")
    if separator and scheme.lower() == "sqlite":
        # Everything after it is the path: file names may contain characters that have a meaning in
        # other URLs.
        path = rest.removeprefix("/")
        if not rest.startswith("/") or not path or path == ":memory:" or "\0" in path:
            raise BadSettings(
                f"{shown}: name a file, as in sqlite:///routecast.db (relative) or "
                "sqlite:////var/lib/routecast.db (absolute)"
            )
        return Path(path)
    try:
        parts = split_url(url)
    except ValueError as error:
        raise BadSettings(f"{shown}: {error}") from None
    if parts.scheme not in ("postgresql", "postgres"):
        raise BadSettings(f"{shown}: must start with sqlite:/// or postgresql://")
    return None
