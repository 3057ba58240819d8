"""Integrity: whether the server's files are sound, as far as the server can find out."""

from collections.abc import AsyncIterator
from typing import Final

from routecast.adapters.store.postgres.connection import (
    POSTGRES_SQL,
    DatabaseSession,
    query,
    transaction,
    value,
)
from routecast.adapters.store.postgres.failures import CORRUPT, described
from routecast.ports import Checked, Difference

STAGE: Final = "checking tables and indexes"


async def check_files(
    session: DatabaseSession, unchecked: list[str]
) -> AsyncIterator[Checked | Difference]:
    """Yield progress, and each damaged table or index; add to `unchecked` what was not checked.

    The rows of each table are counted in the table and in its indexes. If the extension amcheck is
    installed, it checks every page of both.
    """
    tables = await query(session, "tables")
    amcheck = await value(session, "amcheck")
    if amcheck is None:
        unchecked.append(
            "pages of tables and indexes that the server can read, with rows that are not as they "
            "were: install the extension amcheck (CREATE EXTENSION amcheck), and let this user "
            "execute its functions, to have them checked"
        )
    if await value(session, "checksums") == "off":
        unchecked.append(
            "bits that changed on the server's disk: its data checksums are off (pg_checksums)"
        )
    for done, (table, indexes) in enumerate(tables):
        yield Checked(STAGE, done, len(tables))
        if found := await _compare_counts(session, table, indexes):
            yield found
        if amcheck is None:
            continue
        for sql, name in (("check_table", table), *(("check_index", one) for one in indexes)):
            if found := await _amcheck(session, POSTGRES_SQL[sql].format(schema=amcheck), name):
                yield found


async def _compare_counts(
    session: DatabaseSession, table: str, indexes: list[str]
) -> Difference | None:
    """Return the difference between the rows counted in a table and in its indexes, or None."""
    sql = POSTGRES_SQL["count_rows"].format(table=table)
    counts = []
    try:
        async with transaction(session, isolation="repeatable_read", readonly=True):
            for by_index in ("off", "on"):
                await query(session, "read_by_index", by_index)
                # Unnamed, because the server would keep the plan of a named statement.
                counting = await session.prepare(sql, name="")
                counts.append(await counting.fetchval())
    except CORRUPT as error:
        return _damaged(table, error)
    in_table, in_index = counts
    if in_table == in_index:
        return None
    return Difference(
        f"{table} and its indexes {', '.join(indexes)}", f"{in_table} rows", f"{in_index} by index"
    )


async def _amcheck(session: DatabaseSession, sql: str, name: str) -> Difference | None:
    """Return the first fault that amcheck finds in a table or an index."""
    try:
        async with transaction(session):
            found = await session.fetchval(sql, name)
    except CORRUPT as error:
        return _damaged(name, error)
    return Difference(name, "as amcheck expects it", found) if found else None


def _damaged(name: str, error: Exception) -> Difference:
    return Difference(name, "readable", described(error))
