"""The one writer of a SQLite database.

A commit writes its decisions, its delta and the position. Deltas are folded into the rollups many
at a time, by a later commit.

The writer keeps the rollups it touched last in memory. Within `BEGIN IMMEDIATE` nobody else can
write, and SQLite's `data_version` shows whether anybody did before: only then are they read again.
"""

import itertools
import secrets
from collections.abc import Collection, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import apsw
import msgspec

from routecast.core.decision import Decision, identity_of
from routecast.core.delta import Delta
from routecast.core.history import PARTS
from routecast.core.names import FoldedNames, fold_names
from routecast.core.rollup import Bucket, Cells, Sums, bucket_merge
from routecast.errors import BadDatabase, SumFull, Unavailable
from routecast.ports import DELTAS_KEPT, Commit
from routecast.protocol import Position
from routecast.store.past import summary_rows
from routecast.store.queries import load_migrations
from routecast.store.sqlite import names
from routecast.store.sqlite.connection import (
    BUSY_MS,
    SQL,
    START_OF,
    Place,
    deltas_after,
    query,
    series_names,
    transaction,
)

APPLICATION_ID: Final = 0x52544341  # "RTCA", in the file's header
MIGRATIONS: Final = load_migrations("sqlite")

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


@cache
def _statement(query: str, rows: int, columns: int) -> str:
    row = f"({','.join('?' * columns)})"
    return SQL[query].format(rows=",".join([row] * rows))


