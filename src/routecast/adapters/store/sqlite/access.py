"""API keys and revocations in a SQLite database."""

import secrets
from collections.abc import Mapping

import apsw
import msgspec

from routecast.adapters.store.sqlite.connection import query, transaction
from routecast.adapters.store.sqlite.writer import Writer
from routecast.core.key_rows import key_row, records_of, revocation_row
from routecast.core.keys import AccessChange, AccessRecords, DecideChange


def version(db: apsw.Connection) -> str:
    """Return the version of the stored keys and revocations."""
    found: str = query(db, "access_version")[0][0]
    return found


def read(db: apsw.Connection) -> AccessRecords:
    """Return all keys and revocations, as of one moment."""
    with transaction(db, "BEGIN"):
        return _read(db)


def _read(db: apsw.Connection) -> AccessRecords:
    return records_of(version(db), query(db, "api_keys"), query(db, "revocations"))


def change(writer: Writer, decide: DecideChange) -> None:
    """Change keys and revocations (`ports.KeyStore.change_access`)."""
    with writer.transaction() as current:
        apply_change(current.db, decide)
        current.commit()


def apply_change(db: apsw.Connection, decide: DecideChange) -> AccessChange:
    """Make and return the change that `decide` returns, in a transaction that may write."""
    change = decide(_read(db))
    if change.is_empty:
        return change
    for key in change.put_keys:
        query(db, "put_key", *key_row(key))
    for identity in change.drop_keys:
        query(db, "drop_key", identity)
    for revocation in change.put_revocations:
        query(db, "put_revocation", *revocation_row(revocation))
    for about in change.drop_revocations:
        query(db, "drop_revocation", str(about.kind), about.value)
    query(db, "set_access_version", secrets.token_hex(8))
    return change


def note_use(writer: Writer, uses: Mapping[str, int]) -> None:
    """Note when keys were last used (`ports.KeyStore.note_use`)."""
    with writer.transaction() as current:
        query(current.db, "note_use", msgspec.json.encode(list(uses.items())).decode())
        current.commit()
