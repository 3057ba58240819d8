"""The store's port on SQLite: one writer thread, readers beside it."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import apsw

from routecast.core.decision import Decision
from routecast.core.delta import Delta
from routecast.core.history import Plan
from routecast.core.names import FoldedNames
from routecast.core.past import Past
from routecast.core.snapshot import Snapshot
from routecast.errors import Unavailable
from routecast.ports import Checked, Commit, Difference, NameUse
from routecast.protocol import Position
from routecast.store.recount import recount
from routecast.store.sqlite import names, past, readers
from routecast.store.sqlite.connection import BUSY_MS, select
from routecast.store.sqlite.writer import Writer

T = TypeVar("T")

READERS: Final = 2


class SqliteStore:
    """Keeps everything in one SQLite file (`ports.Store`)."""

    def __init__(self, path: str | Path, *, create: bool = True) -> None:
        self.path = Path(path)
        self._writer = Writer(self.path, create=create)
        self._writing = ThreadPoolExecutor(1, "sqlite-writer")
        self._reading = ThreadPoolExecutor(READERS, "sqlite-reader")
        # Of its own, so that a long range keeps nobody else waiting.
        self._history = ThreadPoolExecutor(1, "sqlite-history")
        self._local = threading.local()
        self._connections: list[apsw.Connection] = []
        self._open_for_use = False
        self._closed = False

    # -- ports.Store ----------------------------------------------------------------------------

    async def open(self) -> None:
        await self._run(self._writing, self._writer.open, opening=True)
        self._open_for_use = True

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        await asyncio.to_thread(self._shut)

    async def commit(self, batches: Sequence[Sequence[Decision]], received: int) -> Commit:
        return await self._run(self._writing, self._writer.commit, batches, received)

    async def check(self) -> None:
        await self._run(self._writing, self._writer.check)

    async def position(self) -> Position:
        return await self._read(readers.position)

    async def load(self, now: int) -> Snapshot:
        return await self._read(readers.load, now)

    async def deltas(self, after: Position) -> list[Delta]:
        return await self._read(readers.deltas, after)

    async def history(self, plan: Plan) -> Past:
        return await self._run(self._history, self._read_here, past.read, (plan,))

    async def summarise(self, *, before: int, limit: int) -> int:
        return await self._run(self._writing, self._writer.summarise, before, limit)

    async def prune(self, *, decisions_before: int, minutes_before: int, limit: int) -> int:
        return await self._run(
            self._writing, self._writer.prune, decisions_before, minutes_before, limit
        )

    async def names(self) -> list[NameUse]:
        return await self._read(names.listed)

    async def folded_names(self) -> FoldedNames:
        return await self._read(names.folded_names)

    async def fold_names(self, part: str, names: Collection[str], *, remember: bool) -> Position:
        return await self._run(
            self._writing, self._writer.fold_names, part, frozenset(names), remember
        )

    async def verify(self) -> AsyncIterator[Checked | Difference]:
        connection = await self._run(self._reading, self._connect)
        findings = recount(connection, partial(select, connection))
        try:
            while (found := await self._run(self._reading, next, findings, None)) is not None:
                yield found
        finally:
            await self._run(self._reading, connection.close)

    # -- threads --------------------------------------------------------------------------------

    async def _run(
        self,
        threads: ThreadPoolExecutor,
        work: Callable[..., T],
        *args: Any,
        opening: bool = False,
    ) -> T:
        if not self._open_for_use and not opening:
            raise Unavailable("the database is not open yet")
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(threads, work, *args)
        except apsw.Error as error:
            raise Unavailable(f"SQLite: {error}") from error
        except RuntimeError as error:
            if self._closed:
                raise Unavailable("the database is closed") from error
            raise

    async def _read(self, work: Callable[..., T], *args: Any) -> T:
        return await self._run(self._reading, self._read_here, work, args)

    def _read_here(self, work: Callable[..., T], args: Sequence[Any]) -> T:
        self._writer.place.check()
        return work(self._reader, *args)

    def _shut(self) -> None:
        self._writing.shutdown()
        self._reading.shutdown()
        self._history.shutdown()
        self._writer.close()
        for connection in self._connections:
            connection.close()

    def _connect(self) -> apsw.Connection:
        connection = apsw.Connection(str(self.path))
        connection.set_busy_timeout(BUSY_MS)
        connection.execute("PRAGMA query_only = 1")
        return connection

    @property
    def _reader(self) -> apsw.Connection:
        connection: apsw.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = self._connect()
            self._connections.append(connection)
        return connection
