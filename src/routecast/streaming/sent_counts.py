"""Counts of what a connection was sent.

A cohort counts for all its members, and what a member was sent is the difference from when it
joined. So counts are added and subtracted like numbers.
"""

from functools import lru_cache
from typing import Final

import msgspec

from routecast.core.payload import Payload

# Different counts that members share. Most members that join at about the same time have equal
# ones.
MAX_SHARED: Final = 1_024


class SentCounts(msgspec.Struct, frozen=True, gc=False):
    """Messages, their bytes before compression, and the bytes that patches saved in them."""

    messages: int = 0
    bytes: int = 0
    saved: int = 0

    def __add__(self, other: "SentCounts") -> "SentCounts":
        return SentCounts(
            self.messages + other.messages, self.bytes + other.bytes, self.saved + other.saved
        )

    def __sub__(self, other: "SentCounts") -> "SentCounts":
        return SentCounts(
            self.messages - other.messages, self.bytes - other.bytes, self.saved - other.saved
        )


NOTHING: Final = SentCounts()


def one_message(payload: Payload) -> SentCounts:
    """Return the counts of one message."""
    return SentCounts(1, len(payload.body), payload.saved)


@lru_cache(MAX_SHARED)
def shared(counts: SentCounts) -> SentCounts:
    """Return equal counts that others have too, so that each member does not keep its own."""
    return counts
