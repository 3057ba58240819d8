"""One decision read with care: every digit counts, and what is wrong is named.

msgspec reads most decisions in one go, into floats. What it cannot read, and numbers and times
with more digits than a float or a microsecond holds, are read here.
"""

import re
from collections.abc import Callable, Iterable
from datetime import datetime
from decimal import Decimal
from typing import Any, Final, cast

import msgspec

from routecast.core.numbers import has_digits_enough, read_number, whole_number
from routecast.core.texts import is_allowed
from routecast.core.times import RULE, read_time
from routecast.core.wording import kind, worded
from routecast.protocol import (
    BANDS,
    MAX_COST,
    MAX_LATENCY_MS,
    MAX_TOKENS,
    DecisionIn,
    is_clean,
)

# -- which bodies need it -----------------------------------------------------------------------

# All digits look like one, so that a search for some of them is a search for many.
_SHAPE: Final = bytes(
    ord("0") if byte in b"0123456789" else ord("e") if byte == ord("E") else byte
    for byte in range(256)
)


def needs_care(body: bytes) -> bool:
    """Whether msgspec may not read all numbers and times of a body exactly, or not fast.

    It may be true where there is no need; that costs time only.
    """
    shape = body.translate(_SHAPE, b".")
    return (
        # A float gives back 15 digits of any number.
        (b"0000000000000000" in shape and _has_long_number(body))
        or _FRACTION in shape
        or (b"e-000" in shape and _has_tiny_number(body))
        # A digit may also be written as \\u0030.
        or b"\\u000" in shape
    )


# Seconds with more than six digits of a fraction; their point is left out.
_FRACTION: Final = b"00:000000000"


# What is no id that looks like a number: those stand in quotes.
def _has_long_number(body: bytes) -> bool:
    return b":0000000000000000" in body.translate(_SHAPE, b".- \t\r\n")


def _has_tiny_number(body: bytes) -> bool:
    """Whether there is a number below 1e-99: msgspec takes 10 us for each that is near 5e-324."""
    return _TINY.search(body.translate(_SHAPE, b".- \t\r\n")) is not None


_TINY: Final = re.compile(rb":0+e000")


# A float gives back all digits of a number of at most this length, in bytes. (Times in quotes have
# 22 or more.)
LONG: Final = 15
# For these fields msgspec's error is not final: a leap second is valid, and its texts are unclear.
_UNDECIDED: Final = ("$.timestamp`", "_tokens`", "$.cost`", "$.latency_ms`")


# -- a decision ---------------------------------------------------------------------------------


class ExactDecision(msgspec.Struct, gc=False):
    """A `DecisionIn` whose numbers have all the digits that were sent.

    Numbers of at most `LONG` bytes may be floats: these give back all their digits. A time of
    RFC 3339 may be microseconds since 1970 (int), Unix time in seconds is a float or a Decimal.
    """

    strategy: str
    provider: str
    model: str | None = None
    id: str | None = None
    timestamp: datetime | int | float | Decimal | None = None
    confidence: float | Decimal | str | None = None
    cost: float | Decimal | None = None
    latency_ms: float | Decimal | None = None
    input_tokens: float | None = None
    output_tokens: float | None = None
    status: str | None = None
    fallback: bool | None = None
    reason: str | None = None
    project: str | None = None


class Broken(msgspec.Struct, frozen=True, gc=False):
    """A decision that could not be read: why, and its id where that much is known."""

    error: str
    id: str | None = None


def read_with_care(part: "bytes | msgspec.Raw") -> DecisionIn | ExactDecision | Broken:
    """Read one decision of which it is known that it is JSON.

    Raises UnicodeDecodeError where a field is not UTF-8.
    """
    try:
        sent = None if _has_tiny_number(bytes(part)) else _one.decode(part)
    except UnicodeDecodeError:
        raise
    except msgspec.ValidationError as error:
        text = str(error)
        if not text.endswith(_UNDECIDED):
            return Broken(_explain(text), _identity_of(part))
        sent = None
    try:
        if sent is None:
            return _all_exact(part)
        return _with_long_ones(sent, _parts.decode(part), _READERS)
    except (msgspec.ValidationError, _Wrong) as error:
        return Broken(
            str(error) if isinstance(error, _Wrong) else _explain(str(error)), _identity_of(part)
        )


