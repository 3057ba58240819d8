"""The handshake, as `websockets` has it: a request, what is agreed on, and the answer."""

import logging
from collections.abc import Collection, Iterable, Sequence
from http import HTTPStatus
from typing import Final, NamedTuple

from starlette.responses import Response
from websockets.datastructures import Headers
from websockets.extensions import Extension
from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory
from websockets.http11 import Request
from websockets.http11 import Response as WireResponse
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from routecast.edge.problem import respond_error
from routecast.errors import RoutecastError

_silent = logging.getLogger("routecast.websockets")  # of `websockets` itself: errors only
_silent.setLevel(logging.ERROR)

_DEFLATE: Final = ServerPerMessageDeflateFactory(
    server_no_context_takeover=True, client_no_context_takeover=True
)
_DEFLATE_ON: Final = ServerPerMessageDeflateFactory(client_no_context_takeover=True)


class Agreement(NamedTuple):
    """An answer to an upgrade request, and what is agreed on when that is 101."""

    answer: WireResponse
    subprotocol: Subprotocol | None
    extensions: Sequence[Extension]


class Handshakes:
    """Answers upgrade requests, for all connections of a server.

    One `ServerProtocol` reads all requests: to accept one is to look at it, and to say what is
    agreed on. The connection that could follow in that same object is never begun.
    """

    def __init__(self, subprotocols: Collection[str], *, compress: bool) -> None:
        self._subprotocols = subprotocols
        self._compress = compress

        def choose(_: ServerProtocol, offered: Sequence[Subprotocol]) -> Subprotocol | None:
            # None is the default stream, for whoever asks for nothing that is spoken here.
            return next((name for name in offered if name in subprotocols), None)

        self._protocol = ServerProtocol(select_subprotocol=choose, logger=_silent)

    def answer(self, request: Request) -> Agreement:
        """Return the answer to a request, 101 or an HTTP error's."""
        protocol = self._protocol
        protocol.available_extensions = self._offer(request) if self._compress else None
        answer = protocol.accept(request)
        if answer.status_code != HTTPStatus.SWITCHING_PROTOCOLS:
            answer.headers["Sec-WebSocket-Version"] = "13"  # the one spoken here (RFC 6455, 4.2.2)
        return Agreement(answer, protocol.subprotocol, protocol.extensions)

    def _offer(self, request: Request) -> Sequence[ServerPerMessageDeflateFactory]:
        offered = "".join(request.headers.get_all("Sec-WebSocket-Protocol"))
        return [_DEFLATE_ON if any(name in offered for name in self._subprotocols) else _DEFLATE]


def parse(target: bytes, headers: Iterable[tuple[bytes, bytes]]) -> Request:
    """Return a parsed request as `websockets` has it: bytes beyond ASCII are ISO-8859-1."""
    parsed = Headers()
    for name, value in headers:
        parsed[name.decode("latin-1")] = value.decode("latin-1")
    return Request(target.decode("latin-1"), parsed)


def refuse(error: RoutecastError) -> WireResponse:
    """Return the answer to a request that was refused; the connection ends with it."""
    answer: Response = respond_error(error)
    headers = Headers(
        [(name.decode("latin-1"), value.decode("latin-1")) for name, value in answer.raw_headers]
    )
    headers["Connection"] = "close"
    status = HTTPStatus(answer.status_code)
    return WireResponse(status, status.phrase, headers, bytes(answer.body))
