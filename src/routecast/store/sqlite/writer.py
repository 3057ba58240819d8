"""The one writer of a SQLite database.

A commit writes its decisions, its delta and the position. Deltas are folded into the rollups many
at a time, by a later commit.

The writer keeps the rollups it touched last in memory. Within `BEGIN IMMEDIATE` nobody else can
write, and SQLite's `data_version` shows whether anybody did before: only then are they read again.
"""

import itertools
import secrets
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import apsw
import msgspec

from routecast.core.decision import Decision, identity_of
from routecast.core.delta import Delta
from routecast.core.history import PARTS
from routecast.core.rollup import Bucket, Cells, Key, Sums, bucket_merge
from routecast.core.room import MOST_UNFOLDED, NEAR, Full, find_full, most_added
from routecast.errors import BadDatabase, Unavailable
from routecast.ports import DELTAS_KEPT, Commit
from routecast.protocol import Position
from routecast.store.past import summary_rows
from routecast.store.queries import load_migrations
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
from routecast.store.sqlite.summaries import split

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


@cache
def _statement(query: str, rows: int, columns: int) -> str:
    row = f"({','.join('?' * columns)})"
    return SQL[query].format(rows=",".join([row] * rows))


def _count(batches: Iterable[Iterable[Decision]]) -> Cells:
    cells = Cells()
    cells.add(itertools.chain.from_iterable(batches))
    return cells


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
        self._near: set[Key] = set()  # series that are near the limit of 64 bits
        self._added = 0  # no sum of one series grows by more when the unfolded is folded

    def commit(self, batches: Sequence[Sequence[Decision]], received: int) -> Commit:
        """Write batches in one transaction (`ports.Store.commit`)."""
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
            self._near = {Key(*row) for row in query(self._db, "near_series", NEAR)}
            for delta in deltas_after(self._db, Position(epoch, folded)):
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
        cells = _count(inserted)
        if full := self._find_full(inserted, cells, position.seq - 1):
            self._take_back(full)
            inserted = [[d for d in batch if identity_of(d) not in full] for batch in inserted]
            cells = _count(inserted)
            if not cells.minutes:
                self._db.execute("COMMIT")  # of what was folded; decisions, there are none
                held = Position(position.epoch, position.seq - 1)
                return Commit(held, [0] * len(inserted), None, full)
        delta = Delta(position, cells, received)
        query(self._db, "add_delta", position.seq, delta.pack())
        self._await_folding(cells)
        if self._must_fold():
            self._fold(position.seq)
        query(self._db, "advance", position.seq)
        self._db.execute("COMMIT")
        return Commit(position, [len(batch) for batch in inserted], delta, full)

    def _find_full(self, inserted: Sequence[Sequence[Decision]], cells: Cells, seq: int) -> Full:
        """Return the decisions that the sums of their series have no room for.

        Only where a series may be that full, what is not folded up to `seq` is folded to know.
        """
        has_room = self._added + most_added(cells) <= MOST_UNFOLDED
        if has_room and not (self._near and self._near.intersection(cells.keys())):
            return {}
        self._fold(seq)
        keys = set(cells.keys())
        numbers = {self._series.get(key) or self._series_of(key): key for key in keys}
        rows = query(self._db, "totals", msgspec.json.encode(list(numbers)).decode())
        totals: dict[tuple[str, ...], Sums] = {
            numbers[row[1]]: Sums.from_row(row[2:]) for row in rows
        }
        return find_full(itertools.chain.from_iterable(inserted), totals)

    def _take_back(self, full: Full) -> None:
        """Delete decisions that were inserted a moment ago."""
        query(self._db, "take_back", msgspec.json.encode(list(full)).decode())

    def _await_folding(self, cells: Cells) -> None:
        self._unfolded.append(cells)
        self._unfolded_decisions += sum(sums.count for sums in cells)
        self._added += most_added(cells)

    def _must_fold(self) -> bool:
        return self._unfolded_decisions >= FOLD_DECISIONS or len(self._unfolded) >= FOLD_COMMITS

    def _fold(self, seq: int) -> None:
        """Add to the rollups what they lack of the commits up to this one."""
        if not self._unfolded:
            return
        cells = Cells.sum(self._unfolded)
        self._merge("minute", cells.minutes)
        self._merge("hour", hours := cells.hours())
        for hour in hours:
            query(self._db, "note_unsummed_hour", hour * START_OF["hour"])
        self._merge("total", {0: (total := cells.total())})
        totals = self._bucket("total", 0)
        self._near.update(key for key in total if totals[key].largest >= NEAR)
        self._unfolded, self._unfolded_decisions, self._added = [], 0, 0
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

    def summarise(self, start: int) -> None:
        """Sum an hour up (`ports.Store.summarise`)."""
        with transaction(self._db):
            self.place.check()
            rollups = query(self._db, "rollups", "hour", start, start + 1)
            names = series_names(self._db) if rollups else {}
            bucket = {names[row[1]]: Sums.from_row(row[2:]) for row in rollups}
            parts = msgspec.json.encode(PARTS).decode()
            for table in ("summaries", "latency_summaries"):
                query(self._db, f"drop_{table}", parts, start)
            rows = summary_rows({start: bucket})
            self._write("put_summaries", [(*row[:3], *split(row[3:])) for row in rows.sums])
            self._write("put_latency_summaries", rows.latencies)
            query(self._db, "hour_is_summed", start)
            self._db.execute("COMMIT")
