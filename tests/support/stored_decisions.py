"""Reading all decisions of a database, each with the seq of its commit."""

from decimal import Decimal
from typing import Any, NamedTuple

import apsw
import asyncpg

from tests.support.oracle import Fact

_COLUMNS = """d.id, s.project, s.strategy, s.provider, s.model, s.band, s.status, d.decided,
    d.confidence, d.cost, d.latency, d.input_tokens, d.output_tokens, d.fallback"""
_SQLITE = f"""SELECT d.seq, {_COLUMNS} FROM decisions d JOIN series s ON s.id = d.series
    ORDER BY d.n"""
_POSTGRES = f"""SELECT c.seq, {_COLUMNS} FROM routecast.decisions d
    JOIN routecast.commits c ON c.number = d.commit
    JOIN routecast.series s ON s.id = d.series ORDER BY c.seq, d.place"""


class Committed(NamedTuple):
    """A decision, and the seq of its commit."""

    seq: int
    fact: Fact


async def committed(database_url: str) -> list[Committed]:
    """Return all decisions of a database, in the order of their commits."""
    if database_url.startswith("sqlite:///"):
        connection = apsw.Connection(
            database_url.removeprefix("sqlite:///"), flags=apsw.SQLITE_OPEN_READONLY
        )
        try:
            rows: list[Any] = list(connection.execute(_SQLITE))
        finally:
            connection.close()
    else:
        server = await asyncpg.connect(database_url)
        try:
            rows = await server.fetch(_POSTGRES)
        finally:
            await server.close()
    return [_read(*row) for row in rows]


def _read(
    seq: int, identity: str, project: str, strategy: str, provider: str, *rest: Any
) -> Committed:
    model, band, status, decided, confidence, cost, latency, given, taken, fallback = rest
    return Committed(
        seq,
        Fact(
            identity,
            project,
            strategy,
            provider,
            model or None,
            None if band == "none" else band,
            status == "error",
            decided,
            _decimal(confidence, 6),
            _decimal(cost, 9),
            _decimal(latency, 3),
            given,
            taken,
            bool(fallback),
        ),
    )


def _decimal(value: int | None, places: int) -> Decimal | None:
    return None if value is None else Decimal(value).scaleb(-places)
