"""The stored form of keys and revocations: rows of a database, and bytes for nodes without one."""

from collections.abc import Iterable
from typing import Any, Final

import msgspec

from routecast.core.access import Scope
from routecast.core.keys import AccessRecords, ApiKey, Revocation, RevocationId, RevocationKind

_SCOPES: Final = {str(scope): scope for scope in Scope}

# The columns of both tables, in order.
_Moment = int | None
_KeyRow = tuple[str, str, bytes, str, str | None, int, _Moment, _Moment, _Moment]
_RevocationRow = tuple[str, str, _Moment, int, _Moment]
_PACKED: Final = msgspec.msgpack.Decoder(tuple[str, list[_KeyRow], list[_RevocationRow]])


def key_row(key: ApiKey) -> _KeyRow:
    """Return the row of a key."""
    scopes = " ".join(sorted(key.scopes))
    projects = None
    if key.projects is not None:
        projects = msgspec.json.encode(sorted(key.projects)).decode()
    moments = key.created, key.expires, key.revoked, key.last_used
    return key.id, key.name, key.digest, scopes, projects, *moments


def revocation_row(one: Revocation) -> _RevocationRow:
    """Return the row of a revocation."""
    return str(one.about.kind), one.about.value, one.issued_before, one.created, one.until


def records_of(version: str, keys: Iterable[Any], revocations: Iterable[Any]) -> AccessRecords:
    """Return keys and revocations from their rows."""
    read = [_key(*row) for row in keys]
    revoked = [_revocation(*row) for row in revocations]
    return AccessRecords(
        version, {one.id: one for one in read}, {one.about: one for one in revoked}
    )


def _key(
    identity: str, name: str, digest: bytes, scopes: str, projects: str | None, *moments: Any
) -> ApiKey:
    # A newer program may have stored scopes that this one does not know.
    known = frozenset(_SCOPES[scope] for scope in scopes.split() if scope in _SCOPES)
    names = None if projects is None else msgspec.json.decode(projects, type=frozenset[str])
    return ApiKey(identity, name, digest, known, names, *moments)


def _revocation(kind: str, value: str, *moments: Any) -> Revocation:
    return Revocation(RevocationId(RevocationKind(kind), value), *moments)


def pack_records(records: AccessRecords) -> bytes:
    """Return keys and revocations as bytes."""
    keys = [key_row(key) for key in records.keys.values()]
    revocations = [revocation_row(one) for one in records.revocations.values()]
    return msgspec.msgpack.encode((records.version, keys, revocations))


def unpack_records(packed: bytes) -> AccessRecords:
    """Return keys and revocations from bytes. Raises ValueError."""
    try:
        return records_of(*_PACKED.decode(packed))
    except msgspec.MsgspecError as error:
        raise ValueError(f"these are no keys and revocations: {error}") from None
