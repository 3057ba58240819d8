"""Decisions: from bytes off the wire to integers ready for the store.

`decode` reads a body, `Rules.normalise` turns each decision into integers or says why not.
"""

import itertools
import json
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any, Final, NamedTuple, NoReturn, TypeVar

import msgspec

from routecast.errors import BadBody, Invalid, TooLarge
from routecast.protocol import EPOCH, MAX_BATCH, MICROSECOND, DecisionIn

T = TypeVar("T")

SECOND: Final = 1_000_000
MINUTE: Final = 60 * SECOND
DAY: Final = 24 * 60 * MINUTE

UNKNOWN_BAND: Final = "none"

# (provider, model, input tokens, output tokens, moment) to nano-dollars, or None: no price known.
Price = Callable[[str, str, int, int, int], int | None]


class Decision(NamedTuple):
    """A valid decision in integers; None means unknown, never zero."""

    id: str
    project: str
    strategy: str
    provider: str
    model: str  # "" where the producer named none
    band: str  # high, medium, low or none
    status: str  # success or error
    decided: int  # microseconds since 1970
    confidence: int | None  # millionths
    cost: int | None  # nano-dollars
    latency: int | None  # microseconds
    input_tokens: int | None
    output_tokens: int | None
    fallback: bool
    reason: str | None


# -- reading a body -----------------------------------------------------------------------------

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
    try:
        if lines:
            items: Sequence[DecisionIn | Broken] = _one.decode_lines(body)
        elif body.lstrip()[:1] == b"{":
            items = [_one.decode(body)]
        else:
            items = _many.decode(body)
    except (ValueError, RecursionError):
        # Something in it is wrong: read it again, slowly, to tell the good from the bad.
        items = [_convert(item) for item in (_split(body) if lines else _load(body))]
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


def _load(body: bytes) -> Sequence[Any]:
    text = _text(body)
    try:
        value = _parse(text)
    except BadBody as error:
        first, _, rest = text.strip().partition("\n")
        if rest and first.startswith("{") and first.rstrip().endswith("}"):
            hint = "for one decision a line send Content-Type: application/x-ndjson"
            raise BadBody(f"{error}; {hint}") from None
        raise
    if isinstance(value, dict):
        return [value]
    if isinstance(value, list):
        return _bounded(value)
    raise BadBody(f"expected an object or an array, got {_kind(value)}")


def _split(body: bytes) -> list[Any]:
    values: list[Any] = []
    good = False
    lines = enumerate(_text(body).split("\n"), 1)
    for number, line in _bounded([(number, line) for number, line in lines if line.strip()]):
        try:
            values.append(_parse(line, number))
            good = True
        except BadBody as error:
            values.append(Broken(str(error), None))
    if values and not good:
        raise BadBody(f"no line is JSON; the first: {values[0].error}")
    return values


def _kind(value: object) -> str:
    names = {bool: "a boolean", str: "a string", list: "an array", dict: "an object"}
    return "null" if value is None else names.get(type(value), "a number")


def _convert(value: Any) -> DecisionIn | Broken:
    if isinstance(value, Broken):
        return value
    if not isinstance(value, dict):
        return Broken(f"expected an object, got {_kind(value)}", None)
    known = value.get("id")
    shown = known if isinstance(known, str) and 0 < len(known) <= 128 and _clean(known) else None
    # Fields of other names are ignored, even where their names cannot be written as UTF-8.
    given = {name: given for name, given in value.items() if name in _FIELDS}
    try:
        return msgspec.convert(given, DecisionIn)
    except msgspec.ValidationError as error:
        return Broken(_explain(str(error), given), shown)
    except UnicodeEncodeError:
        # Nor can a lone surrogate be compared with the few words that may stand here.
        name = next(name for name in _WORDS if not _clean(str(given.get(name))))
        return Broken(f"{name}: {_WORDS[name]}", shown)


_FIELDS: Final = frozenset(DecisionIn.__struct_fields__)
_TYPES: Final = {
    "str": "a string",
    "float": "a number",
    "int": "a whole number",
    "bool": "true or false",
    "datetime": "an RFC 3339 time",
    "null": "null",
}
_WORDS: Final = {
    "confidence": 'must be a number from 0 to 1, or "high", "medium" or "low"',
    "status": 'must be "success" or "error"',
    "timestamp": "must be an RFC 3339 time such as 2026-01-31T12:34:56Z, or Unix seconds",
}


