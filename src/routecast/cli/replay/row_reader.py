"""`RowFile`: reads rows of CSV or JSON lines, plain or gzip, which it recognises by content."""

import csv
import gzip
import io
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from decimal import Decimal
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple, cast

import msgspec

from routecast.errors import RoutecastError

# These limit memory if a line or a quote never ends; no row of decisions comes near them.
_MAX_LINE: Final = 16 * 1024 * 1024
_MAX_CELL: Final = 1024 * 1024
_UTF16: Final = (b"\xff\xfe", b"\xfe\xff")
# The line before the header by which Excel names the delimiter.
_SEPARATOR_LINE: Final = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)
# MongoDB's extended JSON: an object with one of these keys is the value under it.
_WRAPPERS: Final = frozenset(
    {"$date", "$oid", "$uuid", "$numberInt", "$numberLong", "$numberDouble", "$numberDecimal"}
)

_json = msgspec.json.Decoder(float_hook=Decimal)


class Unreadable(RoutecastError):
    """The file has no rows. The text says what kind of file it seems to be."""


class BrokenRow(NamedTuple):
    """A line without a usable row: its number from 1, and why."""

    line: int
    error: str


class Record(NamedTuple):
    """One row by column. The numbers of JSON are exact: `int`, or `Decimal` as written."""

    line: int
    cells: Mapping[str, Any]


class RowFile:
    """An open file of rows: iterate over it once, then close it.

    `size` is its bytes on disk. Raises OSError if it cannot be opened, Unreadable if it is neither
    CSV nor JSON lines.
    """

    def __init__(self, path: str) -> None:
        with ExitStack() as opened:
            self._raw: BinaryIO = opened.enter_context(Path(path).open("rb"))
            self.size = Path(path).stat().st_size
            self._line = 0
            content, head = _unpacked(self._raw)
            coding = "utf-16" if head.startswith(_UTF16) else "utf-8-sig"
            self._is_json = _is_json(head.decode(coding, "replace"))
            # Bytes that are not text become lone surrogates, so that only their row is broken.
            self._text = io.TextIOWrapper(content, coding, "surrogateescape", newline="")
            self.close = opened.pop_all().close

    @property
    def read(self) -> int:
        """The bytes of the file that were read so far, before decompression."""
        return self._raw.tell()

    def __iter__(self) -> Iterator[Record | BrokenRow]:
        try:
            yield from self._json_rows() if self._is_json else self._csv_rows()
        except (OSError, EOFError, zlib.error, UnicodeError) as error:
            yield BrokenRow(self._line + 1, f"the file cannot be read from here on: {error}")

    def _lines(self) -> Iterator[str]:
        while line := self._text.readline(_MAX_LINE):
            self._line += 1
            yield line

    def _json_rows(self) -> Iterator[Record | BrokenRow]:
        for line in self._lines():
            if line.isspace():
                continue
            try:
                row = _json.decode(line)
            except (ValueError, RecursionError) as error:
                yield BrokenRow(self._line, f"not JSON: {error or 'nested too deeply'}")
                continue
            if isinstance(row, dict):
                yield Record(self._line, _unwrapped(row) if '"$' in line else row)
            else:
                yield BrokenRow(self._line, "not a JSON object")

    def _csv(self) -> tuple[Any, list[str]]:
        """Return a reader at the first row, and the names in the header."""
        csv.field_size_limit(_MAX_CELL)
        lines = self._lines()
        first = next(line for line in lines if line.strip())
        separator = _SEPARATOR_LINE.fullmatch(first)
        if separator:
            first = next(lines, "")
        reader = csv.reader(
            chain([first], lines),
            delimiter=separator[1] if separator else _delimiter(first),
            skipinitialspace=True,
            strict=True,
        )
        try:
            return reader, _header(next(reader, []))
        except csv.Error as error:
            raise Unreadable(f"its first line is not a header of columns: {error}") from None

    def _csv_rows(self) -> Iterator[Record | BrokenRow]:
        reader, header = self._csv()
        while True:
            line = self._line + 1
            try:
                row = next(reader)
                if row:
                    "".join(row).encode()
            except StopIteration:
                return
            except csv.Error as error:
                yield BrokenRow(line, _csv_words(str(error)))
            except UnicodeEncodeError:
                yield BrokenRow(
                    line, "not UTF-8; convert the file, as with: iconv -f latin1 -t utf-8"
                )
            else:
                cells = row[: len(header)]
                # Some programs end each row with a delimiter.
                if len(cells) == len(header) and not any(map(str.strip, row[len(header) :])):
                    yield Record(line, dict(zip(header, cells, strict=True)))
                elif row:
                    yield BrokenRow(line, f"{len(row)} cells under a header of {len(header)}")


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
    return cast("bytes", file.peek(8192))  # type: ignore[attr-defined]  # -- all files opened here have it


def _is_json(head: str) -> bool:
    if "\0" in head:
        raise Unreadable("not text, so neither CSV nor JSON lines")
    start = head.lstrip()
    if not start:
        raise Unreadable("empty")
    if start.startswith("["):
        raise Unreadable("one JSON array; write one object per line, as with: jq -c '.[]'")
    return start.startswith("{")


def _unwrapped(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if len(value) == 1 and (key := next(iter(value))) in _WRAPPERS:
        return _unwrapped(value[key])
    return {key: _unwrapped(inner) for key, inner in value.items()}


def _delimiter(header: str) -> str:
    unquoted = re.sub(r'"[^"]*"', "", header)
    return max(",;\t|", key=unquoted.count)


def _header(names: Sequence[str]) -> list[str]:
    header: list[str] = []
    names = [name.strip() for name in names]
    while names and not names[-1]:
        names.pop()
    for number, name in enumerate(names, start=1):
        name = name or f"column {number}"
        header.append(f"{name} ({number})" if name in header else name)
    return header


def _csv_words(error: str) -> str:
    if "unexpected end of data" in error:
        return "a quote opened here is never closed; nothing after it could be read"
    return error
