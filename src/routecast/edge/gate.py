"""The gate: ASGI middleware that every request passes before its route.

It finds the client's address, refuses requests with a bad `Host`, and adds two fields to every
answer. `X-Content-Type-Options: nosniff` keeps browsers from guessing its type.
`Cross-Origin-Resource-Policy: same-origin` keeps pages of other sites from embedding it; what they
fetch with CORS, as the JavaScript client and its streams, is not an embedding (WHATWG Fetch, 3.7).
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from routecast import audit
from routecast.core.request_trace import REQUEST_ID, read_request_id, trace_of
from routecast.core.sites import Sites
from routecast.edge.header_fields import read_fields
from routecast.edge.problem import NOSNIFF, respond_error
from routecast.edge.proxies import REMOTE, Proxies, limit_key_of
from routecast.edge.ws.asgi_route import refuse
from routecast.errors import RoutecastError, Unavailable

_NOT_EMBEDDED: Final = (b"cross-origin-resource-policy", b"same-origin")
_FORWARDED_FOR: Final = b"x-forwarded-for"
_FORWARDED_PROTO: Final = b"x-forwarded-proto"


class Gate:
    """ASGI middleware around the whole application.

    `route_of` returns the path as the router has it; "" for one that does not exist.

    Of a WebSocket it does not check which host `Host` names: `AdmissionControl` does, because most
    WebSockets do not pass here.
    """

    def __init__(
        self, app: ASGIApp, sites: Sites, proxies: Proxies, route_of: Callable[[str], str]
    ) -> None:
        self._app = app
        self._sites = sites
        self._proxies = proxies
        self._route_of_path = route_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        scope = self._with_client(scope)
        if audit.listens():
            route = self._route_of(scope)
            with audit.answering(trace_of(scope["headers"], limit_key_of(scope), route)):
                await self._answer(scope, receive, send)
        else:
            await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            fields = self._check_fields(scope)
        except RoutecastError as error:
            await refuse_request(error, scope, receive, send)
            return
        if _is_socket(scope):
            await self._app(scope, receive, send)
            return
        answer = _Answer(send, read_request_id(fields.get(REQUEST_ID)))
        try:
            await self._app(scope, receive, answer.send)
        except asyncio.CancelledError:
            # The server stops, and this request has taken too long.
            if not answer.started:
                stopping = Unavailable("shutting down", retry_after=5)
                await respond_error(stopping)(scope, receive, answer.send)

    def _check_fields(self, scope: Scope) -> dict[bytes, bytes]:
        """Return the fields of a request by name. Raises BadHead, Misdirected."""
        fields = read_fields(scope["headers"], scope["http_version"])
        host = fields.get(b"host")
        if host is not None and not _is_socket(scope):
            self._sites.require_known_host(host.decode("latin-1"))
        return fields

    def _route_of(self, scope: Scope) -> str:
        path: str = scope["path"]
        return self._route_of_path(path.removeprefix(scope.get("root_path", "")))

    def _with_client(self, scope: Scope) -> Scope:
        """Return the scope with the client's own address and scheme."""
        remote = str(scope["client"][0]) if scope.get("client") else ""
        changed: dict[str, Any] = {}
        address = self._proxies.client_of(remote, _values(scope, _FORWARDED_FOR))
        if address != remote:
            changed["client"] = (address, 0)
            changed[REMOTE] = remote
        scheme = self._proxies.scheme_of(remote, _values(scope, _FORWARDED_PROTO))
        if scheme is not None:
            plain = scheme.replace("ws", "http")
            changed["scheme"] = plain.replace("http", "ws") if _is_socket(scope) else plain
        return {**scope, **changed} if changed else scope


async def refuse_request(error: RoutecastError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request, or an upgrade, that may not reach its route."""
    if _is_socket(scope):
        await receive()  # websocket.connect
        await refuse(error, scope, receive, send)
    else:
        await respond_error(error)(scope, receive, _Answer(send).send)


def _is_socket(scope: Scope) -> bool:
    return bool(scope["type"] == "websocket")


def _values(scope: Scope, wanted: bytes) -> list[str]:
    headers: Iterable[tuple[bytes, bytes]] = scope["headers"]
    return [value.decode("latin-1") for name, value in headers if name == wanted]


class _Answer:
    """Sends an answer, and records whether it has started.

    The client gets the id of its request back if it sent one.
    """

    def __init__(self, send: Send, request_id: bytes | None = None) -> None:
        self._send = send
        self._request_id = request_id
        self.started = False

    async def send(self, message: Message) -> None:
        """Send a part of the answer, with `nosniff` and `same-origin` among its headers."""
        if message["type"] == "http.response.start":
            self.started = True
            headers = list(message.get("headers", ()))
            # Once each, also if a refusal passes here twice: browsers ignore a policy that has two
            # values.
            names = {name for name, _ in headers}
            headers += [each for each in (NOSNIFF, _NOT_EMBEDDED) if each[0] not in names]
            if self._request_id is not None:
                headers.append((REQUEST_ID, self._request_id))
            message = {**message, "headers": headers}
        await self._send(message)
