"""HTTP: `POST /v1/decisions`.

Taking decisions in is a hot path: it is plain ASGI, reads the raw body and decodes it with
msgspec; `edge/openapi.py` tells what it takes.
"""

import asyncio
import itertools
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack
from http import HTTPStatus
from itertools import islice
from typing import Final, NamedTuple

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from routecast.core.decision import DecisionRecord, Rules
from routecast.core.decode import DecodedItem, pieces
from routecast.core.exact import BrokenDecision, Flaw, is_id
from routecast.core.sites import Sites
from routecast.edge.cors import origin_of
from routecast.edge.http.request_body import BodyReader, ClientGone
from routecast.edge.problem import respond, respond_crash, respond_error
from routecast.errors import Invalid, RoutecastError, Unavailable
from routecast.instruments import Instruments
from routecast.ports import MAX_GROUP, Clock
from routecast.protocol import (
    MAX_REJECTIONS_LISTED,
    MAX_WARNINGS_LISTED,
    FieldWarning,
    Problem,
    Receipt,
    Rejection,
)
from routecast.services.ingest import UNKNOWN_OUTCOME, Kept, Pending
from routecast.slices import Slices

# A body is decoded for at most this time, in seconds; then others get a turn on the event loop.
SLICE_SECONDS: Final = 0.001
# Decisions that are normalised between two looks at the clock. To look up the price of a new model
# may take 0.3 ms for each of them, for as long as there is a budget for that.
LOOK_EVERY: Final = 4

DECISIONS: Final = "/v1/decisions"

log = logging.getLogger(__name__)

_encode: Final = msgspec.json.Encoder().encode
_JSON_TYPE: Final = (b"content-type", b"application/json")


class ParsedBatch(NamedTuple):
    """What a body came to: the decisions to keep, and what is wrong with the others.

    `warned` counts, by field and code, what of the decisions to keep could not be used as it was
    sent; the first of that are `warnings`.
    """

    decisions: list[DecisionRecord]
    rejected: list[Rejection]
    warnings: list[FieldWarning]
    warned: dict[tuple[str, str], int]


class BodyReading:
    """A body that is being made into decisions: call `go_on` until it returns True."""

    def __init__(self, body: bytes, rules: Rules, now: int, *, lines: bool) -> None:
        self.batch = ParsedBatch([], [], [], {})
        self._flaws: list[Flaw] = []
        self._rules = rules
        self._now = now
        self._pieces = pieces(body, lines=lines)
        self._left: Iterator[DecodedItem] = iter(())
        self._index = 0

    def go_on(self, seconds: float = SLICE_SECONDS) -> bool:
        """Work for about `seconds`; return whether the whole batch is read.

        Raises BadBody and TooLarge: then nothing of it is to be kept.
        """
        until = time.perf_counter() + seconds
        while True:
            while self._sort_some():
                if time.perf_counter() > until:
                    return False
            piece = next(self._pieces, None)
            if piece is None:
                return True
            self._left = iter(piece)

    def _sort_some(self) -> bool:
        """Tell some good ones from bad ones; return whether any were left."""
        batch, now, normalise = self.batch, self._now, self._rules.normalise
        index, flaws = self._index, self._flaws
        for item in islice(self._left, LOOK_EVERY):
            if isinstance(item, BrokenDecision):
                batch.rejected.append(Rejection(index, item.error, item.id or msgspec.UNSET))
            else:
                try:
                    batch.decisions.append(normalise(item, now, flaws))
                except Invalid as error:
                    named = item.id if is_id(item.id) else msgspec.UNSET
                    batch.rejected.append(Rejection(index, str(error), named))
                    flaws.clear()
                if flaws:
                    self._warn(index, flaws)
                    flaws.clear()
            index += 1
        some = index > self._index
        self._index = index
        return some

    def _warn(self, index: int, flaws: Iterable[Flaw]) -> None:
        batch = self.batch
        for flaw in flaws:
            cause = flaw.field, flaw.code
            batch.warned[cause] = batch.warned.get(cause, 0) + 1
            if len(batch.warnings) < MAX_WARNINGS_LISTED:
                batch.warnings.append(FieldWarning(index, *flaw))


