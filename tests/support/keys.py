"""API keys and revocations for tests."""

from typing import Any

from routecast.core.access import Scope
from routecast.core.keys import (
    AccessChange,
    ApiKey,
    DecideChange,
    Revocation,
    RevocationId,
    RevocationKind,
    digest_of,
    key_text,
)
from tests.support.decisions import NOW


def text_of(number: int) -> str:
    """Return the text of a key."""
    return key_text(f"{number:08}", f"{number:043}")


def an_api_key(number: int = 1, **fields: Any) -> ApiKey:
    """Return the key with that text, which may do anything unless `fields` say otherwise."""
    text = text_of(number)
    given = {
        "id": f"{number:08}",
        "name": f"key-{number}",
        "digest": digest_of(text),
        "scopes": frozenset(Scope),
        "projects": None,
        "created": NOW,
    }
    return ApiKey(**(given | fields))


def a_revocation(kind: str = "subject", value: str = "ana", **fields: Any) -> Revocation:
    """Return a revocation that never ends unless `fields` say otherwise."""
    given = {"issued_before": None, "created": NOW}
    return Revocation(RevocationId(RevocationKind(kind), value), **(given | fields))


def put(*items: ApiKey | Revocation) -> DecideChange:
    """Return the decision to store keys and revocations, whatever is stored."""
    keys = [one for one in items if isinstance(one, ApiKey)]
    revocations = [one for one in items if isinstance(one, Revocation)]
    return lambda _: AccessChange(put_keys=keys, put_revocations=revocations)
