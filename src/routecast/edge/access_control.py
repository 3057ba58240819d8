"""Access control: ASGI middleware that lets a request pass to its route, if its client may.

It stands behind CORS, so that pages of allowed sites can read why they were refused.
"""

import re
from typing import Final

from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as AsgiScope

from routecast.core.access import NOBODY, SCOPE_OF_ROUTE, Principal, require_scope
from routecast.edge.access import (
    Access,
    read_query,
    route_path,
    with_principal,
    without_ticket,
)
from routecast.edge.gate import refuse_request
from routecast.edge.proxies import limit_key_of
from routecast.errors import (
    BadCredential,
    BadHead,
    Forbidden,
    NotFound,
    OverLimit,
    RoutecastError,
    Unavailable,
)


def _pattern(path: str) -> re.Pattern[str]:
    """Return what the router compares with, for a path that has parameters in braces."""
    parts = re.split(r"(\{\w+(?::path)?\})", path)
    return re.compile("".join(map(_form, parts)), re.DOTALL)


def _form(part: str) -> str:
    if not part.startswith("{"):
        return re.escape(part)
    return ".*" if part.endswith(":path}") else "[^/]+"


_PATHS: Final = frozenset(path for _, path in SCOPE_OF_ROUTE)
# Open routes that tell some clients more than others. The others look at no credential.
_TELLS_MORE: Final = frozenset({"/health", "/ready"})
_PATTERNS: Final = {path: _pattern(path) for path in sorted(_PATHS) if "{" in path}


class AccessControl:
    """ASGI middleware that finds whose request it is, and refuses it without the route's scope.

    A path that is not in SCOPE_OF_ROUTE is answered here: no route can be forgotten there, or be
    reached by another spelling of its path.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        if self._access.required and scope["type"] in ("http", "websocket"):
            try:
                scope = with_principal(scope, await self._let_in(scope))
                scope["query_string"] = without_ticket(scope["query_string"])
            except RoutecastError as error:
                refusal = await self._access.refused(error, scope)
                await refuse_request(refusal, scope, receive, send)
                return
        await self._app(scope, receive, send)

    async def _let_in(self, scope: AsgiScope) -> Principal:
        path = listed_path(route_path(scope))
        route = scope.get("method", "GET"), path
        needed = SCOPE_OF_ROUTE.get(route)
        if needed is None and route in SCOPE_OF_ROUTE:
            return await self._visitor(scope, path)
        credential = self._access.credential_of(scope)
        principal = await self._access.identify(credential, limit_key_of(scope))
        require_scope(principal, needed)
        if path not in _PATHS:
            raise NotFound("there is nothing at this path")
        return principal  # if the method is not allowed, the router says so

    async def _visitor(self, scope: AsgiScope, path: str) -> Principal:
        """Return whose request to an open route it is, which is answered whoever asks.

        A wrong credential delays that as it delays a refusal: the answer tells that it is wrong.
        Raises OverLimit after too many.
        """
        read_query(scope["query_string"])
        if path not in _TELLS_MORE:
            return NOBODY
        try:
            credential = self._access.credential_of(scope)
            known = None if credential is None else self._access.recognise(credential)
        except BadCredential as error:
            refusal = await self._access.refused(error, scope)
            if isinstance(refusal, OverLimit):
                raise refusal from None
            return NOBODY
        except (BadHead, Forbidden, Unavailable):
            return NOBODY
        return known or NOBODY


def route_of(path: str) -> str:
    """Return a path as SCOPE_OF_ROUTE has it; "" for one that is not there."""
    listed = listed_path(path)
    return listed if listed in _PATHS else ""


def listed_path(path: str) -> str:
    """Return a path as SCOPE_OF_ROUTE has it: with the names of parameters for their values."""
    if path in _PATHS:
        return path
    return next((name for name, pattern in _PATTERNS.items() if pattern.fullmatch(path)), path)
