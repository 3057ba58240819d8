"""Cross-origin requests (CORS): a page that may open a stream may read all other answers too.

A browser hides an answer from a page of another site unless the answer names that site. Before it
sends JSON for such a page, it asks with a preflight request (WHATWG Fetch, 3.2). `core.sites`
decides which sites are allowed, for all routes.
"""

from http import HTTPStatus
from typing import Final, NamedTuple

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from routecast.core.sites import Sites
from routecast.edge.access import Access, is_secure
from routecast.edge.problem import respond_error
from routecast.errors import Forbidden

# How long a browser may remember a preflight's answer, in seconds. Chromium's maximum is two hours.
MAX_AGE: Final = 7_200
_VARY: Final = (b"vary", b"Origin")
_EXPOSE_HEADERS: Final = b"access-control-expose-headers"
_EXPOSED: Final = b"Retry-After"
_PREFLIGHT_HEADERS: Final = [
    # OPTIONS tells a page why an upgrade was refused: see `ws/upgrade_probe.py`.
    (b"access-control-allow-methods", b"GET, POST, OPTIONS"),
    (b"access-control-max-age", b"%d" % MAX_AGE),
    _VARY,
]
_ALLOW_HEADERS: Final = b"access-control-allow-headers"
_PREFLIGHT_FIELDS: Final = b"Content-Type, Content-Encoding, Last-Event-ID"


class Cors:
    """ASGI middleware that lets pages of allowed origins read what `app` answers."""

    def __init__(self, app: ASGIApp, sites: Sites, access: Access | None = None) -> None:
        self._app = app
        self._sites = sites
        self._access = access or Access()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (origin := (asked := origin_of(scope)).origin) is None:
            await self._app(scope, receive, send)
        elif _is_preflight(scope):
            await self._preflight(origin, asked)(scope, receive, send)
        elif self._sites.is_allowed_origin(*asked):
            await self._app(scope, receive, self._with_headers(send, origin))
        else:
            await self._app(scope, receive, send)

    def _preflight(self, origin: str, asked: "AskedBy") -> Response:
        try:
            self._sites.require_allowed_origin(*asked)
        except Forbidden as error:
            return respond_error(error)
        answer = Response(status_code=HTTPStatus.NO_CONTENT)
        fields = (
            _PREFLIGHT_FIELDS + b", Authorization" if self._access.required else _PREFLIGHT_FIELDS
        )
        answer.raw_headers = [_allow(origin), (_ALLOW_HEADERS, fields), *_PREFLIGHT_HEADERS]
        return answer

    def _with_headers(self, send: Send, origin: str) -> Send:
        exposed = _EXPOSED + b", WWW-Authenticate" if self._access.required else _EXPOSED
        more = [_allow(origin), (_EXPOSE_HEADERS, exposed), _VARY]

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *more]}
            await send(message)

        return send_with_headers


class AskedBy(NamedTuple):
    """Which page sent a request, and how it names this server."""

    origin: str | None
    host: str | None
    scheme: str  # http or https


def origin_of(scope: Scope) -> AskedBy:
    """Return the headers `Origin` and `Host` of a request, None for a missing one; its scheme."""
    origin = host = None
    for name, value in scope["headers"]:
        if name == b"origin":
            origin = value.decode("latin-1")
        elif name == b"host":
            host = value.decode("latin-1")
    return AskedBy(origin, host, "https" if is_secure(scope) else "http")


def _is_preflight(scope: Scope) -> bool:
    return scope["method"] == "OPTIONS" and any(
        name == b"access-control-request-method" for name, _ in scope["headers"]
    )


def _allow(origin: str) -> tuple[bytes, bytes]:
    return b"access-control-allow-origin", origin.encode("latin-1")