def read_all_with_care(piece: bytes) -> list[DecisionIn | ExactDecision]:
    """Read an array of decisions.

    Raises ValueError or RecursionError where it is better to read them one by one.
    """
    shape = piece.translate(_SHAPE, b".- \t\r\n")
    if _TINY.search(shape) or b"\\u000" in shape:
        raise ValueError("holds numbers that take long to read, or names that are hard to find")
    long = [name for name in _READERS if b'"%b":0000000000000000' % name.encode() in shape]
    if "timestamp" not in long and _FRACTION in piece.translate(_SHAPE, b"."):
        long.append("timestamp")
    pairs = zip(_many.decode(piece), _many_parts.decode(piece), strict=True)
    return [_with_long_ones(sent, parts, long) for sent, parts in pairs]


def _all_exact(part: "bytes | msgspec.Raw") -> ExactDecision:
    parts = _parts.decode(part)
    given = msgspec.structs.asdict(parts)
    for name in _READERS:
        given[name] = _exact(name, bytes(given[name]))
    return ExactDecision(**given)


def _with_long_ones(
    sent: DecisionIn, parts: Any, names: Iterable[str]
) -> DecisionIn | ExactDecision:
    """Return a decision with all digits of the numbers and times that have these names.

    Floats stay where further digits make no difference, and where they show as the text that was
    sent.
    """
    long: dict[str, Any] = {}
    for name in names:
        text = bytes(getattr(parts, name))
        if len(text) > LONG:
            read = getattr(sent, name)
            if not _is_exact(name, read, text):
                long[name] = _exact(name, text)
    return ExactDecision(**{**msgspec.structs.asdict(sent), **long}) if long else sent


def _is_exact(name: str, read: object, text: bytes) -> bool:
    """Whether what msgspec has read stands for all that a long text says."""
    if type(read) is float:
        if name not in _AMOUNTS:
            return repr(read).encode() == text
        scale, most = _AMOUNTS[name]
        return read < most and has_digits_enough(read, scale)
    if type(read) is datetime:
        return b"\\" not in text and _FRACTION not in text.translate(_SHAPE, b".")
    return False


def _exact(name: str, text: bytes) -> Any:
    """Return the value of a field from its JSON."""
    if text in (b"", b"null"):
        return None
    return _checked(name, _value(text))


def _checked(name: str, value: Any) -> Any:
    try:
        return _READERS[name](value)
    except ValueError as error:
        raise _Wrong(f"{name}: {error}") from None


def convert_with_care(value: object) -> ExactDecision | Broken:
    """Read one decision that Python's own parser has read, its numbers as Decimals."""
    if not isinstance(value, dict):
        return Broken(f"expected an object, got {kind_of(value)}")
    known = value.get("id")
    shown = (
        known if isinstance(known, str) and 0 < len(known) <= 128 and is_allowed(known) else None
    )
    # Fields of other names are ignored, even where their names cannot be written as UTF-8.
    given = {name: given for name, given in value.items() if name in _FIELDS}
    try:
        read = msgspec.structs.asdict(msgspec.convert(given, _Values))
        for name in _READERS:
            read[name] = None if read[name] is None else _checked(name, read[name])
        return ExactDecision(**read)
    except msgspec.ValidationError as error:
        return Broken(_explain(str(error)), shown)
    except _Wrong as error:
        return Broken(str(error), shown)
    except UnicodeEncodeError:
        # A lone surrogate cannot be compared with the few words that may stand here.
        name = next(name for name, value in given.items() if not is_clean(str(value)))
        return Broken(f"{name}: {_WORDS.get(name, 'must not hold a lone surrogate')}", shown)


