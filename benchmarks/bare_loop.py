"""The floor of storing: one loop that decodes bodies and inserts their rows, and nothing else.

It has the same bytes, table, unique index and SQLite settings as the server, and one transaction
per body. It has no checks, rollups or network.
"""

import time
from datetime import datetime
from typing import Final

import apsw
import msgspec

from benchmarks.cases import answer
from benchmarks.traffic import read_bodies
from routecast.adapters.store.queries import load_migrations
from routecast.adapters.store.sqlite.wal import CHECKPOINT_PAGES
from routecast.protocol import EPOCH, MICROSECOND


class Storing(msgspec.Struct):
    """Store a file of bodies in a new database; the first `warm_up` are not timed."""

    bodies: str
    database: str
    warm_up: int


class Stored(msgspec.Struct):
    """The result of storing: timed seconds, and rows in the table at the end."""

    seconds: float
    rows: int


INSERT: Final = """
INSERT INTO decisions (
    id, project, series, seq, received, decided, confidence, cost, latency,
    input_tokens, output_tokens, fallback, reason
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""


class Sent(msgspec.Struct, gc=False):
    """A decision as `traffic` makes it: with all fields."""

    id: str
    timestamp: datetime
    strategy: str
    provider: str
    model: str
    confidence: float
    cost: float
    latency_ms: float
    input_tokens: int
    output_tokens: int
    status: str


_decode: Final = msgspec.json.Decoder(list[Sent]).decode


def _open(path: str) -> apsw.Connection:
    db = apsw.Connection(path)
    for pragma in (
        "journal_mode = WAL",
        "synchronous = FULL",
        "foreign_keys = OFF",
        "cache_size = -65536",
        f"wal_autocheckpoint = {CHECKPOINT_PAGES}",
    ):
        db.execute(f"PRAGMA {pragma}")
    for _, script in load_migrations("sqlite"):
        db.execute(script)
    return db


def _store(db: apsw.Connection, body: bytes, seq: int, series: dict[tuple[str, ...], int]) -> None:
    received = time.time_ns() // 1000
    rows = [
        (
            sent.id,
            "default",
            series.setdefault(
                (sent.strategy, sent.provider, sent.model, sent.status), len(series) + 1
            ),
            seq,
            received,
            (sent.timestamp - EPOCH) // MICROSECOND,
            round(sent.confidence * 1_000_000),
            round(sent.cost * 1_000_000_000),
            round(sent.latency_ms * 1000),
            sent.input_tokens,
            sent.output_tokens,
            False,
            None,
        )
        for sent in _decode(body)
    ]
    db.execute("BEGIN IMMEDIATE")
    db.executemany(INSERT, rows)
    db.execute("COMMIT")


def measure(task: Storing) -> Stored:
    """Store all bodies."""
    bodies = read_bodies(task.bodies)
    db = _open(task.database)
    series: dict[tuple[str, ...], int] = {}
    started = 0.0
    for seq, body in enumerate(bodies):
        if seq == task.warm_up:
            started = time.perf_counter()
        _store(db, body, seq, series)
    seconds = time.perf_counter() - started
    ((rows,),) = db.execute("SELECT count(*) FROM decisions")
    db.close()
    return Stored(seconds, int(rows))


if __name__ == "__main__":
    answer(Storing, measure)
