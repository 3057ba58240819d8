"""Sessions: connections to PostgreSQL that give up in time, and the errors they end with."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import asyncpg

from routecast.core.names import FoldedNames
from routecast.core.rollup import Key, shared_key
from routecast.errors import BadDatabase, RoutecastError, Unavailable
from routecast.store.names import folded_names
from routecast.store.queries import load_queries

if TYPE_CHECKING:
    _Connection = asyncpg.Connection[asyncpg.Record]
else:  # where the class takes no parameter
    _Connection = asyncpg.Connection

log = logging.getLogger(__name__)

SQL: Final = load_queries("postgres")

SCHEMA: Final = "routecast"
OLDEST_SERVER: Final = 14

# In seconds. A lock is waited for longer than a node that stopped in a transaction may hold it.
CONNECT_SECONDS: Final = 5.0
LOCK_SECONDS: Final = 5
IDLE_SECONDS: Final = 3
STATEMENT_SECONDS: Final = 20
# When the server itself says nothing any more.
ANSWER_SECONDS: Final = 25.0

# Series that are looked up in one statement: a few ms of the event loop.
KEYS_AT_ONCE: Final = 1_000
# Between two steps of long work, in seconds at most.
LONGEST_REST: Final = 0.05
# Rows of a large result that are in memory at the same time.
CHUNK_ROWS: Final = 2_000

# All that goes wrong between us and the server.
LOST: Final = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # a session that is lost at an odd moment
    OSError,
    TimeoutError,
)

# With these a session is of no use any more; of a server that is no primary now, for one.
_USELESS: Final = (
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.ReadOnlySQLTransactionError,
)

# What no later try will mend: each with what to do about it.
_HOPELESS: Final[dict[type[asyncpg.PostgresError], str]] = {
    asyncpg.InvalidAuthorizationSpecificationError: "check user and password in the URL",
    asyncpg.InvalidCatalogNameError: "make it first, as with createdb",
    asyncpg.InsufficientPrivilegeError: "grant this user CREATE on the database",
}


@dataclass(slots=True)
class Naming:
    """The names that are folded in an epoch; the epoch is "" while that is not known."""

    epoch: str = ""
    folded: FoldedNames = field(default_factory=dict)


class Session(_Connection):
    """A connection, the numbers of those series it has seen, and the names that are folded.

    It knows numbers for as long as it lasts, which no failover to another server does. They stay
    what they are when names are folded.
    """

    __slots__ = ("naming", "series")

    series: dict[tuple[str, ...], int]
    naming: Naming

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.series = {}
        self.naming = Naming()


async def query(session: Session, name: str, *values: Any) -> list[asyncpg.Record]:
    """Return all rows of a named query."""
    return await session.fetch(SQL[name], *values)


async def value(session: Session, name: str, *values: Any) -> Any:
    """Return the one value that a named query gives."""
    return await session.fetchval(SQL[name], *values)


async def rest_since(began: float) -> None:
    """Leave the server to others for as long as a step took that `began` then (monotonic)."""
    await asyncio.sleep(min(time.monotonic() - began, LONGEST_REST))


async def chunks(session: Session, sql: str, *values: Any) -> AsyncIterator[list[asyncpg.Record]]:
    """Yield the rows of a statement, some of them at a time, within a transaction."""
    cursor = await session.cursor(sql, *values)
    while rows := await cursor.fetch(CHUNK_ROWS):
        yield rows
        if len(rows) < CHUNK_ROWS:
            return


def options(*, patient: bool = False) -> dict[str, Any]:
    """Return how a session is made. A patient one may take its time."""
    limits = {
        "lock_timeout": LOCK_SECONDS,
        "statement_timeout": STATEMENT_SECONDS,
        "idle_in_transaction_session_timeout": IDLE_SECONDS,
    }
    return {
        "connection_class": Session,
        "timeout": CONNECT_SECONDS,
        "command_timeout": None if patient else ANSWER_SECONDS,
        "server_settings": {
            "application_name": "routecast",
            "search_path": SCHEMA,
            "synchronous_commit": "on",
            "jit": "off",
            **{name: "0" if patient else f"{seconds}s" for name, seconds in limits.items()},
        },
    }


async def connect(url: str) -> Session:
    """Return a patient session outside a pool. Raises BadDatabase where a retry cannot help."""
    try:
        session: Session = await asyncpg.connect(url, **options(patient=True))
    except (asyncpg.ClientConfigurationError, ValueError):
        # Whose text may hold a piece of the password.
        raise BadDatabase(
            "the URL cannot be read; is it postgresql://user:password@host:port/database, with "
            "signs such as / and @ in a name or password written as %2F and %40?"
        ) from None
    except asyncpg.PostgresError as error:
        raise refusal(error) from error
    return session


def refusal(error: asyncpg.PostgresError) -> Exception:
    """Return what to raise for an error that the server met us with."""
    for kind, fix in _HOPELESS.items():
        if isinstance(error, kind):
            return BadDatabase(f"{_line(error)}: {fix}")
    return error


async def warn(session: Session) -> None:
    """Warn, loudly, of settings of the server with which a crash loses what was acknowledged."""
    for row in await query(session, "dangers"):
        log.critical(
            "PostgreSQL runs with %s = off: a crash of its machine LOSES decisions that were "
            "acknowledged, or all of the database. Set %s = on",
            *(row["name"], row["name"]),
        )


def usable_after(error: BaseException) -> bool:
    """Whether a session is as it should be after an error: the server said no, or we did."""
    if isinstance(error, _USELESS):
        return False
    return isinstance(error, asyncpg.PostgresError | RoutecastError)


@contextmanager
def unavailable() -> Iterator[None]:
    """Raise Unavailable for whatever goes wrong between us and the server."""
    try:
        yield
    except TimeoutError as error:
        raise Unavailable("PostgreSQL did not answer in time") from error
    except LOST as error:
        raise Unavailable(f"PostgreSQL: {_line(error)}") from error


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


# -- names ---------------------------------------------------------------------------------------


async def learn_folded(session: Session) -> None:
    """See to it that the session knows the epoch, and the names that are folded in it."""
    epoch, folded = (await query(session, "counting"))[0]
    session.naming.epoch, session.naming.folded = epoch, folded_names(folded)


# -- series -------------------------------------------------------------------------------------


async def number_series(session: Session, keys: Iterable[tuple[str, ...]]) -> None:
    """See to it that the session knows the numbers of these series.

    New ones are committed at once, not to keep other nodes waiting; so call it in no transaction
    that may be undone.
    """
    unknown = list(set(keys) - session.series.keys())
    for first in range(0, len(unknown), KEYS_AT_ONCE):
        some = unknown[first : first + KEYS_AT_ONCE]
        await _look_up(session, some)
        if new := [key for key in some if key not in session.series]:
            await query(session, "add_series", *zip(*new, strict=True))
            await _look_up(session, new)


async def _look_up(session: Session, keys: Sequence[tuple[str, ...]]) -> None:
    for place, number in await query(session, "series_numbers", *zip(*keys, strict=True)):
        session.series[keys[place - 1]] = number


async def series_names(session: Session) -> dict[int, Key]:
    """Return the key of each series by its number, within a transaction."""
    names: dict[int, Key] = {}
    async for rows in chunks(session, SQL["series"]):
        names |= await asyncio.to_thread(_names, rows)
    return names


async def names_of_series(session: Session, numbers: Iterable[int]) -> dict[int, Key]:
    """Return the keys of some series by their numbers."""
    return _names(await query(session, "series_of", list(numbers)))


def _names(rows: Iterable[Any]) -> dict[int, Key]:
    return {row[0]: shared_key(row[1:]) for row in rows}
