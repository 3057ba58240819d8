"""The one writer of a SQLite database.

A commit writes its decisions, its delta and the position. Deltas are folded into the rollups in
steps, by later commits or while nothing else is to be written (`folding.py`).

The writer keeps the rollups it touched last in memory. Within `BEGIN IMMEDIATE` nobody else can
write, and SQLite's `data_version` shows whether anybody did before: only then are they read again.
"""

import itertools
import logging
import time
from collections.abc import Collection, Iterable, Iterator, Sequence, Set
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import apsw
import msgspec

from routecast.adapters.store.history import SummaryRows
from routecast.adapters.store.sqlite import names, rescue, schema
from routecast.adapters.store.sqlite.connection import (
    BUSY_MS,
    STATEMENTS_KEPT,
    insert_rows,
    leave_log,
    query,
    transaction,
)
from routecast.adapters.store.sqlite.file_identity import FileIdentity, Lost
from routecast.adapters.store.sqlite.folding import Folding, PackedPart, pack_parts
from routecast.adapters.store.sqlite.known import stored_contents
from routecast.adapters.store.sqlite.marks import holds_pages, require_own_log, wal_of
from routecast.adapters.store.sqlite.rollups import Rollups
from routecast.adapters.store.sqlite.series import SeriesKey, SeriesNumbers
from routecast.adapters.store.sqlite.staging import Staged, counted_as
from routecast.adapters.store.sqlite.summaries import split
from routecast.adapters.store.sqlite.wal import WriteAheadLog
from routecast.core.cardinality import FoldedNames
from routecast.core.conflicts import count_conflicts
from routecast.core.decision import DecisionRecord, identity_of, values_of
from routecast.core.delta import Delta
from routecast.core.history import PARTS
from routecast.core.rollup import Cells, Key, PeriodCells, key_of
from routecast.core.room import Full, field_without_room, find_full, most_added
from routecast.errors import BadDatabase, Unavailable
from routecast.ports import Commit
from routecast.protocol import Position

log = logging.getLogger(__name__)


# Between two tries to get a lock that another process holds, in seconds.
LOCK_PAUSE: Final = 0.02

_decode: Final = msgspec.json.Decoder(list[list[Any]]).decode


def _all_of(batches: Iterable[Iterable[DecisionRecord]]) -> list[DecisionRecord]:
    return list(itertools.chain.from_iterable(batches))


def _fresh(
    batches: Sequence[Sequence[DecisionRecord]], stored: Collection[tuple[str, str]]
) -> list[list[DecisionRecord]]:
    """Return the decisions whose ids are not stored, the first of each."""
    known = set(stored)
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


