"""`POST /v1/decisions` as a plain ASGI application.

This is a hot path: it reads the raw body, and decodes it with msgspec. `edge/openapi.py` describes
the route.
"""

import asyncio
import logging
import math
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from http import HTTPStatus
from typing import Final

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from routecast.core.access import ANYONE, Principal
from routecast.core.client_limits import client_name
from routecast.core.decode import pieces
from routecast.core.sites import Sites
from routecast.edge.access import Access, principal_of
from routecast.edge.cors import origin_of
from routecast.edge.http.request_body import BodyReader, ClientGone
from routecast.edge.problem import respond, respond_crash, respond_error
from routecast.edge.proxies import limit_key_of
from routecast.errors import RoutecastError, Unavailable
from routecast.ports import MAX_GROUP
from routecast.protocol import MAX_REJECTIONS_LISTED, Problem, Receipt
from routecast.services.decision_batch import AllRejected, DecisionBatch
from routecast.services.ingest import UNKNOWN_OUTCOME, Ingest
from routecast.services.ingest_limit import IngestLimit
from routecast.slices import Slices

DECISIONS: Final = "/v1/decisions"

log = logging.getLogger(__name__)

_encode: Final = msgspec.json.Encoder().encode
_JSON_TYPE: Final = (b"content-type", b"application/json")


class Decisions:
    """The ASGI application that reads decisions, and answers with the receipt of `Ingest`."""

    def __init__(
        self,
        ingest: Ingest,
        sites: Sites,
        slices: Slices | None = None,
        access: Access | None = None,
        limit: IngestLimit | None = None,
    ) -> None:
        self._ingest = ingest
        self.sites = sites
        self.access = access or Access()
        self.limit = limit or IngestLimit()
        self.bodies = BodyReader()
        self._slices = slices or Slices()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            receipt = await self._take(scope, receive)
        except ClientGone:
            return
        except asyncio.CancelledError:  # the server stops, and does not wait for this request
            await refusal(Unavailable("shutting down", retry_after=5))(scope, receive, send)
            return
        except Exception as error:
            await refusal(error)(scope, receive, send)
            return
        body = _encode(receipt)
        length = (b"content-length", b"%d" % len(body))
        await send({"type": "http.response.start", "status": 200, "headers": [_JSON_TYPE, length]})
        await send({"type": "http.response.body", "body": body})

    async def _take(self, scope: Scope, receive: Receive) -> Receipt:
        self.sites.require_allowed_origin(*origin_of(scope))
        client = self.client_of(principal_of(scope), lambda: limit_key_of(scope))
        self.limit.require(client)
        async with AsyncExitStack() as stack:
            batch = await self._read(scope, receive, stack)
            return await self._accepted(batch, client, principal_of(scope))

    def client_of(self, principal: Principal, address: Callable[[], str]) -> str:
        """Return what the limit of decisions knows a producer by; "" if there is no limit."""
        if not self.limit.is_on:
            return ""
        return client_name(principal, "" if principal is not ANYONE else address())

    async def _read(self, scope: Scope, receive: Receive, stack: AsyncExitStack) -> DecisionBatch:
        """Return the batch of a body; a large one holds `large_batches` until `stack` closes."""
        lines = is_lines(dict(scope["headers"]).get(b"content-type", b""))
        principal = principal_of(scope)
        async with self.bodies.received(scope, receive) as body:
            async with self.bodies.unpacked(body) as whole:
                batch = self.read(whole, lines=lines, principal=principal)
                if await self._validate(batch, most=MAX_GROUP):
                    return batch
            # A large batch waits for `large_batches`, and is decoded again then. While it waits, it
            # takes only the memory of the body as it was sent.
            del whole, batch
            await stack.enter_async_context(self.bodies.large_batches)
            async with self.bodies.unpacked(body) as whole:
                batch = self.read(whole, lines=lines, principal=principal)
                await self._validate(batch)
                return batch

    def read(self, body: bytes, *, lines: bool, principal: Principal = ANYONE) -> DecisionBatch:
        """Return the batch of a body; the caller must validate it, which decodes it.

        Raises Forbidden if its principal has no project to write to.
        """
        return self._ingest.batch(pieces(body, lines=lines), principal.projects)

    async def _validate(self, batch: DecisionBatch, most: float = math.inf) -> bool:
        """Validate a batch in slices; stop and return False if over `most` decisions are valid."""
        while not batch.validate():
            if len(batch.decisions) > most:
                return False
            await self._slices.turn()
        return True

    async def accept_slowly(
        self, batch: DecisionBatch, size: int, client: str, principal: Principal
    ) -> Receipt:
        """Validate the rest of a small body, then commit it.

        Its `size` bytes count as held until it is validated. Raises as `accept` does.
        """
        self.bodies.small_held += size
        try:
            await self._validate(batch)
        finally:
            self.bodies.small_held -= size
        return await self._accepted(batch, client, principal)

    def accept(
        self, batch: DecisionBatch, client: str, principal: Principal
    ) -> asyncio.Future[Receipt]:
        """Commit a validated batch of a client (`client_of`): see `Ingest.accept`.

        Raises OverLimit if the client sent too many decisions, and BadCredential if it may not send
        any more: the credential was checked before the body came, which may take half a minute.
        """
        self.access.require_valid(principal)
        if not self.limit.is_on:
            return self._ingest.accept(batch)
        size = len(batch.decisions)
        is_counted = self.limit.take(client, size)
        try:
            done = self._ingest.accept(batch)
        except Unavailable:
            if is_counted:
                self.limit.give_back(client, size)
            raise
        if is_counted:
            done.add_done_callback(partial(self._give_back, client, size))
        return done

    def _give_back(self, client: str, size: int, done: asyncio.Future[Receipt]) -> None:
        """Give back what decisions took that could not be stored: they will be sent again."""
        if not done.cancelled() and isinstance(done.exception(), Unavailable):
            self.limit.give_back(client, size)

    async def _accepted(self, batch: DecisionBatch, client: str, principal: Principal) -> Receipt:
        try:
            return await self.accept(batch, client, principal)
        except asyncio.CancelledError:
            raise Unavailable(UNKNOWN_OUTCOME, retry_after=5) from None


def is_lines(content_type: bytes) -> bool:
    """Whether a body of this type has one decision per line."""
    kind = content_type.lower()
    return b"ndjson" in kind or b"jsonl" in kind


def refusal(error: BaseException) -> Response:
    """Return the response to a request that failed, by an error of the client or of the server."""
    if isinstance(error, AllRejected):
        return _respond_all_rejected(error)
    if isinstance(error, RoutecastError):
        return respond_error(error)
    log.error("Unexpected error while handling a request", exc_info=error)
    return respond_crash()


def _respond_all_rejected(error: AllRejected) -> Response:
    status = HTTPStatus.UNPROCESSABLE_ENTITY
    return respond(
        Problem(
            title=status.phrase,
            status=status,
            detail=str(error),
            accepted=0,
            duplicates=0,
            rejected=error.rejected[:MAX_REJECTIONS_LISTED],
            rejected_count=len(error.rejected),
        )
    )
