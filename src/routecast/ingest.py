"""Ingest: batches wait in a bounded queue; what waits together is committed together.

Acknowledged means on disk: a batch's answer comes after the commit that holds it (group commit).
The queue's policy is to refuse: over its bound, `submit` raises `Unavailable` and keeps nothing.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Sequence
from operator import is_not
from typing import Final

from routecast.core.decision import Decision
from routecast.core.names import Names, Reserved
from routecast.errors import RoutecastError, SumFull, Unavailable
from routecast.instruments import Instruments
from routecast.ports import Bus, Clock, Store
from routecast.protocol import Position

log = logging.getLogger(__name__)

# As many decisions may wait as one of the largest requests brings, four times over.
MAX_WAITING: Final = 200_000
# Larger groups do not commit faster per decision, and keep those in them waiting longer.
MAX_GROUP: Final = 10_000
# So many turns of the event loop bring a request from its socket into the queue.
TURNS: Final = 3
# For so long a failed commit makes the node unready; then it is given another try.
FAILING_SECONDS: Final = 5.0


# How many of a batch were new, and the position of their commit.
Pending = asyncio.Future[tuple[int, Position]]


class Batch:
    """Decisions that were sent together, and the promise of an answer to them.

    `reserved` are the names reserved for them until their commit.
    """

    __slots__ = ("decisions", "done", "reserved")

    def __init__(self, decisions: Sequence[Decision], reserved: Reserved = ()) -> None:
        self.decisions = decisions
        self.reserved = reserved
        self.done: Pending = asyncio.get_running_loop().create_future()


class Ingest:
    """The only writer of decisions. Run `run` as a task; `submit` from any other."""

    def __init__(
        self,
        store: Store,
        bus: Bus,
        clock: Clock,
        names: Names,
        instruments: Instruments,
    ) -> None:
        self._store = store
        self._bus = bus
        self._clock = clock
        self._names = names
        self._instruments = instruments
        self._queue: deque[Batch] = deque()
        self._waiting = 0
        self._arrived = asyncio.Event()
        self._closing = False
        self._failed: tuple[float, Unavailable] | None = None  # the last commit, if it failed
        instruments.queue_depth.set_function(lambda: self._waiting)

    @property
    def failing(self) -> Unavailable | None:
        """Why commits fail, if one did lately. A failure long past says nothing about now."""
        if self._failed is None or time.monotonic() - self._failed[0] > FAILING_SECONDS:
            return None
        return self._failed[1]

    async def check(self) -> None:
        """Raise Unavailable when decisions could not be acknowledged now."""
        if self._closing:
            raise Unavailable("shutting down")
        if self.failing is not None:
            raise self.failing
        if self._waiting >= MAX_WAITING:
            raise Unavailable("too many decisions are waiting")
        await self._store.check()

    def submit(self, decisions: Sequence[Decision]) -> Pending:
        """Keep a batch: await what is returned for how many were new, and their position.

        It is done after the commit. Where there is no room, or the database cannot take it, this
        or the awaiting raises Unavailable (or SumFull): then nothing of the batch is kept, and it
        may be sent again. Who awaits no longer does not take back what was sent.
        """
        if self._closing:
            raise self._refuse(decisions, "shutting down", retry_after=5)
        if self._waiting and self._waiting + len(decisions) > MAX_WAITING:
            raise self._refuse(decisions, "too many decisions are waiting", retry_after=1)
        batch = Batch(*self._names.reserve(decisions))
        folded = sum(map(is_not, decisions, batch.decisions))
        if folded:
            self._instruments.folded.inc(folded)
        self._queue.append(batch)
        self._waiting += len(decisions)
        self._arrived.set()
        return batch.done

    def _refuse(self, decisions: Sequence[Decision], why: str, retry_after: int) -> Unavailable:
        self._instruments.decisions.labels("refused").inc(len(decisions))
        return Unavailable(why, retry_after=retry_after)

    async def run(self) -> None:
        """Commit what waits, until `close` is called and the queue is empty."""
        while self._queue or not self._closing:
            if not self._queue:
                self._arrived.clear()
                await self._arrived.wait()
                continue
            await self._gather()
            await self._commit(self._next_group())

    async def _gather(self) -> None:
        """Let those in whose requests have come already: one commit for all costs less than two.

        No clock is waited for: it ends once the event loop went round and nobody came.
        """
        seen = 0
        while seen < len(self._queue) and self._waiting < MAX_GROUP:
            seen = len(self._queue)
            for _ in range(TURNS):
                await asyncio.sleep(0)

    def close(self) -> None:
        """Accept no more; `run` ends when what waits is committed."""
        self._closing = True
        self._arrived.set()

    def _next_group(self) -> list[Batch]:
        group = [self._queue.popleft()]
        size = len(group[0].decisions)
        while self._queue and size + len(self._queue[0].decisions) <= MAX_GROUP:
            group.append(self._queue.popleft())
            size += len(group[-1].decisions)
        return group

    async def _commit(self, group: list[Batch]) -> None:
        started = time.perf_counter()
        try:
            commit = await self._store.commit(
                [batch.decisions for batch in group], self._clock.now()
            )
        except SumFull as error:
            await self._commit_apart(group, error)
            return
        except Exception as error:
            self._fail(group, error)
            return
        self._instruments.commit_seconds.observe(time.perf_counter() - started)
        if self._failed is not None:
            log.warning("Commits succeed again")
            self._failed = None
        # Before the answers, so that whoever has one reads what it wrote.
        if commit.delta is not None:
            self._bus.publish(commit.delta)
            if any(batch.reserved for batch in group):
                self._names.learn(commit.delta.cells.keys())
        for batch, inserted in zip(group, commit.inserted, strict=True):
            self._waiting -= len(batch.decisions)
            self._names.release(batch.reserved)
            if not batch.done.done():
                batch.done.set_result((inserted, commit.position))

    async def _commit_apart(self, group: list[Batch], error: SumFull) -> None:
        """Find the batch that cannot be kept, so that the others of its group are."""
        if len(group) == 1:
            self._answer(group, error)
            return
        for batch in group:
            await self._commit([batch])

    def _fail(self, group: list[Batch], error: Exception) -> None:
        if not isinstance(error, Unavailable):
            log.error("A commit failed for a reason not foreseen", exc_info=error)
            error = Unavailable("the commit failed; see the server's log")
        if self._failed is None:  # said once, not for each batch
            log.error("Commits fail, decisions are refused: %s", error)
        self._failed = (time.monotonic(), error)
        self._answer(group, error)

    def _answer(self, group: list[Batch], error: RoutecastError) -> None:
        for batch in group:
            self._waiting -= len(batch.decisions)
            self._names.release(batch.reserved)
            self._instruments.decisions.labels("refused").inc(len(batch.decisions))
            if not batch.done.done():
                batch.done.set_exception(error)
                # Nobody may be waiting any more; the failure is logged and counted all the same.
                batch.done.exception()
