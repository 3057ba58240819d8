"""The fast path: small batches go from the HTTP parser to the commit, without ASGI.

For `POST /v1/decisions` there is no task, scope or middleware: the body goes directly to
`Decisions`, and the answer to the transport in one write. Compressed, chunked, large, cross-origin
and pipelined requests pass through ASGI, and so do all other routes, and requests that need another
answer than a receipt because of their credential.
"""

import asyncio
from http import HTTPStatus
from typing import Any, Final

import msgspec
from starlette.responses import Response

from routecast.core.access import ANYONE, Principal, Scope, require_scope
from routecast.core.request_trace import REQUEST_ID, read_request_id
from routecast.edge.access import find_credential
from routecast.edge.http.decisions import DECISIONS, Decisions, is_lines, refusal
from routecast.edge.http.http_edge import HttpEdge
from routecast.edge.http.http_protocol import HttpProtocol
from routecast.edge.http.request_body import SMALL_BODY
from routecast.edge.proxies import limit_key
from routecast.errors import RoutecastError, Unavailable
from routecast.protocol import Receipt

_DECISIONS_PATH: Final = DECISIONS.encode()
# A request with one of these header fields passes through ASGI.
_ASGI_FIELDS: Final = frozenset(
    {b"content-encoding", b"transfer-encoding", b"expect", b"upgrade", b"origin"}
)
_OK: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
    b"x-content-type-options: nosniff\r\ncontent-length: %d\r\n"
)

_encode: Final = msgspec.json.Encoder().encode


class _FastRequest:
    """A request on the fast path (`http_protocol.Request`)."""

    __slots__ = (
        "body",
        "client",
        "disconnected",
        "keep_alive",
        "lines",
        "principal",
        "request_id",
        "response_complete",
        "task",
    )

    response_started = False  # the answer is one write

    def __init__(
        self, *, lines: bool, principal: Principal, client: str, request_id: bytes | None
    ) -> None:
        self.lines = lines
        self.client = client  # what the limit of decisions knows it by
        self.principal = principal
        self.request_id = request_id
        self.body: list[bytes] = []
        self.disconnected = self.response_complete = False
        self.keep_alive = True
        self.task: asyncio.Future[Receipt] | None = None  # if its body takes long to decode

    @property
    def message_event(self) -> "_FastRequest":
        """Itself: no task has to be woken when the client is gone."""
        return self

    def set(self) -> None:
        """Do nothing."""


class FastPathHttpProtocol(HttpProtocol):
    """Uvicorn's `http` protocol class, with the fast path for decisions."""

    def __init__(self, decisions: Decisions, edge: HttpEdge, **given: Any) -> None:
        super().__init__(edge, **given)
        self._decisions = decisions
        self._request: _FastRequest | None = None  # while its body arrives
        self._keep_alive = b"%s: %s\r\n" % edge.keep_alive_header

    def begin_request(self, version: str, fields: dict[bytes, bytes]) -> None:
        if (
            self.url != _DECISIONS_PATH
            or not self._is_plain(version, fields)
            or (principal := self._principal(fields)) is None
        ):
            super().begin_request(version, fields)
            return
        lines = is_lines(fields.get(b"content-type", b""))
        request_id = fields.get(REQUEST_ID)
        if request_id is not None:
            request_id = read_request_id(request_id)
        decisions = self._decisions
        client = decisions.client_of(principal, self._address)
        self._request = _FastRequest(
            lines=lines, principal=principal, client=client, request_id=request_id
        )
        self._running = self._request
        self.cycle = self._request  # type: ignore[assignment]  # -- it stands in for uvicorn's

    def _is_plain(self, version: str, fields: dict[bytes, bytes]) -> bool:
        """Whether a request can take the fast path."""
        # The parser accepts only digits.
        length = fields.get(b"content-length")
        return (
            length is not None
            and int(length) <= SMALL_BODY
            and version == "1.1"
            and self._running is None
            and not self.flow.write_paused
            and self.parser.get_method() == b"POST"
            and self.parser.should_keep_alive()
            and _ASGI_FIELDS.isdisjoint(fields)
            and self._is_known_host(fields[b"host"])
        )

    def _is_known_host(self, host: bytes) -> bool:
        """Whether `Host` is a known one; if not, the ASGI path refuses the request."""
        try:
            return self._decisions.sites.is_known_host(host.decode("latin-1"))
        except ValueError:
            return False

    def _principal(self, fields: dict[bytes, bytes]) -> Principal | None:
        """Return whose request it is; None if it must be refused, or if that takes a while.

        Both are for the ASGI path, so that there is one way to refuse.
        """
        access = self._decisions.access
        if not access.required:
            return ANYONE
        if not (access.insecure or self._edge.is_private(self.scheme or "", self.client, fields)):
            return None
        try:
            principal = access.recognise(find_credential(fields.get(b"authorization")))
            if principal is not None:
                require_scope(principal, Scope.WRITE)
        except RoutecastError:
            return None
        return principal

    def _address(self) -> str:
        """Return the client's address as limits count it, as `limit_key_of` does for ASGI."""
        known = self._edge.key_of(self.client, self.headers)
        return known or (limit_key(self.client[0]) if self.client else "")

    def on_body(self, body: bytes) -> None:
        if self._request is None:
            super().on_body(body)
        else:
            self._overhead -= len(body)
            self._payload += len(body)
            self._request.body.append(body)

    def on_message_complete(self) -> None:
        request = self._request
        if request is None:
            super().on_message_complete()
            return
        self._request = None
        self._request_ended = True
        self.end_request()
        try:
            body = b"".join(request.body)
            self._decisions.limit.require(request.client)
            batch = self._decisions.read(body, lines=request.lines, principal=request.principal)
            if batch.validate():
                answer = self._decisions.accept(batch, request.client, request.principal)
            else:  # a long body gets a task, so that other tasks have turns
                slowly = self._decisions.accept_slowly(
                    batch, len(body), request.client, request.principal
                )
                answer = asyncio.ensure_future(slowly)
                request.task = answer
        except Exception as error:
            self._respond(request, refusal(error))
        else:
            answer.add_done_callback(lambda done: self._answer(request, done))

    def _set_disconnected(self) -> None:
        self._request = None
        super()._set_disconnected()

    def _answer(self, request: _FastRequest, done: asyncio.Future[Receipt]) -> None:
        error = Unavailable("shutting down") if done.cancelled() else done.exception()
        if error is not None:
            self._respond(request, refusal(error))
            return
        body = _encode(done.result())
        self._write(request, _OK % len(body), body)

    def _respond(self, request: _FastRequest, response: Response) -> None:
        status = HTTPStatus(response.status_code)
        head = [f"HTTP/1.1 {status} {status.phrase}\r\n".encode()]
        head += [b"%s: %s\r\n" % header for header in response.raw_headers]
        self._write(request, b"".join(head), bytes(response.body))

    def _write(self, request: _FastRequest, head: bytes, body: bytes) -> None:
        request.response_complete = True
        if request.disconnected:
            return
        lines = [head]
        lines += [b"%s: %s\r\n" % header for header in self.server_state.default_headers]
        if request.request_id is not None:
            lines.append(b"%s: %s\r\n" % (REQUEST_ID, request.request_id))
        lines.append(self._keep_alive if request.keep_alive else b"connection: close\r\n")
        self.write(b"".join([*lines, b"\r\n", body]))
        if not request.keep_alive:
            self.close()
        self.on_response_complete()
