"""Reading a request body: from bytes to decisions as they were sent, and what is wrong with others.

The whole body is decoded in one go. Only where that fails is it read again, decision by decision,
to keep the good ones and name the bad.
"""

import json
from collections.abc import Sequence
from typing import Annotated, Any, Final, NamedTuple, NoReturn, TypeVar

import msgspec
from msgspec import Meta

from routecast.core.texts import is_allowed
from routecast.core.wording import kind, worded
from routecast.errors import BadBody, TooLarge
from routecast.protocol import MAX_BATCH, DecisionIn, is_clean

T = TypeVar("T")

# A batch of the largest size, with every field and a comma in each, has half as many: what has
# more is refused before anything is made of it.
MAX_COMMAS: Final = 40 * MAX_BATCH

_one = msgspec.json.Decoder(DecisionIn)
_many = msgspec.json.Decoder(list[DecisionIn])


class Broken(NamedTuple):
    """A decision that could not be read: why, and its id where that much is known."""

    error: str
    id: str | None


def decode(body: bytes, *, lines: bool) -> Sequence[DecisionIn | Broken]:
    """Read one object, an array of them, or (with `lines`) NDJSON, in the order sent.

    Raises BadBody when it is not JSON or is empty; TooLarge over MAX_BATCH decisions.
    """
    if body.count(b",") > MAX_COMMAS or (lines and body.count(b"\n") > 2 * MAX_BATCH):
        raise TooLarge(f"far more values than {MAX_BATCH:,} decisions have")
    try:
        if lines:
            items: Sequence[DecisionIn | Broken] = _one.decode_lines(body)
        elif body.lstrip()[:1] == b"{":
            items = [_one.decode(body)]
        else:
            items = _many.decode(body)
    except (ValueError, RecursionError):
        # Something in it is wrong: read it again, slowly, to tell the good from the bad.
        items = _split(body) if lines else _load(body)
    if lines and not items:
        raise BadBody("no decision in the request body")
    return _bounded(items)


def _bounded(items: Sequence[T]) -> Sequence[T]:
    if len(items) > MAX_BATCH:
        raise TooLarge(f"{len(items):,} decisions in one request; at most {MAX_BATCH:,}")
    return items


def _text(body: bytes) -> str:
    try:
        return body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadBody(f"not UTF-8 at byte {error.start}") from None


def _not_a_number(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")


def _whole(digits: str) -> int | float:
    # Python refuses to read very long integers. One over every limit may as well be infinite.
    return int(digits) if len(digits) < 1000 else float(digits)


def _parse(text: str, first_line: int = 1) -> Any:
    try:
        return json.loads(text, parse_constant=_not_a_number, parse_int=_whole)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise BadBody(f"not JSON at line {line} column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise BadBody("not usable JSON: nested too deeply") from None
    except ValueError as error:
        raise BadBody(f"not JSON: {error}") from None


def _load(body: bytes) -> Sequence[DecisionIn | Broken]:
    text = _text(body)
    try:
        alone = body.lstrip()[:1] == b"{"
        parts = [_raw.decode(body)] if alone else _raws.decode(body)
    except (ValueError, RecursionError):
        return _load_leniently(text)
    return [_read(part) for part in _bounded(parts)]


def _load_leniently(text: str) -> Sequence[DecisionIn | Broken]:
    """Read what msgspec cannot: say where it is not JSON, or tell which item has a surrogate."""
    try:
        value = _parse(text)
    except BadBody as error:
        first, _, rest = text.strip().partition("\n")
        if rest and first.startswith("{") and first.rstrip().endswith("}"):
            hint = "for one decision a line send Content-Type: application/x-ndjson"
            raise BadBody(f"{error}; {hint}") from None
        raise
    if isinstance(value, dict):
        return [_convert(value)]
    if isinstance(value, list):
        return [_convert(item) for item in _bounded(value)]
    raise BadBody(f"expected an object or an array, got {_kind(value)}")


def _split(body: bytes) -> Sequence[DecisionIn | Broken]:
    lines = enumerate(_text(body).split("\n"), 1)
    items = [_read_line(line, number) for number, line in lines if line.strip()]
    if items and all(isinstance(item, _BrokenLine) for item in items):
        first = items[0]
        assert isinstance(first, Broken)
        raise BadBody(f"no line is JSON; the first: {first.error}")
    return items


class _BrokenLine(Broken):
    """A line that is not even JSON."""

    __slots__ = ()


def _read_line(line: str, number: int) -> DecisionIn | Broken:
    try:
        return _one.decode(line)
    except (ValueError, RecursionError):
        try:
            return _convert(_parse(line, number))
        except BadBody as error:
            return _BrokenLine(str(error), None)


def _read(part: msgspec.Raw) -> DecisionIn | Broken:
    try:
        return _one.decode(part)
    except msgspec.ValidationError as error:
        if "out of range" not in str(error):
            return Broken(_explain(str(error)), _identity_of(part))
    except (ValueError, RecursionError):
        pass
    # A number that no float holds, or half a character: Python reads on, and finds out where.
    try:
        return _convert(_parse(_text(bytes(part))))
    except BadBody as error:
        return Broken(str(error), None)


def _identity_of(part: msgspec.Raw) -> str | None:
    try:
        known = _identity.decode(part).id
    except (ValueError, RecursionError):
        return None
    return known if known and is_allowed(known) else None


class _Identity(msgspec.Struct):
    id: Annotated[str, Meta(max_length=128)] | None = None


_identity: Final = msgspec.json.Decoder(_Identity)
_raw: Final = msgspec.json.Decoder(msgspec.Raw)
_raws: Final = msgspec.json.Decoder(list[msgspec.Raw])


def _kind(value: object) -> str:
    names = {bool: "a boolean", str: "a string", list: "an array", dict: "an object"}
    return "null" if value is None else names.get(type(value), "a number")


def _convert(value: Any) -> DecisionIn | Broken:
    if not isinstance(value, dict):
        return Broken(f"expected an object, got {_kind(value)}", None)
    known = value.get("id")
    shown = (
        known if isinstance(known, str) and 0 < len(known) <= 128 and is_allowed(known) else None
    )
    # Fields of other names are ignored, even where their names cannot be written as UTF-8.
    given = {name: given for name, given in value.items() if name in _FIELDS}
    try:
        return msgspec.convert(given, DecisionIn)
    except msgspec.ValidationError as error:
        return Broken(_explain(str(error)), shown)
    except UnicodeEncodeError:
        # Nor can a lone surrogate be compared with the few words that may stand here.
        name = next(name for name, value in given.items() if not is_clean(str(value)))
        return Broken(f"{name}: {_WORDS.get(name, 'must not hold a lone surrogate')}", shown)


_FIELDS: Final = frozenset(DecisionIn.__struct_fields__)
_WORDS: Final = {
    "confidence": 'must be a number from 0 to 1, or "high", "medium" or "low"',
    "status": 'must be "success" or "error"',
    "timestamp": "must be an RFC 3339 time such as 2026-01-31T12:34:56Z, or Unix seconds",
}


def _explain(message: str) -> str:
    """Put one of msgspec's messages into the words of the contract: the field, then the rule."""
    if message.startswith("Object missing required field"):
        return f"{message.split('`')[1]}: is required"
    rule, _, path = message.partition(" - at `$.")
    name = path.rstrip("`")
    words = rule.split("`")
    if not name and len(words) > 3:
        return f"expected an object, got {kind(words[3])}"
    return f"{name}: {_WORDS.get(name) or worded(rule)}"
