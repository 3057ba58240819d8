"""HTTP: `POST /v1/decisions` and `GET /routing/metrics`.

Taking decisions in is a hot path: it is plain ASGI, reads the raw body and decodes it with
msgspec; `describe` tells OpenAPI what it takes.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from typing import Any, Final, NamedTuple

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from routecast.core.decision import Decision, Rules
from routecast.core.decode import Broken, decode
from routecast.core.frame import Frame
from routecast.core.session import check_origin, open_session
from routecast.core.texts import is_allowed
from routecast.core.view import View
from routecast.edge.body import BodyReader, ClientGone
from routecast.edge.cors import origin_of
from routecast.edge.problem import respond, respond_crash, respond_error
from routecast.edge.schemas import FAILURE, METRICS
from routecast.errors import Invalid, RoutecastError
from routecast.ingest import Pending
from routecast.instruments import Instruments
from routecast.ports import Clock
from routecast.protocol import (
    BANDS,
    EXTRA_FIELDS,
    FIELDS,
    MAX_REJECTIONS_LISTED,
    WINDOWS,
    DecisionIn,
    Health,
    Position,
    Problem,
    Receipt,
    Rejection,
)

# Between so many decisions of a large batch, others get a turn on the event loop.
SLICE: Final = 2_000

DECISIONS: Final = "/v1/decisions"

log = logging.getLogger(__name__)

_encode: Final = msgspec.json.Encoder().encode
_JSON: Final = (b"content-type", b"application/json")


class Batch(NamedTuple):
    """What a body came to: the decisions to keep, and what is wrong with the others."""

    decisions: list[Decision]
    rejected: list[Rejection]


class Decisions:
    """What becomes of decisions sent over HTTP; and the ASGI application that takes them."""

    def __init__(
        self,
        submit: Callable[[Sequence[Decision]], Pending],
        rules: Rules,
        clock: Clock,
        instruments: Instruments,
        allowed_origins: frozenset[str],
    ) -> None:
        self._submit = submit
        self._rules = rules
        self._clock = clock
        self._allowed = allowed_origins
        self.bodies = BodyReader()
        outcome = instruments.decisions.labels
        self._accepted = outcome("accepted")
        self._duplicate = outcome("duplicate")
        self._rejected = outcome("rejected")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            answer = await self._take(scope, receive)
        except ClientGone:
            return
        except Exception as error:
            await refusal(error)(scope, receive, send)
            return
        if isinstance(answer, Problem):
            await respond(answer)(scope, receive, send)
            return
        body = _encode(answer)
        length = (b"content-length", b"%d" % len(body))
        await send({"type": "http.response.start", "status": 200, "headers": [_JSON, length]})
        await send({"type": "http.response.body", "body": body})

    async def _take(self, scope: Scope, receive: Receive) -> Receipt | Problem:
        check_origin(*origin_of(scope), self._allowed)
        headers = dict(scope["headers"])
        lines = is_lines(headers.get(b"content-type", b""))
        async with self.bodies.read(scope, receive) as body:
            sent = decode(body, lines=lines)
            batch = Batch([], [])
            for first in range(0, len(sent), SLICE):
                if first:
                    await asyncio.sleep(0)
                self._sort(sent[first : first + SLICE], first, batch)
        pending = self.keep(batch)
        return self.receipt(batch, await pending) if pending else self.all_bad(batch)

    def read(self, body: bytes, *, lines: bool) -> Batch:
        """Return what a small body came to. Raises BadBody and TooLarge."""
        batch = Batch([], [])
        self._sort(decode(body, lines=lines), 0, batch)
        return batch

    def _sort(self, sent: Sequence[DecisionIn | Broken], first: int, batch: Batch) -> None:
        now, normalise = self._clock.now(), self._rules.normalise
        for index, item in enumerate(sent, first):
            if isinstance(item, Broken):
                batch.rejected.append(Rejection(index, item.error, item.id or msgspec.UNSET))
                continue
            try:
                batch.decisions.append(normalise(item, now))
            except Invalid as error:
                named = item.id if item.id and is_allowed(item.id) else msgspec.UNSET
                batch.rejected.append(Rejection(index, str(error), named))

    def keep(self, batch: Batch) -> Pending | None:
        """Have the good ones committed; None where all are bad. Raises Unavailable."""
        if batch.rejected:
            self._rejected.inc(len(batch.rejected))
            if not batch.decisions:
                return None
        return self._submit(batch.decisions)

    def receipt(self, batch: Batch, committed: tuple[int, Position]) -> Receipt:
        """Return the answer once the good ones are committed."""
        accepted, position = committed
        duplicates = len(batch.decisions) - accepted
        self._accepted.inc(accepted)
        if duplicates:
            self._duplicate.inc(duplicates)
        listed = batch.rejected[:MAX_REJECTIONS_LISTED]
        return Receipt(accepted, duplicates, listed, len(batch.rejected), position)

    @staticmethod
    def all_bad(batch: Batch) -> Problem:
        """Return the answer where there is nothing to commit."""
        status = HTTPStatus.UNPROCESSABLE_ENTITY
        first = batch.rejected[0]
        return Problem(
            title=status.phrase,
            status=status,
            detail=f"no decision was accepted; the first (index {first.index}): {first.error}",
            accepted=0,
            duplicates=0,
            rejected=batch.rejected[:MAX_REJECTIONS_LISTED],
            rejected_count=len(batch.rejected),
        )


def is_lines(content_type: bytes) -> bool:
    """Whether a body of this type is one decision a line."""
    kind = content_type.lower()
    return b"ndjson" in kind or b"jsonl" in kind


def refusal(error: BaseException) -> Response:
    """Return the response to a request that failed, whosever fault it is."""
    if isinstance(error, RoutecastError):
        return respond_error(error)
    log.error("A request failed for a reason not foreseen", exc_info=error)
    return respond_crash()


def metrics_router(frame: Callable[[View], Awaitable[Frame]]) -> APIRouter:
    """Return the router of `GET /routing/metrics`."""
    router = APIRouter(tags=["metrics"])

    @router.get(
        "/routing/metrics",
        summary="The metrics document, once",
        response_class=Response,
        openapi_extra={"parameters": QUERY, "responses": _RESPONSES},
    )
    async def routing_metrics(request: Request) -> Response:
        session = open_session(request.scope["query_string"])
        newest = await frame(session.subscription.view)
        # The error document of a stream, with a status that says the same.
        status = HTTPStatus.OK if newest.source else HTTPStatus.SERVICE_UNAVAILABLE
        headers = {"Cache-Control": "no-store"}
        if newest.source is None:
            headers["Retry-After"] = "1"
        return Response(newest.body, status, headers, media_type="application/json")

    return router


# -- OpenAPI ------------------------------------------------------------------------------------


def names_parameter(name: str) -> dict[str, Any]:
    """Return what OpenAPI says of a filter."""
    return {
        "name": name,
        "in": "query",
        "schema": {"type": "array", "items": {"type": "string", "maxLength": 128}},
        "description": f"Only decisions of this {name}; repeatable: any of them.",
    }


QUERY: Final[list[dict[str, Any]]] = [
    {
        "name": "fields",
        "in": "query",
        "schema": {"type": "array", "items": {"enum": list(FIELDS)}},
        "explode": False,
        "description": f"A comma list; beyond the default: {', '.join(EXTRA_FIELDS)}.",
    },
    *(names_parameter(name) for name in ("strategy", "provider", "model", "project")),
    {
        "name": "interval",
        "in": "query",
        "schema": {"type": "number", "minimum": 0.1, "maximum": 60, "default": 5},
        "description": "Seconds between frames; of streams, and checked here all the same.",
    },
    {
        "name": "window",
        "in": "query",
        "schema": {"enum": list(WINDOWS), "default": "all"},
        "description": "How far back. Windows slide by the minute.",
    },
]

_PROBLEM: Final = {
    "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
}
_RESPONSES: Final = {
    "200": {
        "description": f"The document; bands are {', '.join(BANDS)}.",
        "content": {"application/json": {"schema": METRICS}},
    },
    "400": {"description": "A parameter is wrong; `parameter` names it.", **_PROBLEM},
    "503": {
        "description": "No source can answer; see Retry-After.",
        "content": {"application/json": {"schema": FAILURE}},
    },
}


def describe(schema: dict[str, Any]) -> None:
    """Add `POST /v1/decisions`, and the answers of all routes, to an OpenAPI schema."""
    models = (DecisionIn, Receipt, Problem, Health)
    (decision, receipt, *_), components = msgspec.json.schema_components(
        models, ref_template="#/components/schemas/{name}"
    )
    schema.setdefault("components", {}).setdefault("schemas", {}).update(components)
    schema["paths"][DECISIONS] = {
        "post": {
            "tags": ["decisions"],
            "summary": "Send routing decisions",
            "description": "Answered after the commit: acknowledged means on disk. Good decisions "
            "are kept and bad ones named. `Content-Encoding` may be gzip or zstd.",
            "requestBody": {
                "required": True,
                "content": {
                    "application/json": {
                        "schema": {"anyOf": [decision, {"type": "array", "items": decision}]}
                    },
                    "application/x-ndjson": {"schema": {"type": "string"}},
                },
            },
            "responses": {
                "200": {
                    "description": "Committed.",
                    "content": {"application/json": {"schema": receipt}},
                },
                "400": {"description": "Not JSON.", **_PROBLEM},
                "403": {"description": "Sent by a page of another site.", **_PROBLEM},
                "413": {"description": "Over 16 MiB, or over 50,000 decisions.", **_PROBLEM},
                "415": {"description": "A content coding other than gzip or zstd.", **_PROBLEM},
                "422": {"description": "No decision was good.", **_PROBLEM},
                "503": {"description": "No room or no database; see Retry-After.", **_PROBLEM},
            },
        }
    }
