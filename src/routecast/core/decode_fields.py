"""One decision read field by field: every digit counts, and each error is named.

msgspec reads most decisions in one step, into floats. Decisions that it cannot read, and numbers
and times with more digits than a float or a microsecond holds, are read here: a field that cannot
be used does not affect the others. But a decision without a strategy or a provider is rejected, and
so is one with an invalid time, which would be counted in a wrong minute.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any, Final, NamedTuple, TypeGuard, cast

import msgspec

from routecast.core.numbers import has_enough_digits, read_number, whole_number
from routecast.core.texts import is_allowed, is_simple
from routecast.core.times import RULE, read_time
from routecast.core.validation_messages import kind
from routecast.protocol import (
    BANDS,
    MAX_COST,
    MAX_ID,
    MAX_LATENCY_MS,
    MAX_TOKENS,
    DecisionIn,
    WarningCode,
)

# -- which bodies need it -----------------------------------------------------------------------

# All digits become the same sign, so that one search finds any run of digits.
_SHAPE: Final = bytes(
    ord("0") if byte in b"0123456789" else ord("e") if byte == ord("E") else byte
    for byte in range(256)
)


def needs_care(body: bytes) -> bool:
    """Whether msgspec may read a number or time of a body inexactly, or slowly.

    A needless True only costs time.
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


# Seconds with more than six digits of a fraction; their point is removed.
_FRACTION: Final = b"00:000000000"


def _bare(body: bytes) -> bytes:
    """Return the shape of a body without blanks, points and minus signs.

    A number then follows its colon directly. An id that looks like a number is in quotes.
    """
    return body.translate(_SHAPE, b".- \t\r\n")


def _has_long_number(body: bytes) -> bool:
    return b":0000000000000000" in _bare(body)


def _has_tiny_number(body: bytes) -> bool:
    """Whether a number is below 1e-99: msgspec takes 10 µs for each that is near 5e-324."""
    return _TINY.search(_bare(body)) is not None


_TINY: Final = re.compile(rb":0+e000")


# A float gives back all digits of a number of at most this length, in bytes. (Times in quotes have
# 22 or more.)
LONG: Final = 15


# -- a decision ---------------------------------------------------------------------------------


class Flaw(NamedTuple):
    """What is wrong with a field: a `FieldWarning` without the decision's index."""

    field: str
    code: WarningCode
    message: str


class ExactDecision(msgspec.Struct, gc=False):
    """A `DecisionIn` whose numbers have all the digits that were sent.

    Numbers of at most `LONG` bytes may be floats, which give back all their digits. A time of RFC
    3339 may be microseconds since 1970 (int); Unix time in seconds is a float or a Decimal. Texts
    may have any length. `flaws` are the fields that could not be used as they were sent.
    """

    strategy: str
    provider: str
    model: str | None = None
    id: str | None = None
    timestamp: datetime | int | float | Decimal | None = None
    confidence: float | Decimal | str | None = None
    cost: float | Decimal | None = None
    latency_ms: float | Decimal | None = None
    input_tokens: int | float | None = None
    output_tokens: int | float | None = None
    cached_tokens: int | float | None = None
    status: str | None = None
    fallback: bool | None = None
    reason: str | None = None
    project: str | None = None
    flaws: tuple[Flaw, ...] = ()


class BrokenDecision(msgspec.Struct, frozen=True, gc=False):
    """A decision that could not be read: the reason, and its id if that is known."""

    error: str
    id: str | None = None


def read_with_care(part: "bytes | msgspec.Raw") -> DecisionIn | ExactDecision | BrokenDecision:
    """Read one decision that is valid JSON.

    Raises UnicodeDecodeError if a field is not UTF-8.
    """
    try:
        sent = None if _has_tiny_number(bytes(part)) else _one.decode(part)
    except UnicodeDecodeError:
        raise
    except msgspec.ValidationError:
        sent = None
    try:
        parts = _parts.decode(part)
    except msgspec.ValidationError as error:
        return BrokenDecision(_not_an_object(str(error)))
    if sent is None:
        texts = {name: bytes(getattr(parts, name)) for name in _READERS}
        return _read({name: _value(text) for name, text in texts.items() if text})
    return _with_long_ones(sent, parts, _NUMERIC)


