"""API keys and revocations in a PostgreSQL database.

Each function runs within a transaction, or reads one statement.
"""

import secrets
from collections.abc import Mapping

from routecast.adapters.store.postgres.connection import (
    DatabaseSession,
    in_thread,
    query,
    value,
)
from routecast.core.key_rows import key_row, records_of, revocation_row
from routecast.core.keys import AccessChange, AccessRecords, DecideChange


async def version(session: DatabaseSession) -> str:
    """Return the version of the stored keys and revocations."""
    found: str = await value(session, "access_version")
    return found


async def read(session: DatabaseSession) -> AccessRecords:
    """Return all keys and revocations. The transaction must see the database at one moment."""
    stored = await version(session)
    keys, revocations = await query(session, "api_keys"), await query(session, "revocations")
    return await in_thread(records_of, stored, keys, revocations)


async def change(session: DatabaseSession, decide: DecideChange) -> AccessChange:
    """Change keys and revocations (`ports.KeyStore.change_access`); return the change."""
    await query(session, "lock_access")  # the statements after it see what the last change made
    wanted = await in_thread(decide, await read(session))
    if not wanted.is_empty:
        await query(session, "set_access_version", secrets.token_hex(8))
    for key in wanted.put_keys:
        await query(session, "put_key", *key_row(key))
    for identity in wanted.drop_keys:
        await query(session, "drop_key", identity)
    for revocation in wanted.put_revocations:
        await query(session, "put_revocation", *revocation_row(revocation))
    for about in wanted.drop_revocations:
        await query(session, "drop_revocation", str(about.kind), about.value)
    return wanted


async def note_use(session: DatabaseSession, uses: Mapping[str, int]) -> None:
    """Note when keys were last used (`ports.KeyStore.note_use`)."""
    await query(session, "note_use", list(uses), list(uses.values()))
