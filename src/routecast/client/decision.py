"""What is recorded of a decision, and its JSON: never such that it spoils that of others."""

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from math import isfinite
from typing import Any, Final, Literal, TypedDict

import msgspec

from routecast.protocol import DecisionIn

_MAX_DECISION: Final = 64 * 1024

_encode: Final = msgspec.json.Encoder(decimal_format="number").encode
_check_json: Final = msgspec.json.Decoder(msgspec.Raw).decode


class Decision(TypedDict, total=False):
    """What may be recorded of a decision; `strategy` and `provider` must be."""

    strategy: str
    provider: str
    model: str | None
    id: str | None
    timestamp: datetime | float | str | None
    confidence: float | Literal["high", "medium", "low"] | None
    cost: float | None
    latency_ms: float | None
    input_tokens: int | None
    output_tokens: int | None
    status: Literal["success", "error"] | None
    fallback: bool | None
    reason: str | None
    project: str | None


def copied(decision: Mapping[str, Any] | DecisionIn, more: Mapping[str, Any]) -> Any:
    """Return a decision as it is now, since the caller may change it; what is none, as it is."""
    try:
        known = decision if isinstance(decision, Mapping) else msgspec.structs.asdict(decision)
        return {**known, **more}
    except Exception:  # the caller must not fail for it: `encode` does
        return decision


def encode(decision: Any, identity: str, at: float) -> bytes:
    """Return a decision's JSON, with an id and a time where it has none of its own.

    May raise anything, since a decision may hold any object of the caller's.
    """
    known = {name: value for name, value in decision.items() if value is not None}
    for name, value in known.items():
        if isinstance(value, float | Decimal) and not isfinite(value):
            raise ValueError(f"{name} is {value}")
    text = _encode({"id": identity, "timestamp": at, **known})
    # A `msgspec.Raw` goes in as it is, whatever it is.
    _check_json(text)
    str(text, "utf-8")
    if len(text) > _MAX_DECISION:
        raise ValueError(f"it takes more than {_MAX_DECISION:,} bytes")
    return text
