"""Connection ids: when a connection began, and a random part, in one number.

A number is all that a node keeps of an id. It has at most 60 bits until 2036, so that it takes 32
bytes of memory, and the time of the start takes none. Ids of one node rise with each connection.
"""

import re
import secrets
from typing import Final

RANDOM_BITS: Final = 26
TICK: Final = 20_000  # microseconds
# The start of 2026, in microseconds since 1970.
FIRST: Final = 1_767_225_600_000_000
_TEXT: Final = re.compile(r"[0-9a-f]{15,16}", re.ASCII)


def new_id(now: int, last: int) -> int:
    """Return the id of a connection that begins `now` (microseconds); it is above the `last` one.

    Two nodes have the same id once in millions of years of connections that begin together.
    """
    tick = max(now - FIRST, 0) // TICK
    if tick <= last >> RANDOM_BITS:  # the same tick, or the clock was set back
        return last + 1
    # The highest bit is left for those that follow in the same tick.
    return tick << RANDOM_BITS | secrets.randbits(RANDOM_BITS - 1)


def began(identity: int) -> int:
    """Return when a connection began, in microseconds since 1970, to a fiftieth of a second."""
    return FIRST + (identity >> RANDOM_BITS) * TICK


def write_id(identity: int) -> str:
    """Return an id as text of 15 characters."""
    return f"{identity:015x}"


def read_id(text: str) -> int | None:
    """Return the id that a text names; None if it names none."""
    return int(text, 16) if _TEXT.fullmatch(text) else None
