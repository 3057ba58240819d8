"""Tickets and sessions, which a client got for its credential and uses in its place.

They are random texts, and what they stand for is kept under their SHA-256 (`TemporaryRecords`). So
a reader of the records cannot use them.

A person who signs out ends all of their sessions. So each sign-out has an id, a random text, and
the id of a person's last one is kept under the SHA-256 of the subject. A session has the id of the
last sign-out before it, and has ended if there was another one since.
"""

from hashlib import sha256
from typing import Final

import msgspec

from routecast.core.access import Principal

TICKET_KIND: Final = "ticket"
SESSION_KIND: Final = "session"
SIGN_OUT_KIND: Final = "sign-out"
# Seconds for which a ticket can be used, and the most for which a session lasts.
TICKET_SECONDS: Final = 30
SESSION_SECONDS: Final = 12 * 60 * 60
# Random bytes of both. A ticket is used at once; a session can be guessed at for hours.
TICKET_BYTES: Final = 16
SESSION_BYTES: Final = 32
SIGN_OUT_BYTES: Final = 16
# A sign-out is kept for longer than all sessions that were started before it.
SIGN_OUT_SECONDS: Final = SESSION_SECONDS + 3_600
# Longer texts are no ticket and no session.
MAX_SECRET_LENGTH: Final = 100

_STORED: Final = msgspec.json.Decoder(tuple[Principal, str])


def record_name(kind: str, text: str) -> str:
    """Return the name of the record of a ticket or session, or of the sign-out of a subject."""
    return f"{kind}:{sha256(text.encode()).hexdigest()}"


def pack_principal(principal: Principal, bound_to: str = "") -> bytes:
    """Return a principal, and what it is bound to, as bytes.

    A ticket is bound to the address of its client, and a session to the last sign-out before it.
    """
    return msgspec.json.encode((principal, bound_to))


def unpack_principal(packed: bytes) -> tuple[Principal, str]:
    """Return a principal and what it is bound to.

    Raises ValueError: any program may have written it.
    """
    try:
        return _STORED.decode(packed)
    except msgspec.MsgspecError as error:
        raise ValueError(f"this is no principal: {error}") from None
