"""The log of commits in PostgreSQL: the position of the last one, and the deltas."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from routecast.adapters.store.postgres.connection import DatabaseSession, query
from routecast.core.delta import Delta
from routecast.errors import MissingDeltas
from routecast.protocol import Position


async def position(session: DatabaseSession) -> Position:
    """Return the position of the last commit."""
    return Position(*(await query(session, "position"))[0])


async def last_commit(session: DatabaseSession) -> int:
    """Return the seq of the last commit."""
    seq: int = (await query(session, "position"))[0]["seq"]
    return seq


async def read(session: DatabaseSession, after: Position) -> Callable[[], list[Delta]]:
    """Read the deltas after a position; return a function that decodes them, without a session.

    Call it within a transaction that sees the database at one moment. Raises MissingDeltas if they
    are not kept any more.
    """
    last = await position(session)
    if last.epoch != after.epoch or last.seq < after.seq:
        raise MissingDeltas(f"{last} after {after}")
    rows = await query(session, "deltas", after.seq)
    if len(rows) != last.seq - after.seq:
        raise MissingDeltas(f"the deltas after seq {after.seq} are not kept any more")
    return lambda: list(deltas_of(rows, last.epoch))


def deltas_of(rows: Iterable[Any], epoch: str) -> Iterator[Delta]:
    """Yield the deltas of rows of the log, which were packed before `seq` was known."""
    for seq, packed in rows:
        delta = Delta.unpack(packed)
        yield Delta(Position(epoch, seq), delta.cells, delta.received)