def read_all_with_care(piece: bytes) -> list[DecisionIn | ExactDecision | BrokenDecision]:
    """Read an array of decisions.

    Raises ValueError or RecursionError if they must be read one by one.
    """
    shape = _bare(piece)
    if _TINY.search(shape) or b"\\u000" in shape:
        raise ValueError("holds numbers that take long to read, or names that are hard to find")
    long = [name for name in _NUMERIC if b'"%b":0000000000000000' % name.encode() in shape]
    if "timestamp" not in long and _FRACTION in piece.translate(_SHAPE, b"."):
        long.append("timestamp")
    pairs = zip(_many.decode(piece), _many_parts.decode(piece), strict=True)
    return [_with_long_ones(sent, parts, long) for sent, parts in pairs]


def _with_long_ones(
    sent: DecisionIn, parts: Any, names: Iterable[str]
) -> DecisionIn | ExactDecision | BrokenDecision:
    """Return a decision in which the numbers and times with these names have all their digits.

    Values that msgspec has read exactly stay as they are.
    """
    long: dict[str, Any] = {}
    for name in names:
        text = bytes(getattr(parts, name))
        if len(text) > LONG and not _is_exact(name, getattr(sent, name), text):
            long[name] = _value(text)
    if not long:
        return sent
    return _read(long, msgspec.structs.asdict(sent))


def _is_exact(name: str, read: object, text: bytes) -> bool:
    """Whether the value that msgspec has read is exactly that of a long text."""
    if type(read) is float:
        if name not in _AMOUNTS:
            return repr(read).encode() == text
        scale, most = _AMOUNTS[name]
        return read < most and has_enough_digits(read, scale)
    if type(read) is datetime:
        return b"\\" not in text and _FRACTION not in text.translate(_SHAPE, b".")
    return False


def convert_with_care(value: object) -> ExactDecision | BrokenDecision:
    """Read one decision from the result of Python's parser, its numbers as Decimals."""
    if not isinstance(value, dict):
        return BrokenDecision(f"expected an object, got {kind_of(value)}")
    # Fields of other names are ignored, even if their names cannot be written as UTF-8.
    return _read({name: value[name] for name in _READERS if name in value})


def kind_of(value: object) -> str:
    """Return the name of a JSON value's type, for people."""
    names = {bool: "a boolean", str: "a string", list: "an array", dict: "an object"}
    return "null" if value is None else names.get(type(value), "a number")


def is_id(text: str | None) -> TypeGuard[str]:
    """Whether a text is an id that can be stored and shown as it is."""
    if not text or len(text) > MAX_ID:
        return False
    return is_simple((text,)) or is_allowed(text)


def _read(
    values: Mapping[str, Any], known: dict[str, Any] | None = None
) -> ExactDecision | BrokenDecision:
    """Return a decision made of JSON values, and of `known` values for its other fields."""
    given: dict[str, Any] = {} if known is None else known
    flaws: list[Flaw] = []
    wrong = ""
    for name, value in values.items():
        if value is None and name not in REQUIRED:
            continue
        try:
            given[name] = _READERS[name](value)
        except Unusable as error:
            if name in NEEDED:
                wrong = wrong or f"{name}: {error}"
            else:
                flaws.append(Flaw(name, error.code, str(error)))
                given[name] = error.instead
    absent = next((name for name in REQUIRED if name not in values and name not in given), None)
    if absent or wrong:
        identity = given.get("id")
        return BrokenDecision(
            f"{absent}: is required" if absent else wrong, identity if is_id(identity) else None
        )
    return ExactDecision(**given, flaws=tuple(flaws))


def _not_an_object(message: str) -> str:
    words = message.split("`")
    return f"expected an object, got {kind(words[3]) if len(words) > 3 else 'another value'}"


def _value(text: bytes) -> Any:
    """Return a JSON value; of an array or an object, only its type."""
    if text[:1] in b"-0123456789":
        return read_number(text.decode("ascii"))
    if text[:1] in b"[{":
        return [] if text.startswith(b"[") else {}
    return msgspec.json.decode(text)


# -- its fields ---------------------------------------------------------------------------------

REQUIRED: Final = ("strategy", "provider")
# Without these fields, or with invalid values of them, a decision is rejected.
NEEDED: Final = (*REQUIRED, "timestamp")


