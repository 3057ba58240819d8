"""The past: read from the store once for all clients that ask for the same."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from routecast.core.dirty_minutes import DirtyMinutes
from routecast.core.history import HOUR_STEP, HistoryQuery, Plan, plan
from routecast.core.history_cursor import HistoryCursor
from routecast.core.snapshot import Snapshot
from routecast.core.time_series import (
    MANY_VALUES,
    PERCENTILE_VALUES,
    HistoryResponse,
    TimeSeries,
    past_of,
    render,
)
from routecast.errors import MissingDeltas, NotHeld, Unavailable
from routecast.ports import Clock, Reading, Store
from routecast.protocol import Position

KeptNames = tuple[str, ...]
_AnswerKey = tuple[Plan, KeptNames]

# Reads at the same time; they leave the store to others.
READS: Final = 2
# After a read of over LONG_SECONDS, its turn rests READ_REST times as long as the read took, and at
# most LONGEST_READ_REST seconds. So long reads leave most of the database's time to commits.
LONG_SECONDS: Final = 0.2
READ_REST: Final = 3.0
LONGEST_READ_REST: Final = 10.0
# Different reads that may wait for their turn; one more is refused.
MAX_WAITING_READS: Final = 64
# Answers kept, for as long as no commit comes, and values in all of them together; the least lately
# used goes first. None is kept that has MANY_VALUES: a value takes some 32 bytes.
MAX_KEPT_ANSWERS: Final = 64
MAX_KEPT_VALUES: Final = 200_000


class HistoryService:
    """Answers queries about the past, and tells how the answers go on.

    `live` is the newest state there is, `changes` what led to it.
    """

    def __init__(
        self, store: Store, live: Callable[[], Reading | None], changes: DirtyMinutes, clock: Clock
    ) -> None:
        self._store = store
        self._live = live
        self._changes = changes
        self._clock = clock
        self._turns = asyncio.Semaphore(READS)
        self._waiting: dict[_AnswerKey, asyncio.Task[HistoryResponse]] = {}
        self._kept: OrderedDict[_AnswerKey, HistoryResponse] = OrderedDict()
        self._kept_values = 0

    async def answer(self, query: HistoryQuery) -> HistoryResponse:
        """Return a query's answer, with all that was acknowledged before it was asked.

        Raises BadParameter; Unavailable when the database cannot answer, or too many ask.
        """
        return await self._answer(query, self._clock.now())

    async def follow(self, query: HistoryQuery) -> tuple[HistoryResponse, HistoryCursor]:
        """Return a query's answer, as `answer` does, and what `advance` needs to go on from it."""
        now = self._clock.now()
        answer = await self._answer(query, now)
        return answer, HistoryCursor(query, answer, now)

    async def advance(self, follow: HistoryCursor) -> HistoryResponse | None:
        """Return what is to be told now, None when nothing is; one call at a time for each.

        What is told replaces all that the client holds from the answer's first bucket on.
        Raises Unavailable: then nothing is told, and it is not forgotten.
        """
        reading, now = self._live(), self._clock.now()
        if reading is None:
            return None
        ours, theirs = follow.position, reading.snapshot.position
        if ours.epoch == theirs.epoch and theirs.seq < ours.seq:
            return None  # live state is still behind what the client was told
        if follow.is_ahead(now):
            return await self._begin_again(follow, now)
        try:
            answer = await self._next_answer(follow, reading.snapshot, now)
        except NotHeld:  # minutes are not kept for that long
            return await self._begin_again(follow, now)
        if answer is None:
            follow.kept_up(theirs)
        else:
            follow.told(answer, now)
        return answer

    async def _begin_again(self, follow: HistoryCursor, now: int) -> HistoryResponse:
        answer = await self._answer(follow.query, now)
        follow.restart(answer, now)
        return answer

    async def _answer(self, query: HistoryQuery, now: int) -> HistoryResponse:
        try:
            return await self._read(plan(query, now))
        except NotHeld:  # its minutes are not kept any more
            return await self._read(plan(query, now, least_step=HOUR_STEP))

    async def _next_answer(
        self, follow: HistoryCursor, snapshot: Snapshot, now: int
    ) -> HistoryResponse | None:
        heard = snapshot.position  # which moves on while the database is read
        try:
            minutes = self._changes.between(follow.position, heard)
            due = follow.due(minutes, now)
            if due is None:
                return None
            answer = await self._answer_due(due, follow.names, snapshot)
            # The database may have known of more commits; of what they changed all must be told.
            minutes += self._changes.between(heard, answer.position)
            if follow.due(minutes, now) == due:
                return answer
        except MissingDeltas:
            pass
        return await self._read(follow.whole(now), follow.names)

    # -- reading --------------------------------------------------------------------------------

    async def _read(self, wanted: Plan, names: KeptNames = ()) -> HistoryResponse:
        key = wanted, names
        if (kept := self._newest(key)) is not None:
            return kept
        task = self._waiting.get(key)
        if task is None:
            if len(self._waiting) >= MAX_WAITING_READS:
                raise Unavailable("too many different histories are asked for at once")
            task = self._waiting[key] = asyncio.create_task(self._read_bounded(key))
            task.add_done_callback(_consume_exception)
        return await asyncio.shield(task)

    async def _read_bounded(self, key: _AnswerKey) -> HistoryResponse:
        try:
            await self._turns.acquire()
        finally:
            # A client that asks from now on may know of commits that this read will not see.
            del self._waiting[key]
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            past = await self._store.history(key[0])
        finally:
            took = loop.time() - began
            if took > LONG_SECONDS:
                loop.call_later(min(READ_REST * took, LONGEST_READ_REST), self._turns.release)
            else:
                self._turns.release()
        return await self._render(past, key)

    async def _answer_due(self, due: Plan, names: KeptNames, snapshot: Snapshot) -> HistoryResponse:
        """Return the answer to what is due, made once for all who hold the same."""
        key = due, names
        if (kept := self._newest(key)) is not None:
            return kept
        try:
            past = past_of(snapshot, due)
        except NotHeld:
            return await self._read(due, names)
        return await self._render(past, key)

    # -- answers --------------------------------------------------------------------------------

    def _newest(self, key: _AnswerKey) -> HistoryResponse | None:
        """Return the answer kept, if no commit is known that came after it."""
        kept, reading = self._kept.get(key), self._live()
        if kept is None or reading is None or _is_older(kept.position, reading.snapshot.position):
            return None
        self._kept.move_to_end(key)
        return kept

    def _keep(self, key: _AnswerKey, answer: HistoryResponse) -> None:
        self._forget(key)
        for other, kept in list(self._kept.items()):
            if _is_older(kept.position, answer.position):
                self._forget(other)
        if answer.values >= MANY_VALUES:
            return
        self._kept[key] = answer
        self._kept_values += answer.values
        while len(self._kept) > MAX_KEPT_ANSWERS or self._kept_values > MAX_KEPT_VALUES:
            self._forget(next(iter(self._kept)))

    def _forget(self, key: _AnswerKey) -> None:
        if (kept := self._kept.pop(key, None)) is not None:
            self._kept_values -= kept.values

    async def _render(self, past: TimeSeries, key: _AnswerKey) -> HistoryResponse:
        wanted, names = key
        weight = PERCENTILE_VALUES if wanted.histograms else 1
        values = wanted.buckets.points * len(wanted.fields) * len(past.points) * weight
        if values < MANY_VALUES:
            answer = render(past, wanted, names)
        else:
            answer = await asyncio.to_thread(render, past, wanted, names)
        self._keep(key, answer)
        return answer


def _is_older(position: Position, than: Position) -> bool:
    return position.epoch != than.epoch or position.seq < than.seq


def _consume_exception(task: asyncio.Task[HistoryResponse]) -> None:
    if not task.cancelled():
        task.exception()  # whoever waits for it is told; nobody may
