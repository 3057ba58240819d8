"""Windows that the snapshot in memory does not cover, answered from the database.

One read serves all clients that need the same window. Reads run one at a time, and together they
take at most a tenth of the time: the more they cost, the older the answers become.
"""

import asyncio
import time
from collections import OrderedDict
from contextlib import suppress
from typing import Final

from routecast.core.decision import MINUTE, SECOND
from routecast.core.snapshot import Snapshot
from routecast.core.window import WindowQuery
from routecast.errors import NotHeld, Unavailable
from routecast.ports import Clock, Reading, Store
from routecast.protocol import Position, Source

# A window is read again after this time at the earliest, in seconds.
REUSE_SECONDS: Final = 1.0
# After a read, this many times the duration of all windows' last reads pass before the next one.
WINDOW_REST: Final = 10
# A client waits for an answer for at most this time, in seconds.
WINDOW_WAIT_SECONDS: Final = 10.0
# An answer is not used if it is older than OUTDATED, or if the clock was set back by more than
# SET_BACK since; in microseconds.
SET_BACK: Final = SECOND
OUTDATED: Final = 10 * MINUTE
# A window is dropped after this time without a request, in seconds.
FORGET_SECONDS: Final = 120.0


class _Window:
    """A window's last answer, and the read that is running."""

    __slots__ = ("asked", "due", "ended", "failed", "reading", "seconds", "task")

    def __init__(self) -> None:
        self.reading: Reading | None = None
        self.failed = False  # whether the last read failed
        self.task: asyncio.Task[Reading] | None = None
        self.seconds = 0.0  # the duration of the last read
        self.ended = 0.0  # when the last read ended, on the monotonic clock
        self.due = 0.0  # when it may be read again, on the monotonic clock
        self.asked = 0.0  # when a client last asked, on the monotonic clock


class Windows:
    """The windows that clients asked for; `room` limits the memory of their answers, in bytes."""

    def __init__(self, store: Store, clock: Clock, room: int) -> None:
        self._store = store
        self._clock = clock
        self._room = room
        self._one = asyncio.Lock()
        self._windows: OrderedDict[WindowQuery, _Window] = OrderedDict()

    @property
    def size(self) -> int:
        """The approximate memory of the answers, in bytes."""
        readings = (window.reading for window in self._windows.values())
        return sum(reading.snapshot.size for reading in readings if reading is not None)

    def held(self, asked: WindowQuery, after: Position | None) -> Reading | None:
        """Return the last answer, None if there is none that is recent and not older than `after`.

        If it is time for a new answer, a read begins.
        """
        window = self._windows.get(asked)
        if window is None:
            window = self._windows[asked] = _Window()
        now = time.monotonic()
        window.asked = now
        self._windows.move_to_end(asked)
        reading = window.reading
        if reading is not None and not self._is_of_use(reading, after):
            reading = window.reading = None
            window.due = min(window.due, window.ended + REUSE_SECONDS)
        if window.task is None and now >= window.due:
            window.task = asyncio.create_task(self._read(asked, window))
            window.task.add_done_callback(_consume_exception)
        return reading

    def failed(self, asked: WindowQuery) -> bool:
        """Whether the last read of a window failed and no other read is running."""
        window = self._windows.get(asked)
        return window is not None and window.failed and window.task is None

    def newer(self, asked: WindowQuery, than: Position) -> Reading | None:
        """Return the last answer if it is newer than a position of the same epoch."""
        window = self._windows.get(asked)
        if window is None or window.reading is None:
            return None
        ours = window.reading.snapshot.position
        return window.reading if ours.epoch == than.epoch and ours.seq > than.seq else None

    async def read(
        self, asked: WindowQuery, after: Position | None, *, patience: float = WINDOW_WAIT_SECONDS
    ) -> Reading:
        """Return the last answer, or wait for the next if there is none. Raises Unavailable.

        `patience` is how many seconds to wait.
        """
        reading = self.held(asked, after)
        if reading is not None:
            return reading
        window = self._windows[asked]
        try:
            async with asyncio.timeout(patience):
                while reading is None:
                    if window.task is None:  # its answer was dropped, or there was none
                        if window.failed:
                            raise Unavailable("the database cannot answer for the window now")
                        await asyncio.sleep(window.due - time.monotonic())
                        reading = self.held(asked, after)
                        window = self._windows[asked]
                    else:
                        newest = await asyncio.shield(window.task)
                        reading = newest if self._is_of_use(newest, after) else None
        except TimeoutError:
            raise Unavailable("the database has not answered for the window yet") from None
        return reading

    def _is_of_use(self, reading: Reading, after: Position | None) -> bool:
        age = self._clock.now() - reading.as_of
        ours = reading.snapshot.position
        is_older = after is not None and ours.epoch == after.epoch and ours.seq < after.seq
        return not is_older and -SET_BACK <= age < OUTDATED

    async def _read(self, asked: WindowQuery, window: _Window) -> Reading:
        try:
            async with self._one:
                now, started = self._clock.now(), time.monotonic()
                window.failed = True
                try:
                    snapshot = await self._ask(asked, now)
                    if self.newer(asked, snapshot.position):
                        raise Unavailable("the database is older than it was before")
                    window.failed = False
                finally:
                    self._rest(window, started, time.monotonic())
            reading = window.reading = Reading(snapshot, Source.DATABASE, now)
            self._make_room(window)
            return reading
        finally:
            window.task = None

    async def _ask(self, asked: WindowQuery, now: int) -> Snapshot:
        try:
            return await self._store.window(asked, now)
        except NotHeld as error:
            raise Unavailable(str(error)) from error

    def _rest(self, window: _Window, started: float, ended: float) -> None:
        """Record the cost of a read, and when the next one may begin."""
        window.seconds, window.ended = ended - started, ended
        for asked, other in list(self._windows.items()):
            if other.task is None and ended - other.asked > FORGET_SECONDS:
                del self._windows[asked]
        cost = sum(each.seconds for each in self._windows.values())
        window.due = ended + max(REUSE_SECONDS, WINDOW_REST * cost)

    def _make_room(self, newest: _Window) -> None:
        """Drop the least recently requested answers, but not the newest."""
        size = self.size
        for window in self._windows.values():
            if size <= self._room:
                return
            if window is not newest and window.reading is not None:
                size -= window.reading.snapshot.size
                window.reading = None

    async def close(self) -> None:
        """Cancel the reads that are running."""
        tasks = [window.task for window in self._windows.values() if window.task is not None]
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError, Unavailable):
                await task


def _consume_exception(task: asyncio.Task[Reading]) -> None:
    if not task.cancelled():
        task.exception()  # those that await the read get it; there may be none