class Unusable(ValueError):
    """A field cannot be used as it is. `instead` is another form that can be used, if any."""

    def __init__(self, code: WarningCode, message: str, instead: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.instead = instead


def _wrong_type(wanted: str, value: object) -> Unusable:
    if isinstance(value, float):  # of all numbers, only those that are not finite
        return Unusable(WarningCode.NOT_FINITE, f"must be {wanted}, not NaN or an infinity")
    return Unusable(WarningCode.WRONG_TYPE, f"must be {wanted}, not {kind_of(value)}")


def _number(value: object, wanted: str = "a number") -> Decimal:
    if isinstance(value, Decimal):
        return value
    raise _wrong_type(wanted, value)


def _within(value: Decimal, most: float) -> None:
    if value < 0:
        raise Unusable(WarningCode.NEGATIVE, "must be 0 or more")
    if value > most:
        raise Unusable(WarningCode.TOO_LARGE, f"must be at most {most:,.0f}")


def _amount(most: float) -> Callable[[object], Decimal]:
    def read(value: object) -> Decimal:
        number = _number(value)
        _within(number, most)
        return number

    return read


def _tokens(value: object) -> int:
    number = _number(value, "a whole number")
    _within(number, MAX_TOKENS)
    return count(number)


def count(value: float | Decimal) -> int:
    """Return a number of tokens. Raises Unusable if it is not whole."""
    try:
        return whole_number(value)
    except ValueError as error:
        raise Unusable(WarningCode.NOT_WHOLE, str(error)) from None


_CONFIDENCE: Final = 'must be a number from 0 to 1, or "high", "medium" or "low"'


def _confidence(value: object) -> Decimal | str:
    if isinstance(value, str):
        if value in BANDS:
            return value
        raise Unusable(WarningCode.UNKNOWN_VALUE, _CONFIDENCE)
    if not isinstance(value, Decimal):
        raise Unusable(_wrong_type("", value).code, _CONFIDENCE)
    if not 0 <= value <= 1:
        code = WarningCode.NEGATIVE if value < 0 else WarningCode.TOO_LARGE
        raise Unusable(code, _CONFIDENCE)
    return value


def _timestamp(value: object) -> int | Decimal:
    if isinstance(value, str):
        try:
            return read_time(value)
        except ValueError as error:
            raise Unusable(WarningCode.UNKNOWN_VALUE, str(error)) from None
    if isinstance(value, Decimal):
        return value
    raise Unusable(WarningCode.WRONG_TYPE, RULE)


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    raise _wrong_type("a string", value)


def _name(value: object) -> str:
    text = _text(value)
    if not text:
        raise Unusable(WarningCode.EMPTY, "must not be empty")
    return text


def _id(value: object) -> str:
    if isinstance(value, Decimal) and value == value.to_integral_value() and abs(value) < 10**38:
        # A decision that is sent again must have the same id: so it is not left unknown.
        instead = str(int(value))
        raise Unusable(WarningCode.CONVERTED, "must be a string; its digits are kept", instead)
    return _name(value)


def _status(value: object) -> str:
    if value in ("success", "error"):
        return str(value)
    code = WarningCode.UNKNOWN_VALUE if isinstance(value, str) else WarningCode.WRONG_TYPE
    raise Unusable(code, 'must be "success" or "error"; it counts as "success"')


def _flag(value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise _wrong_type("true or false", value)


_NUMERIC: Final[dict[str, Callable[[Any], Any]]] = {
    "timestamp": _timestamp,
    "confidence": _confidence,
    "cost": _amount(MAX_COST),
    "latency_ms": _amount(MAX_LATENCY_MS),
    "input_tokens": _tokens,
    "output_tokens": _tokens,
    "cached_tokens": _tokens,
}
_READERS: Final[dict[str, Callable[[Any], Any]]] = {
    "strategy": _name,
    "provider": _name,
    "model": _text,
    "id": _id,
    **_NUMERIC,
    "status": _status,
    "fallback": _flag,
    "reason": _text,
    "project": _name,
}
assert set(_READERS) == set(DecisionIn.__struct_fields__)

# The factors by which amounts are multiplied to be stored, and their limits. A confidence is not
# among them, because it is also compared with bands.
_AMOUNTS: Final = {"cost": (1_000_000_000, MAX_COST), "latency_ms": (1_000, MAX_LATENCY_MS)}

_Parts: Final = msgspec.defstruct(
    "DecisionParts", cast("Any", [(name, msgspec.Raw, msgspec.Raw()) for name in _READERS])
)
_one: Final = msgspec.json.Decoder(DecisionIn)
_many: Final = msgspec.json.Decoder(list[DecisionIn])
_parts: Final = msgspec.json.Decoder(_Parts)
_many_parts: Final = msgspec.json.Decoder(list[_Parts])  # type: ignore[valid-type]  # -- made at run time
