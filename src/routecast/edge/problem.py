"""Errors as `application/problem+json` (RFC 9457)."""

import re
from collections.abc import Awaitable, Callable
from http import HTTPStatus

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from routecast import audit
from routecast.core.access import SCOPE_OF_ROUTE
from routecast.edge.access import route_path
from routecast.errors import (
    BadBody,
    BadCredential,
    BadHead,
    BadParameter,
    CredentialInUrl,
    Forbidden,
    Misdirected,
    MissingScope,
    NotFound,
    OverLimit,
    RoutecastError,
    TooLarge,
    Unavailable,
)
from routecast.protocol import Problem

MEDIA_TYPE = "application/problem+json"
# Tells browsers to trust an answer's content type, and not to guess (WHATWG Fetch, 3.6).
NOSNIFF = (b"x-content-type-options", b"nosniff")
_CHALLENGE = 'Bearer realm="routecast"'
# What an `error_description` must not contain (RFC 6750, 3).
_NOT_DESCRIBED = re.compile(r'[^ -~]|["\\]')

# The routes of streams: a client that does not get one was refused.
STREAM_ROUTES = frozenset({"/ws/metrics", "/sse/metrics"})
_REFUSALS = (BadCredential, CredentialInUrl, Forbidden, Misdirected, OverLimit)

_Handler = Callable[[Request, Exception], Awaitable[Response]]


class Unsupported(RoutecastError):
    """The body has a content coding that this server cannot decode."""


# The first one that fits counts, so a class stands before those that it is derived from.
STATUS_OF: dict[type[RoutecastError], HTTPStatus] = {
    BadParameter: HTTPStatus.BAD_REQUEST,
    BadHead: HTTPStatus.BAD_REQUEST,
    BadBody: HTTPStatus.BAD_REQUEST,
    BadCredential: HTTPStatus.UNAUTHORIZED,
    Forbidden: HTTPStatus.FORBIDDEN,
    NotFound: HTTPStatus.NOT_FOUND,
    Misdirected: HTTPStatus.MISDIRECTED_REQUEST,
    TooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    Unsupported: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    OverLimit: HTTPStatus.TOO_MANY_REQUESTS,
    Unavailable: HTTPStatus.SERVICE_UNAVAILABLE,
}


def respond(problem: Problem, headers: dict[str, str] | None = None) -> Response:
    """Return a problem as a response."""
    body = msgspec.json.encode(problem)
    response = Response(body, problem.status, headers, media_type=MEDIA_TYPE)
    response.raw_headers.append(NOSNIFF)
    return response


def respond_error(error: RoutecastError) -> Response:
    """Return the response to an error that is meant for the client.

    If it refuses the client, or a stream, it is an event of the audit log.
    """
    status = next(code for kind, code in STATUS_OF.items() if isinstance(error, kind))
    if audit.listens():
        _audit(error, status)
    problem = Problem(title=status.phrase, status=status, detail=str(error))
    if isinstance(error, BadParameter):
        problem = msgspec.structs.replace(problem, parameter=error.parameter)
    headers = {}
    if isinstance(error, Unavailable):
        headers["Retry-After"] = str(error.retry_after)
    if isinstance(error, OverLimit):
        headers |= _limit_fields(error)
    if isinstance(error, BadCredential | MissingScope):
        headers["WWW-Authenticate"] = _challenge(error)
    return respond(problem, headers)


def _audit(error: RoutecastError, status: HTTPStatus) -> None:
    route = audit.route_of_request()
    if not isinstance(error, _REFUSALS) and route not in STREAM_ROUTES:
        return
    # Other texts may quote the query, or the path.
    why = str(error) if isinstance(error, (*_REFUSALS, Unavailable)) else status.phrase
    audit.refusals.add(f"{status} {status.phrase}", why, status=int(status), route=route)


def _limit_fields(error: OverLimit) -> dict[str, str]:
    """Return the limit that was reached (draft-ietf-httpapi-ratelimit-headers-12)."""
    name = f'"{error.limit}"'
    if error.seconds is None:
        return {"RateLimit-Policy": f"{name};q={error.amount}", "RateLimit": f"{name};r=0"}
    return {
        "RateLimit-Policy": f"{name};q={error.amount};w={error.seconds}",
        "RateLimit": f"{name};r=0;t={error.retry_after}",
    }


def _challenge(error: BadCredential | MissingScope) -> str:
    """Return the challenge that says what a client needs (RFC 6750, 3)."""
    if isinstance(error, MissingScope):
        return f'{_CHALLENGE}, error="insufficient_scope", scope="{error.scope}"'
    if not error.invalid:
        return _CHALLENGE
    why = _NOT_DESCRIBED.sub("'", str(error))
    return f'{_CHALLENGE}, error="invalid_token", error_description="{why}"'


async def on_routecast_error(_: Request, error: Exception) -> Response:
    """Answer errors that a route raised."""
    assert isinstance(error, RoutecastError)
    return respond_error(error)


def http_error_handler(route_of: Callable[[str], str]) -> _Handler:
    """Return what answers requests that the framework refuses: no such path, method not allowed.

    `route_of` returns a path as the router has it; "" for one that does not exist.
    """

    async def answer(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        status = HTTPStatus(error.status_code)
        problem = Problem(title=status.phrase, status=status, detail=error.detail)
        headers = dict(error.headers or {})
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            headers["Allow"] = _allowed(route_of(route_path(request.scope)))
        return respond(problem, headers)

    return answer


def _allowed(path: str) -> str:
    """Return the methods of a path; the framework knows those of its first route only."""
    methods = {method for method, listed in SCOPE_OF_ROUTE if listed == path}
    if "GET" in methods:
        methods.add("HEAD")
    return ", ".join(sorted(methods))


async def on_crash(_: Request, __: Exception) -> Response:
    """Answer a request that failed with an unexpected error."""
    return respond_crash()


def respond_crash() -> Response:
    """Return the response to an unexpected error; the traceback goes to the log only."""
    status = HTTPStatus.INTERNAL_SERVER_ERROR
    return respond(Problem(title=status.phrase, status=status, detail="see the server's log"))
