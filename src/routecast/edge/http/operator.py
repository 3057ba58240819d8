"""The operator's view: `GET /v1/admin/connections`, `DELETE` of one of them, `GET /v1/admin/nodes`.

They need the scope `admin` (`core/access.py`).
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from http import HTTPStatus
from typing import Any, Final, get_args

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from routecast import audit
from routecast.core.connections_query import (
    MAX_SEARCH,
    ConnectionsQuery,
    parse_connections_query,
)
from routecast.core.sites import Sites
from routecast.core.view import only, read_parameters
from routecast.edge.access import principal_of
from routecast.edge.cors import origin_of
from routecast.edge.openapi import PROBLEM
from routecast.edge.proxies import limit_key, read_address
from routecast.errors import BadParameter
from routecast.protocol import (
    DEFAULT_PAGE,
    MAX_PAGE,
    STREAM_PROTOCOLS,
    ConnectionOrder,
    NodeSummaries,
)
from routecast.streaming.cluster_view import ClusterView

CONNECTIONS: Final = "/v1/admin/connections"
NODES: Final = "/v1/admin/nodes"
_RECONNECT: Final = "reconnect"
_SUBJECT: Final = "subject"


def operator_router(
    view: ClusterView, nodes: Callable[[], Awaitable[NodeSummaries]], sites: Sites
) -> APIRouter:
    """Return the router of the operator's view."""
    router = APIRouter(tags=["operations"])

    @router.get(
        CONNECTIONS,
        summary="The connections of all nodes",
        description="A page of the open streams, or with `closed=true` of those that were closed "
        "last. A page may have fewer connections than `limit`; the last one has no `next`. "
        "`missing` names the nodes that did not answer.",
        response_class=Response,
        openapi_extra={"parameters": _CONNECTIONS_QUERY, "responses": _CONNECTIONS_RESPONSES},
    )
    async def get_connections(request: Request) -> Response:
        query = _with_limit_key(parse_connections_query(request.scope["query_string"]))
        return _json(await view.closed(query) if query.closed else await view.opened(query))

    @router.delete(
        f"{CONNECTIONS}/{{identity}}",
        status_code=HTTPStatus.NO_CONTENT,
        summary="Disconnect a client",
        description="Closes the stream with 4403, after which clients do not reconnect; or, with "
        "`reconnect=true`, with 1012 and a time to reconnect after.",
        response_class=Response,
        openapi_extra={"parameters": _DISCONNECT_QUERY, "responses": _DISCONNECT_RESPONSES},
    )
    async def disconnect(request: Request) -> Response:
        # A page of another site may not write.
        sites.require_allowed_origin(*origin_of(request.scope))
        may_return = _may_return(request.scope["query_string"])
        identity: str = request.path_params["identity"]
        await view.expel(identity, may_return=may_return)
        _audit(request, connection=identity, may_return=may_return)
        return Response(status_code=HTTPStatus.NO_CONTENT)

    @router.delete(
        CONNECTIONS,
        summary="Disconnect all clients of a subject",
        description="As for one client, on all nodes.",
        response_class=Response,
        openapi_extra={"parameters": _EXPEL_QUERY, "responses": _EXPEL_RESPONSES},
    )
    async def disconnect_all(request: Request) -> Response:
        sites.require_allowed_origin(*origin_of(request.scope))
        query = request.scope["query_string"]
        given = read_parameters(query, (_SUBJECT, _RECONNECT))
        subject = only(_SUBJECT, given) if _SUBJECT in given else ""
        if not subject:  # the subject of all clients, while authentication is off
            raise BadParameter(_SUBJECT, "is required")
        may_return = _read_reconnect(given)
        expelled = await view.expel_all(subject, may_return=may_return)
        _audit(request, target=subject, count=expelled.closed, may_return=may_return)
        return _json(expelled)

    @router.get(
        NODES,
        summary="All nodes of the cluster",
        description="The summary of the node that answers is of this moment; those of others are "
        "one or two seconds old. A node that is gone disappears after at most 15 s.",
        response_class=Response,
        openapi_extra={"responses": _NODES_RESPONSES},
    )
    async def get_nodes() -> Response:
        return _json(await nodes())

    return router


def _audit(request: Request, **fields: Any) -> None:
    audit.record(
        "expel",
        "An operator disconnects clients",
        **fields,
        **audit.holder(principal_of(request.scope)),
        **audit.trace_fields(),
    )


