"""`GET /asyncapi.json`: the streams as an AsyncAPI 3 document, made from the message types."""

from typing import Any, Final, get_args

import msgspec
from fastapi import APIRouter
from starlette.responses import Response

from routecast.core.history import DEFAULT_POINTS, GROUPS, HISTORY_FIELDS
from routecast.core.view import VIEW_PARAMETERS
from routecast.edge.access import BEARER_PROTOCOL
from routecast.edge.openapi import BEARER
from routecast.edge.schemas import DOCUMENT, FAILURE, METRICS
from routecast.protocol import (
    FIELDS,
    SUBPROTOCOLS,
    V1,
    ClientMessage,
    ServerMessage,
)

_REF: Final = "#/components/schemas/{name}"


def asyncapi(version: str) -> dict[str, Any]:
    """Return the document. `version` is Routecast's own."""
    kinds = {side: get_args(union) for side, union in _SIDES.items()}
    _, schemas = msgspec.json.schema_components(
        [kind for side in kinds.values() for kind in side], ref_template=_REF
    )
    schemas |= {"Document": DOCUMENT, "Metrics": METRICS, "Failure": FAILURE}
    schemas["SnapshotOut"]["properties"]["data"] = {"$ref": _REF.format(name="Document")}
    _list_valid_names(schemas)
    names = {side: [kind.__name__ for kind in kinds[side]] for side in kinds}
    documents = ["Metrics", "Failure"]
    every = [*names["receive"], *names["send"], *documents]
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Routecast",
            "version": version,
            "description": "Live, exact metrics of LLM routing decisions. docs/protocol.md "
            "explains the messages.",
        },
        "defaultContentType": "application/json",
        "channels": {
            "default": _channel(
                "/ws/metrics",
                documents,
                "Whole documents, for clients that request no subprotocol.",
            ),
            V1: _channel(
                "/ws/metrics",
                names["receive"] + names["send"],
                f"Subscriptions, by the subprotocol {' or '.join(SUBPROTOCOLS)}.",
            ),
            "events": _channel(
                "/sse/metrics", documents, "Whole documents, as server-sent events."
            ),
        },
        "operations": {
            "follow": _operation("send", "default", documents),
            "listen": _operation("send", "events", documents),
            **{side: _operation(side, V1, names[side]) for side in names},
        },
        "components": {
            "messages": {
                name: {"name": name, "payload": {"$ref": _REF.format(name=name)}} for name in every
            },
            "schemas": schemas,
            "securitySchemes": {
                "bearer": {
                    **BEARER,
                    "description": f"{BEARER['description']} A page sends it as the subprotocol "
                    f"`{BEARER_PROTOCOL.decode()}` and the credential in base64url, beside one of "
                    f"{' and '.join(SUBPROTOCOLS)}; the server answers with the latter only.",
                }
            },
        },
    }


# What the server receives, and what it sends.
_SIDES: Final = {"receive": ClientMessage, "send": ServerMessage}


def _list_valid_names(schemas: dict[str, Any]) -> None:
    """List the valid values of `fields` and `group_by`; the message types do not have them."""
    for kind, fields in (("Subscribe", FIELDS), ("GetHistory", tuple(HISTORY_FIELDS))):
        schemas[kind]["properties"]["fields"]["anyOf"][0]["items"] = {"enum": list(fields)}
    history = schemas["GetHistory"]["properties"]
    history["group_by"]["anyOf"][0] = {"enum": list(GROUPS)}
    history["points"]["description"] = f"Default: {DEFAULT_POINTS}."


def _channel(address: str, messages: list[str], description: str) -> dict[str, Any]:
    query = {"type": "object", "properties": {name: {"type": "string"} for name in VIEW_PARAMETERS}}
    binding = {"ws": {"method": "GET", "query": query}} if address.startswith("/ws") else {}
    return {
        "address": address,
        "description": description,
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
        **({"bindings": binding} if binding else {}),
    }


def _operation(action: str, channel: str, messages: list[str]) -> dict[str, Any]:
    ref = f"#/channels/{channel}"
    return {
        "action": action,
        "channel": {"$ref": ref},
        "security": [{"$ref": "#/components/securitySchemes/bearer"}],
        "messages": [{"$ref": f"{ref}/messages/{name}"} for name in messages],
    }


def asyncapi_router(version: str) -> APIRouter:
    """Return the router of `GET /asyncapi.json`."""
    router = APIRouter(include_in_schema=False)
    body = msgspec.json.encode(asyncapi(version))

    @router.get("/asyncapi.json")
    async def get_asyncapi() -> Response:
        return Response(body, media_type="application/json")

    return router
