"""The floor of storing: one loop that decodes bodies and inserts their rows, and nothing else.

The same bytes, table, unique index and settings of SQLite as the server's; one transaction a
body. No checks, no rollups, no network.
"""

import time

import apsw
import msgspec

from benchmarks.cases import answer
from benchmarks.traffic import read_bodies
from routecast.protocol import EPOCH, MICROSECOND, DecisionIn
from routecast.store.queries import load_migrations
from routecast.store.sqlite import CHECKPOINT_PAGES


class Storing(msgspec.Struct):
    """Store a file of bodies in a new database; the first `warm_up` are not timed."""

    bodies: str
    database: str
    warm_up: int


class Stored(msgspec.Struct):
    """What storing came to: timed seconds, and rows in the table at the end."""

    seconds: float
    rows: int


INSERT = """
INSERT INTO decisions (
    id, project, series, seq, received, decided, confidence, cost, latency,
    input_tokens, output_tokens, fallback, reason
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""

_decode = msgspec.json.Decoder(list[DecisionIn]).decode


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
    rows = []
    for d in _decode(body):
        assert d.id and d.model and d.status and d.timestamp  # -- all of them are sent
        assert not isinstance(d.timestamp, float)
        key = (d.strategy, d.provider, d.model, d.status)
        rows.append(
            (
                d.id,
                "default",
                series.setdefault(key, len(series) + 1),
                seq,
                received,
                (d.timestamp - EPOCH) // MICROSECOND,
                round(d.confidence * 1_000_000),  # type: ignore[operator,arg-type]
                round(d.cost * 1_000_000_000),  # type: ignore[operator]
                round(d.latency_ms * 1000),  # type: ignore[operator]
                d.input_tokens,
                d.output_tokens,
                False,
                None,
            )
        )
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
    rows: int = db.execute("SELECT count(*) FROM decisions").fetchall()[0][0]
    db.close()
    return Stored(seconds, rows)


if __name__ == "__main__":
    answer(Storing, measure)
