"""The store port on PostgreSQL, with a bounded pool of sessions."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any, Final

import asyncpg

from routecast.adapters.store.postgres import (
    access,
    deltas,
    history,
    loading,
    projects,
    retention,
    summaries,
    window,
)
from routecast.adapters.store.postgres import names as names_of
from routecast.adapters.store.postgres.commit import Unsettled, Written, commit, settle
from routecast.adapters.store.postgres.compactor import RollupCompactor
from routecast.adapters.store.postgres.connection import (
    DatabaseSession,
    in_thread,
    is_lost,
    query,
    transaction,
    warn,
)
from routecast.adapters.store.postgres.connector import ASK_SECONDS, Connector
from routecast.adapters.store.postgres.failures import (
    CORRUPT,
    LOST,
    described,
    fix_of,
    refusing,
    unavailable,
    usable_after,
)
from routecast.adapters.store.postgres.folding import fold
from routecast.adapters.store.postgres.rollups import lock_rollups
from routecast.adapters.store.postgres.schema import migrate
from routecast.adapters.store.postgres.verify import verify
from routecast.core.cardinality import FoldedNames
from routecast.core.clock_check import KeptSpan
from routecast.core.decision import DecisionRecord
from routecast.core.delta import Delta
from routecast.core.history import Plan
from routecast.core.keys import AccessRecords, DecideChange
from routecast.core.snapshot import Snapshot
from routecast.core.time_series import TimeSeries
from routecast.core.window import WindowQuery
from routecast.errors import BadDatabase, RoutecastError, Unavailable
from routecast.ports import (
    DELTAS_KEPT,
    MAX_GROUP,
    Checked,
    Commit,
    Condition,
    DeletedProject,
    Difference,
    NameUse,
)
from routecast.protocol import Position
from routecast.urls import masked

log = logging.getLogger(__name__)

# The wait for a free session, and then for a server to accept it, in seconds: at least ASK_SECONDS.
ACQUIRE_SECONDS: Final = 5.0
# The number of sessions that only commits, checks, and reads of the position and of keys may use.
SPARE_SESSIONS: Final = 2
# The time for a whole check, or read of the position, in seconds: callers need an answer soon.
POSITION_SECONDS: Final = ASK_SECONDS
# A session that is not used is closed after this time, in seconds; a pooled one sooner, so that the
# pooler can give its server session to others.
UNUSED_SECONDS: Final = 300.0
UNUSED_POOLED_SECONDS: Final = 1.0
STORE_CLOSE_SECONDS: Final = 3.0
# How long a store tries to find out the outcome of a commit whose session was lost, in seconds.
SETTLE_SECONDS: Final = 10.0
SETTLE_PAUSE: Final = 0.1
CLOSING: Final = "the database is closed"


class PostgresStore:
    """Keeps everything in one PostgreSQL database, beside other nodes (`ports.Database`)."""

    def __init__(self, url: str, *, create: bool = True, connections: int = 5) -> None:
        self._connector = Connector(url)
        # For messages: without a user's name or password.
        self._shown_url = masked(url).partition("://")[2]
        self._create = create
        self._connections = connections
        # Long reads, folding and retention must acquire it, so that they never use all sessions.
        self._others = asyncio.Semaphore(max(1, connections - SPARE_SESSIONS))
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None
        self._closed = self._stopping = False
        self._opening: DatabaseSession | None = None
        self._compactor = RollupCompactor(self._session)
        self._corrupt: str | None = None
        self._unverifiable: list[str] = []
        self._cause = ""  # why it is not open, or why the server refused the last session

    # -- ports.Database ------------------------------------------------------------------------

    async def open(self) -> None:
        try:
            with unavailable(), refusing():
                await self._open()
        except BadDatabase as error:
            raise BadDatabase(
                f"PostgreSQL database {self._shown_url}: {error}"
            ) from error.__cause__
        except Unavailable as error:
            self._cause = f": {error}"
            raise

    async def _open(self) -> None:
        if self._stopping:
            raise Unavailable(CLOSING)
        session = await self._connector.connect(patient=True)
        self._opening = session
        try:
            await migrate(session, create=self._create)
            await warn(session)
        finally:
            self._opening = None
            await session.close(timeout=STORE_CLOSE_SECONDS)
        self._connector.log_settings(session)
        if self._pool is None and not self._stopping:
            self._pool = await asyncpg.create_pool(
                min_size=0,
                max_size=self._connections,
                reset=_keep,
                connect=self._connect,
                connection_class=DatabaseSession,
                max_inactive_connection_lifetime=(
                    UNUSED_POOLED_SECONDS if self._connector.pooled else UNUSED_SECONDS
                ),
            )

    @property
    def unverifiable(self) -> Sequence[str]:
        return self._unverifiable

    @property
    def condition(self) -> Condition:
        return Condition(None, self._corrupt)

    def stop(self) -> None:
        self._stopping = True
        if self._opening is not None:
            self._opening.terminate()
        if self._pool is not None:
            self._pool.terminate()

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            async with asyncio.timeout(STORE_CLOSE_SECONDS):
                await self._compactor.close()
                if self._pool is not None and not self._stopping:
                    await self._pool.close()
        except TimeoutError:
            self.stop()
        self._stopping = True

    async def commit(self, batches: Sequence[Sequence[DecisionRecord]], received: int) -> Commit:
        self._refuse_if_corrupt()
        await self._compactor.make_room(large=any(len(batch) > MAX_GROUP for batch in batches))
        try:
            async with self._session(spare=True) as session:
                written = await commit(session, batches, received)
        except Unsettled as unsettled:
            written = await self._settle(unsettled)
        self._compactor.added(written)
        return written.commit

    async def check(self) -> None:
        self._refuse_if_corrupt()
        async with self._soon() as session:
            await query(session, "check")

    async def position(self) -> Position:
        async with self._soon() as session:
            return await deltas.position(session)

    async def load(self, now: int, room: int | None = None) -> Snapshot:
        async with self._snapshot() as session:
            build = await loading.read(session, now, room)
        return await in_thread(build)

    async def deltas(self, after: Position) -> list[Delta]:
        async with self._snapshot() as session:
            decode = await deltas.read(session, after)
        return await in_thread(decode)

    async def history(self, plan: Plan) -> TimeSeries:
        async with self._snapshot() as session:
            return await history.read(session, plan)

    async def window(self, asked: WindowQuery, now: int) -> Snapshot:
        async with self._snapshot() as session:
            return await window.read(session, asked, now)

    async def unsummed(self, *, before: int) -> list[int]:
        async with self._session() as session:
            return await summaries.unsummed(session, before // 10**6)

    async def summarise(self, hour: int) -> None:
        async with self._session() as session, transaction(session):
            await lock_rollups(session)
            await summaries.summarise(session, hour)

    async def span(self) -> KeptSpan:
        async with self._session() as session:
            return await retention.span(session)

    async def prune(self, *, decisions_before: int, minutes_before: int, limit: int) -> int:
        async with self._session() as session:
            await retention.turn_over(session, decisions_before)
            async with transaction(session):
                await lock_rollups(session)
                await fold(session, DELTAS_KEPT)
                dropped = await retention.prune_decisions(session, decisions_before, limit)
                dropped += await retention.prune_minutes(
                    session, minutes_before // 10**6, limit - dropped
                )
            await retention.drop_generations(session)
        return dropped

    async def names(self) -> list[NameUse]:
        async with self._snapshot() as session:
            return await names_of.listed(session)

    async def folded_names(self) -> FoldedNames:
        async with self._session() as session:
            return await names_of.folded_names(session)

    async def fold_names(self, part: str, names: Collection[str], *, remember: bool) -> Position:
        self._opened()
        with unavailable():
            session = await self._connector.connect(patient=True)
            try:
                return await names_of.fold_names(session, part, names, remember=remember)
            finally:
                await session.close(timeout=STORE_CLOSE_SECONDS)

    async def has_decisions(self, project: str) -> bool:
        async with self._session() as session:
            return await projects.has_decisions(session, project)

    async def delete_project(self, project: str, now: int) -> DeletedProject:
        self._opened()
        with unavailable():
            session = await self._connector.connect(patient=True)
            try:
                return await projects.delete_project(session, project, now)
            finally:
                await session.close(timeout=STORE_CLOSE_SECONDS)

    async def access_version(self) -> str:
        async with self._soon() as session:
            return await access.version(session)

    async def access(self) -> AccessRecords:
        async with self._snapshot(spare=True) as session:
            return await access.read(session)

    async def change_access(self, decide: DecideChange) -> None:
        async with self._session() as session, transaction(session):
            await access.change(session, decide)

    async def note_use(self, uses: Mapping[str, int]) -> None:
        async with self._session() as session:
            await access.note_use(session, uses)

    async def verify(self) -> AsyncGenerator[Checked | Difference]:
        self._opened()
        with unavailable():
            session = await self._connector.connect(patient=True)
            try:
                async with aclosing(verify(session, self._unverifiable)) as findings:
                    async for found in findings:
                        yield found
            finally:
                await session.close(timeout=STORE_CLOSE_SECONDS)

    # -- sessions -------------------------------------------------------------------------------

    def _opened(self) -> "asyncpg.Pool[asyncpg.Record]":
        if self._closed or self._stopping:
            raise Unavailable(CLOSING)
        if self._pool is None:
            raise Unavailable(f"the database is not open yet{self._cause}")
        return self._pool

    async def _connect(self, *_: Any, **__: Any) -> DatabaseSession:
        """Make a session for the pool; log once why the server refuses it, if that is permanent.

        It was accepted before, so it is tried again for ever: rights and passwords may be changed.
        """
        try:
            session = await self._connector.connect()
        except Exception as error:
            if fix_of(error) and described(error) != self._cause:
                self._cause = described(error)
                log.error("PostgreSQL refuses this node, which goes on trying: %s", self._cause)
            raise
        self._cause = ""
        return session

    def _refuse_if_corrupt(self) -> None:
        if self._corrupt is not None:
            raise Unavailable(f"the database is corrupt ({self._corrupt})", retry_after=30)

    @asynccontextmanager
    async def _session(self, *, spare: bool = False) -> AsyncIterator[DatabaseSession]:
        """A session from the pool; with `spare`, it may be one of the SPARE_SESSIONS.

        Raises Unavailable for all errors of the session.
        """
        if spare:
            async with self._pooled() as session:
                yield session
            return
        with unavailable():
            async with asyncio.timeout(ACQUIRE_SECONDS):
                await self._others.acquire()
        try:
            async with self._pooled() as session:
                yield session
        finally:
            self._others.release()

    @asynccontextmanager
    async def _pooled(self) -> AsyncIterator[DatabaseSession]:
        pool = self._opened()
        with unavailable():
            session: Any = await pool.acquire(timeout=ACQUIRE_SECONDS)
            try:
                yield session
            except BaseException as error:
                self._note(error)
                if not usable_after(error):
                    with suppress(*LOST):  # the pool may have released it already
                        session.terminate()
                known = isinstance(error, RoutecastError | Unsettled)
                if self._stopping and isinstance(error, Exception) and not known:
                    # A session that `stop` has ended fails with unusual errors.
                    raise Unavailable(CLOSING) from error
                if isinstance(error, AttributeError) and is_lost(session):
                    raise Unavailable("PostgreSQL: the connection was lost") from error
                raise
            finally:
                with suppress(*LOST):
                    await pool.release(session)

    def _note(self, error: BaseException) -> None:
        """Record what an error says about the server's files."""
        if isinstance(error, CORRUPT) and self._corrupt is None:
            self._corrupt = described(error)
            log.critical(
                "The database is corrupt, and this node refuses decisions: %s. See docs/deploy.md; "
                "restart the nodes once it is sound",
                self._corrupt,
            )

    @asynccontextmanager
    async def _soon(self) -> AsyncIterator[DatabaseSession]:
        """A session for work that must end within POSITION_SECONDS."""
        with unavailable():
            async with asyncio.timeout(POSITION_SECONDS), self._session(spare=True) as session:
                yield session

    @asynccontextmanager
    async def _snapshot(self, *, spare: bool = False) -> AsyncIterator[DatabaseSession]:
        """A session that sees the database at one moment; `spare` as for `_session`."""
        async with (
            self._session(spare=spare) as session,
            transaction(session, isolation="repeatable_read", readonly=True),
        ):
            yield session

    async def _settle(self, unsettled: Unsettled) -> Written:
        """Find out whether a commit was made, after its session was lost at its end."""
        deadline = asyncio.get_running_loop().time() + SETTLE_SECONDS
        while asyncio.get_running_loop().time() < deadline and not self._stopping:
            made = None
            with suppress(Unavailable):
                async with self._session() as session:
                    made = await settle(session, unsettled.written)
            if made:
                return unsettled.written
            if made is False:
                raise Unavailable(f"PostgreSQL: {unsettled.__cause__}; nothing was kept")
            await asyncio.sleep(SETTLE_PAUSE)
        raise Unavailable(
            "PostgreSQL was lost at the end of a commit, so it is unknown whether it was made"
        )


async def _keep(_: object) -> None:
    """Reset nothing: what a transaction sets ends with it."""
