"""HTTP on the transport itself, for the one request that comes by the thousand: a small batch.

Between the parser and the answer to `POST /v1/decisions` there is no task, scope or middleware:
the body goes straight to `Decisions`, the answer to the transport, in one write. A request that
asks for more (a packed, chunked or large body, a browser's, one ahead of its answers) takes the
way through ASGI, as all others do.
"""

from http import HTTPStatus
from typing import Any, Final

import msgspec
from starlette.responses import Response

from routecast.edge.body import MAX_HELD, SMALL_BODY
from routecast.edge.guard import GuardedHttp, Unfinished
from routecast.edge.http import DECISIONS, Batch, Decisions, is_lines, refusal
from routecast.edge.problem import respond
from routecast.ingest import Pending
from routecast.protocol import Problem

_PATH: Final = DECISIONS.encode()
# A request with one of these headers asks for more.
_MORE: Final = frozenset(
    {b"content-encoding", b"transfer-encoding", b"expect", b"upgrade", b"origin"}
)
_OK: Final = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"

_encode: Final = msgspec.json.Encoder().encode


class _Request:
    """A request under way, with all that uvicorn's protocol looks at in its own."""

    __slots__ = ("body", "disconnected", "keep_alive", "length", "lines", "response_complete")

    def __init__(self, length: int, *, lines: bool) -> None:
        self.length = length
        self.lines = lines
        self.body: list[bytes] = []
        self.disconnected = self.response_complete = False
        self.keep_alive = True

    @property
    def message_event(self) -> "_Request":
        """Itself: there is nobody to be woken when the client is gone."""
        return self

    def set(self) -> None:
        """Do nothing."""


class LeanHttp(GuardedHttp):
    """Uvicorn's `http` class, with a short way for decisions."""

    def __init__(self, decisions: Decisions, unfinished: Unfinished, **given: Any) -> None:
        super().__init__(unfinished, **given)
        self._decisions = decisions
        self._request: _Request | None = None  # while its body comes

    def begin_request(self) -> None:
        length = self._plain_length() if self.url == _PATH else None
        if length is None:
            super().begin_request()
            return
        self._unfinished.discard(self)
        self._unfinished.add(self)  # its body has as long again
        kind = next((value for name, value in self.headers if name == b"content-type"), b"")
        self._request = _Request(length, lines=is_lines(kind))
        self._decisions.bodies.held += length
        self.cycle = self._request  # type: ignore[assignment]  # -- it stands in for uvicorn's

    def _plain_length(self) -> int | None:
        """Return the length of the body to come; None where the request asks for more."""
        if (
            (self.cycle is not None and not self.cycle.response_complete)
            or self.flow.write_paused
            or self.parser.get_method() != b"POST"
            or not self.parser.should_keep_alive()
        ):
            return None
        given = b""
        for name, value in self.headers:
            if name in _MORE:
                return None
            if name == b"content-length":
                given = value
        # The parser has let nothing but digits through.
        length = int(given) if given else SMALL_BODY + 1
        fits = length <= SMALL_BODY and self._decisions.bodies.held + length <= MAX_HELD
        return length if fits else None

    def on_body(self, body: bytes) -> None:
        if self._request is None:
            super().on_body(body)
        else:
            self._request.body.append(body)

    def on_message_complete(self) -> None:
        if self._request is None:
            super().on_message_complete()
            return
        request = self._request
        self._end_body()
        self.end_request()
        try:
            batch = self._decisions.read(b"".join(request.body), lines=request.lines)
            pending = self._decisions.keep(batch)
        except Exception as error:
            self._respond(request, refusal(error))
            return
        if pending is None:
            self._respond(request, respond(self._decisions.all_bad(batch)))
        else:
            pending.add_done_callback(lambda done: self._committed(request, batch, done))

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_body()
        super().connection_lost(exc)

    def _end_body(self) -> None:
        if self._request is not None:
            self._decisions.bodies.held -= self._request.length
            self._request = None

    def _committed(self, request: _Request, batch: Batch, done: Pending) -> None:
        error = done.exception()
        if error is not None:
            self._respond(request, refusal(error))
            return
        answer = self._decisions.receipt(batch, done.result())
        if isinstance(answer, Problem):
            self._respond(request, respond(answer))
            return
        body = _encode(answer)
        self._write(request, _OK % len(body), body)

    def _respond(self, request: _Request, response: Response) -> None:
        status = HTTPStatus(response.status_code)
        head = [f"HTTP/1.1 {status} {status.phrase}\r\n".encode()]
        head += [b"%s: %s\r\n" % header for header in response.raw_headers]
        self._write(request, b"".join(head), bytes(response.body))

    def _write(self, request: _Request, head: bytes, body: bytes) -> None:
        request.response_complete = True
        if request.disconnected:
            return
        lines = [head]
        lines += [b"%s: %s\r\n" % header for header in self.server_state.default_headers]
        if not request.keep_alive:
            lines.append(b"connection: close\r\n")
        self.transport.write(b"".join([*lines, b"\r\n", body]))
        if not request.keep_alive:
            self.transport.close()
        self.on_response_complete()
