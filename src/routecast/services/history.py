"""History: answers queries, and reads equal ones from the store once."""

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
    render,
    series_from_snapshot,
)
from routecast.errors import MissingDeltas, NotHeld, Unavailable
from routecast.ports import Clock, Reading, Store
from routecast.protocol import Position

KeptNames = tuple[str, ...]
_AnswerKey = tuple[Plan, KeptNames]

# At most this number of reads run at the same time: the store must serve others, too.
READS: Final = 2
# The slot of a read that took over LONG_SECONDS stays unused for READ_REST times that duration, at
# most LONGEST_READ_REST seconds. So commits have most of the database's time.
LONG_SECONDS: Final = 0.2
READ_REST: Final = 3.0
LONGEST_READ_REST: Final = 10.0
# Different reads that may wait for their turn; one more is refused.
MAX_WAITING_READS: Final = 64
# The number of answers that are kept until the next commit, and of their values, of about 32 bytes
# each. The least recently used answer is dropped first. Answers with MANY_VALUES are not kept.
MAX_KEPT_ANSWERS: Final = 64
MAX_KEPT_VALUES: Final = 200_000


class HistoryService:
    """Answers history queries, and continues the answers.

    `live` returns the newest live state; `changes` are the minutes that its commits added to.
    """

    def __init__(
        self, store: Store, live: Callable[[], Reading | None], changes: DirtyMinutes, clock: Clock
    ) -> None:
        self._store = store
        self._live = live
        self._changes = changes
        self._clock = clock
        self._read_slots = asyncio.Semaphore(READS)
        self._waiting: dict[_AnswerKey, asyncio.Task[HistoryResponse]] = {}
        self._kept: OrderedDict[_AnswerKey, HistoryResponse] = OrderedDict()
        self._kept_values = 0

    async def answer(self, query: HistoryQuery) -> HistoryResponse:
        """Return a query's answer, with all decisions that were acknowledged before the call.

        Raises BadParameter, and Unavailable if the database cannot answer or too many queries wait.
        """
        return await self._answer(query, self._clock.now())

    async def follow(self, query: HistoryQuery) -> tuple[HistoryResponse, HistoryCursor]:
        """Return a query's answer, as `answer` does, and the cursor that `advance` needs."""
        now = self._clock.now()
        answer = await self._answer(query, now)
        return answer, HistoryCursor(query, answer, now)

    async def advance(self, cursor: HistoryCursor) -> HistoryResponse | None:
        """Return the answer to send now, None if nothing changed; one call at a time per cursor.

        It replaces all that the client holds from the answer's first bucket on. Raises
        Unavailable: then the cursor is unchanged, and a later call returns the answer.
        """
        reading, now = self._live(), self._clock.now()
        if reading is None:
            return None
        ours, theirs = cursor.position, reading.snapshot.position
        if ours.epoch == theirs.epoch and theirs.seq < ours.seq:
            return None  # live state is still behind the client's last answer
        if cursor.is_ahead(now):
            return await self._restart(cursor, now)
        try:
            answer = await self._next_answer(cursor, reading.snapshot, now)
        except NotHeld:  # its minutes are not kept any more
            return await self._restart(cursor, now)
        if answer is None:
            cursor.record_position(theirs)
        else:
            cursor.record_answer(answer, now)
        return answer

    async def _restart(self, cursor: HistoryCursor, now: int) -> HistoryResponse:
        answer = await self._answer(cursor.query, now)
        cursor.restart(answer, now)
        return answer

    async def _answer(self, query: HistoryQuery, now: int) -> HistoryResponse:
        try:
            return await self._read(plan(query, now))
        except NotHeld:  # its minutes are not kept any more
            return await self._read(plan(query, now, least_step=HOUR_STEP))

    async def _next_answer(
        self, cursor: HistoryCursor, snapshot: Snapshot, now: int
    ) -> HistoryResponse | None:
        position = snapshot.position  # the snapshot may take commits during the read
        try:
            minutes = self._changes.between(cursor.position, position)
            due = cursor.due(minutes, now)
            if due is None:
                return None
            answer = await self._answer_due(due, cursor.names, snapshot)
            # The database may have had more commits, which may have changed more buckets.
            minutes += self._changes.between(position, answer.position)
            if cursor.due(minutes, now) == due:
                return answer
        except MissingDeltas:
            pass
        return await self._read(cursor.whole(now), cursor.names)

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
            await self._read_slots.acquire()
        finally:
            # A client that asks from now on may know of commits that this read does not see.
            del self._waiting[key]
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            series = await self._store.history(key[0])
        finally:
            took = loop.time() - began
            if took > LONG_SECONDS:
                loop.call_later(min(READ_REST * took, LONGEST_READ_REST), self._read_slots.release)
            else:
                self._read_slots.release()
        return await self._render(series, key)

    async def _answer_due(self, due: Plan, names: KeptNames, snapshot: Snapshot) -> HistoryResponse:
        """Return the answer to what is due, made once for all clients that hold the same."""
        key = due, names
        if (kept := self._newest(key)) is not None:
            return kept
        try:
            series = series_from_snapshot(snapshot, due)
        except NotHeld:
            return await self._read(due, names)
        return await self._render(series, key)

    # -- answers --------------------------------------------------------------------------------

    def _newest(self, key: _AnswerKey) -> HistoryResponse | None:
        """Return the kept answer, if no later commit is known."""
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

    async def _render(self, series: TimeSeries, key: _AnswerKey) -> HistoryResponse:
        wanted, names = key
        weight = PERCENTILE_VALUES if wanted.histograms else 1
        values = wanted.buckets.points * len(wanted.fields) * len(series.points) * weight
        if values < MANY_VALUES:
            answer = render(series, wanted, names)
        else:
            answer = await asyncio.to_thread(render, series, wanted, names)
        self._keep(key, answer)
        return answer


def _is_older(position: Position, than: Position) -> bool:
    return position.epoch != than.epoch or position.seq < than.seq


def _consume_exception(task: asyncio.Task[HistoryResponse]) -> None:
    if not task.cancelled():
        task.exception()  # those that await the task get it; there may be none
