"""Encodes one decision as JSON. A bad decision never corrupts the batch that it is sent in."""

import dataclasses
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final, Literal, SupportsFloat, SupportsIndex, TypedDict

import msgspec

from routecast.client.values import (
    is_missing,
    to_bool,
    to_id,
    to_milliseconds,
    to_number,
    to_reason,
    to_text,
    to_time,
)
from routecast.protocol import DecisionIn

_MAX_DECISION: Final = 64 * 1024

_encode: Final = msgspec.json.Encoder(decimal_format="number").encode
_check_json: Final = msgspec.json.Decoder(msgspec.Raw).decode

Number = SupportsFloat | SupportsIndex


class Decision(TypedDict, total=False):
    """The fields of a decision, of which `strategy` and `provider` are required.

    A field that is left out or None is unknown, unless it has a default.

    Attributes:
        strategy: The strategy that decided, up to 64 characters.
        provider: The provider that it chose, up to 64 characters.
        model: The model, up to 128 characters.
        id: An id of your own, up to 128 characters, which counts once within its project. Default:
            an id of the recorder.
        timestamp: When it was decided: a time with its offset, or seconds since 1970. Default: the
            time of `Recorder.record`.
        confidence: A number from 0 to 1, or a band: `high`, `medium` or `low`.
        cost: US dollars, 0 to 9,000. An unknown cost is priced by the server where it knows the
            model and its price, and both numbers of tokens.
        latency_ms: Milliseconds, up to seven days. A `timedelta` is converted.
        input_tokens: The tokens that went into the model, up to 10⁹.
        output_tokens: The tokens that the model produced, up to 10⁹.
        cached_tokens: The part of `input_tokens` that the provider read from its cache. The price
            depends on it.
        status: `success` or `error`. Default: `success`.
        fallback: Whether the strategy's first choice could not be used.
        reason: Why, in up to 500 characters. It is stored with the decision, and is in no sums.
        project: The project that it belongs to, up to 64 characters. Default: `default`.
    """

    strategy: str
    provider: str
    model: str | None
    id: str | None
    timestamp: datetime | Number | str | None
    confidence: Number | Literal["high", "medium", "low"] | None
    cost: Number | None
    latency_ms: Number | None
    input_tokens: Number | None
    output_tokens: Number | None
    cached_tokens: Number | None
    status: Literal["success", "error"] | None
    fallback: bool | None
    reason: str | None
    project: str | None


_REQUIRED: Final = frozenset({"strategy", "provider"})
_OWN_WAY: Final[dict[str, Callable[[Any], Any]]] = {
    "id": to_id,
    "timestamp": to_time,
    "confidence": to_number,
    "cost": to_number,
    "latency_ms": to_milliseconds,
    "input_tokens": to_number,
    "output_tokens": to_number,
    "cached_tokens": to_number,
    "fallback": to_bool,
    "reason": to_reason,
}
# All fields of a decision. Others are not sent, because a server ignores them.
_SENT_FIELDS: Final = {name: _OWN_WAY.get(name, to_text) for name in DecisionIn.__struct_fields__}


def copied(decision: Any, more: Mapping[str, Any]) -> Any:
    """Return a copy of a decision's fields, because the caller may change the decision.

    Only fields that are sent are copied: others may be large. An object that is not a decision is
    returned as it is.
    """
    given = more if decision is None else _fields(decision, more)
    if isinstance(given, dict) and not given.keys() <= _SENT_FIELDS.keys():
        return {name: value for name, value in given.items() if name in _SENT_FIELDS}
    return given


def _fields(decision: Any, more: Mapping[str, Any]) -> Any:
    try:
        if isinstance(decision, Mapping):
            return {**decision, **more}
        if dataclasses.is_dataclass(decision):
            names = [field.name for field in dataclasses.fields(decision)]
            return {**{name: getattr(decision, name) for name in names}, **more}
        if isinstance(decision, msgspec.Struct):
            return {**msgspec.structs.asdict(decision), **more}
        if fields := getattr(type(decision), "__attrs_attrs__", None):
            return {**{field.name: getattr(decision, field.name) for field in fields}, **more}
        if isinstance(decision, tuple) and hasattr(decision, "_asdict"):
            return {**decision._asdict(), **more}
        # Models of pydantic, rows of pandas and of databases.
        return {**dict(decision), **more}
    except Exception:  # the caller must not fail; `encode` will
        return decision


def encode(decision: Any, identity: str, at: float) -> tuple[bytes, list[str]]:
    """Return a decision's JSON, with the id and time given here if it has none of its own.

    The second value has a text for each field that could not be sent, with the reason. Raises
    ValueError if `strategy` or `provider` cannot be sent. It may raise any exception, because a
    decision may contain any object of the caller.
    """
    if not isinstance(decision, Mapping):
        raise TypeError(f"a {type(decision).__name__} is not a decision")
    known: dict[str, Any] = {}
    left_out: list[str] = []
    for name, convert in _SENT_FIELDS.items():
        value = decision.get(name)
        if is_missing(value):
            continue
        try:
            if (value := convert(value)) is not None:
                known[name] = _sendable(value)
        except Exception as error:
            if name in _REQUIRED:
                raise ValueError(f"{name}: {error}") from None
            left_out.append(f"{name}: {error}")
    text = _encode({"id": identity, "timestamp": at, **known})
    if len(text) > _MAX_DECISION:
        raise ValueError(f"it has more than {_MAX_DECISION:,} bytes")
    return text, left_out


def _sendable(value: Any) -> Any:
    """Return a value that is certainly valid JSON; the usual types need only a type check."""
    kind = type(value)
    if kind is int or kind is float or kind is bool or (kind is str and value.isascii()):
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        raise TypeError("bytes are not text: decode them")
    # A `msgspec.Raw` is encoded without a check, so the result is checked here.
    text = _encode(value)
    _check_json(text)
    str(text, "utf-8")
    return msgspec.Raw(text)
