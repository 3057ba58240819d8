"""HEAD on every route that answers GET: the same headers, and no body (RFC 9110, 9.3.2)."""

from typing import Final

from starlette.types import Scope

_HEAD_MARK: Final = "routecast.head"


def as_get(scope: Scope) -> Scope:
    """Return the scope of a HEAD request as that of the GET that it asks about.

    The server does not send the body. A route that streams must call `is_head`, and end its answer
    after the headers.
    """
    return {**scope, "method": "GET", _HEAD_MARK: True} if scope.get("method") == "HEAD" else scope


def is_head(scope: Scope) -> bool:
    """Whether a request is HEAD: only the headers of the answer are sent."""
    return scope["method"] == "HEAD" or _HEAD_MARK in scope
