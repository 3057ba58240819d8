"""Reading a request body: bytes become decisions as they were sent, or reasons for rejection.

A body is read in pieces, so that the event loop can serve other tasks in between. msgspec decodes a
piece in one step; numbers with more digits than a float holds are read from their texts
(`decode_fields.py`). If that fails, the piece is read decision by decision, to keep the valid ones
and name the others.

An invalid decision does not affect the others. Only a body that is not JSON at all, or not UTF-8,
is rejected as a whole. NaN and the infinities are not JSON, but many programs write them: each
affects only its field.
"""

import json
import re
from collections.abc import Generator, Iterator, Sequence
from typing import Any, Final

import msgspec

from routecast.core.decode_fields import (
    BrokenDecision,
    ExactDecision,
    convert_with_care,
    kind_of,
    needs_care,
    read_all_with_care,
    read_with_care,
)
from routecast.core.numbers import read_number
from routecast.errors import BadBody, TooLarge
from routecast.protocol import MAX_BATCH, MAX_REJECTIONS_LISTED, DecisionIn

DecodedItem = DecisionIn | ExactDecision | BrokenDecision

# Twice as many as the largest batch has with every field in each decision. A body with more commas
# is rejected before it is decoded.
MAX_COMMAS: Final = 40 * MAX_BATCH
# Bytes that are decoded in one step: 0.5 ms for a usual body. A longer decision is read alone.
DECODE_PIECE: Final = 65_536
# Decisions of one slice, if they are read one by one: 1 ms if all are invalid.
DECISIONS_PER_SLICE: Final = 32
# Bytes after an error that are parsed again to describe it.
SHOWN: Final = 64
# After this number of lines, none of them JSON, the body is rejected if no later line can be a
# decision.
INVALID_LINES: Final = 1_000
# Brackets and strings are counted to find the end of a decision that msgspec cannot skip: MARKS of
# them in one slice. A body that is nested more deeply than MAX_DEPTH is rejected.
MARKS: Final = 10_000
MAX_DEPTH: Final = 100_000
# Python's parser, which is slow, only parses texts with at most this number of commas.
MAX_EXPLAINED: Final = 20_000

