"""JSON Schemas of the metrics document, for OpenAPI and AsyncAPI."""

from typing import Any, Final

from routecast.protocol import BANDS, FIELDS

_NUMBER: Final = {"type": "number"}
_COUNT: Final = {"type": "integer", "minimum": 0}
_MAYBE: Final = {"type": ["number", "null"]}
_STAMP: Final = {"type": "string", "format": "date-time"}
# RFC 3339 with an offset, as decisions and queries have it, from 1970 on; validators need not check
# `format`.
_TIME: Final = r"^(19[7-9]\d|[2-9]\d{3})-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)$"


def time_in(latest: int | None = None) -> dict[str, Any]:
    """Return the schema of a time that a client sends; `latest` in seconds since 1970."""
    seconds: dict[str, Any] = {"type": "number", "minimum": 0}
    if latest is not None:
        seconds["maximum"] = latest
    text = {"type": "string", "format": "date-time", "pattern": _TIME}
    return {"anyOf": [text, seconds]}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "additionalProperties": False}


_PERFORMANCE: Final = {
    "type": "object",
    "additionalProperties": _object(count=_COUNT, avg_cost=_MAYBE, avg_confidence=_MAYBE),
}
# By field; routecast.v1 leaves out fields that are null.
_FIELD_SCHEMAS: Final[dict[str, Any]] = {
    "total_decisions": _COUNT,
    "avg_confidence": _MAYBE,
    "strategy_performance": _PERFORMANCE,
    "confidence_distribution": _object(**dict.fromkeys(BANDS, _COUNT)),
    "provider_usage": {"type": "object", "additionalProperties": _COUNT},
    "cost": _object(total=_NUMBER, priced=_COUNT, unpriced=_COUNT),
    "tokens": _object(input=_COUNT, output=_COUNT),
    "latency_ms": _object(**dict.fromkeys(("avg", "p50", "p95", "p99"), _MAYBE)),
    "errors": _object(count=_COUNT, rate=_MAYBE),
    "fallbacks": _COUNT,
    "models": _PERFORMANCE,
    "rate": _MAYBE,
    "savings": {
        "anyOf": [_object(baseline={"type": "string"}, total=_NUMBER), {"type": "null"}],
    },
}
assert set(_FIELD_SCHEMAS) == set(FIELDS)

DOCUMENT: Final = _object(**_FIELD_SCHEMAS)
METRICS: Final = _object(**_FIELD_SCHEMAS, timestamp=_STAMP)
FAILURE: Final = _object(error={"type": "string"}, timestamp=_STAMP)
