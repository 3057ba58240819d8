"""Series in PostgreSQL: their numbers, which a session remembers, and their keys."""

from collections.abc import Iterable, Sequence
from typing import Any, Final

from routecast.adapters.store.postgres.connection import (
    POSTGRES_SQL,
    DatabaseSession,
    chunks,
    in_thread,
    query,
)
from routecast.core.rollup import Key, shared_key

# Series that are looked up in one statement, which takes a few ms of the event loop.
KEYS_AT_ONCE: Final = 1_000


def keep_numbers(session: DatabaseSession, history: str) -> None:
    """Have the session forget its numbers if they are of another history: tables may differ."""
    if session.setup.history != history:
        session.series.clear()
        session.setup.history = history


async def number_series(session: DatabaseSession, keys: Iterable[tuple[str, ...]]) -> None:
    """Look up or add these series, so that the session knows their numbers.

    The session remembers new series as committed, so end the session if the transaction is undone.
    Outside of a transaction, they are committed at once, so that other nodes do not wait.
    """
    series = session.series
    # A difference of sets would read all known series.
    unknown = [key for key in set(keys) if key not in series]
    for first in range(0, len(unknown), KEYS_AT_ONCE):
        some = unknown[first : first + KEYS_AT_ONCE]
        await _look_up(session, some)
        if new := [key for key in some if key not in series]:
            await query(session, "add_series", *zip(*new, strict=True))
            await _look_up(session, new)


async def _look_up(session: DatabaseSession, keys: Sequence[tuple[str, ...]]) -> None:
    for place, number in await query(session, "series_numbers", *zip(*keys, strict=True)):
        session.series[keys[place - 1]] = number


async def series_names(session: DatabaseSession) -> dict[int, Key]:
    """Return the key of each series by its number, within a transaction."""
    names: dict[int, Key] = {}
    async for rows in chunks(session, POSTGRES_SQL["series"]):
        names |= await in_thread(_names, rows)
    return names


async def names_of_series(session: DatabaseSession, numbers: Iterable[int]) -> dict[int, Key]:
    """Return the keys of some series by their numbers."""
    return _names(await query(session, "series_of", list(numbers)))


def _names(rows: Iterable[Any]) -> dict[int, Key]:
    return {row[0]: shared_key(row[1:]) for row in rows}