_JSON_BLANK: Final = b" \t\r\n"
_BOM: Final = b"\xef\xbb\xbf"
_OBJECT_LINE: Final = re.compile(rb"^[ \t\r]*\{", re.MULTILINE)
_BYTE: Final = re.compile(r"\(byte (\d+)\)")
# Lone surrogates and NaN: msgspec rejects both, Python's parser reads them.
_ODD: Final = re.compile(rb"\\u[dD][89a-fA-F]|NaN|Infinity")
_JSON_MARK: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[{]++|[\]}]++|[,"]', re.DOTALL)
_TOO_DEEP: Final = "not usable JSON: nested too deeply"

_one: Final = msgspec.json.Decoder(DecisionIn)
_many: Final = msgspec.json.Decoder(list[DecisionIn])
_raw: Final = msgspec.json.Decoder(msgspec.Raw)
_raws: Final = msgspec.json.Decoder(list[msgspec.Raw])


def decode(body: bytes, *, lines: bool) -> list[DecodedItem]:
    """Read a small body in one step. Raises as `pieces` does."""
    return [item for piece in pieces(body, lines=lines) for item in piece]


def pieces(body: bytes, *, lines: bool) -> Iterator[Sequence[DecodedItem]]:
    """Read one object, an array of objects, or (with `lines`) NDJSON, in the order sent.

    Each step takes about 1 ms for any body, and at most 0.1 s, for a single decision of 16 MiB. A
    step may yield no decision. Raises BadBody if the body is not JSON or is empty, TooLarge over
    MAX_BATCH decisions: then discard what was yielded before, too.
    """
    if body.count(b",") > MAX_COMMAS or (lines and body.count(b"\n") > 2 * MAX_BATCH):
        raise TooLarge(f"far more values than {MAX_BATCH:,} decisions have")
    body = body.removeprefix(_BOM)
    source = _Lines(body).read() if lines else _values(body)
    found = 0
    for items in source:
        found += len(items)
        if found > MAX_BATCH:
            over = f"{found:,}" if next(source, None) is None else f"more than {MAX_BATCH:,}"
            raise TooLarge(f"{over} decisions in one request; at most {MAX_BATCH:,}")
        yield items


# -- an object or an array ----------------------------------------------------------------------


def _values(body: bytes) -> Iterator[Sequence[DecodedItem]]:
    start = len(body) - len(body.lstrip(_JSON_BLANK))
    first = body[start : start + 1]
    if first == b"[":
        yield from _array(body, start + 1)
    elif first == b"{":
        yield from _object(body)
    else:
        value = _parse_all(body)
        raise BadBody(f"expected an object or an array, got {kind_of(value)}")


def _object(body: bytes) -> Iterator[Sequence[DecodedItem]]:
    if len(body) <= DECODE_PIECE and not needs_care(body):
        try:
            yield [_one.decode(body)]
            return
        except (ValueError, RecursionError):
            pass
    try:
        part = _raw.decode(body)
        yield []
        item: DecodedItem = read_with_care(part)
    except RecursionError:
        raise BadBody(_TOO_DEEP) from None
    except UnicodeDecodeError:
        raise _not_utf8(body) from None
    except ValueError:
        item = convert_with_care(_parse_object(body))
    yield [item]


def _parse_object(body: bytes) -> Any:
    try:
        return _parse_all(body)
    except BadBody as error:
        first, _, rest = body[:DECODE_PIECE].strip().partition(b"\n")
        if rest and first.startswith(b"{") and first.rstrip().endswith(b"}"):
            hint = "for one decision a line send Content-Type: application/x-ndjson"
            raise BadBody(f"{error}; {hint}") from None
        raise


def _array(body: bytes, at: int) -> Iterator[Sequence[DecodedItem]]:
    """Read the items of an array; the first begins at `at`."""
    if len(body) <= DECODE_PIECE and not needs_care(body):
        try:
            yield _many.decode(body)
            return
        except (ValueError, RecursionError):
            pass
    trimmed = body.rstrip(_JSON_BLANK)
    end = len(trimmed) - trimmed.endswith(b"]")
    if body[at:end].strip(_JSON_BLANK) or end == len(trimmed):
        yield from _items(body, at, end)
        if end == len(trimmed):
            raise _not_json(body, at)


def _items(body: bytes, at: int, end: int) -> Iterator[Sequence[DecodedItem]]:
    """Read the items between two positions, with commas between them."""
    size = DECODE_PIECE
    while True:
        cut = _comma(body, at + size, end)
        piece = b"[%b]" % body[at:cut]
        try:
            yield from _piece(piece, size)
        except UnicodeDecodeError:
            raise _not_utf8(body) from None
        except RecursionError:
            cut = yield from _walk(body, at, cut, end)
        except ValueError as error:
            if _ODD.search(piece):
                cut = yield from _walk(body, at, cut, end)
            elif cut < end and _at_end(error, piece):
                size *= 2  # the comma was inside an item
                yield []
                continue
            else:
                raise _not_json(body, at, error) from None
        if cut == end:
            return
        at, size = cut + 1, DECODE_PIECE


def _piece(piece: bytes, size: int) -> Iterator[Sequence[DecodedItem]]:
    """Read an array that is a part of another. Raises ValueError before it yields anything."""
    careful = needs_care(piece)
    if size == DECODE_PIECE:
        try:
            items: Sequence[DecodedItem] = (
                read_all_with_care(piece) if careful else _many.decode(piece)
            )
            if items:
                yield items
                return
        except (ValueError, RecursionError):
            pass
    parts = _raws.decode(piece)
    if not parts:
        raise ValueError("nothing between two commas (byte 1)")
    careful = careful or size > DECODE_PIECE
    for first in range(0, len(parts), DECISIONS_PER_SLICE):
        yield [_read(part, careful=careful) for part in parts[first : first + DECISIONS_PER_SLICE]]


def _comma(body: bytes, at: int, end: int) -> int:
    """Return where to cut after `at`: at a comma, between two objects if one is near."""
    if at >= end:
        return end
    between = body.find(b"},", at, min(at + DECODE_PIECE, end))
    if between >= 0:
        return between + 1
    comma = body.find(b",", at, end)
    return end if comma < 0 else comma


def _at_end(error: ValueError, piece: bytes) -> bool:
    """Whether the only error of a piece is that it ends too early."""
    found = _BYTE.search(str(error))
    return found is None or int(found[1]) >= len(piece) - 1


def _read(part: "bytes | msgspec.Raw", *, careful: bool) -> DecodedItem:
    """Read one decision that is valid JSON."""
    if not careful:
        try:
            return _one.decode(part)
        except (ValueError, RecursionError):
            pass
    return read_with_care(part)


def _walk(
    body: bytes, at: int, least: int, end: int
) -> Generator[Sequence[DecodedItem], None, int]:
    """Read items that msgspec cannot skip, up to a comma at `least` or after it.

    Returns the position of that comma, or the end. The ends of items are found by counting
    brackets.
    """
    while True:
        cut = yield from _end_of_item(body, at, end)
        yield [_read_walked(body, at, cut)]
        if cut == end or cut >= least:
            return cut
        at = cut + 1


def _end_of_item(body: bytes, at: int, end: int) -> Generator[Sequence[DecodedItem], None, int]:
    depth = 0
    for number, mark in enumerate(_JSON_MARK.finditer(body, at, end)):
        sign = mark[0]
        if sign[0] in b"[{":
            depth += len(sign)
        elif sign[0] in b"]}":
            depth -= len(sign)
        elif sign == b"," and not depth:
            return mark.start()
        if depth < 0 or sign == b'"':
            raise _not_json(body, at)
        if depth > MAX_DEPTH:
            raise BadBody(_TOO_DEEP)
        if not number % MARKS:
            yield []
    if depth:
        raise _not_json(body, at)
    return end


def _read_walked(body: bytes, at: int, cut: int) -> DecodedItem:
    item = body[at:cut]
    try:
        return _read(_raw.decode(item), careful=True)
    except RecursionError:
        return BrokenDecision(_TOO_DEEP)
    except UnicodeDecodeError:
        raise _not_utf8(body) from None
    except ValueError:
        pass
    try:
        return convert_with_care(_parse(item.decode()))
    except RecursionError:
        return BrokenDecision(_TOO_DEEP)
    except (ValueError, BadBody):
        raise _not_json(body, at) from None


# -- lines --------------------------------------------------------------------------------------


class _Lines:
    """NDJSON: one decision a line."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._first = ""  # the error of the first line that is not JSON
        self._invalid = 0  # lines that are not JSON
        self._has_json = False  # whether a line is JSON
        self._promising = False  # whether any line, read or not, begins as an object

    def read(self) -> Iterator[Sequence[DecodedItem]]:
        body, at, number = self._body, 0, 1
        while at < len(body):
            cut = body.find(b"\n", at + DECODE_PIECE)
            cut = len(body) if cut < 0 else cut
            piece = body[at:cut]
            items = self._decode(piece)
            if items is None:
                yield from self._one_by_one(piece, at, number)
            else:
                self._has_json = self._has_json or bool(items)
                yield items
            at, number = cut + 1, number + piece.count(b"\n") + 1
        if self._invalid and not self._has_json:
            raise self._no_line_is_json()
        if not self._has_json:
            raise BadBody("no decision in the request body")

    def _no_line_is_json(self) -> BadBody:
        return BadBody(f"no line is JSON; the first: {self._first}")

    @staticmethod
    def _decode(piece: bytes) -> Sequence[DecodedItem] | None:
        if len(piece) > 2 * DECODE_PIECE or needs_care(piece):
            return None
        try:
            return _one.decode_lines(piece)
        except (ValueError, RecursionError):
            return None

    def _one_by_one(self, piece: bytes, at: int, number: int) -> Iterator[Sequence[DecodedItem]]:
        try:
            piece.decode()
        except UnicodeDecodeError as error:
            raise BadBody(f"not UTF-8 at byte {at + error.start}") from None
        lines = piece.split(b"\n")
        for first in range(0, len(lines), DECISIONS_PER_SLICE):
            numbered = enumerate(lines[first : first + DECISIONS_PER_SLICE], number + first)
            yield [self._line(line, number) for number, line in numbered if line.strip()]
            if self._invalid >= INVALID_LINES and not (self._has_json or self._promising):
                self._promising = _OBJECT_LINE.search(self._body, at) is not None
                if not self._promising:
                    raise self._no_line_is_json()

    def _line(self, line: bytes, number: int) -> DecodedItem:
        try:
            part = _raw.decode(line)
        except RecursionError:
            return self._broken(_TOO_DEEP)
        except ValueError:
            # Only some broken lines are listed with their error; but an unusual line may be valid.
            if self._invalid >= MAX_REJECTIONS_LISTED and not _ODD.search(line):
                return self._broken("not JSON")
        else:
            self._has_json = True
            return _read(part, careful=needs_care(line))
        try:
            value = _parse(line.decode(), number)
        except (BadBody, RecursionError) as error:
            return self._broken(str(error) if isinstance(error, BadBody) else _TOO_DEEP)
        self._has_json = True
        return convert_with_care(value)

    def _broken(self, error: str) -> BrokenDecision:
        self._first = self._first or error
        self._invalid += 1
        return BrokenDecision(error)


# -- errors -------------------------------------------------------------------------------------


def _parse(text: str, first_line: int = 1) -> Any:
    """Parse with Python's parser: slow, but it reads lone surrogates and describes errors.

    Raises BadBody and RecursionError.
    """
    try:
        return json.loads(text, parse_int=read_number, parse_float=read_number)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise BadBody(f"not JSON at line {line} column {error.colno}: {error.msg}") from None
    except ValueError as error:
        raise BadBody(f"not JSON: {error}") from None


def _parse_all(body: bytes) -> Any:
    """Parse a body that is not an array. Raises BadBody."""
    if body.count(b",") > MAX_EXPLAINED:
        raise BadBody("not JSON that can be read: too many values in one decision")
    try:
        return _parse(body.decode())
    except UnicodeDecodeError:
        raise _not_utf8(body) from None
    except RecursionError:
        raise BadBody(_TOO_DEEP) from None


def _not_json(body: bytes, at: int, error: ValueError | None = None) -> BadBody:
    """Return an error text for an array that is not JSON from its item at `at` on."""
    try:
        body.decode()
    except UnicodeDecodeError:
        return _not_utf8(body)
    found = _BYTE.search(str(error))
    stop = at + int(found[1]) + SHOWN if found else len(body)
    rest = body[at:stop].decode(errors="ignore")
    if rest.count(",") > MAX_EXPLAINED:
        return BadBody(f"not JSON after byte {at}: {error or 'it is cut off'}")
    try:
        json.loads(f"[{rest}")
    except json.JSONDecodeError as problem:
        wrong = at + len(rest[: max(0, problem.pos - 1)].encode())
        line = body.count(b"\n", 0, wrong) + 1
        column = len(body[body.rfind(b"\n", 0, wrong) + 1 : wrong].decode(errors="ignore")) + 1
        return BadBody(f"not JSON at line {line} column {column}: {problem.msg}")
    except RecursionError:
        return BadBody(_TOO_DEEP)
    except ValueError as problem:
        return BadBody(f"not JSON: {problem}")
    return BadBody(f"not JSON after byte {at}: {error}")


def _not_utf8(body: bytes) -> BadBody:
    try:
        body.decode()
    except UnicodeDecodeError as error:
        return BadBody(f"not UTF-8 at byte {error.start}")
    return BadBody("not UTF-8")
