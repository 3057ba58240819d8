"""Reading rows from a file as a stream: CSV or JSON lines, plain or gzip, told by content."""

import csv
import gzip
import re
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple, cast

import msgspec

from routecast.errors import RoutecastError

# Bounds memory where a line or a quote never ends; far above any row of decisions.
_MAX_LINE: Final = 16 * 1024 * 1024
_MAX_CELL: Final = 1024 * 1024
_BOM: Final = b"\xef\xbb\xbf"

_json = msgspec.json.Decoder(float_hook=Decimal)


class Unreadable(RoutecastError):
    """The file as a whole does not hold rows. The text says what it seems to be."""


class Broken(NamedTuple):
    """A line without a usable row: its number from 1, and why."""

    line: int
    error: str


class Record(NamedTuple):
    """One row by column. The numbers of JSON are exact: `int`, or `Decimal` as written."""

    line: int
    cells: Mapping[str, Any]


class RowFile:
    """An open file of rows: iterate over it once, then close it. `-` is standard input.

    `size` is its bytes on disk, or None for a pipe. Raises OSError when it cannot be opened,
    Unreadable when it is neither CSV nor JSON lines.
    """

    def __init__(self, path: str) -> None:
        with ExitStack() as opened:
            self._raw: BinaryIO = sys.stdin.buffer
            self.size: int | None = None
            if path != "-":
                self._raw = opened.enter_context(Path(path).open("rb"))
                self.size = Path(path).stat().st_size if self._raw.seekable() else None
            self._line = 0
            self._content, head = _unpacked(self._raw)
            self._is_json = _is_json(head)
            self.close = opened.pop_all().close  # standard input stays open

    @property
    def read(self) -> int:
        """Bytes of the file taken so far (of a compressed one: compressed)."""
        return self._raw.tell()

    def __iter__(self) -> Iterator[Record | Broken]:
        try:
            yield from self._json_rows() if self._is_json else self._csv_rows()
        except (OSError, EOFError, zlib.error) as error:
            yield Broken(self._line + 1, f"the file cannot be read from here on: {error}")

    def _lines(self) -> Iterator[bytes]:
        while line := self._content.readline(_MAX_LINE):
            self._line += 1
            yield line.removeprefix(_BOM) if self._line == 1 else line

    def _json_rows(self) -> Iterator[Record | Broken]:
        for line in self._lines():
            if line.isspace():
                continue
            try:
                row = _json.decode(line)
            except (ValueError, RecursionError) as error:
                yield Broken(self._line, f"not JSON: {error or 'nested too deeply'}")
                continue
            if isinstance(row, dict):
                yield Record(self._line, row)
            else:
                yield Broken(self._line, "not a JSON object")

    def _csv_rows(self) -> Iterator[Record | Broken]:
        csv.field_size_limit(_MAX_CELL)
        # Bytes that are not UTF-8 pass as lone surrogates, so that only their row is broken.
        lines = (line.decode("utf-8", "surrogateescape") for line in self._lines())
        first = next(line for line in lines if line.strip())
        reader = csv.reader(_chain(first, lines), delimiter=_delimiter(first), strict=True)
        try:
            header = _header(next(reader))
        except csv.Error as error:
            raise Unreadable(f"its first line is no header of columns: {error}") from None
        while True:
            line = self._line + 1
            try:
                row = next(reader)
                if row:
                    "".join(row).encode()
            except StopIteration:
                return
            except csv.Error as error:
                yield Broken(line, _csv_words(str(error)))
            except UnicodeEncodeError:
                yield Broken(line, "not UTF-8")
            else:
                if len(row) == len(header):
                    yield Record(line, dict(zip(header, row, strict=True)))
                elif row:
                    yield Broken(line, f"{len(row)} cells under a header of {len(header)}")


def _unpacked(raw: BinaryIO) -> tuple[BinaryIO, bytes]:
    """Return the content to read and its first bytes."""
    content = raw
    try:
        if _peek(raw)[:2] == b"\x1f\x8b":
            content = cast("BinaryIO", gzip.GzipFile(fileobj=raw))
        return content, _peek(content)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise Unreadable(f"damaged gzip: {error}") from None


def _peek(file: BinaryIO) -> bytes:
    return cast("bytes", file.peek(8192))  # type: ignore[attr-defined]


def _is_json(head: bytes) -> bool:
    if b"\0" in head or head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise Unreadable("not UTF-8 text, so neither CSV nor JSON lines")
    start = head.removeprefix(_BOM).lstrip()
    if not start:
        raise Unreadable("empty")
    if start.startswith(b"["):
        raise Unreadable("one JSON array; write one object a line, as with: jq -c '.[]'")
    return start.startswith(b"{")


def _chain(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _delimiter(header: str) -> str:
    unquoted = re.sub(r'"[^"]*"', "", header)
    return max(",;\t|", key=unquoted.count)


def _header(names: Sequence[str]) -> list[str]:
    header: list[str] = []
    for place, name in enumerate((name.strip() for name in names), start=1):
        name = name or f"column {place}"
        header.append(f"{name} ({place})" if name in header else name)
    return header


def _csv_words(error: str) -> str:
    if "unexpected end of data" in error:
        return "a quote opened here is never closed; nothing after it could be read"
    return error
