"""The embedded store: SQLite through apsw, one writer thread, readers beside it.

A commit writes its decisions, its delta and the position. Deltas are folded into the rollups many
at a time, by a later commit: the rollups and the deltas not folded yet are the sums, together and
at any moment.

The writer keeps the rollups it touched last in memory. Within `BEGIN IMMEDIATE` nobody else can
write, and SQLite's `data_version` shows whether anybody did before: only then are they read again.
"""

import asyncio
import itertools
import secrets
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any, Final, TypeVar

import apsw
import msgspec

from routecast.core.decision import Decision
from routecast.core.delta import Delta, following
from routecast.core.rollup import Bucket, Cells, Key, Sums, bucket_merge
from routecast.core.snapshot import Snapshot, needed
from routecast.errors import BadDatabase, Gap, SumFull, Unavailable
from routecast.ports import DELTAS_KEPT, Checked, Commit, Difference
from routecast.protocol import Position
from routecast.store.queries import load_migrations, load_queries
from routecast.store.recount import recount

T = TypeVar("T")

APPLICATION_ID: Final = 0x52544341  # "RTCA", in the file's header
SQL: Final = load_queries("sqlite")
MIGRATIONS: Final = load_migrations("sqlite")

READERS: Final = 2
BUSY_MS: Final = 5_000
# One step of the engine inserts so many rows: fewer hand-overs of the interpreter's lock, and
# still well under SQLite's limit of 32,766 values a statement.
ROWS_PER_STEP: Final = 100
# So many periods' rollups stay in the writer's memory: the total, this hour, this minute, and
# those of late decisions.
PERIODS_KEPT: Final = 256
CHECKPOINT_PAGES: Final = 4_000
STATEMENTS_KEPT: Final = 3 * ROWS_PER_STEP  # one for each number of rows in a step

# Deltas are folded once they hold so many decisions, or are so many.
FOLD_DECISIONS: Final = 2_000
FOLD_COMMITS: Final = 64
LARGEST_SUM: Final = 2**63 - 1

_START_OF: Final = {"total": 0, "hour": 3600, "pruned": 3600, "minute": 60}


def select(db: apsw.Connection, name: str, *values: Any) -> Iterator[Any]:
    """Return the rows of a named query, read as they are asked for."""
    return db.execute(SQL[name], values)


def query(db: apsw.Connection, name: str, *values: Any) -> list[Any]:
    """Return all rows of a named query, which has then run to its end."""
    return list(select(db, name, *values))


@cache
def _statement(query: str, rows: int, columns: int) -> str:
    row = f"({','.join('?' * columns)})"
    return SQL[query].format(rows=",".join([row] * rows))


