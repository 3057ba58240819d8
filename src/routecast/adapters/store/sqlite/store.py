"""The store port on SQLite: one writer thread, and threads for readers."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import apsw

from routecast.adapters.store.sqlite import (
    access,
    deltas,
    history,
    loading,
    projects,
    retention,
    summaries,
)
from routecast.adapters.store.sqlite import names as names_of
from routecast.adapters.store.sqlite.commit import (
    begin_large,
    commit,
    commit_staged,
    exact_totals,
    number_series,
)
from routecast.adapters.store.sqlite.connection import select
from routecast.adapters.store.sqlite.file_identity import LogCut, Lost, Shrunk
from routecast.adapters.store.sqlite.integrity import Integrity
from routecast.adapters.store.sqlite.readers import INTERRUPT_PAUSE, Readers
from routecast.adapters.store.sqlite.series import KEYS_PER_STEP, SeriesKey
from routecast.adapters.store.sqlite.staging import Staged, counted_as, keys_of, stage
from routecast.adapters.store.sqlite.verify import SQLITE_UNVERIFIABLE, recount
from routecast.adapters.store.sqlite.window import WindowReader
from routecast.adapters.store.sqlite.writer import Writer
from routecast.core.cardinality import FoldedNames
from routecast.core.clock_check import KeptSpan
from routecast.core.decision import DecisionRecord
from routecast.core.delta import Delta
from routecast.core.history import Plan
from routecast.core.keys import AccessRecords, DecideChange
from routecast.core.rollup import Key, PeriodCells
from routecast.core.snapshot import Snapshot
from routecast.core.time_series import TimeSeries
from routecast.core.window import WindowQuery
from routecast.errors import RoutecastError, Unavailable
from routecast.ports import (
    MAX_GROUP,
    Checked,
    Commit,
    Condition,
    DeletedProject,
    Difference,
    NameUse,
)
from routecast.protocol import Position
from routecast.retry import Backoff, no_jitter

T = TypeVar("T")

log = logging.getLogger(__name__)

READERS: Final = 2
# The longest pause between two steps of folding, in seconds.
LONGEST_FOLD_REST: Final = 0.1
# A large batch waits until at most this number of cells is not folded, so that loading a snapshot
# has a bounded cost.
LARGE_UNFOLDED: Final = 2_000
# A large batch is prepared again if its ids were committed meanwhile, or if a series has no room
# for it. After this number of preparations, it is committed without one.
PREPARATIONS: Final = 3
# When the store closes, running work has FINISH_SECONDS to finish. Then it is interrupted, and has
# STOP_SECONDS to end.
FINISH_SECONDS: Final = 2.0
STOP_SECONDS: Final = 3.0
# The time that readers have to end when the file must be opened again, in seconds.
SUSPEND_SECONDS: Final = 5.0
# Pauses after a failed attempt to open the file again, in seconds: each is twice the one before. An
# attempt may copy the whole database.
FIRST_REOPEN_PAUSE: Final = 0.5
LONGEST_REOPEN_PAUSE: Final = 30.0
# Seconds between two attempts to cut off a long write-ahead log.
CUT_PAUSE: Final = 2.0


class SqliteStore:
    """Keeps everything in one SQLite file (`ports.Database`)."""

    def __init__(self, path: str | Path, *, create: bool = True) -> None:
        self.path = Path(path)
        self._writer = Writer(self.path, create=create)
        self._writing = ThreadPoolExecutor(1, "sqlite-writer")
        self._reading = ThreadPoolExecutor(READERS, "sqlite-reader")
        # Threads of their own, so that a long range or a large batch does not delay others.
        self._history = ThreadPoolExecutor(1, "sqlite-history")
        self._preparing = ThreadPoolExecutor(1, "sqlite-preparing")
        self._one_large = asyncio.Lock()
        self._one_step = asyncio.Lock()
        self._folding: asyncio.Task[None] | None = None
        self._windows = ThreadPoolExecutor(1, "sqlite-window")
        self._window_reader = WindowReader()
        self._readers = Readers(self.path)
        self._integrity = Integrity(self._readers.own, lambda: self._writer.files.accept())
        self._cutting: asyncio.Task[None] | None = None
        self._reopening: asyncio.Task[None] | None = None
        self._lost: Lost | None = None  # why the file must be opened again
        self._reopen_failure: str | None = None  # of the last attempt
        # No other process opens the file again at the same time, so the pauses need not be random.
        self._reopen_backoff = Backoff(FIRST_REOPEN_PAUSE, LONGEST_REOPEN_PAUSE, draw=no_jitter)
        self._reopen_from = 0.0  # the time of the next attempt, monotonic
        self._open_for_use = False
        self._closed = self._stopping = False

    # -- ports.Database ------------------------------------------------------------------------

    async def open(self) -> None:
        await self._run(self._writing, self._writer.open, opening=True)
        await self._integrity.open()
        self._open_for_use = True

    def stop(self) -> None:
        self._stopping = True
        self._interrupt()

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for task in (self._cutting, self._reopening):
            if task is not None:
                task.cancel()
        # A shutdown executor starts no new work, and ends when its running work has ended.
        ended = [asyncio.to_thread(pool.shutdown) for pool in self._pools]
        ending = asyncio.ensure_future(asyncio.gather(self._integrity.close(), *ended))
        _, running = await asyncio.wait([ending], timeout=0 if self._stopping else FINISH_SECONDS)
        deadline = time.monotonic() + STOP_SECONDS
        while running and time.monotonic() < deadline:
            self._interrupt()  # an interrupt may fall between two statements
            _, running = await asyncio.wait(running, timeout=INTERRUPT_PAUSE)
        if running:
            log.error("SQLite does not finish its work; the file is not closed")
            return
        self._readers.close()
        self._writer.close(sound=self._integrity.condition.error is None)

    async def commit(self, batches: Sequence[Sequence[DecisionRecord]], received: int) -> Commit:
        if any(len(batch) > MAX_GROUP for batch in batches):
            committed = await self._commit_large(batches, received)
        else:
            committed = await self._write(commit, batches, received)
        if self._writer.should_fold and (self._folding is None or self._folding.done()):
            self._folding = asyncio.create_task(self._fold(), name="fold")
        if self._writer.wal.is_long and (self._cutting is None or self._cutting.done()):
            self._cutting = asyncio.create_task(self._cut_log(), name="cut log")
        return committed

    async def check(self) -> None:
        await self._write(Writer.check)

    @property
    def condition(self) -> Condition:
        found = self._integrity.condition
        if not self._open_for_use:
            return found
        wal = self._writer.wal
        return found._replace(wal_bytes=wal.size, warning=wal.warning)

    async def position(self) -> Position:
        return await self._read(deltas.position)

    async def load(self, now: int, room: int | None = None) -> Snapshot:
        return await self._read(loading.load, now, room)

    async def deltas(self, after: Position) -> list[Delta]:
        return await self._read(deltas.read, after)

    async def history(self, plan: Plan) -> TimeSeries:
        return await self._run(self._history, self._read_here, history.read, (plan,))

    async def window(self, asked: WindowQuery, now: int) -> Snapshot:
        read = self._window_reader.read
        return await self._run(self._windows, self._read_here, read, (asked, now))

    async def unsummed(self, *, before: int) -> list[int]:
        return await self._read(summaries.unsummed, before)

    async def summarise(self, hour: int) -> None:
        changes, rows = await self._read(summaries.summarise, hour)
        await self._write(summaries.put, hour, changes, rows)

    async def span(self) -> KeptSpan:
        return await self._read(retention.span)

    async def prune(self, *, decisions_before: int, minutes_before: int, limit: int) -> int:
        return await self._write(retention.prune, decisions_before, minutes_before, limit)

    async def names(self) -> list[NameUse]:
        return await self._read(names_of.listed)

    async def folded_names(self) -> FoldedNames:
        return await self._read(names_of.folded_names)

    async def fold_names(self, part: str, names: Collection[str], *, remember: bool) -> Position:
        return await self._write(names_of.fold_names, part, frozenset(names), remember)

    async def has_decisions(self, project: str) -> bool:
        return await self._read(projects.has_decisions, project)

    async def delete_project(self, project: str, now: int) -> DeletedProject:
        return await self._write(projects.delete_project, project, now)

    async def access_version(self) -> str:
        return await self._read(access.version)

    async def access(self) -> AccessRecords:
        return await self._read(access.read)

    async def change_access(self, decide: DecideChange) -> None:
        await self._write(access.change, decide)

    async def note_use(self, uses: Mapping[str, int]) -> None:
        await self._write(access.note_use, uses)

    async def verify(self) -> AsyncIterator[Checked | Difference]:
        with self._readers.own() as connection:
            now = time.time_ns() // 1000
            findings = recount(connection, partial(select, connection), now)
            while (found := await self._run(self._reading, next, findings, None)) is not None:
                yield found

    @property
    def unverifiable(self) -> Sequence[str]:
        return SQLITE_UNVERIFIABLE

    # -- writing in steps -----------------------------------------------------------------------

    async def _commit_large(
        self, batches: Sequence[Sequence[DecisionRecord]], received: int
    ) -> Commit:
        """Commit a large batch, which is prepared on another thread; one at a time.

        The writer refuses a prepared batch if names were folded meanwhile (which begins an epoch),
        if its ids were committed meanwhile, or if a series has no room for it.
        """
        async with self._one_large:
            while self._writer.unfolded > LARGE_UNFOLDED:
                await self._fold_step()
            lacking: Set[Key] = frozenset()  # series that had no room the time before
            for _ in range(PREPARATIONS):
                epoch, folded, near = await self._write(begin_large)
                counted = await self._run(self._preparing, counted_as, batches, folded)
                keys = await self._run(self._preparing, keys_of, counted)
                numbers: dict[SeriesKey, int] = {}
                for first in range(0, len(keys), KEYS_PER_STEP):
                    some = keys[first : first + KEYS_PER_STEP]
                    numbers |= await self._write(number_series, some)
                totals: PeriodCells = {}
                if to_check := {key for key in near | lacking if key in numbers}:
                    totals = await self._write(exact_totals, to_check)
                staged = await self._run(
                    self._preparing, self._stage, counted, numbers, totals, received
                )
                done = await self._write(commit_staged, staged, epoch, received)
                if isinstance(done, Commit):
                    return done
                lacking = done or frozenset()
            return await self._write(commit, batches, received)

    async def _fold(self) -> None:
        """Fold step by step, so that commits get turns in between."""
        with suppress(Unavailable):  # a later commit tries again
            while await self._fold_step():
                pass

    async def _fold_step(self) -> bool:
        """Fold one step, and rest for as long as it took; return whether there is more to fold.

        So commits have at least half of the writer's time, and wait for at most one step.
        """
        async with self._one_step:
            started = time.monotonic()
            more = await self._write(Writer.fold)
            await asyncio.sleep(min(time.monotonic() - started, LONGEST_FOLD_REST))
        return more

    def _stage(self, *args: Any) -> Staged:
        with self._readers.using():
            return stage(self.path, *args)

    async def _cut_log(self) -> None:
        """Cut off the write-ahead log once no reader needs its beginning."""
        while self._writer.wal.is_long:
            await asyncio.sleep(CUT_PAUSE)
            with suppress(Unavailable):
                await self._write(Writer.checkpoint)

    async def _reopen(self) -> None:
        """Open the file again, with all commits, after a file was lost (`Lost`)."""
        if self._reopen_failure is None:
            log.error("%s. Decisions are refused until the file is opened again", self._lost)
        try:
            left = await asyncio.to_thread(self._readers.suspend, SUSPEND_SECONDS)
            if not left:
                raise Unavailable("readers are in the way")
            await self._run(self._writing, self._writer.reopen)
        except (RoutecastError, OSError) as error:
            if str(error) != self._reopen_failure:
                log.error("%s cannot be opened again yet: %s", self.path, error)
            self._reopen_failure = str(error)
            self._reopen_from = time.monotonic() + self._reopen_backoff.next()
            return
        finally:
            self._readers.resume()
        self._lost = self._reopen_failure = None
        self._reopen_backoff.reset()
        await self._integrity.open()
        log.warning("%s is open again, with all that was acknowledged", self.path)

    # -- threads --------------------------------------------------------------------------------

    async def _run(
        self,
        threads: ThreadPoolExecutor,
        work: Callable[..., T],
        *args: Any,
        opening: bool = False,
    ) -> T:
        if self._stopping:
            raise Unavailable("the database is being closed", retry_after=5)
        if not self._open_for_use and not opening:
            raise Unavailable("the database is not open yet")
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(threads, work, *args)
        except (Shrunk, LogCut) as error:
            self._integrity.record_error(error)
            raise
        except Lost as error:
            if self._may_reopen:
                self._lost = self._lost or error
                self._reopening = asyncio.create_task(self._reopen(), name="reopen")
            raise
        except apsw.Error as error:
            self._integrity.record_error(error)
            raise Unavailable(f"SQLite: {error}") from error
        except MemoryError as error:
            raise Unavailable("SQLite: out of memory") from error
        except RuntimeError as error:
            if self._closed:
                raise Unavailable("the database is closed") from error
            raise

    @property
    def _may_reopen(self) -> bool:
        if not self._open_for_use or self._integrity.condition.error is not None:
            return False
        waits = time.monotonic() < self._reopen_from
        return not waits and (self._reopening is None or self._reopening.done())

    async def _write(self, work: Callable[..., T], *args: Any) -> T:
        """Run some work on the writer's thread; its first argument is the writer."""
        self._integrity.refuse_if_damaged()
        if self._lost and self._reopening and not self._reopening.done():
            raise Unavailable(f"{self._lost}; it is being opened again", retry_after=5)
        return await self._run(self._writing, work, self._writer, *args)

    async def _read(self, work: Callable[..., T], *args: Any) -> T:
        return await self._run(self._reading, self._read_here, work, args)

    def _read_here(self, work: Callable[..., T], args: Sequence[Any]) -> T:
        self._writer.files.check()
        with self._readers.connection() as connection:
            return work(connection, *args)

    @property
    def _pools(self) -> tuple[ThreadPoolExecutor, ...]:
        return self._writing, self._reading, self._history, self._windows, self._preparing

    def _interrupt(self) -> None:
        self._writer.stop()
        self._readers.interrupt()
