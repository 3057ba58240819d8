"""`GET /routing/metrics`: the document of a view, once."""

from collections.abc import Awaitable, Callable
from http import HTTPStatus

from fastapi import APIRouter, Request
from starlette.responses import Response

from routecast.core.default_session import open_session
from routecast.core.document import EncodedDocument
from routecast.core.view import View
from routecast.edge.access import principal_of
from routecast.edge.openapi import METRICS_QUERY, METRICS_RESPONSES
from routecast.edge.proxies import limit_key_of


def metrics_router(
    encoded_document: Callable[[View, str], Awaitable[EncodedDocument]],
) -> APIRouter:
    """Return the router of `GET /routing/metrics`."""
    router = APIRouter(tags=["metrics"])

    @router.get(
        "/routing/metrics",
        summary="The metrics document, once",
        response_class=Response,
        openapi_extra={"parameters": METRICS_QUERY, "responses": METRICS_RESPONSES},
    )
    async def routing_metrics(request: Request) -> Response:
        projects = principal_of(request.scope).projects
        session = open_session(request.scope["query_string"], projects=projects)
        client = limit_key_of(request.scope)
        newest = await encoded_document(session.subscription.view, client)
        # If there is no document, the body is the stream's error document.
        status = HTTPStatus.OK if newest.source else HTTPStatus.SERVICE_UNAVAILABLE
        headers = {"Cache-Control": "no-store"}
        if newest.source is None:
            headers["Retry-After"] = "1"
        return Response(newest.body, status, headers, media_type="application/json")

    return router
