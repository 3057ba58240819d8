"""Loading a snapshot from PostgreSQL."""

from collections.abc import Callable
from functools import partial

from routecast.adapters.store.loading import Loader
from routecast.adapters.store.postgres.connection import (
    POSTGRES_SQL,
    DatabaseSession,
    chunks,
    in_thread,
    query,
)
from routecast.adapters.store.postgres.deltas import deltas_of
from routecast.adapters.store.postgres.series import series_names
from routecast.core.snapshot import Snapshot
from routecast.protocol import Position


async def read(session: DatabaseSession, now: int, room: int | None) -> Callable[[], Snapshot]:
    """Read the rollups that a snapshot taken at `now` needs and has room for, and the deltas.

    Call it within a transaction that sees the database at one moment. Returns a function that
    builds the snapshot, without a session.
    """
    state = (await query(session, "state"))[0]
    names = await series_names(session)
    position = Position(state["epoch"], state["folded"])
    loader = Loader(position, now, names, room)
    async for rows in chunks(session, POSTGRES_SQL["rollups"], "total", 0, 1):
        await in_thread(loader.add_total, rows)
    for period, first, end in loader.spans():
        async for rows in chunks(session, POSTGRES_SQL["rollups"], period, first, end):
            if not await in_thread(loader.add, period, rows):
                break
    deltas = await query(session, "deltas", state["folded"])
    return partial(loader.build, deltas_of(deltas, position.epoch))
