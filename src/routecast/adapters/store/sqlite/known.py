"""What is stored of decisions whose ids are sent again."""

from collections.abc import Iterable
from typing import Any, Final

import apsw
import msgspec

from routecast.adapters.store.sqlite.connection import query
from routecast.core.conflicts import Content
from routecast.ports import MAX_GROUP

_decode: Final = msgspec.json.Decoder(list[list[Any]]).decode


def stored_contents(
    db: apsw.Connection, identities: Iterable[tuple[str, str]], *, attached: bool = False
) -> dict[tuple[str, str], Content]:
    """Return what is stored under some identities, as far as there is anything.

    With `attached`, in the database that is attached as `stored`.
    """
    sent, name = list(identities), "attached_contents" if attached else "stored_contents"
    found: dict[tuple[str, str], Content] = {}
    # In parts: each holds the interpreter's lock while it is read.
    for first in range(0, len(sent), MAX_GROUP):
        part = msgspec.json.encode(sent[first : first + MAX_GROUP]).decode()
        for identity, project, *content in _decode(query(db, name, part)[0][0]):
            found[identity, project] = Content(*content)
    return found