class SqliteStore:
    """Keeps everything in one SQLite file (`ports.Store`)."""

    def __init__(self, path: str | Path, *, create: bool = True) -> None:
        self.path = Path(path)
        self._create = create
        self._writer = ThreadPoolExecutor(1, "sqlite-writer")
        self._readers = ThreadPoolExecutor(READERS, "sqlite-reader")
        self._local = threading.local()
        self._connections: list[apsw.Connection] = []
        self._db: apsw.Connection
        self._open_for_use = False
        self._closed = False
        self._forget()

    # -- ports.Store ----------------------------------------------------------------------------

    async def open(self) -> None:
        await self._run(self._writer, self._open, opening=True)
        self._open_for_use = True

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        await asyncio.to_thread(self._shut)

    async def commit(self, batches: Sequence[Sequence[Decision]], received: int) -> Commit:
        return await self._run(self._writer, self._commit, batches, received)

    async def check(self) -> None:
        await self._run(self._writer, self._check)

    async def position(self) -> Position:
        return await self._run(self._readers, self._position)

    async def load(self, now: int) -> Snapshot:
        return await self._run(self._readers, self._load, now)

    async def deltas(self, after: Position) -> list[Delta]:
        return await self._run(self._readers, self._deltas, after)

    async def prune(self, *, decisions_before: int, minutes_before: int, limit: int) -> int:
        return await self._run(self._writer, self._prune, decisions_before, minutes_before, limit)

    async def verify(self) -> AsyncIterator[Checked | Difference]:
        connection = await self._run(self._readers, self._connect)
        findings = recount(connection, partial(select, connection))
        try:
            while (found := await self._run(self._readers, next, findings, None)) is not None:
                yield found
        finally:
            await self._run(self._readers, connection.close)

    # -- threads --------------------------------------------------------------------------------

    async def _run(
        self,
        threads: ThreadPoolExecutor,
        work: Callable[..., T],
        *args: Any,
        opening: bool = False,
    ) -> T:
        if not self._open_for_use and not opening:
            raise Unavailable("the database is not open yet")
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(threads, work, *args)
        except apsw.Error as error:
            raise Unavailable(f"SQLite: {error}") from error
        except RuntimeError as error:
            if self._closed:
                raise Unavailable("the database is closed") from error
            raise

    def _shut(self) -> None:
        self._writer.shutdown()
        self._readers.shutdown()
        for connection in self._connections:
            connection.close()

    def _connect(self) -> apsw.Connection:
        connection = apsw.Connection(str(self.path))
        connection.set_busy_timeout(BUSY_MS)
        connection.execute("PRAGMA query_only = 1")
        return connection

    @property
    def _reader(self) -> apsw.Connection:
        connection: apsw.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = self._connect()
            self._connections.append(connection)
        return connection

    # -- opening --------------------------------------------------------------------------------

    def _open(self) -> None:
        if not self._create and not self.path.exists():
            raise BadDatabase(f"there is no database {self.path}")
        try:
            db = apsw.Connection(str(self.path), statementcachesize=STATEMENTS_KEPT)
        except apsw.CantOpenError as error:
            raise BadDatabase(f"cannot open {self.path} ({error}); is its folder there?") from None
        try:
            db.set_busy_timeout(BUSY_MS)
            self._check_ours(db)
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA cache_size = -65536")
            db.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
            self._migrate(db)
        except apsw.NotADBError:
            db.close()
            raise BadDatabase(f"{self.path} is not a SQLite database") from None
        except (apsw.CantOpenError, apsw.ReadOnlyError, apsw.PermissionsError) as error:
            db.close()
            raise BadDatabase(f"cannot write to {self.path} ({error})") from None
        except BaseException:
            db.close()
            raise
        self._db = db
        place = self.path.stat()
        self._place = (place.st_dev, place.st_ino)
        self._connections.append(db)

    def _check_ours(self, db: apsw.Connection) -> None:
        ours, version = db.pragma("application_id"), db.pragma("user_version")
        if ours != APPLICATION_ID and db.execute("SELECT 1 FROM sqlite_schema").fetchone():
            raise BadDatabase(f"{self.path} is a database of another program")
        if version > MIGRATIONS[-1][0]:
            raise BadDatabase(
                f"{self.path} was written by a newer Routecast (schema {version}; this one knows "
                f"{MIGRATIONS[-1][0]}): upgrade this program"
            )

    @staticmethod
    def _migrate(db: apsw.Connection) -> None:
        with transaction(db):
            done = db.pragma("user_version")
            for number, script in MIGRATIONS:
                if number > done:
                    db.execute(script)
                    db.execute(f"PRAGMA user_version = {number}")
            db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            query(db, "begin_history", secrets.token_hex(8))
            db.execute("COMMIT")

    # -- writing (on the writer thread) ---------------------------------------------------------

    def _forget(self) -> None:
        self._version = -1  # SQLite's data_version when what follows was read
        self._series: dict[tuple[str, ...], int] = {}
        self._buckets: dict[tuple[str, int], Bucket] = {}
        self._unfolded: list[Cells] = []
        self._unfolded_decisions = 0
        self._largest = 0  # no sum, of the rollups and the unfolded together, is over it

    def _commit(self, batches: Sequence[Sequence[Decision]], received: int) -> Commit:
        try:
            with transaction(self._db):
                position = self._begin()
                decisions = itertools.chain.from_iterable(batches)
                if any(batches) and self._insert(decisions, position, received):
                    return self._finish(batches, position, received)
            # Some ids are known, and the engine does not say which: again, looking first.
            with transaction(self._db):
                position = self._begin()
                fresh = self._fresh(batches)
                if any(fresh):
                    rows = itertools.chain.from_iterable(fresh)
                    if not self._insert(rows, position, received):
                        raise Unavailable("ids changed under a transaction; nothing was kept")
                    return self._finish(fresh, position, received)
            held = Position(position.epoch, position.seq - 1)
            return Commit(held, [0] * len(batches), None)
        except OverflowError as error:
            self._forget()
            raise SumFull("a sum of its series is at its limit of 64 bits") from error
        except BaseException:
            # What the writer remembers may be ahead of what was undone.
            self._forget()
            raise

    def _begin(self) -> Position:
        self._check_place()
        epoch, seq, _, folded = query(self._db, "history")[0]
        version = self._db.pragma("data_version")
        if version != self._version:
            self._forget()
            self._version = version
            self._largest = query(self._db, "largest_sum")[0][0]
            for delta in _deltas_after(self._db, Position(epoch, folded)):
                self._await_folding(delta.cells)
        return Position(epoch, seq + 1)

    def _insert(self, decisions: Iterable[Decision], position: Position, received: int) -> bool:
        """Insert decisions; when an id is known, undo the transaction and return False."""
        rows = [
            (
                d.id,
                d.project,
                self._series.get(d[1:7]) or self._series_of(d[1:7]),
                position.seq,
                received,
                *d[7:],
            )
            for d in decisions
        ]
        before = self._db.total_changes()
        self._write("insert_decisions", rows)
        if self._db.total_changes() - before == len(rows):
            return True
        self._db.execute("ROLLBACK")
        self._series.clear()  # of numbers given out in what was undone; no sum was touched yet
        return False

    def _series_of(self, key: tuple[str, ...]) -> int:
        query(self._db, "add_series", *key)
        number: int = query(self._db, "one_series", *key)[0][0]
        self._series[key] = number
        return number

    def _fresh(self, batches: Sequence[Sequence[Decision]]) -> list[list[Decision]]:
        sent = msgspec.json.encode([(d.id, d.project) for batch in batches for d in batch])
        known = set(query(self._db, "known_ids", sent.decode()))
        fresh = []
        for batch in batches:
            kept = []
            for decision in batch:
                identity = (decision.id, decision.project)
                if identity not in known:
                    known.add(identity)
                    kept.append(decision)
            fresh.append(kept)
        return fresh

    def _finish(
        self, inserted: Sequence[Sequence[Decision]], position: Position, received: int
    ) -> Commit:
        cells = Cells()
        cells.add(itertools.chain.from_iterable(inserted))
        delta = Delta(position, cells, received)
        query(self._db, "add_delta", position.seq, delta.pack())
        self._await_folding(cells)
        if self._must_fold():
            self._fold(position.seq)
        query(self._db, "advance", position.seq)
        self._db.execute("COMMIT")
        return Commit(position, [len(batch) for batch in inserted], delta)

    def _await_folding(self, cells: Cells) -> None:
        self._unfolded.append(cells)
        self._unfolded_decisions += sum(sums.count for sums in cells)
        self._largest += sum(sums.largest for sums in cells)

    def _must_fold(self) -> bool:
        return (
            self._unfolded_decisions >= FOLD_DECISIONS
            or len(self._unfolded) >= FOLD_COMMITS
            # Only in the rollups themselves a sum is found to be full.
            or self._largest > LARGEST_SUM
        )

    def _fold(self, seq: int) -> None:
        """Add to the rollups what they lack of the commits up to this one."""
        if not self._unfolded:
            return
        cells = Cells.sum(self._unfolded)
        self._merge("minute", cells.minutes)
        self._merge("hour", cells.hours())
        self._merge("total", {0: cells.total()})
        self._largest = max(sums.largest for sums in self._bucket("total", 0).values())
        self._unfolded, self._unfolded_decisions = [], 0
        query(self._db, "set_folded", seq)
        query(self._db, "drop_deltas", seq - DELTAS_KEPT)

    def _merge(self, period: str, buckets: dict[int, Bucket]) -> None:
        rows: list[tuple[Any, ...]] = []
        for number, cells in buckets.items():
            start = number * _START_OF[period]
            held = self._bucket(period, start)
            bucket_merge(held, cells)
            for key in cells:
                series = self._series.get(key) or self._series_of(key)
                rows.append((period, start, series, *held[key].row()))
        self._write("put_rollups", rows)

    def _bucket(self, period: str, start: int) -> Bucket:
        held = self._buckets.get((period, start))
        if held is None:
            rows = query(self._db, "rollups", period, start, start + 1)
            names = self._read_series(self._db) if rows else {}
            held = {names[row[1]]: Sums.from_row(row[2:]) for row in rows}
            if len(self._buckets) >= PERIODS_KEPT:
                self._buckets.clear()
            self._buckets[period, start] = held
        return held

    def _write(self, query: str, rows: Sequence[tuple[Any, ...]]) -> None:
        for first in range(0, len(rows), ROWS_PER_STEP):
            step = rows[first : first + ROWS_PER_STEP]
            sql = _statement(query, len(step), len(step[0]))
            self._db.execute(sql, tuple(itertools.chain.from_iterable(step)))

    def _check_place(self) -> None:
        """Raise Unavailable when the file is no longer where it was: it would be lost."""
        try:
            now = self.path.stat()
        except OSError:
            raise Unavailable(f"the database file {self.path} is gone") from None
        if (now.st_dev, now.st_ino) != self._place:
            raise Unavailable(f"the database file {self.path} was replaced")

    def _check(self) -> None:
        self._check_place()
        with transaction(self._db):
            query(self._db, "touch")
            self._db.execute("COMMIT")

    def _prune(self, decisions_before: int, minutes_before: int, limit: int) -> int:
        try:
            with transaction(self._db):
                self._fold(self._begin().seq - 1)
                dropped = self._prune_decisions(decisions_before, limit)
                dropped += self._prune_minutes(minutes_before // 10**6, limit - dropped)
                self._db.execute("COMMIT")
        except BaseException:
            self._forget()
            raise
        if dropped:  # what was pruned is not what is being added to
            kept = {place: held for place, held in self._buckets.items() if place[0] == "total"}
            self._buckets = kept
        return dropped

    def _prune_decisions(self, before: int, limit: int) -> int:
        oldest = query(self._db, "oldest_decisions", limit)
        # In the order of receipt: all from the first one young enough on is kept.
        rows = list(itertools.takewhile(lambda row: row[1] < before, oldest))
        if rows:
            cells = Cells()
            cells.add(Decision(*row[2:]) for row in rows)
            self._merge("pruned", cells.hours())
            query(self._db, "delete_decisions", rows[-1][0])
        return len(rows)

    def _prune_minutes(self, before: int, limit: int) -> int:
        before -= before % 3600
        dropped = 0
        while dropped < limit:
            oldest = query(self._db, "oldest_minute")[0][0]
            if oldest is None or oldest >= before:
                break
            hour = oldest - oldest % 3600
            query(self._db, "set_minutes_from", hour + 3600)
            query(self._db, "delete_minutes", hour, hour + 3600, limit - dropped)
            dropped += self._db.changes()
        return dropped

    # -- reading (on a reader thread) -----------------------------------------------------------

    def _position(self) -> Position:
        self._check_place()
        epoch, seq, *_ = query(self._reader, "history")[0]
        return Position(epoch, seq)

    @staticmethod
    def _read_series(connection: apsw.Connection) -> dict[int, Key]:
        return {row[0]: Key(*row[1:]) for row in query(connection, "series")}

    def _load(self, now: int) -> Snapshot:
        wanted = needed(now)
        with transaction(self._reader, "BEGIN"):
            self._check_place()
            epoch, _, _, folded = query(self._reader, "history")[0]
            names = self._read_series(self._reader)

            def buckets(period: str, first: int, end: int) -> dict[int, Bucket]:
                unit = _START_OF[period] or 1
                found: dict[int, Bucket] = {}
                for row in query(self._reader, "rollups", period, first * unit, end * unit):
                    bucket = found.setdefault(row[0] // unit, {})
                    bucket[names[row[1]]] = Sums.from_row(row[2:])
                return found

            total = buckets("total", 0, 1).get(0, {})
            hours = buckets("hour", *wanted.hours)
            minutes: dict[int, Bucket] = {}
            for span in wanted.minutes:
                minutes.update(buckets("minute", *span))
            snapshot = Snapshot(Position(epoch, folded), now, total, hours, minutes)
            for delta in _deltas_after(self._reader, snapshot.position):
                snapshot.apply(delta)
        return snapshot

    def _deltas(self, after: Position) -> list[Delta]:
        with transaction(self._reader, "BEGIN"):
            position = self._position()
            if position.epoch != after.epoch or position.seq < after.seq:
                raise Gap(f"{position} after {after}")
            deltas = following(_deltas_after(self._reader, after), after)
        if len(deltas) != position.seq - after.seq:
            raise Gap(f"the deltas after seq {after.seq} are not kept any more")
        return deltas


def _deltas_after(db: apsw.Connection, after: Position) -> Iterator[Delta]:
    for seq, packed in select(db, "deltas", after.seq):
        delta = Delta.unpack(packed)
        yield Delta(Position(after.epoch, seq), delta.cells, delta.received)


@contextmanager
def transaction(db: apsw.Connection, begin: str = "BEGIN IMMEDIATE") -> Iterator[None]:
    """A transaction that the body commits; left in any other way, it is undone."""
    db.execute(begin)
    try:
        yield
    except BaseException:
        _undo(db, suppress(apsw.Error))  # what went wrong first is what matters
        raise
    _undo(db, nullcontext())


def _undo(db: apsw.Connection, guard: AbstractContextManager[Any]) -> None:
    if db.in_transaction:  # a full disk ends it by itself
        with guard:
            db.execute("ROLLBACK")
