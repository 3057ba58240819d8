"""Frames: a view's bytes, encoded once and handed to every socket."""

from typing import Final

import msgspec

from routecast.core.metrics import Document
from routecast.protocol import FETCH_FAILED, Source, rfc3339

_encode: Final = msgspec.json.Encoder().encode


class Frame:
    """One message, ready to be written: UTF-8 JSON bytes, and the same as text."""

    __slots__ = ("body", "source", "text")

    def __init__(self, body: bytes, source: Source | None) -> None:
        self.body = body
        self.text = body.decode()
        self.source = source


def encode_document(document: Document) -> bytes:
    """Return a document's JSON with no timestamp and its last brace open, for `stamp`."""
    return _encode(document)[:-1]


def stamp(opened: bytes, now: int, source: Source) -> Frame:
    """Close an encoded document with its timestamp: unchanged numbers are not encoded again."""
    comma = b"," if len(opened) > 1 else b""
    return Frame(opened + comma + b'"timestamp":"' + rfc3339(now).encode() + b'"}', source)


def error_frame(now: int) -> Frame:
    """Return the document that says no source could answer."""
    return Frame(_encode({"error": FETCH_FAILED, "timestamp": rfc3339(now)}), None)