def _count(batches: Iterable[Iterable[DecisionRecord]]) -> Cells:
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
        self._stopping = False
        self._db: apsw.Connection | None = None
        self._claimed = False  # whether the file says that it is open
        self._seq: int | None = None  # of the last commit, as far as is known
        self._warned = False  # of another process that commits

    # -- opening --------------------------------------------------------------------------------

    def open(self) -> None:
        """Open the file and bring its schema up to date. Raises BadDatabase."""
        require_own_log(self._path)
        if not self._create and not self._path.exists():
            raise BadDatabase(f"there is no database {self._path}")
        self._open(had_log=holds_pages(wal_of(self._path)))

    def _open(self, *, had_log: bool) -> None:
        try:
            db = apsw.Connection(str(self._path), statementcachesize=STATEMENTS_KEPT)
        except apsw.CantOpenError as error:
            raise BadDatabase(f"cannot open {self._path} ({error}); is its folder there?") from None
        self._db = db
        try:
            db.set_busy_handler(self._wait_for_lock)
            schema.require_ours(db, self._path)
            if self._create:  # else it may be a backup, which is one file and stays as it is
                db.execute("PRAGMA journal_mode = WAL")
            else:
                leave_log(db)
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA cache_size = -32768")
            schema.migrate(db)
            self.files = FileIdentity(self._path)
            self.wal = WriteAheadLog(db, self._path, self.files, self._wait_for_lock)
            if self._create:
                self.wal.claim(had_log=had_log)
                self._claimed = True
        except apsw.NotADBError:
            self.close()
            raise BadDatabase(f"{self._path} is not a SQLite database") from None
        except (apsw.CantOpenError, apsw.ReadOnlyError, apsw.PermissionsError) as error:
            self.close()
            raise BadDatabase(f"cannot write to {self._path} ({error})") from None
        except BaseException:
            self.close()
            raise
        self._series = SeriesNumbers(db)
        self._rollups = Rollups(db, self._series)
        self._folding = Folding(db, self._series, self._rollups)
        self._forget()

    def close(self, *, sound: bool = True) -> None:
        """Let go of the file, if it was opened; `sound` says whether it may be written to."""
        db, self._db = self._db, None
        if db is not None:
            if self._claimed and sound:
                self.wal.release()
            db.close()
        self._claimed = False

    def reopen(self) -> None:
        """Open the file again after `Lost`, with all that was committed.

        No other connection of this process may be open. Raises LogCut when commits are lost,
        Unavailable when it cannot be done yet: then call it again.
        """
        if self._db is not None:
            saved = None
            if self.files.is_there and self.wal.is_whole:
                self.wal.add_all()
            else:
                saved = rescue.save(self._db, self._path, self._seq)
            self.close(sound=False)
            if saved is not None:
                rescue.put_in_place(saved, self._path)
        if holds_pages(wal_of(self._path)):
            raise Unavailable(f"another process uses {wal_of(self._path)}, which was not there")
        self._open(had_log=True)

    def stop(self) -> None:
        """Interrupt what is running, and refuse all else; from any thread, again and again.

        One call may fall between two statements, so call it until the writer's thread has ended.
        """
        self._stopping = True
        db = self._db
        if db is not None:
            with suppress(apsw.Error):  # it was closed a moment ago
                db.interrupt()

    def _wait_for_lock(self, tries: int) -> bool:
        """Wait for another process's lock; return whether to try again."""
        if self._stopping or self._db is None or tries * LOCK_PAUSE * 1000 >= BUSY_MS:
            return False
        time.sleep(LOCK_PAUSE)
        return True

    # -- commits --------------------------------------------------------------------------------

    def _forget(self) -> None:
        self._version = -1  # SQLite's data_version when what is remembered was read
        self._folded: FoldedNames = {}  # what was folded into `other`
        self._series.forget()
        self._rollups.forget()
        self._folding.forget()

    @contextmanager
    def _transaction(self) -> Iterator[apsw.Connection]:
        """A transaction that the body commits; what the writer remembers is undone with it."""
        db = self._db
        if self._stopping:
            raise Unavailable("the database is being closed", retry_after=5)
        if db is None:
            raise Lost("the database is being opened again")
        self.files.check()
        self.wal.check()
        self._series.begin()
        try:
            with transaction(db):
                self.wal.begin()
                yield db
                committed = not db.in_transaction
        except BaseException:
            self._forget()
            raise
        if committed:
            self.wal.end()
        else:
            self._series.undo()

    def commit(self, batches: Sequence[Sequence[DecisionRecord]], received: int) -> Commit:
        """Write batches in one transaction (`ports.Store.commit`)."""
        with self._transaction() as db:
            position = self._begin(db)
            counted = counted_as(batches, self._folded)
            decisions = _all_of(counted)
            if decisions and self._insert(db, decisions, position, received):
                return self._finish(db, counted, position, received)
        # Some ids are known, and the engine does not say which: again, looking first.
        with self._transaction() as db:
            position = self._begin(db)
            counted = counted_as(batches, self._folded)
            stored = stored_contents(db, map(identity_of, _all_of(counted)))
            fresh = _fresh(counted, stored)
            decisions = _all_of(fresh)
            if decisions:
                if not self._insert(db, decisions, position, received):
                    raise Unavailable("ids changed under a transaction; nothing was kept")
                commit = self._finish(db, fresh, position, received)
            else:
                held = Position(position.epoch, position.seq - 1)
                commit = Commit(held, [0] * len(batches), None)
        return replace(commit, conflicts=count_conflicts(counted, stored, commit.full))

    def _begin(self, db: apsw.Connection) -> Position:
        version = db.pragma("data_version")
        epoch, seq, _, folded, parts = query(db, "history")[0]
        if version != self._version:
            self._look_for_others(seq)
            self._forget()
            self._version = version
            self._folding.read(folded, parts)
            self._folded = names.folded_names(db)
        return Position(epoch, seq + 1)

    def _look_for_others(self, seq: int) -> None:
        """Warn when another process has committed decisions since the last commit here."""
        if self._seq is not None and seq > self._seq and not self._warned:
            log.warning(
                "Another process commits decisions to %s: each process shows those of the other "
                "up to 10 seconds late. Run one server for each SQLite file; several servers can "
                "share a PostgreSQL database",
                self._path,
            )
            self._warned = True
        self._seq = seq

    def _insert(
        self,
        db: apsw.Connection,
        decisions: Sequence[DecisionRecord],
        position: Position,
        received: int,
    ) -> bool:
        """Insert decisions; return False when an id is known: then undo the transaction."""
        self._series.learn(map(key_of, decisions))
        numbers, seq = self._series, position.seq
        rows = [
            (d.id, d.owner, numbers[key_of(d)], seq, received, *values_of(d)) for d in decisions
        ]
        before = db.total_changes()
        insert_rows(db, "insert_decisions", rows)
        return db.total_changes() - before == len(rows)

    def _finish(
        self,
        db: apsw.Connection,
        inserted: Sequence[Sequence[DecisionRecord]],
        position: Position,
        received: int,
    ) -> Commit:
        cells = _count(inserted)
        full = self._find_full(inserted, cells)
        if full:
            query(db, "take_back", msgspec.json.encode(list(full)).decode())
            inserted = [[d for d in batch if identity_of(d) not in full] for batch in inserted]
            cells = _count(inserted)
            if not cells.minutes:
                db.execute("COMMIT")  # of what was folded; decisions, there are none
                held = Position(position.epoch, position.seq - 1)
                return Commit(held, [0] * len(inserted), None, full)
        counts = [len(batch) for batch in inserted]
        parts = pack_parts(cells, received)
        return self._end(db, Delta(position, cells, received), counts, parts, full)

    def _find_full(self, inserted: Sequence[Sequence[DecisionRecord]], cells: Cells) -> Full:
        """Return the decisions that the sums of their series have no room for."""
        keys = self._folding.keys_to_check(cells, most_added(cells))
        if not keys:
            return {}
        totals = self._folding.exact_totals(keys)
        return find_full(itertools.chain.from_iterable(inserted), totals)

    def _end(
        self,
        db: apsw.Connection,
        delta: Delta,
        inserted: list[int],
        parts: Sequence[PackedPart],
        full: Full,
    ) -> Commit:
        seq = delta.position.seq
        self._folding.add(seq, parts)
        self._folding.after_commit(delta.cells.number)
        query(db, "advance", seq)
        self._seq = seq
        db.execute("COMMIT")
        return Commit(delta.position, inserted, delta, full)

    # -- large batches --------------------------------------------------------------------------

    def begin_large(self) -> tuple[str, FoldedNames, frozenset[Key]]:
        """Return the epoch, the names that are folded in it, and the series near their limit."""
        with self._transaction() as db:
            return self._begin(db).epoch, self._folded, self._folding.near()

    def exact_totals(self, keys: Set[Key]) -> PeriodCells:
        """Return the sums over all time of some series (`Folding.exact_totals`)."""
        with self._transaction() as db:
            self._begin(db)
            self._series.learn(keys)
            return self._folding.exact_totals(keys)

    def number(self, keys: Iterable[SeriesKey]) -> dict[SeriesKey, int]:
        """Return the numbers of some series; new ones are committed at once."""
        keys = list(keys)
        with self._transaction() as db:
            self._begin(db)
            before = db.total_changes()
            self._series.learn(keys)
            if db.total_changes() > before:
                db.execute("COMMIT")
            return {key: self._series[key] for key in keys}

    def commit_staged(self, staged: Staged, epoch: str, received: int) -> Commit | Set[Key] | None:
        """Write what was prepared, with the folded names of an epoch.

        Returns None when ids or the epoch have changed: prepare it again. Where some series lack
        room for it, it returns their keys: prepare it again with their exact totals.
        """
        if not staged.size:
            with self._transaction() as db:
                position = self._begin(db)
            held = Position(position.epoch, position.seq - 1)
            return Commit(held, staged.inserted, None, staged.full, staged.conflicts)
        with self._attached(staged.image), self._transaction() as db:
            position = self._begin(db)
            if position.epoch != epoch:
                return None
            if without_room := self._without_room(staged):
                return without_room
            before = db.total_changes()
            query(db, "insert_staged", position.seq, received)
            if db.total_changes() - before != staged.size:
                return None
            delta = Delta(position, staged.cells, received)
            commit = self._end(db, delta, staged.inserted, staged.parts, staged.full)
        return replace(commit, conflicts=staged.conflicts)

    def _without_room(self, staged: Staged) -> Set[Key]:
        """Return the series whose sums have no room for what was prepared."""
        most = sum(part.largest for part in staged.parts)
        keys = self._folding.keys_to_check(staged.cells, most)
        if not keys:
            return keys
        self._series.learn(keys)
        totals = self._folding.exact_totals(keys)
        added = staged.cells.total()
        return {key for key in keys if field_without_room(totals[key], added[key])}

    @contextmanager
    def _attached(self, image: bytes) -> Iterator[None]:
        """Have a database in memory at hand as `staged`."""
        db = self._db
        if self._stopping or db is None:
            raise Unavailable("the database is being closed", retry_after=5)
        self._detach(db)  # should it have failed the last time
        query(db, "attach_staged")
        try:
            db.deserialize("staged", image)
            yield
        finally:
            self._detach(db)

    @staticmethod
    def _detach(db: apsw.Connection) -> None:
        # It must not fail: the commit before it is made.
        if "staged" in db.db_names():
            with suppress(apsw.Error):
                query(db, "detach_staged")

    # -- folding --------------------------------------------------------------------------------

    @property
    def unfolded(self) -> int:
        """How many cells of deltas are not folded yet, as far as is known."""
        return self._folding.cells

    @property
    def should_fold(self) -> bool:
        """Whether `fold` should be called, while nothing else is to be written."""
        return self._folding.due

    def fold(self) -> bool:
        """Fold one step; return whether there is more to fold."""
        with self._transaction() as db:
            self._begin(db)
            if self._folding.cells:
                self._folding.step()
                db.execute("COMMIT")
        return self._folding.cells > 0

    def checkpoint(self) -> None:
        """Add the write-ahead log to the file, as far as readers let it be."""
        with self._transaction():
            pass
        self.wal.checkpoint()

    def check(self) -> None:
        """Write a new value and sync it."""
        with self._transaction() as db:
            query(db, "touch")
            db.execute("COMMIT")

    # -- names ----------------------------------------------------------------------------------

    def fold_names(self, part: str, folded: Collection[str], remember: bool) -> Position:
        """Count names of a part as `other` (`ports.Store.fold_names`)."""
        with self._transaction() as db:
            self._begin(db)
            self._folding.fold_all()
            moving = names.Moving(db, self._series, self._rollups)
            position = moving.run(part, folded, remember=remember)
            db.execute("COMMIT")
        self._forget()  # what it remembers has other names
        return position

    # -- retention ------------------------------------------------------------------------------

    def prune(self, decisions_before: int, minutes_before: int, limit: int) -> int:
        """Drop what is too old (`ports.Store.prune`)."""
        with self._transaction() as db:
            self._begin(db)
            self._folding.step()
            dropped = self._prune_decisions(db, decisions_before, limit)
            dropped += self._prune_minutes(db, minutes_before // 10**6, limit - dropped)
            db.execute("COMMIT")
        if dropped:  # rollups that were dropped may be remembered
            self._rollups.forget()
        return dropped

    def _prune_decisions(self, db: apsw.Connection, before: int, limit: int) -> int:
        oldest = _decode(query(db, "oldest_decisions", limit)[0][0])
        # In the order of receipt: all from the first one young enough on is kept.
        rows = list(itertools.takewhile(lambda row: row[1] < before, oldest))
        if rows:
            cells = Cells()
            cells.add(DecisionRecord(*record) for _n, _received, *record in rows)
            self._series.learn(cells.keys())
            self._rollups.add("pruned", cells.hours())
            query(db, "delete_decisions", rows[-1][0])
        return len(rows)

    @staticmethod
    def _prune_minutes(db: apsw.Connection, before: int, limit: int) -> int:
        before -= before % 3600
        dropped = 0
        while dropped < limit:
            oldest = query(db, "oldest_minute")[0][0]
            if oldest is None or oldest >= before:
                break
            hour = oldest - oldest % 3600
            query(db, "set_minutes_from", hour + 3600)
            query(db, "delete_minutes", hour, hour + 3600, limit - dropped)
            dropped += db.changes()
        return dropped

    # -- summaries ------------------------------------------------------------------------------

    def put_summaries(self, start: int, changes: int, rows: SummaryRows) -> None:
        """Write the summaries of an hour, unless it has changed more often than when it was read.

        Then it is summed up later.
        """
        parts = msgspec.json.encode(PARTS).decode()
        with self._transaction() as db:
            query(db, "hour_is_summed", start, changes)
            if db.changes():
                for table in ("summaries", "latency_summaries"):
                    query(db, f"drop_{table}", parts, start)
                sums = [(*row[:3], *split(row[3:])) for row in rows.sums]
                insert_rows(db, "put_summaries", sums)
                insert_rows(db, "put_latency_summaries", rows.latencies)
                db.execute("COMMIT")
