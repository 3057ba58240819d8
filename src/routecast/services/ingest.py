"""Ingest: batches wait in bounded queues, and those that wait together are committed together.

Acknowledged means on disk: a batch's receipt comes after its commit (group commit). The outcome of
each decision is decided and counted here, for all entry points. If a queue is full, `accept` raises
`Unavailable`, and nothing is stored.

There are three queues, by the size of a batch. Small and medium batches are committed in groups,
and take turns to come first; groups are larger while no small batches come. Large batches are
committed one at a time, at the same time as groups: a store prepares them without delaying others.
While there are groups, too, large batches get a quarter of the time.
"""

import asyncio
import itertools
import logging
import math
import time
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from operator import is_not
from typing import Final, Protocol

from routecast.core.access import Projects, rules_for
from routecast.core.cardinality import CardinalityLimiter
from routecast.core.decision import DecisionRecord, Rules
from routecast.core.decode import DecodedItem
from routecast.core.delta import Delta
from routecast.errors import RoutecastError, Unavailable
from routecast.instruments import Instruments
from routecast.ports import MAX_BULK_GROUP, MAX_GROUP, Bus, Clock, Commit, Store
from routecast.protocol import Position, Receipt
from routecast.service_parts import run_part, run_parts
from routecast.services.decision_batch import AllRejected, DecisionBatch
from routecast.services.snapshot_loader import is_behind
from routecast.slices import Slices

log = logging.getLogger(__name__)

# Three of the largest requests may wait. Large batches may take two thirds of that.
MAX_WAITING_DECISIONS: Final = 150_000
MAX_LARGE_WAITING: Final = 100_000
# A batch of at most this number of decisions is small.
SMALL_BATCH: Final = 100
# For this time after a small batch, in seconds, groups have at most MAX_GROUP decisions: another
# small batch may come, and must wait for the group before it.
SMALL_SECONDS: Final = 1.0
# Work for large batches gives other tasks a turn on the event loop after this time, in seconds.
LOOP_SECONDS: Final = 0.001
# After a large batch, the next one waits this many times as long as the first one took.
LARGE_REST: Final = 3.0
# It waits for at most this time, in seconds, and not at all after a failed commit.
LONGEST_LARGE_REST: Final = 30.0
# The error if the database does not answer until the process ends.
UNKNOWN_OUTCOME: Final = (
    "shutting down; the database did not answer in time, so it may have been kept"
)
# The error between a crash and the next start.
CRASHED: Final = "taking decisions in crashed, and is being started again"
# Turns of the event loop that a request needs from its socket to the queue.
TURNS: Final = 3
# Requests are collected for at most this time, in seconds.
GATHER_SECONDS: Final = 0.01
# One check of the database serves all that ask for it within this time, in seconds.
STORE_CHECK_SECONDS: Final = 1.0
# A failed commit makes the node unready for this time, in seconds; then it may try again.
FAILING_SECONDS: Final = 5.0


def _forget_outcome(check: asyncio.Task[None]) -> None:
    if not check.cancelled():
        check.exception()  # the request may have been cancelled


class LivePosition(Protocol):
    """Knows the newest position of the database, to notice lost commits (`LiveState`)."""

    @property
    def position(self) -> Position | None:
        """The newest known position of the database."""
        ...

    def went_back(self, seen: Position, there: Position) -> None:
        """Is called if the database was at `seen` and is at `there` now: it has lost commits."""
        ...