class Writer:
    """Writes to one SQLite file; all its methods are called on one thread.

    They raise apsw's errors as they come, but for those that say more.
    """

    def __init__(self, path: Path, *, create: bool) -> None:
        self._path = path
        self._create = create
        self._db: apsw.Connection
        self._forget()

    # -- opening --------------------------------------------------------------------------------

    def open(self) -> None:
        """Open the file and bring its schema up to date. Raises BadDatabase."""
        if not self._create and not self._path.exists():
            raise BadDatabase(f"there is no database {self._path}")
        try:
            db = apsw.Connection(str(self._path), statementcachesize=STATEMENTS_KEPT)
        except apsw.CantOpenError as error:
            raise BadDatabase(f"cannot open {self._path} ({error}); is its folder there?") from None
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
            raise BadDatabase(f"{self._path} is not a SQLite database") from None
        except (apsw.CantOpenError, apsw.ReadOnlyError, apsw.PermissionsError) as error:
            db.close()
            raise BadDatabase(f"cannot write to {self._path} ({error})") from None
        except BaseException:
            db.close()
            raise
        self._db = db
        self.place = Place(self._path)

    def close(self) -> None:
        """Let go of the file, if it was opened."""
        if hasattr(self, "_db"):
            self._db.close()

    def _check_ours(self, db: apsw.Connection) -> None:
        ours, version = db.pragma("application_id"), db.pragma("user_version")
        if ours != APPLICATION_ID and db.execute("SELECT 1 FROM sqlite_schema").fetchone():
            raise BadDatabase(f"{self._path} is a database of another program")
        if version > MIGRATIONS[-1][0]:
            raise BadDatabase(
                f"{self._path} was written by a newer Routecast (schema {version}; this one knows "
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

    # -- commits --------------------------------------------------------------------------------

    def _forget(self) -> None:
        self._version = -1  # SQLite's data_version when what follows was read
        self._series: dict[tuple[str, ...], int] = {}
        self._buckets: dict[tuple[str, int], Bucket] = {}
        self._unfolded: list[Cells] = []
        self._unfolded_decisions = 0
        self._folded: FoldedNames = {}  # what was folded into `other`
        self._largest = 0  # no sum, of the rollups and the unfolded together, is over it

    def commit(self, batches: Sequence[Sequence[Decision]], received: int) -> Commit:
        """Write batches in one transaction (`ports.Store.commit`)."""
        try:
            with transaction(self._db):
                position = self._begin()
                batches = self._counted(batches)
                decisions = itertools.chain.from_iterable(batches)
                if any(batches) and self._insert(decisions, position, received):
                    return self._finish(batches, position, received)
            # Some ids are known, and the engine does not say which: again, looking first.
            with transaction(self._db):
                position = self._begin()
                batches = self._counted(batches)
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
        self.place.check()
        epoch, seq, _, folded = query(self._db, "history")[0]
        version = self._db.pragma("data_version")
        if version != self._version:
            self._forget()
            self._version = version
            self._folded = names.folded_names(self._db)
            self._largest = query(self._db, "largest_sum")[0][0]
            for delta in deltas_after(self._db, Position(epoch, folded)):
                self._await_folding(delta.cells)
        return Position(epoch, seq + 1)

    def _counted(self, batches: Sequence[Sequence[Decision]]) -> Sequence[Sequence[Decision]]:
        """Return batches with the names that were folded replaced."""
        return [fold_names(batch, self._folded) for batch in batches] if self._folded else batches

    def _insert(self, decisions: Iterable[Decision], position: Position, received: int) -> bool:
        """Insert decisions; when an id is known, undo the transaction and return False."""
        rows = [
            (
                d.id,
                d.owner,
                self._series.get(d[1:7]) or self._series_of(d[1:7]),
                position.seq,
                received,
                *d[7:-1],
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
        sent = msgspec.json.encode([identity_of(d) for batch in batches for d in batch])
        known = set(query(self._db, "known_ids", sent.decode()))
        fresh = []
        for batch in batches:
            kept = []
            for decision in batch:
                identity = identity_of(decision)
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
        self._merge("hour", hours := cells.hours())
        for hour in hours:
            query(self._db, "note_unsummed_hour", hour * START_OF["hour"])
        self._merge("total", {0: cells.total()})
        self._largest = max(sums.largest for sums in self._bucket("total", 0).values())
        self._unfolded, self._unfolded_decisions = [], 0
        query(self._db, "set_folded", seq)
        query(self._db, "drop_deltas", seq - DELTAS_KEPT)

    def _merge(self, period: str, buckets: dict[int, Bucket]) -> None:
        rows: list[tuple[Any, ...]] = []
        for number, cells in buckets.items():
            start = number * START_OF[period]
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
            names = series_names(self._db) if rows else {}
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

    def check(self) -> None:
        """Write and sync what has no meaning."""
        self.place.check()
        with transaction(self._db):
            query(self._db, "touch")
            self._db.execute("COMMIT")

    # -- names ----------------------------------------------------------------------------------

    def fold_names(self, part: str, folded: Collection[str], remember: bool) -> Position:
        """Count names of a part as `other` (`ports.Store.fold_names`)."""
        try:
            with transaction(self._db):
                self._fold(self._begin().seq - 1)
                position = names.fold(self._db, part, folded, self._merge, remember=remember)
                self._db.execute("COMMIT")
        except OverflowError as error:
            raise SumFull("a sum of `other` would be over its limit of 64 bits") from error
        finally:
            self._forget()  # what it remembers has other names, or was undone
        return position

    # -- retention ------------------------------------------------------------------------------

    def prune(self, decisions_before: int, minutes_before: int, limit: int) -> int:
        """Drop what is too old (`ports.Store.prune`)."""
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

    # -- summaries ------------------------------------------------------------------------------

    def summarise(self, before: int, limit: int) -> int:
        """Sum up hours that were over before a moment (`ports.Store.summarise`)."""
        with transaction(self._db):
            self.place.check()
            last = before // 10**6 - START_OF["hour"]
            starts = [row[0] for row in query(self._db, "unsummed_hours", last, limit)]
            names = series_names(self._db) if starts else {}
            parts = msgspec.json.encode(PARTS).decode()
            for start in starts:
                rollups = query(self._db, "rollups", "hour", start, start + 1)
                bucket = {names[row[1]]: Sums.from_row(row[2:]) for row in rollups}
                for table in ("summaries", "latency_summaries"):
                    query(self._db, f"drop_{table}", parts, start)
                rows = summary_rows({start: bucket})
                self._write("put_summaries", rows.sums)
                self._write("put_latency_summaries", rows.latencies)
                query(self._db, "hour_is_summed", start)
            if starts:
                self._db.execute("COMMIT")
        return len(starts)
