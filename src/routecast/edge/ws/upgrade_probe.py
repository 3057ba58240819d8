"""Plain HTTP at the stream's path: tells whether an upgrade would be accepted, and if not, why.

A browser does not tell a page why an upgrade was refused, so the page asks here. It uses OPTIONS
because a browser then sends the page's origin even to the page's own site; with GET it does not.
"""

from http import HTTPStatus

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from routecast.edge.access import principal_of
from routecast.edge.admission import AdmissionControl
from routecast.edge.problem import respond, respond_error
from routecast.errors import RoutecastError
from routecast.protocol import Problem

METHODS = ("GET", "OPTIONS")


class UpgradeProbe:
    """The ASGI application behind `/ws/metrics` for requests that are not upgrades.

    It answers with the error that an upgrade would get now; if there is none, with 204 to OPTIONS
    and 426 to GET.
    """

    def __init__(self, admission: AdmissionControl) -> None:
        self._admission = admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._answer(scope)(scope, receive, send)

    def _answer(self, scope: Scope) -> Response:
        try:
            _, address = self._admission.admit_scope(scope, is_default=False, probe=True)
        except RoutecastError as error:
            return respond_error(error)
        self._admission.release(address, principal_of(scope))
        if scope["method"] == "OPTIONS":
            return Response(
                status_code=HTTPStatus.NO_CONTENT, headers={"Allow": ", ".join(METHODS)}
            )
        status = HTTPStatus.UPGRADE_REQUIRED
        detail = "this path is a WebSocket: use a ws:// address, and let proxies pass the upgrade"
        headers = {"Upgrade": "websocket", "Connection": "Upgrade"}
        return respond(Problem(title=status.phrase, status=status, detail=detail), headers)