class Ingest:
    """The only writer of decisions. Run `run` as a task, and call `accept` from other tasks."""

    def __init__(
        self,
        store: Store,
        bus: Bus,
        clock: Clock,
        names: CardinalityLimiter,
        rules: Rules,
        instruments: Instruments,
        slices: Slices | None = None,
        live: LivePosition | None = None,
    ) -> None:
        self._store = store
        self._bus = bus
        self._clock = clock
        self._names = names
        self._rules = rules
        self._instruments = instruments
        outcome = instruments.decisions.labels
        self._accepted = outcome("accepted")
        self._duplicate = outcome("duplicate")
        self._conflict = outcome("conflict")
        self._rejected = outcome("rejected")
        self._refused = outcome("refused")
        self._slices = slices or Slices()
        self._live = live
        self._small: deque[DecisionBatch] = deque()
        self._medium: deque[DecisionBatch] = deque()
        self._large: deque[DecisionBatch] = deque()
        self._waiting = 0  # decisions in all queues and in commits
        self._large_waiting = 0  # decisions in large batches
        self._queued = 0  # decisions in the queues of small and medium batches
        self._medium_first = False
        self._small_came = -math.inf  # when the last small batch came, monotonic
        self._arrived = asyncio.Event()
        self._large_arrived = asyncio.Event()
        self._groups = 0  # groups committed so far
        self._closing = asyncio.Event()
        self._crashed = False  # `run` crashed, and was not started again yet
        self._failed: tuple[float, Unavailable] | None = None  # when and why the last commit failed
        self._checking: asyncio.Task[None] | None = None  # the last check of the database
        self._checked = -STORE_CHECK_SECONDS  # when it began
        instruments.queue_depth.set_function(lambda: self._waiting)

    @property
    def failing(self) -> Unavailable | None:
        """Why commits fail, if one failed recently. An old failure says nothing about now."""
        if self._failed is None or time.monotonic() - self._failed[0] > FAILING_SECONDS:
            return None
        return self._failed[1]

    async def check(self) -> None:
        """Raise Unavailable if decisions could not be acknowledged now."""
        if self._closing.is_set():
            raise Unavailable("shutting down")
        if self.failing is not None:
            raise self.failing
        if self._waiting >= MAX_WAITING_DECISIONS:
            raise Unavailable("too many decisions are waiting")
        await self._check_store()

    async def _check_store(self) -> None:
        """Have the database write and sync, at most every STORE_CHECK_SECONDS, for all callers.

        A caller never gets a result that is older than its call: it waits for the next check.
        """
        if self._checking is None or self._checking.done():
            self._checking = asyncio.create_task(self._check_next(), name="check")
            self._checking.add_done_callback(_forget_outcome)
        await asyncio.shield(self._checking)

    async def _check_next(self) -> None:
        await asyncio.sleep(self._checked + STORE_CHECK_SECONDS - time.monotonic())
        self._checked = time.monotonic()
        await self._store.check()

    def batch(
        self, pieces: Iterable[Sequence[DecodedItem]], projects: Projects = None
    ) -> DecisionBatch:
        """Return the batch of decoded decisions: `validate` it, then `accept` it.

        `projects` are those that its producer may write to; None for all. Raises Forbidden if there
        are none.
        """
        return DecisionBatch(pieces, rules_for(self._rules, projects), self._clock.now())

    def accept(self, batch: DecisionBatch) -> asyncio.Future[Receipt]:
        """Queue the valid decisions of a validated batch; await the result for the receipt.

        It is done after the commit. The call, or awaiting the result, raises AllRejected if no
        decision is valid, and Unavailable if there is no room or the database cannot store them:
        then nothing of the batch is stored (except after UNKNOWN_OUTCOME), and it may be sent
        again. Cancelling the future does not withdraw the batch.
        """
        size = len(batch.decisions)
        if not size and batch.rejected:
            self._rejected.inc(len(batch.rejected))
            raise AllRejected(batch.rejected)
        if self._closing.is_set():
            raise self._refuse(size, "shutting down", retry_after=5)
        if self._crashed:
            raise self._refuse(size, CRASHED, retry_after=1)
        if not self._has_room(size):
            raise self._refuse(size, "too many decisions are waiting", retry_after=1)
        batch.done = asyncio.get_running_loop().create_future()
        self._count_waiting(size)
        if size > MAX_GROUP:
            self._large.append(batch)  # its names are limited later, because that takes long
            self._large_arrived.set()
        else:
            batch.decisions = self._bounded(batch, batch.decisions)
            if size <= SMALL_BATCH:
                self._small.append(batch)
                self._small_came = time.monotonic()
                self._slices.leave_room()
            else:
                self._medium.append(batch)
            self._queued += size
            self._arrived.set()
        return batch.done

    def _has_room(self, size: int) -> bool:
        """Whether a batch of this number of decisions may wait. The first one may, at any size."""
        if self._waiting and self._waiting + size > MAX_WAITING_DECISIONS:
            return False
        large = self._large_waiting
        return size <= MAX_GROUP or not large or large + size <= MAX_LARGE_WAITING

    def _count_waiting(self, size: int) -> None:
        """Count the decisions of a batch as waiting."""
        self._waiting += size
        if size > MAX_GROUP:
            self._large_waiting += size

    def _count_answered(self, size: int) -> None:
        """Count the decisions of a batch as not waiting any more."""
        self._waiting -= size
        if size > MAX_GROUP:
            self._large_waiting -= size

    def _bounded(
        self, batch: DecisionBatch, decisions: Sequence[DecisionRecord]
    ) -> list[DecisionRecord]:
        """Return a batch's decisions with names over a limit replaced; reserve their names."""
        bounded, reserved = self._names.reserve(decisions, batch.reserved)
        batch.reserved |= reserved
        folded = sum(map(is_not, decisions, bounded))
        if folded:
            self._instruments.folded.inc(folded)
        return bounded

    def _refuse(self, size: int, why: str, retry_after: int) -> Unavailable:
        self._refused.inc(size)
        return Unavailable(why, retry_after=retry_after)

    async def run(self) -> None:
        """Commit what waits, until `close` is called and the queues are empty.

        If it is cancelled or crashes, all waiting batches are refused. After a crash it may be run
        again.
        """
        self._crashed = False
        try:
            await run_part(lambda: run_parts(self._run_groups, self._run_large))
        except Exception:
            self._crashed = True
            self._refuse_waiting(Unavailable(CRASHED))
            raise
        except BaseException:
            self.give_up()
            raise
        self.give_up()

    async def _run_groups(self) -> None:
        while self._small or self._medium or not self._closing.is_set():
            if not self._small and not self._medium:
                self._arrived.clear()
                await self._arrived.wait()
                continue
            await self._gather()
            await self._commit(self._next_group())
            self._groups += 1

    async def _run_large(self) -> None:
        while self._large or not self._closing.is_set():
            if not self._large:
                self._large_arrived.clear()
                await self._large_arrived.wait()
                continue
            batch, groups, began = self._large[0], self._groups, time.monotonic()
            try:
                is_left = await self._bound_in_slices(batch)
            except Exception as error:  # it must not stay the first for ever
                if self._large and self._large[0] is batch:
                    self._large.popleft()
                    self._fail([batch], error)
                continue
            if is_left:
                self._large.popleft()
                await self._commit([batch])
                if self._groups > groups and self._failed is None:
                    await self._rest(LARGE_REST * (time.monotonic() - began))

    async def _rest(self, seconds: float) -> None:
        """Wait, unless it is time to close."""
        with suppress(TimeoutError):
            async with asyncio.timeout(min(seconds, LONGEST_LARGE_REST)):
                await self._closing.wait()

    async def _bound_in_slices(self, batch: DecisionBatch) -> bool:
        """Limit the names of the first large batch; return whether it must still be committed.

        It may be refused meanwhile: then its reserved names are released already.
        """
        bounded: list[DecisionRecord] = []
        due = time.monotonic() + LOOP_SECONDS
        for first in range(0, len(batch.decisions), SMALL_BATCH):
            bounded += self._bounded(batch, batch.decisions[first : first + SMALL_BATCH])
            if time.monotonic() > due:
                await self._slices.turn()
                if not self._large or self._large[0] is not batch:
                    return False
                due = time.monotonic() + LOOP_SECONDS
        batch.decisions = bounded
        return True

    async def _gather(self) -> None:
        """Let requests that were already received join this commit: one commit costs less than two.

        It ends after TURNS turns of the event loop in which no request came. It sets no timer, so
        an idle loop is not kept waiting. On a busy loop, whose turns take long, it ends after
        GATHER_SECONDS.
        """
        seen, due = 0, time.monotonic() + GATHER_SECONDS
        while (
            seen < (waiting := len(self._small) + len(self._medium))
            and self._queued < self._most_together
        ):
            seen = waiting
            for _ in range(TURNS):
                await asyncio.sleep(0)
                if time.monotonic() > due:
                    return

    @property
    def _most_together(self) -> int:
        """The number of decisions that are committed together now, unless one batch has more."""
        small = time.monotonic() - self._small_came < SMALL_SECONDS
        return MAX_GROUP if small else MAX_BULK_GROUP

    def close(self) -> None:
        """Accept no more batches; `run` ends when all that wait are committed."""
        self._closing.set()
        self._arrived.set()
        self._large_arrived.set()

    def give_up(self) -> None:
        """Accept no more batches, and refuse those that wait; running commits continue."""
        self.close()
        self._refuse_waiting(Unavailable("shutting down", retry_after=5))

    def _refuse_waiting(self, error: Unavailable) -> None:
        for queue in (self._small, self._medium, self._large):
            self._answer(list(queue), error)
            queue.clear()
        self._queued = 0

    def _next_group(self) -> list[DecisionBatch]:
        """Take the next batches; small and medium ones take turns to come first."""
        queues = [self._small, self._medium]
        if self._medium_first:
            queues.reverse()
        self._medium_first = not self._medium_first
        group: list[DecisionBatch] = []
        size, most = 0, self._most_together
        for queue in queues:
            while queue and (not group or size + len(queue[0].decisions) <= most):
                group.append(queue.popleft())
                size += len(group[-1].decisions)
        self._queued -= size
        return group

    async def _commit(self, group: list[DecisionBatch]) -> None:
        started, seen = time.perf_counter(), self._live.position if self._live else None
        try:
            commit = await self._store.commit(
                [batch.decisions for batch in group], self._clock.now()
            )
        except Exception as error:
            self._fail(group, error)
            return
        except asyncio.CancelledError:
            self._answer(group, Unavailable(UNKNOWN_OUTCOME, retry_after=5))
            raise
        self._instruments.commit_seconds.observe(time.perf_counter() - started)
        if self._failed is not None:
            log.warning("Commits succeed again")
            self._failed = None
        # Before the answers, so that a client with an answer reads its own decisions.
        if self._live and seen and is_behind(commit.before, seen):
            self._live.went_back(seen, commit.before)
        if commit.delta is not None:
            self._publish(commit.delta, group)
        conflicts = commit.conflicts or itertools.repeat(0)
        for batch, inserted, differing in zip(group, commit.inserted, conflicts, strict=False):
            self._count_answered(len(batch.decisions))
            self._names.release(batch.reserved)
            self._acknowledge(batch, commit, inserted, differing)

    def _acknowledge(
        self, batch: DecisionBatch, commit: Commit, inserted: int, conflicts: int
    ) -> None:
        """Answer a batch, and count the outcome of its decisions."""
        try:
            receipt = batch.receipt(inserted, conflicts, commit.position, commit.full)
        except AllRejected as error:
            self._rejected.inc(len(error.rejected))
            self._fail_one(batch, error)
            return
        self._accepted.inc(inserted)
        if receipt.duplicates or conflicts:
            self._duplicate.inc(receipt.duplicates)
            self._conflict.inc(conflicts)
        if receipt.rejected_count:
            self._rejected.inc(receipt.rejected_count)
        for cause, count in batch.warned.items():
            self._instruments.field_warnings.labels(*cause).inc(count)
        if not batch.done.done():
            batch.done.set_result(receipt)

    def _publish(self, delta: Delta, group: list[DecisionBatch]) -> None:
        """Publish a commit. It is on disk: no error here may keep it from being acknowledged."""
        try:
            self._bus.publish(delta)
            if any(batch.reserved for batch in group):
                self._names.learn(delta.cells.keys())
        except Exception:
            log.exception("A delta could not be published; it will be read from the database")

    def _fail(self, group: list[DecisionBatch], error: Exception) -> None:
        if not isinstance(error, Unavailable):
            log.error("Unexpected error in a commit", exc_info=error)
            error = Unavailable("the commit failed; see the server's log")
        if self._failed is None:  # logged once, not for each batch
            log.error("Commits fail, decisions are refused: %s", error)
        self._failed = (time.monotonic(), error)
        self._answer(group, error)

    def _answer(self, group: list[DecisionBatch], error: RoutecastError) -> None:
        for batch in group:
            self._count_answered(len(batch.decisions))
            self._names.release(batch.reserved)
            self._refused.inc(len(batch.decisions))
            self._fail_one(batch, error)

    @staticmethod
    def _fail_one(batch: DecisionBatch, error: RoutecastError) -> None:
        if not batch.done.done():
            batch.done.set_exception(error)
            # The requests may be gone; the failure is logged and counted nevertheless.
            batch.done.exception()