def _explain(message: str, value: dict[str, Any]) -> str:
    """Put one of msgspec's messages into the words of the contract: the field, then the rule."""
    if message.startswith("Object missing required field"):
        return f"{message.split('`')[1]}: is required"
    rule, _, path = message.partition(" - at `$.")
    name = path.rstrip("`")
    if name in _WORDS:
        return f"{name}: {_WORDS[name]}"
    words = rule.split("`")
    if rule.startswith("Expected") and len(words) > 1:
        bound = words[2].strip() if len(words) > 2 else ""
        if bound.startswith("of length >="):
            return f"{name}: must not be empty"
        if bound.startswith("of length <="):
            return f"{name}: must be at most {bound.split()[-1]} characters"
        if bound.startswith(">="):
            return f"{name}: must be 0 or more"
        if bound.startswith("<="):
            return f"{name}: must be at most {float(bound[2:]):,.0f}"
        kinds = [_TYPES[kind] for kind in words[1].split(" | ") if kind != "null"]
        given = value.get(name)
        got = "" if isinstance(given, float) else f", not {_kind(given)}"
        return f"{name}: must be {' or '.join(kinds)}{got}"
    return f"{name}: {rule[:1].lower()}{rule[1:]}"


def _clean(text: str) -> bool:
    # A lone surrogate cannot be written as UTF-8, and PostgreSQL cannot hold a NUL.
    return "\0" not in text and (text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text))


# -- normalising --------------------------------------------------------------------------------


def scaled(value: float, scale: int) -> int:
    """Return value times scale as an integer, rounded half to even from the number's own digits.

    The digits are the shortest that give the same float: those that were sent, up to 15 of them.
    """
    product = value * scale
    whole = round(product)
    # Below 2**45 the product is off by less than 0.01: only near a tie can that matter.
    if product < 2**45 and abs(product - whole) < 0.49:
        return whole
    exact = Decimal(repr(value)) * scale
    return int(exact.to_integral_value(ROUND_HALF_EVEN))


def _numbered() -> Iterator[str]:
    # Names in rising order keep the index of ids compact; the prefix makes them unique.
    prefix = secrets.token_hex(8)
    return (f"{prefix}-{number:08x}" for number in itertools.count())


@dataclass(frozen=True, slots=True)
class Rules:
    """What turns decisions as sent into decisions as kept.

    `high` and `medium` are the least confidence of those bands; `price` prices tokens.
    """

    high: float = 0.8
    medium: float = 0.5
    price: Price = lambda *_: None
    ids: Iterator[str] = field(default_factory=_numbered)

    def normalise(self, sent: DecisionIn, now: int) -> Decision:
        """Return the decision in integers.

        Raises Invalid, naming the field, when it breaks a rule that its types cannot show.
        """
        model = sent.model or ""
        identity = sent.id
        project = sent.project or "default"
        texts = (sent.strategy, sent.provider, model, identity or "", project, sent.reason or "")
        if not "".join(texts).isprintable():
            _check_texts(texts)
        confidence, band = sent.confidence, UNKNOWN_BAND
        if isinstance(confidence, str):
            band, confidence = confidence, None
        elif confidence is not None:
            band = (
                "high"
                if confidence >= self.high
                else "medium"
                if confidence >= self.medium
                else "low"
            )
        moment = now if sent.timestamp is None else _moment(sent.timestamp, now)
        tokens_in, tokens_out = sent.input_tokens, sent.output_tokens
        if sent.cost is not None:
            cost: int | None = scaled(sent.cost, 1_000_000_000)
        elif model and tokens_in is not None and tokens_out is not None:
            cost = self.price(sent.provider, model, tokens_in, tokens_out, moment)
        else:
            cost = None
        return Decision(
            identity or next(self.ids),
            project,
            sent.strategy,
            sent.provider,
            model,
            band,
            sent.status or "success",
            moment,
            None if confidence is None else scaled(confidence, 1_000_000),
            cost,
            None if sent.latency_ms is None else scaled(sent.latency_ms, 1000),
            tokens_in,
            tokens_out,
            bool(sent.fallback),
            sent.reason or None,
        )


def _check_texts(texts: Sequence[str]) -> None:
    for name, text in zip(
        ("strategy", "provider", "model", "id", "project", "reason"), texts, strict=True
    ):
        if not _clean(text):
            raise Invalid(f"{name}: must not hold NUL or a lone surrogate")


def _moment(timestamp: datetime | float, now: int) -> int:
    if isinstance(timestamp, datetime):
        if timestamp.tzinfo is None:
            raise Invalid("timestamp: must say its offset, such as Z or +00:00")
        moment = (timestamp - EPOCH) // MICROSECOND
    elif abs(timestamp) < 10**15:
        moment = scaled(timestamp, SECOND)
    else:
        moment = now + 2 * DAY
    if moment < 0:
        raise Invalid("timestamp: must not be before 1970")
    if moment > now + DAY:
        hint = "" if isinstance(timestamp, datetime) else " (Unix time is read in seconds)"
        raise Invalid(f"timestamp: must be at most 24 hours in the future{hint}")
    return moment
