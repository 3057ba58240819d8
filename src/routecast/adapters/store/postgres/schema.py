"""The schema in PostgreSQL: one node brings it up to date, while others wait."""

import re
from typing import Final

import asyncpg

from routecast.adapters.store.postgres.connection import (
    OLDEST_SERVER,
    DatabaseSession,
    query,
    transaction,
    value,
)
from routecast.adapters.store.queries import load_migrations
from routecast.errors import BadDatabase

POSTGRES_MIGRATIONS: Final = load_migrations("postgres")
KNOWN: Final = POSTGRES_MIGRATIONS[-1][0]
FIRST_POSTGRES_WITH_KEYS: Final = 6

# Each migration says which programs, by the newest schema they know, may continue on it.
_OLDEST_PROGRAM: Final = re.compile(r"\A-- oldest program: (\d+)$", re.MULTILINE)


async def migrate(session: DatabaseSession, *, create: bool) -> None:
    """Bring the schema up to date. A newer schema that this program may use is left as it is.

    Raises BadDatabase if the program may not use it; or, without `create`, if there is no schema.
    """
    await check_server(session)
    version = await schema_version(session)
    if not version and not create:
        raise BadDatabase("there are no decisions in this database: no node was started on it yet")
    if version >= KNOWN:
        return
    async with transaction(session):
        await query(session, "lock_schema")
        if not await value(session, "has_schema"):
            await query(session, "create_schema")
        await query(session, "create_version")
        await run_migrations(session, await schema_version(session), KNOWN)


async def check_server(session: DatabaseSession) -> None:
    """Raise BadDatabase if the server or the database cannot store what is needed."""
    if session.get_server_version().major < OLDEST_SERVER:
        raise BadDatabase(
            f"PostgreSQL {session.get_server_version().major} is too old: "
            f"Routecast needs {OLDEST_SERVER} or newer"
        )
    if (encoding := await value(session, "encoding")) != "UTF8":
        raise BadDatabase(
            f"the database is encoded in {encoding}, which cannot hold every name: "
            "make one with createdb --encoding=UTF8 --template=template0"
        )


async def run_migrations(session: DatabaseSession, version: int, last: int) -> None:
    """Run the migrations after `version` up to `last`. Call it within a transaction."""
    for number, script in POSTGRES_MIGRATIONS:
        if version < number <= last:
            await session.execute(script)
            await query(session, "set_version", number, oldest_program(script))


async def schema_version(session: DatabaseSession) -> int:
    """Return the newest migration that was run, 0 if there is none. Raises BadDatabase."""
    try:
        async with transaction(session):
            rows = await query(session, "version")
    except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError):
        return 0
    if not rows:
        return 0
    version: int
    version, oldest = rows[0]
    if oldest > KNOWN:
        raise BadDatabase(
            f"the database was written by a newer Routecast (schema {version}, for programs that "
            f"know {oldest} or more; this one knows {KNOWN}): upgrade this program"
        )
    return version


def oldest_program(script: str) -> int:
    """Return the oldest program that may continue on the schema of a migration."""
    found = _OLDEST_PROGRAM.search(script)
    assert found, "a migration must begin with '-- oldest program: N'"
    return int(found[1])