def kind_of(value: object) -> str:
    """Return what a value of JSON is, as people say it."""
    names = {bool: "a boolean", str: "a string", list: "an array", dict: "an object"}
    return "null" if value is None else names.get(type(value), "a number")


class _Wrong(ValueError):
    """A field is wrong; the text names it and the rule."""


def _value(text: bytes) -> Any:
    if text[:1] in b"-0123456789":
        return read_number(text.decode("ascii"))
    if text[:1] in b"[{":
        return [] if text.startswith(b"[") else {}
    return msgspec.json.decode(text)


# -- its numbers and times ----------------------------------------------------------------------


def _number(value: object, wanted: str = "a number") -> Decimal:
    if isinstance(value, Decimal):
        return value
    raise ValueError(f"must be {wanted}, not {kind_of(value)}")


def _within(value: Decimal, most: float) -> None:
    if value < 0:
        raise ValueError("must be 0 or more")
    if value > most:
        raise ValueError(f"must be at most {most:,.0f}")


def _amount(most: float) -> Callable[[object], Decimal]:
    def read(value: object) -> Decimal:
        number = _number(value)
        _within(number, most)
        return number

    return read


def _tokens(value: object) -> int:
    number = _number(value, "a whole number")
    count = whole_number(number)
    _within(number, MAX_TOKENS)
    return count


def _confidence(value: object) -> Decimal | str:
    if isinstance(value, str) and value in BANDS:
        return value
    if isinstance(value, Decimal) and 0 <= value <= 1:
        return value
    raise ValueError(_WORDS["confidence"])


def _timestamp(value: object) -> int | Decimal:
    if isinstance(value, str):
        return read_time(value)
    if isinstance(value, Decimal):
        return value
    raise ValueError(RULE)


_READERS: Final[dict[str, Callable[[Any], Any]]] = {
    "timestamp": _timestamp,
    "confidence": _confidence,
    "cost": _amount(MAX_COST),
    "latency_ms": _amount(MAX_LATENCY_MS),
    "input_tokens": _tokens,
    "output_tokens": _tokens,
}


# What amounts are multiplied by to be stored, and their limits. A confidence is not among
# them: it is compared with bands, too.
_AMOUNTS: Final = {"cost": (1_000_000_000, MAX_COST), "latency_ms": (1_000, MAX_LATENCY_MS)}


# -- its other fields ---------------------------------------------------------------------------


def _with_numbers_as(kind: Any, absent: Any) -> type[msgspec.Struct]:
    """Return a struct of the fields of `DecisionIn`, its numbers and times being of one type."""
    fields: list[tuple[Any, ...]] = []
    for field in msgspec.structs.fields(DecisionIn):
        if field.name in _READERS:
            fields.append((field.name, kind, absent))
        else:
            fields.append((field.name, field.type, *([] if field.required else [None])))
    return msgspec.defstruct("DecisionParts", cast("Any", fields))


_one: Final = msgspec.json.Decoder(DecisionIn)
_many: Final = msgspec.json.Decoder(list[DecisionIn])
_Parts: Final = _with_numbers_as(msgspec.Raw, msgspec.Raw())
_parts: Final = msgspec.json.Decoder(_Parts)
_many_parts: Final = msgspec.json.Decoder(list[_Parts])  # type: ignore[valid-type]
_Values: Final = _with_numbers_as(Any, None)
_FIELDS: Final = frozenset(DecisionIn.__struct_fields__)
_WORDS: Final = {
    "confidence": 'must be a number from 0 to 1, or "high", "medium" or "low"',
    "status": 'must be "success" or "error"',
}


class _Identity(msgspec.Struct):
    id: str | None = None


_identity: Final = msgspec.json.Decoder(_Identity)


def _identity_of(part: "bytes | msgspec.Raw") -> str | None:
    try:
        known = _identity.decode(part).id
    except (ValueError, RecursionError):
        return None
    return known if known and len(known) <= 128 and is_allowed(known) else None


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
