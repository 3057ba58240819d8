"""Loading a snapshot from PostgreSQL."""

from collections.abc import Callable
from functools import partial

from routecast.adapters.store.loading import Loader
from routecast.adapters.store.postgres.connection import (
    POSTGRES_SQL,
    DatabaseSession,
    beside,
    chunks,
    query,
)
from routecast.adapters.store.postgres.deltas import deltas_of
from routecast.adapters.store.postgres.series import series_names
from routecast.core.snapshot import Snapshot
from routecast.protocol import Position


async def read(session: DatabaseSession, now: int, room: int | None) -> Callable[[], Snapshot]:
    """Read the rollups that a snapshot taken at `now` needs and has room for, and the deltas.

    Within a transaction that sees one moment. Call the result to build the snapshot; that needs no
    session.
    """
    state = (await query(session, "state"))[0]
    names = await series_names(session)
    position = Position(state["epoch"], state["folded"])
    loader = Loader(position, now, names, room)
    async for rows in chunks(session, POSTGRES_SQL["rollups"], "total", 0, 1):
        await beside(loader.add_total, rows)
    for period, first, end in loader.spans():
        async for rows in chunks(session, POSTGRES_SQL["rollups"], period, first, end):
            if not await beside(loader.add, period, rows):
                break
    deltas = await query(session, "deltas", state["folded"])
    return partial(loader.build, deltas_of(deltas, position.epoch))
