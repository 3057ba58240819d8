"""An upgrade request and its refusal, as `websockets` has them."""

from collections.abc import Iterable
from http import HTTPStatus

from starlette.responses import Response
from websockets.datastructures import Headers
from websockets.http11 import Request
from websockets.http11 import Response as WireResponse

from routecast.edge.problem import respond_error
from routecast.errors import RoutecastError


def parse(target: bytes, headers: Iterable[tuple[bytes, bytes]]) -> Request:
    """Return a parsed request as `websockets` has it, in its own way of decoding."""
    pairs = [
        (name.decode("ascii", "surrogateescape"), value.decode("ascii", "surrogateescape"))
        for name, value in headers
    ]
    return Request(target.decode("ascii", "surrogateescape"), Headers(pairs))


def refuse(error: RoutecastError) -> WireResponse:
    """Return the answer to a request that was refused; the connection ends with it."""
    answer: Response = respond_error(error)
    headers = Headers(
        [(name.decode("latin-1"), value.decode("latin-1")) for name, value in answer.raw_headers]
    )
    headers["Connection"] = "close"
    status = HTTPStatus(answer.status_code)
    return WireResponse(status, status.phrase, headers, bytes(answer.body))