class Decisions:
    """What becomes of decisions sent over HTTP; and the ASGI application that takes them."""

    def __init__(
        self,
        submit: Callable[[Sequence[DecisionRecord]], Pending],
        rules: Rules,
        clock: Clock,
        instruments: Instruments,
        sites: Sites,
        slices: Slices | None = None,
    ) -> None:
        self._submit = submit
        self._rules = rules
        self._clock = clock
        self.sites = sites
        self.bodies = BodyReader()
        self._slices = slices or Slices()
        outcome = instruments.decisions.labels
        self._accepted = outcome("accepted")
        self._duplicate = outcome("duplicate")
        self._conflict = outcome("conflict")
        self._rejected = outcome("rejected")
        self._warned = instruments.field_warnings.labels

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            answer = await self._take(scope, receive)
        except ClientGone:
            return
        except asyncio.CancelledError:  # the server stops, and gave this request up
            await refusal(Unavailable("shutting down", retry_after=5))(scope, receive, send)
            return
        except Exception as error:
            await refusal(error)(scope, receive, send)
            return
        if isinstance(answer, Problem):
            await respond(answer)(scope, receive, send)
            return
        body = _encode(answer)
        length = (b"content-length", b"%d" % len(body))
        await send({"type": "http.response.start", "status": 200, "headers": [_JSON_TYPE, length]})
        await send({"type": "http.response.body", "body": body})

    async def _take(self, scope: Scope, receive: Receive) -> Receipt | Problem:
        self.sites.check_origin(*origin_of(scope))
        headers = dict(scope["headers"])
        lines = is_lines(headers.get(b"content-type", b""))
        async with AsyncExitStack() as place:
            return await self.kept(await self._read(scope, receive, place, lines=lines))

    async def _read(
        self, scope: Scope, receive: Receive, place: AsyncExitStack, *, lines: bool
    ) -> ParsedBatch:
        """Return what a body comes to; a large batch has a place, which `place` gives back."""
        async with self.bodies.received(scope, receive) as body:
            async with self.bodies.unpacked(body) as whole:
                reading = self.read(whole, lines=lines)
                if await self._finish(reading, most=MAX_GROUP):
                    return reading.batch
            # A large batch waits for a place and is decoded again then. While it waits, it takes
            # the memory of the body as it was sent, and no more.
            del whole, reading
            await place.enter_async_context(self.bodies.large_batches)
            async with self.bodies.unpacked(body) as whole:
                reading = self.read(whole, lines=lines)
                await self._finish(reading)
                return reading.batch

    def read(self, body: bytes, *, lines: bool) -> BodyReading:
        """Begin to read a body."""
        return BodyReading(body, self._rules, self._clock.now(), lines=lines)

    async def _finish(self, reading: BodyReading, most: float = math.inf) -> bool:
        """Decode a body to the end, with turns for others; not if it has over `most` decisions.

        Returns whether that is done.
        """
        while not reading.go_on():
            if len(reading.batch.decisions) > most:
                return False
            await self._slices.turn()
        return True

    async def read_slowly(self, reading: BodyReading, size: int) -> Receipt | Problem:
        """Finish what a small body of `size` bytes came to; they count as held meanwhile."""
        self.bodies.small_held += size
        try:
            await self._finish(reading)
        finally:
            self.bodies.small_held -= size
        return await self.kept(reading.batch)

    async def kept(self, batch: ParsedBatch) -> Receipt | Problem:
        """Return the answer to a batch once what is good of it is committed."""
        pending = self.keep(batch)
        if pending is None:
            return self.all_bad(batch)
        try:
            return self.receipt(batch, await pending)
        except asyncio.CancelledError:
            raise Unavailable(UNKNOWN_OUTCOME, retry_after=5) from None

    def keep(self, batch: ParsedBatch) -> Pending | None:
        """Have the good ones committed; None where all are bad. Raises Unavailable."""
        if batch.rejected:
            self._rejected.inc(len(batch.rejected))
            if not batch.decisions:
                return None
        return self._submit(batch.decisions)

    def receipt(self, batch: ParsedBatch, kept: Kept) -> Receipt | Problem:
        """Return the answer once the good ones are committed."""
        if kept.full:
            batch = self._without_full(batch, kept)
        known = len(batch.decisions) - kept.inserted
        self._accepted.inc(kept.inserted)
        if known:
            self._duplicate.inc(known - kept.conflicts)
            self._conflict.inc(kept.conflicts)
        elif not batch.decisions and batch.rejected:
            return self.all_bad(batch)
        warned = batch.warned
        for cause, count in warned.items():
            self._warned(*cause).inc(count)
        return Receipt(
            kept.inserted,
            known - kept.conflicts,
            batch.rejected[:MAX_REJECTIONS_LISTED],
            len(batch.rejected),
            kept.position,
            kept.conflicts,
            batch.warnings,
            sum(warned.values()),
        )

    def _without_full(self, batch: ParsedBatch, kept: Kept) -> ParsedBatch:
        """Return a batch whose decisions that a full sum has no room for are rejected by name."""
        self._rejected.inc(len(kept.full))
        bad = {one.index for one in batch.rejected}
        indexes = (index for index in itertools.count() if index not in bad)
        decisions, rejected = [], list(batch.rejected)
        for place, (index, decision) in enumerate(zip(indexes, batch.decisions, strict=False)):
            if field := kept.full.get(place):
                why = f"{field}: the sum of its series is at its limit"
                rejected.append(Rejection(index, why, decision.id))
            else:
                decisions.append(decision)
        rejected.sort(key=lambda one: one.index)
        return batch._replace(decisions=decisions, rejected=rejected)

    @staticmethod
    def all_bad(batch: ParsedBatch) -> Problem:
        """Return the answer where there is nothing to commit."""
        status = HTTPStatus.UNPROCESSABLE_ENTITY
        first = batch.rejected[0]
        return Problem(
            title=status.phrase,
            status=status,
            detail=f"no decision was accepted; the first (index {first.index}): {first.error}",
            accepted=0,
            duplicates=0,
            rejected=batch.rejected[:MAX_REJECTIONS_LISTED],
            rejected_count=len(batch.rejected),
        )


def is_lines(content_type: bytes) -> bool:
    """Whether a body of this type is one decision a line."""
    kind = content_type.lower()
    return b"ndjson" in kind or b"jsonl" in kind


def refusal(error: BaseException) -> Response:
    """Return the response to a request that failed, whosever fault it is."""
    if isinstance(error, RoutecastError):
        return respond_error(error)
    log.error("Unexpected error while handling a request", exc_info=error)
    return respond_crash()
