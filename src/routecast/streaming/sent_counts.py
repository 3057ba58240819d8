"""Counts of what a connection was sent: messages and their bytes, as one number.

The real part of a complex number counts messages, the imaginary part their bytes; both are exact up
to 2**53. One such object takes half the memory of two integers, and each connection has one.
Counts are added and subtracted like any number: a cohort counts for all its members, and what a
member was sent is the difference from when it joined.
"""

from typing import Final

from routecast.core.payload import Payload

NOTHING: Final = 0j


def one_message(payload: Payload) -> complex:
    """Return the counts of one message; its bytes are those before compression."""
    return complex(1, len(payload.body))


def messages_and_bytes(sent: complex) -> tuple[int, int]:
    """Return counts as two integers."""
    return round(sent.real), round(sent.imag)