def _json(answer: msgspec.Struct) -> Response:
    body = msgspec.json.encode(answer)
    return Response(body, headers={"Cache-Control": "no-store"}, media_type="application/json")


def _with_limit_key(query: ConnectionsQuery) -> ConnectionsQuery:
    """Return a query whose address is as connections have it: of IPv6 its /64."""
    address = query.address and read_address(query.address)
    return replace(query, address=limit_key(address)) if address else query


def _may_return(query: bytes) -> bool:
    return _read_reconnect(read_parameters(query, (_RECONNECT,)))


def _read_reconnect(given: Mapping[str, list[str]]) -> bool:
    value = only(_RECONNECT, given) if _RECONNECT in given else "false"
    if value not in ("true", "false"):
        raise BadParameter(_RECONNECT, "must be true or false")
    return value == "true"


# -- OpenAPI ------------------------------------------------------------------------------------


def _parameter(name: str, description: str, **schema: Any) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": schema, "description": description}


def _answer(description: str, *names: str) -> dict[str, Any]:
    # `openapi.describe` adds the schemas.
    schemas = [{"$ref": f"#/components/schemas/{name}"} for name in names]
    schema = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
    return {"description": description, "content": {"application/json": {"schema": schema}}}


_BAD_PARAMETER: Final = {
    "description": "A parameter is invalid; `parameter` names it.",
    **PROBLEM,
}
_BOOLEAN: Final[dict[str, Any]] = {"enum": ["true", "false"], "default": "false"}
_CONNECTIONS_QUERY: Final[list[dict[str, Any]]] = [
    _parameter("subject", "Only connections with credentials of this subject.", type="string"),
    _parameter(
        "address", "Only connections from this address; of IPv6, from its /64.", type="string"
    ),
    _parameter("protocol", "Only connections of this protocol.", enum=list(STREAM_PROTOCOLS)),
    _parameter("id", "Only the connection with this id.", type="string"),
    _parameter("node", "Only connections of the node with this name.", type="string"),
    _parameter(
        "search",
        "Only connections with this text, in any case, in their id, subject, credential, address "
        "or client.",
        type="string",
        maxLength=MAX_SEARCH,
    ),
    _parameter("code", "Only connections closed with this code.", type="integer"),
    _parameter(
        "sort",
        "`start`: the first one first; `newest`: the last one first. `bytes`, `lag`, "
        "`round_trip`: the largest first. Closed connections are "
        "sorted by their end, the last one first.",
        enum=list(get_args(ConnectionOrder)),
        default="start",
    ),
    _parameter(
        "limit",
        "Maximum number of connections on the page.",
        type="integer",
        minimum=1,
        maximum=MAX_PAGE,
        default=DEFAULT_PAGE,
    ),
    _parameter("after", "`next` of the page before this one.", type="string"),
    _parameter("closed", "The last closed connections instead of the open ones.", **_BOOLEAN),
]
_CONNECTIONS_RESPONSES: Final = {
    "200": _answer("The page.", "OpenConnections", "ClosedConnections"),
    "400": _BAD_PARAMETER,
}
_RECONNECT_PARAMETER: Final = _parameter(
    _RECONNECT, "Whether the client may reconnect, after a while.", **_BOOLEAN
)
_DISCONNECT_QUERY: Final[list[dict[str, Any]]] = [
    {
        "name": "identity",
        "in": "path",
        "required": True,
        "schema": {"type": "string"},
        "description": "The `id` of the connection.",
    },
    _RECONNECT_PARAMETER,
]
_DISCONNECT_RESPONSES: Final = {
    "204": {"description": "The stream is being closed."},
    "400": _BAD_PARAMETER,
    "403": {"description": "Sent by a page of a site that is not allowed.", **PROBLEM},
    "404": {"description": "No node has an open connection with this id.", **PROBLEM},
    "503": {"description": "It may be on a node that does not answer.", **PROBLEM},
}
_EXPEL_QUERY: Final[list[dict[str, Any]]] = [
    {
        **_parameter(_SUBJECT, "Whose streams are closed.", type="string", minLength=1),
        "required": True,
    },
    _RECONNECT_PARAMETER,
]
_EXPEL_RESPONSES: Final = {
    "200": _answer("The number of streams that are being closed.", "Expelled"),
    "400": _BAD_PARAMETER,
    "403": _DISCONNECT_RESPONSES["403"],
}
_NODES_RESPONSES: Final = {"200": _answer("The summaries.", "NodeSummaries")}
