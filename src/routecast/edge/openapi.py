"""The OpenAPI description of the HTTP routes: parameters, bodies and responses."""

from typing import Any, Final

import msgspec

from routecast.core.access import SCOPE_OF_ROUTE
from routecast.core.view import MAX_FILTER_NAME
from routecast.edge.http.decisions import DECISIONS
from routecast.edge.schemas import FAILURE, METRICS, time_in
from routecast.protocol import (
    BANDS,
    DEFAULT_INTERVAL,
    EXTRA_FIELDS,
    FIELDS,
    MAX_BATCH,
    MAX_FILTER_VALUES,
    MAX_INTERVAL,
    MAX_TOKENS,
    MIN_INTERVAL,
    WINDOWS,
    ClosedConnections,
    DecisionIn,
    Expelled,
    HealthReport,
    NodeSummaries,
    OpenConnections,
    Problem,
    Receipt,
)


def names_parameter(name: str) -> dict[str, Any]:
    """Return the OpenAPI parameter of a filter."""
    return {
        "name": name,
        "in": "query",
        "schema": {
            "type": "array",
            "items": {"type": "string", "minLength": 1, "maxLength": MAX_FILTER_NAME},
            "minItems": 1,
            "maxItems": MAX_FILTER_VALUES,
        },
        "description": f"Only decisions of this {name}; repeat it for several.",
    }


METRICS_QUERY: Final[list[dict[str, Any]]] = [
    {
        "name": "fields",
        "in": "query",
        "schema": {"type": "array", "items": {"enum": list(FIELDS)}, "minItems": 1},
        "explode": False,
        "description": f"Separated by commas; not in the default: {', '.join(EXTRA_FIELDS)}.",
    },
    *(names_parameter(name) for name in ("strategy", "provider", "model", "project")),
    {
        "name": "interval",
        "in": "query",
        "schema": {
            "type": "number",
            "minimum": MIN_INTERVAL,
            "maximum": MAX_INTERVAL,
            "default": DEFAULT_INTERVAL,
        },
        "description": "Seconds between frames; it has an effect on streams only.",
    },
    {
        "name": "window",
        "in": "query",
        "schema": {"enum": list(WINDOWS), "default": "all"},
        "description": "The time up to now that counts. Windows move on every minute.",
    },
]

BEARER: Final = {
    "type": "http",
    "scheme": "bearer",
    "description": "A token (JWT) or an API key. It is needed while authentication is on.",
}
PROBLEM: Final = {
    "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
}
METRICS_RESPONSES: Final = {
    "200": {
        "description": f"The document; bands are {', '.join(BANDS)}.",
        "content": {"application/json": {"schema": METRICS}},
    },
    "400": {"description": "A parameter is invalid; `parameter` names it.", **PROBLEM},
    "503": {
        "description": "No source can answer now; see Retry-After.",
        "content": {"application/json": {"schema": FAILURE}},
    },
}


# Open routes that look at a credential all the same.
_VERIFYING_PATHS: Final = frozenset({"/health", "/ready", "/auth/session"})
_OVER_LIMIT: Final = {
    "description": "The client is over a limit of its own, which `RateLimit-Policy` names.",
    "headers": {
        "Retry-After": {"schema": {"type": "integer"}, "description": "In seconds."},
        "RateLimit-Policy": {"schema": {"type": "string"}},
        "RateLimit": {"schema": {"type": "string"}},
    },
    **PROBLEM,
}


def describe(schema: dict[str, Any]) -> None:
    """Add `POST /v1/decisions`, and the answers of all routes, to an OpenAPI schema."""
    models = (
        *(DecisionIn, Receipt, Problem, HealthReport),
        *(OpenConnections, ClosedConnections, Expelled, NodeSummaries),
    )
    (decision, receipt, *_), components = msgspec.json.schema_components(
        models, ref_template="#/components/schemas/{name}"
    )
    schema.setdefault("components", {}).setdefault("schemas", {}).update(components)
    properties = components["DecisionIn"]["properties"]
    properties["timestamp"]["anyOf"] = [*time_in()["anyOf"], {"type": "null"}]
    whole = {
        "type": "integer",
        "minimum": 0,
        "maximum": MAX_TOKENS,
    }  # in a schema, 374.0 is one too
    for name in ("input_tokens", "output_tokens", "cached_tokens"):
        properties[name]["anyOf"] = [whole, {"type": "null"}]
    many = {"type": "array", "items": decision, "maxItems": MAX_BATCH}
    schema["paths"][DECISIONS] = {
        "post": {
            "tags": ["decisions"],
            "summary": "Send routing decisions",
            "description": "The answer comes after the commit: acknowledged means on disk. Valid "
            "decisions are stored, and invalid ones are listed in `rejected`. An optional field "
            "that does not fit its schema, except `timestamp`, is left out or changed, and listed "
            "in `warnings`. `Content-Encoding` may be gzip, x-gzip or zstd.",
            "requestBody": {
                "required": True,
                "content": {
                    "application/json": {"schema": {"anyOf": [decision, many]}},
                    "application/x-ndjson": {"schema": {"type": "string"}},
                },
            },
            "responses": {
                "200": {
                    "description": "Committed.",
                    "content": {"application/json": {"schema": receipt}},
                },
                "400": {"description": "Not JSON.", **PROBLEM},
                "403": {"description": "Sent by a page of a site that is not allowed.", **PROBLEM},
                "413": {"description": "Over 16 MiB, or over 50,000 decisions.", **PROBLEM},
                "415": {
                    "description": "A content coding other than gzip or zstd.",
                    **PROBLEM,
                },
                "422": {"description": "All decisions were rejected.", **PROBLEM},
                "503": {
                    "description": "The queue is full, or no database; see Retry-After.",
                    **PROBLEM,
                },
            },
        }
    }
    schema["components"]["securitySchemes"] = {"bearer": BEARER}
    for path, methods in schema["paths"].items():
        for name, method in methods.items():
            if path != DECISIONS:
                method["responses"].pop("422", None)  # FastAPI's, for texts that are always valid
            method["responses"]["421"] = {
                "description": "`Host` is not a name of this server; see ROUTECAST_ALLOWED_HOSTS.",
                **PROBLEM,
            }
            if (scope := SCOPE_OF_ROUTE.get((name.upper(), path))) is not None:
                _describe_access(method, scope)
            elif path in _VERIFYING_PATHS:
                method["responses"]["429"] = _OVER_LIMIT


def _describe_access(method: dict[str, Any], scope: str) -> None:
    """Add to an operation what it needs while authentication is on."""
    method["security"] = [{"bearer": [scope]}, {}]  # {}: none, while it is off
    responses = method["responses"]
    responses["401"] = {"description": "No credential, or one that is not valid.", **PROBLEM}
    lacking = f"The credential lacks the scope `{scope}`, or is for other projects."
    if "403" in responses:
        lacking = f"{responses['403']['description']} Or: {lacking[0].lower()}{lacking[1:]}"
    responses["403"] = {"description": lacking, **PROBLEM}
    responses["429"] = _OVER_LIMIT
    why = "The credential cannot be verified now; see Retry-After."
    held = responses.get("503", {"description": why, "content": {}})
    responses["503"] = {**held, "content": {**held["content"], **PROBLEM["content"]}}
