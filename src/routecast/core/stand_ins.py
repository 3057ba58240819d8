"""Stand-ins: tickets and sessions, which a client got for its credential and uses in its place.

They are random texts, and what they stand for is kept under their SHA-256 (`TemporaryRecords`). So
whoever can read the records cannot use them.
"""

from hashlib import sha256
from typing import Final

import msgspec

from routecast.core.access import Principal

TICKET_KIND: Final = "ticket"
SESSION_KIND: Final = "session"
# Seconds for which a ticket can be used, and the most for which a session lasts.
TICKET_SECONDS: Final = 30
SESSION_SECONDS: Final = 12 * 60 * 60
# Random bytes of both. A ticket is used at once; a session can be guessed at for hours.
TICKET_BYTES: Final = 16
SESSION_BYTES: Final = 32
# Longer texts are neither.
MAX_STAND_IN: Final = 100

_STORED: Final = msgspec.json.Decoder(tuple[Principal, str])


def record_name(kind: str, text: str) -> str:
    """Return the name of the record of a ticket or session."""
    return f"{kind}:{sha256(text.encode()).hexdigest()}"


def pack_principal(principal: Principal, address: str = "") -> bytes:
    """Return a principal, and the address of the client that it is bound to, as bytes."""
    return msgspec.json.encode((principal, address))


def unpack_principal(packed: bytes) -> tuple[Principal, str]:
    """Return a principal and the address. Raises ValueError: any program may have written it."""
    try:
        return _STORED.decode(packed)
    except msgspec.MsgspecError as error:
        raise ValueError(f"this is no principal: {error}") from None
