"""Plain HTTP at the stream's own path: would an upgrade be let in now, and if not, why?

A browser tells a page nothing of an upgrade that was refused, so the page asks here. It asks with
OPTIONS, for which, unlike GET, a browser names the page's origin to the page's own site, too.
"""

from http import HTTPStatus

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from routecast.edge.admission import AdmissionControl
from routecast.edge.problem import respond, respond_error
from routecast.errors import RoutecastError
from routecast.protocol import Problem

METHODS = ("GET", "OPTIONS")


class UpgradeProbe:
    """The ASGI application behind `/ws/metrics` for requests that are no upgrade.

    Answers as the door would; 204 (to OPTIONS) or 426 (to GET) where it would let them in.
    """

    def __init__(self, door: AdmissionControl) -> None:
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._answer(scope)(scope, receive, send)

    def _answer(self, scope: Scope) -> Response:
        try:
            _, address = self._door.open_scope(scope)
        except RoutecastError as error:
            return respond_error(error)
        self._door.leave(address)
        if scope["method"] == "OPTIONS":
            return Response(
                status_code=HTTPStatus.NO_CONTENT, headers={"Allow": ", ".join(METHODS)}
            )
        status = HTTPStatus.UPGRADE_REQUIRED
        detail = "a stream is here, over WebSocket: use a ws:// address, and upgrades in a proxy"
        headers = {"Upgrade": "websocket", "Connection": "Upgrade"}
        return respond(Problem(title=status.phrase, status=status, detail=detail), headers)
