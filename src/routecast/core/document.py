"""Documents of the default stream as bytes: encoded once, and sent unchanged to every client."""

from typing import Final

import msgspec

from routecast.core.payload import Payload
from routecast.patch import Document
from routecast.protocol import FETCH_FAILED, Position, Source, rfc3339

_encode: Final = msgspec.json.Encoder().encode


class EncodedDocument(Payload):
    """A view's whole document as JSON, with the source of its numbers.

    `source` and `position` are None for the error document.
    """

    __slots__ = ("position", "source")

    def __init__(self, body: bytes, source: Source | None, position: Position | None) -> None:
        super().__init__(body)
        self.source = source
        self.position = position


def encode_document(document: Document) -> bytes:
    """Return a document's JSON without timestamp and closing brace; `finish` adds them."""
    return _encode(document)[:-1]


def finish(unterminated: bytes, now: int, source: Source, position: Position) -> EncodedDocument:
    """Add the timestamp and the closing brace: unchanged numbers need not be encoded again."""
    comma = b"," if len(unterminated) > 1 else b""
    body = unterminated + comma + b'"timestamp":"' + rfc3339(now).encode() + b'"}'
    return EncodedDocument(body, source, position)


def error_document(now: int) -> EncodedDocument:
    """Return the document that says that no source can answer."""
    return EncodedDocument(_encode({"error": FETCH_FAILED, "timestamp": rfc3339(now)}), None, None)
