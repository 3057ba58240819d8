"""Decisions: what a producer sent becomes integers that can be stored and summed up."""

import itertools
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from operator import itemgetter
from sys import intern
from typing import Any, Final, NamedTuple

from routecast.core.decode_fields import ExactDecision, Flaw, Unusable, count, is_id
from routecast.core.numbers import scaled
from routecast.core.texts import digest, is_simple, kept_name
from routecast.core.times import NO_OFFSET, unix_time
from routecast.core.times import SECOND as SECOND
from routecast.errors import Invalid
from routecast.protocol import (
    EPOCH,
    MAX_ID,
    MAX_MODEL,
    MAX_NAME,
    MAX_REASON,
    MICROSECOND,
    DecisionIn,
    WarningCode,
    is_clean,
)

MINUTE: Final = 60 * SECOND
DAY: Final = 24 * 60 * MINUTE

UNKNOWN_BAND: Final = "none"
# The project of decisions that name none.
DEFAULT_PROJECT: Final = "default"

# (provider, model, input tokens, how many of these are cached, output tokens, moment) to
# nano-dollars, or None if no price is known.
Price = Callable[[str, str, int, int, int, int], int | None]
# The fields that a price depends on.
_PRICED_BY: Final = frozenset({"cost", "model", "input_tokens", "output_tokens", "cached_tokens"})


class DecisionRecord(NamedTuple):
    """A valid decision in integers; None means unknown, never zero.

    It counts under the key that `project` to `status` are. A name over its limit is `other` there;
    `owner` is always the project that sent the decision. `cost_sent` is True if the cost was sent,
    and False if it was looked up: other price tables may give another one.
    """

    id: str
    project: str
    strategy: str
    provider: str
    model: str  # "" if the producer named none
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
    owner: str
    cost_sent: bool = False


def fields_between(first: str, last: str) -> slice:
    """Return the slice of a `DecisionRecord` from one field to another, both included.

    `itemgetter` of such a slice reads all of them in one step.
    """
    names = DecisionRecord._fields
    return slice(names.index(first), names.index(last) + 1)


# The fields that are stored as they are, beside the key that the decision counts under.
_VALUES: Final = fields_between("decided", "reason")
VALUE_FIELDS: Final = DecisionRecord._fields[_VALUES]
values_of: Final[Callable[[DecisionRecord], tuple[Any, ...]]] = itemgetter(_VALUES)

# The identity of a decision: its id and the project that sent it. Earlier versions stored the
# decision (`late`, 42) of a project over the limit as (`other`, `late/42`). Such rows are not
# converted, because a project named `other` may have sent the same id. So a decision that is sent
# before an upgrade and again after it counts twice.
identity_of: Final[Callable[[DecisionRecord], tuple[str, str]]] = itemgetter(
    0, DecisionRecord._fields.index("owner")
)


