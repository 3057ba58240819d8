"""Decisions: from what a producer sent to integers ready for the store."""

import itertools
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from operator import itemgetter
from sys import intern
from typing import Any, Final, NamedTuple

from routecast.core.exact import ExactDecision
from routecast.core.numbers import scaled, whole_number
from routecast.core.texts import check_text, clean_name, is_simple
from routecast.core.times import NO_OFFSET, unix_time
from routecast.core.times import SECOND as SECOND
from routecast.errors import Invalid
from routecast.protocol import (
    EPOCH,
    MAX_MODEL,
    MAX_NAME,
    MICROSECOND,
    DecisionIn,
    is_clean,
)

MINUTE: Final = 60 * SECOND
DAY: Final = 24 * 60 * MINUTE

UNKNOWN_BAND: Final = "none"

# (provider, model, input tokens, output tokens, moment) to nano-dollars, or None: no price known.
Price = Callable[[str, str, int, int, int], int | None]


class Decision(NamedTuple):
    """A valid decision in integers; None means unknown, never zero.

    `project` to `status` are what it is counted under: over the limit of names, a project is
    `other` there. `owner` is the project that sent it, whatever it is counted under. `cost_sent`
    tells a cost that was sent from a price, which another version of the tables may not give again.
    """

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
    owner: str
    cost_sent: bool = False


# What of a decision is kept after the names it is counted under, as it is.
VALUES: Final = slice(Decision._fields.index("decided"), Decision._fields.index("owner"))
values_of: Final[Callable[[Decision], tuple[Any, ...]]] = itemgetter(VALUES)

# The identity of a decision: its id and the project that sent it. Databases of earlier
# versions kept the decision (`late`, 42) of a project over the limit as (`other`, `late/42`). Such
# a row stays as it is, since a project named `other` may have sent the same: a producer that sent
# 42 before an upgrade and sends it again afterwards is counted twice.
identity_of: Final[Callable[[Decision], tuple[str, str]]] = itemgetter(
    0, Decision._fields.index("owner")
)


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

    def normalise(self, sent: DecisionIn | ExactDecision, now: int) -> Decision:
        """Return the decision in integers.

        Raises Invalid, naming the field, when it breaks a rule that its types cannot show.
        """
        strategy, provider, model = sent.strategy, sent.provider, sent.model or ""
        identity = sent.id
        project = sent.project or "default"
        if not is_simple((strategy, provider, model, identity or "", project)):
            strategy = clean_name("strategy", strategy, MAX_NAME)
            provider = clean_name("provider", provider, MAX_NAME)
            model = clean_name("model", model, MAX_MODEL)
            project = clean_name("project", project, MAX_NAME)
            check_text("id", identity or "")
        if sent.reason and not is_clean(sent.reason):
            raise Invalid("reason: must not hold NUL or a lone surrogate")
        confidence, band = sent.confidence, UNKNOWN_BAND
        if isinstance(confidence, str):
            band, confidence = confidence, None
        elif confidence is not None:
            high: float | Decimal = self.high
            medium: float | Decimal = self.medium
            if type(confidence) is Decimal:  # to be compared with digits, not with a float's bits
                high, medium = Decimal(repr(high)), Decimal(repr(medium))
            band = "high" if confidence >= high else "medium" if confidence >= medium else "low"
        moment = now if sent.timestamp is None else _moment(sent.timestamp, now)
        tokens_in = sent.input_tokens
        if tokens_in is not None and type(tokens_in) is not int:
            tokens_in = _count("input_tokens", tokens_in)
        tokens_out = sent.output_tokens
        if tokens_out is not None and type(tokens_out) is not int:
            tokens_out = _count("output_tokens", tokens_out)
        if sent.cost is not None:
            cost: int | None = scaled(sent.cost, 1_000_000_000)
        elif model and tokens_in is not None and tokens_out is not None:
            cost = self.price(provider, model, tokens_in, tokens_out, moment)
        else:
            cost = None
        # Many decisions wait at the same time, and have few names: each is held once.
        project = intern(project)
        return Decision(
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
            sent.reason or None,
            project,
            sent.cost is not None,
        )


def _count(name: str, count: float) -> int:
    try:
        return whole_number(count)
    except ValueError as error:
        raise Invalid(f"{name}: {error}") from None


def _moment(timestamp: datetime | float | Decimal, now: int) -> int:
    """Return microseconds since 1970. An int is that already; other numbers are Unix time."""
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
        else:  # too far off to count in microseconds
            moment = -1 if timestamp < 0 else now + 2 * DAY
    if moment < 0:
        raise Invalid("timestamp: must not be before 1970")
    if moment > now + DAY:
        hint = " (Unix time is read in seconds)" if unix else ""
        raise Invalid(f"timestamp: must be at most 24 hours in the future{hint}")
    return moment
