"""Connections to PostgreSQL (sessions), the named queries run on them, and transactions."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import asyncpg

from routecast.adapters.store.names import folded_names
from routecast.adapters.store.postgres.columns import POSTGRES_LISTS
from routecast.adapters.store.postgres.failures import Unsuitable
from routecast.adapters.store.queries import load_queries
from routecast.core.cardinality import FoldedNames

if TYPE_CHECKING:
    _Connection = asyncpg.Connection[asyncpg.Record]
else:  # there the class takes no parameter
    _Connection = asyncpg.Connection

log = logging.getLogger(__name__)

POSTGRES_SQL: Final = load_queries("postgres", POSTGRES_LISTS)

SCHEMA: Final = "routecast"
OLDEST_SERVER: Final = 14

# The setting with the session's name, which people read: a server may cut it or replace characters.
NAME_SETTING: Final = "application_name"

# The longest pause between two steps of long work, in seconds.
LONGEST_STEP_REST: Final = 0.05
# Rows of a large result that are in memory at the same time.
CHUNK_ROWS: Final = 2_000

# Reads, windows and folding compute in one thread. So all of them together leave at least half of
# the interpreter's time to the event loop, which serves commits.
_computing: Final = ThreadPoolExecutor(1, "postgres-rows")
T = TypeVar("T")


async def in_thread(work: Callable[..., T], *args: Any) -> T:
    """Run a computation in the one thread for it, after those that came earlier."""
    return await asyncio.get_running_loop().run_in_executor(_computing, work, *args)


@dataclass(slots=True)
class Naming:
    """The names that are folded in a history, by which decisions are counted.

    `history` identifies the content of the tables: it changes when an epoch begins, and when the
    tables are restored. It is "" while the names are not known.
    """

    history: str = ""
    folded: FoldedNames = field(default_factory=dict)


@dataclass(slots=True)
class Setup:
    """The setup of a session: whether it is pooled, its settings, and its last server.

    A pooled session may have another server session in each transaction. Its settings are only
    valid within a transaction, and it does nothing outside of one. `server` is the time at which
    that server started, and `history` the history in which the session learned the numbers of
    series.
    """

    pooled: bool = True
    settings: Mapping[str, str] = field(default_factory=dict)
    server: datetime | None = None
    history: str = ""


class DatabaseSession(_Connection):
    """A connection that remembers the numbers of series that it has seen, and the folded names.

    A connection ends when another server takes over; a pooled one does not, and forgets the numbers
    when another server answers. Folding names does not change numbers.
    """

    __slots__ = ("naming", "series", "setup", "transport")

    series: dict[tuple[str, ...], int]
    naming: Naming
    setup: Setup
    transport: asyncio.Transport

    def __init__(self, protocol: Any, transport: asyncio.Transport, *args: Any) -> None:
        super().__init__(protocol, transport, *args)
        self.transport = transport
        self.series = {}
        self.naming = Naming()
        self.setup = Setup()


def is_lost(session: DatabaseSession) -> bool:
    """Whether the connection of a session of the pool was closed.

    The pool's proxy has no attributes of its session then: each raises AttributeError.
    """
    try:
        return session.is_closed()
    except asyncpg.InterfaceError:
        return True


@asynccontextmanager
async def transaction(session: DatabaseSession, **kind: Any) -> AsyncIterator[None]:
    """Run the body in a transaction, or in a savepoint if there is a transaction already.

    `kind` is passed to asyncpg's `Connection.transaction`. All transactions begin here.
    """
    outermost = not session.is_in_transaction()
    cause: Exception | None = None
    try:
        async with session.transaction(**kind):
            try:
                if outermost and session.setup.pooled:
                    await _apply_settings_here(session)
                yield
            except Exception as error:
                cause = error
                raise
    except asyncpg.InterfaceError:
        # There is nothing to roll back on a connection that was closed meanwhile. Why the body
        # failed is the cause to report, such as a full disk.
        if cause is not None:
            raise cause from None
        raise


async def _apply_settings_here(session: DatabaseSession) -> None:
    """Apply the session's settings to the transaction that has just begun."""
    setup = session.setup
    answer = await apply_settings(session, setup.settings, local=True)
    if setup.server != answer.server:
        # After a failover, which the pooler hides, names and numbers may be different.
        session.series.clear()
        session.naming.history = ""
        setup.server = answer.server


class ServerIdentity(NamedTuple):
    """Which process of which server answers in a transaction, and whether it is read-only."""

    process: int
    server: datetime
    read_only: bool


async def apply_settings(
    session: DatabaseSession, settings: Mapping[str, str], *, local: bool
) -> ServerIdentity:
    """Apply settings, only for this transaction if `local`; return the identity of the server.

    They are read back. Raises Unsuitable if one of them has another value.
    """
    names, values = list(settings), list(settings.values())
    rows = await session.fetch(POSTGRES_SQL["set_up"], names, values, local)
    for name, found, *_ in rows:
        if found != settings[name] and name != NAME_SETTING:
            raise Unsuitable(f"{name} is set to {settings[name]} and stays {found!r}")
    return ServerIdentity(*rows[0][2:])


def statement(session: DatabaseSession) -> AbstractAsyncContextManager[None]:
    """Return the context in which a statement must run: a transaction if the session needs one."""
    if session.setup.pooled and not session.is_in_transaction():
        return transaction(session)
    return nullcontext()


async def query(session: DatabaseSession, name: str, *values: Any) -> list[asyncpg.Record]:
    """Return all rows of a named query."""
    async with statement(session):
        return await session.fetch(POSTGRES_SQL[name], *values)


async def value(session: DatabaseSession, name: str, *values: Any) -> Any:
    """Return the single value of a named query."""
    async with statement(session):
        return await session.fetchval(POSTGRES_SQL[name], *values)


async def rest_since(began: float) -> None:
    """Rest for as long as a step took that began at `began` (monotonic): others get a turn."""
    await asyncio.sleep(min(time.monotonic() - began, LONGEST_STEP_REST))


async def chunks(
    session: DatabaseSession, sql: str, *values: Any
) -> AsyncIterator[list[asyncpg.Record]]:
    """Yield the rows of a statement in groups, within a transaction."""
    # Not `session.cursor`, which names the statement; a pooler would keep it.
    prepared = await session.prepare(sql)
    cursor = await prepared.cursor(*values)
    while rows := await cursor.fetch(CHUNK_ROWS):
        yield rows
        if len(rows) < CHUNK_ROWS:
            return


async def warn(session: DatabaseSession) -> None:
    """Log those settings of the server because of which a crash loses acknowledged decisions."""
    for row in await query(session, "dangers"):
        log.critical(
            "PostgreSQL runs with %s = off: a crash of its machine LOSES decisions that were "
            "acknowledged, or all of the database. Set %s = on",
            *(row["name"], row["name"]),
        )


# -- names ---------------------------------------------------------------------------------------


async def learn_folded(session: DatabaseSession) -> None:
    """Read the present history into the session, and the names that are folded in it."""
    history, folded = (await query(session, "counting"))[0]
    session.naming.history, session.naming.folded = history, folded_names(folded)
