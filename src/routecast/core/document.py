"""Documents of the default stream as bytes: encoded once, and sent to every client as they are."""

from typing import Final

import msgspec

from routecast.core.payload import Payload
from routecast.patch import Document
from routecast.protocol import FETCH_FAILED, Position, Source, rfc3339

_encode: Final = msgspec.json.Encoder().encode


class EncodedDocument(Payload):
    """A view's whole document: JSON, and where its numbers came from.

    `source` and `position` are None for the error document.
    """

    __slots__ = ("position", "source")

    def __init__(self, body: bytes, source: Source | None, position: Position | None) -> None:
        super().__init__(body)
        self.source = source
        self.position = position


def encode_document(document: Document) -> bytes:
    """Return a document's JSON with no timestamp and its last brace open, for `stamp`."""
    return _encode(document)[:-1]


def stamp(opened: bytes, now: int, source: Source, position: Position) -> EncodedDocument:
    """Close an encoded document with its timestamp: unchanged numbers are not encoded again."""
    comma = b"," if len(opened) > 1 else b""
    body = opened + comma + b'"timestamp":"' + rfc3339(now).encode() + b'"}'
    return EncodedDocument(body, source, position)


def error_frame(now: int) -> EncodedDocument:
    """Return the document that says no source could answer."""
    return EncodedDocument(_encode({"error": FETCH_FAILED, "timestamp": rfc3339(now)}), None, None)
