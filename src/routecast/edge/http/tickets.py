"""`POST /v1/tickets`: a ticket that opens one stream, for clients that can only give an address.

It is for `EventSource`, which adds no fields to its request.
"""

from typing import Any, Final

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from routecast.core.tickets_and_sessions import TICKET_SECONDS
from routecast.edge.access import principal_of
from routecast.edge.proxies import limit_key_of
from routecast.services.tickets import Tickets

TICKETS: Final = "/v1/tickets"
_TICKET: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "ticket": {"type": "string"},
        "expires_in": {"type": "integer", "description": "Seconds."},
    },
    "required": ["ticket", "expires_in"],
}
_TICKET_RESPONSES: Final = {
    "200": {
        "description": "The ticket.",
        "content": {"application/json": {"schema": _TICKET}},
    },
}


def tickets_router(tickets: Tickets) -> APIRouter:
    """Return the router of tickets."""
    router = APIRouter(tags=["streams"])

    @router.post(
        TICKETS,
        summary="Make a ticket for one stream",
        description="It is used as `?ticket=` of `/sse/metrics` or `/ws/metrics`: once, within "
        f"{TICKET_SECONDS} seconds, and from the same address. It allows what the credential of "
        "this request does. While authentication is off, it is not needed and changes nothing.",
        response_class=Response,
        openapi_extra={"responses": _TICKET_RESPONSES},
    )
    async def make_ticket(request: Request) -> Response:
        ticket = await tickets.make(principal_of(request.scope), limit_key_of(request.scope))
        body = msgspec.json.encode({"ticket": ticket, "expires_in": TICKET_SECONDS})
        headers = {"Cache-Control": "no-store"}
        return Response(body, headers=headers, media_type="application/json")

    return router