def _numbered() -> Iterator[str]:
    # Rising ids keep the index of ids compact; the prefix makes them unique.
    prefix = secrets.token_hex(8)
    return (f"{prefix}-{number:08x}" for number in itertools.count())


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules by which decisions as sent become decisions as stored.

    `high` and `medium` are the minimum confidences of these bands; `price` prices tokens.
    """

    high: float = 0.8
    medium: float = 0.5
    price: Price = lambda *_: None
    ids: Iterator[str] = field(default_factory=_numbered)

    def normalise(
        self,
        sent: DecisionIn | ExactDecision,
        now: int,
        flaws: list[Flaw] | None = None,
        default_project: str = DEFAULT_PROJECT,
    ) -> DecisionRecord:
        """Return the decision in integers; `now` is the time of receipt, in microseconds.

        Fields that could not be used as they were sent are added to `flaws`, which must be empty.
        `default_project` is that of a decision without a usable one. Raises Invalid, naming the
        field, if the decision cannot be counted at all.
        """
        flaws = [] if flaws is None else flaws
        strategy, provider, model = sent.strategy, sent.provider, sent.model or ""
        identity = sent.id
        project = sent.project or default_project
        texts = (strategy, provider, model, identity or "", project)
        exact = sent if isinstance(sent, ExactDecision) else None
        flaws += exact.flaws if exact else ()
        if not is_simple(texts) or (exact and max(map(len, texts)) > MAX_NAME):
            strategy = _name("strategy", strategy, flaws)
            provider = _name("provider", provider, flaws)
            model = _optional_name("model", model, flaws, MAX_MODEL) or ""
            project = _optional_name("project", project, flaws) or default_project
            identity = _identity(identity, flaws)
        confidence, band = sent.confidence, UNKNOWN_BAND
        if isinstance(confidence, str):
            band, confidence = confidence, None
        elif confidence is not None:
            high: float | Decimal = self.high
            medium: float | Decimal = self.medium
            if type(confidence) is Decimal:  # compare exact digits, not the bits of a float
                high, medium = Decimal(repr(high)), Decimal(repr(medium))
            band = "high" if confidence >= high else "medium" if confidence >= medium else "low"
        moment = now if sent.timestamp is None else _moment(sent.timestamp, now, flaws)
        tokens_in, tokens_out = sent.input_tokens, sent.output_tokens
        if isinstance(tokens_in, float):
            tokens_in = _count("input_tokens", tokens_in, flaws)
        if isinstance(tokens_out, float):
            tokens_out = _count("output_tokens", tokens_out, flaws)
        cached: int | None = 0
        if sent.cached_tokens is not None:
            cached = _cached(sent.cached_tokens, tokens_in, flaws)
        cost = None
        if sent.cost is not None:
            cost = scaled(sent.cost, 1_000_000_000)
        elif (
            model
            and tokens_in is not None
            and tokens_out is not None
            and (not flaws or _can_price(flaws))
        ):
            cost = self.price(provider, model, tokens_in, cached or 0, tokens_out, moment)
        # Many decisions wait at the same time, and have few names: each name is held once.
        project = intern(project)
        return DecisionRecord(
            identity or next(self.ids),
            project,
            intern(strategy),
            intern(provider),
            intern(model),
            band,
            sent.status or "success",
            moment,
            None if confidence is None else scaled(confidence, 1_000_000),
            cost,
            None if sent.latency_ms is None else scaled(sent.latency_ms, 1000),
            tokens_in,
            tokens_out,
            bool(sent.fallback),
            _reason(sent.reason, flaws) if sent.reason else None,
            project,
            sent.cost is not None,
        )


def _name(field: str, text: str, flaws: list[Flaw], longest: int = MAX_NAME) -> str:
    """Return a name as it is stored. Raises Invalid if it contains forbidden characters."""
    kept, too_long = kept_name(field, text, longest)
    if too_long:
        message = f"is longer than {longest} characters: its beginning and a hash are kept"
        flaws.append(Flaw(field, WarningCode.TRUNCATED, message))
    return kept


def _optional_name(field: str, text: str, flaws: list[Flaw], longest: int = MAX_NAME) -> str | None:
    """Return a name as it is stored; None if it contains forbidden characters."""
    try:
        return _name(field, text, flaws, longest)
    except Invalid as error:
        _, _, message = str(error).partition(": ")
        flaws.append(Flaw(field, WarningCode.BAD_CHARACTER, message))
        return None


def _identity(text: str | None, flaws: list[Flaw]) -> str | None:
    """Return an id as it is stored: the same for each time that it is sent."""
    if text is None or is_id(text):
        return text
    if len(text) > MAX_ID:
        message = f"is longer than {MAX_ID} characters: its SHA-256 is kept"
    else:
        message = "contains characters that ids must not contain: its SHA-256 is kept"
    flaws.append(Flaw("id", WarningCode.HASHED, message))
    return digest(text)


def _can_price(flaws: list[Flaw]) -> bool:
    """Whether all fields that a price depends on are usable; otherwise it would be a guess."""
    return _PRICED_BY.isdisjoint(flaw.field for flaw in flaws)


def _reason(text: str, flaws: list[Flaw]) -> str | None:
    if len(text) > MAX_REASON:
        message = f"is longer than {MAX_REASON} characters: its beginning is kept"
        flaws.append(Flaw("reason", WarningCode.TRUNCATED, message))
        text = text[:MAX_REASON]
    if is_clean(text):
        return text
    message = "must not contain NUL or a lone surrogate"
    flaws.append(Flaw("reason", WarningCode.BAD_CHARACTER, message))
    return None


def _count(field: str, value: float, flaws: list[Flaw]) -> int | None:
    try:
        return count(value)
    except Unusable as error:
        flaws.append(Flaw(field, error.code, str(error)))
        return None


def _cached(value: float, tokens_in: int | None, flaws: list[Flaw]) -> int | None:
    """Return the number of cached tokens, which are a part of the input tokens."""
    cached = _count("cached_tokens", value, flaws)
    if cached is None or tokens_in is None or cached <= tokens_in:
        return cached
    message = "must be at most input_tokens, of which they are a part"
    flaws.append(Flaw("cached_tokens", WarningCode.TOO_LARGE, message))
    return None


def _moment(timestamp: datetime | float | Decimal, now: int, flaws: list[Flaw]) -> int:
    """Return microseconds since 1970. An int is that already; other numbers are Unix time.

    A time far in the future becomes `now`, because either clock may be the wrong one. Raises
    Invalid for other impossible times.
    """
    unix = False
    if isinstance(timestamp, datetime):
        if timestamp.tzinfo is None:
            raise Invalid(f"timestamp: {NO_OFFSET}")
        moment = (timestamp - EPOCH) // MICROSECOND
    elif isinstance(timestamp, int):
        moment = timestamp
    else:
        unix = True
        if -(10**15) < timestamp < 10**15:
            moment = unix_time(timestamp)
        else:  # too far away to count in microseconds
            moment = -1 if timestamp < 0 else now + 2 * DAY
    if moment < 0:
        raise Invalid("timestamp: must not be before 1970")
    if moment > now + DAY:
        hint = " (Unix time is read in seconds)" if unix else ""
        ahead = f"is more than 24 hours ahead of the server's clock{hint}"
        message = f"{ahead}: the time of receipt is kept"
        flaws.append(Flaw("timestamp", WarningCode.TOO_LARGE, message))
        return now
    return moment
