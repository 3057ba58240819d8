"""`GET /v1/history`: the sums of a range of time, in buckets."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from routecast.core.access import restrict_history
from routecast.core.decision import SECOND
from routecast.core.history import (
    DEFAULT_HISTORY_FIELDS,
    DEFAULT_POINTS,
    GROUPS,
    HISTORY_FIELDS,
    LATEST,
    HistoryQuery,
    parse_history,
)
from routecast.core.time_series import MANY_VALUES, HistoryResponse
from routecast.edge.access import principal_of
from routecast.edge.openapi import PROBLEM, names_parameter
from routecast.edge.proxies import limit_key_of
from routecast.edge.schemas import time_in
from routecast.protocol import MAX_POINTS
from routecast.streaming.history_limits import HistoryLimits

_encode: Final = msgspec.json.Encoder().encode


# An answer is sent in pieces of this size, in bytes, so that a slow client delays the next piece.
ANSWER_PIECE: Final = 65_536

_Answers = Callable[[HistoryQuery], Awaitable[HistoryResponse]]


def history_router(answer: _Answers, limits: HistoryLimits | None = None) -> APIRouter:
    """Return the router of `GET /v1/history`."""
    limits = limits or HistoryLimits()
    router = APIRouter(tags=["metrics"])

    @router.get(
        "/v1/history",
        summary="The past in buckets of equal length",
        description="Buckets begin at whole minutes, hours or days in UTC. A bucket without "
        "decisions is included. The last bucket may not be over yet.",
        response_class=Response,
        openapi_extra={"parameters": HISTORY_QUERY, "responses": _RESPONSES},
    )
    async def history(request: Request) -> Response:
        query = parse_history(request.scope["query_string"])
        query = restrict_history(query, principal_of(request.scope).projects)
        return _HistoryAnswer(query, answer, limits)

    return router


class _HistoryAnswer(Response):
    """An answer that counts towards the limits until its client has read it."""

    def __init__(self, query: HistoryQuery, answer: _Answers, limits: HistoryLimits) -> None:
        super().__init__(headers={"Cache-Control": "no-store"}, media_type="application/json")
        self._query = query
        self._answer = answer
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._limits.enter(limit_key_of(scope), self._query):
            found = await self._answer(self._query)
            document = found.document()
            large = found.values > MANY_VALUES
            body = await asyncio.to_thread(_encode, document) if large else _encode(document)
            del found, document
            self.headers["Content-Length"] = str(len(body))
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            for first in range(0, max(1, len(body)), ANSWER_PIECE):
                piece, more = body[first : first + ANSWER_PIECE], first + ANSWER_PIECE < len(body)
                await send({"type": "http.response.body", "body": piece, "more_body": more})


# -- OpenAPI ------------------------------------------------------------------------------------


def _moment(name: str, description: str) -> dict[str, Any]:
    return {
        "name": name,
        "in": "query",
        "schema": time_in(LATEST // SECOND),
        "description": f"{description} RFC 3339 with an offset, or Unix seconds.",
    }


HISTORY_QUERY: Final[list[dict[str, Any]]] = [
    _moment(
        "from",
        "Start of the range, before `to`. Default: about an hour before `to`.",
    ),
    _moment("to", "End of the range, exclusive. Default: now."),
    {
        "name": "points",
        "in": "query",
        "schema": {
            "type": "integer",
            "minimum": 1,
            "maximum": MAX_POINTS,
            "default": DEFAULT_POINTS,
        },
        "description": "Maximum number of buckets.",
    },
    {
        "name": "group_by",
        "in": "query",
        "schema": {"enum": list(GROUPS)},
        "description": "One series for each of its values. Default: one series of all decisions.",
    },
    {
        "name": "fields",
        "in": "query",
        "schema": {
            "type": "array",
            "items": {"enum": list(HISTORY_FIELDS)},
            "minItems": 1,
            "default": list(DEFAULT_HISTORY_FIELDS),
        },
        "explode": False,
        "description": "Separated by commas: the columns of each series.",
    },
    *(names_parameter(name) for name in ("strategy", "provider", "model", "project")),
]

_POSITION: Final = {
    "type": "object",
    "properties": {"epoch": {"type": "string"}, "seq": {"type": "integer"}},
    "required": ["epoch", "seq"],
}
_COLUMN: Final = {"type": "array", "items": {"type": ["number", "null"]}}
_ANSWER: Final = {
    "type": "object",
    "properties": {
        "position": _POSITION,
        "step": {"type": "integer", "description": "The length of a bucket in seconds."},
        "from": {"type": "string", "format": "date-time"},
        "points": {"type": "integer", "description": "Number of buckets."},
        "series": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "key": {"type": "string"},
                    **dict.fromkeys(HISTORY_FIELDS, _COLUMN),
                },
                "required": ["key"],
            },
        },
    },
    "required": ["position", "step", "from", "points", "series"],
}
_RESPONSES: Final = {
    "200": {
        "description": "The buckets. A value is null if its bucket has nothing to compute it from.",
        "content": {"application/json": {"schema": _ANSWER}},
    },
    "400": {"description": "A parameter is invalid; `parameter` names it.", **PROBLEM},
    "503": {
        "description": "No database, or too many histories at once; see Retry-After.",
        **PROBLEM,
    },
}
