"""A commit to a SQLite file: decisions whose ids are new, their delta, and the next position.

Deltas are folded into the rollups in steps, by later commits or between commits (`folding.py`). A
large batch is prepared on another thread first (`staging.py`).
"""

from collections.abc import Collection, Iterable, Iterator, Sequence, Set
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import chain

import apsw
import msgspec

from routecast.adapters.store.sqlite.connection import insert_rows, query
from routecast.adapters.store.sqlite.deltas import PackedPart, pack_parts
from routecast.adapters.store.sqlite.series import SeriesKey
from routecast.adapters.store.sqlite.staging import Staged, counted_as, stored_contents
from routecast.adapters.store.sqlite.writer import Writer, WriterTransaction
from routecast.core.cardinality import FoldedNames
from routecast.core.conflicts import count_conflicts
from routecast.core.decision import DecisionRecord, identity_of, values_of
from routecast.core.delta import Delta
from routecast.core.overflow import Full, field_without_room, find_full, most_added
from routecast.core.rollup import Cells, Key, PeriodCells, key_of
from routecast.errors import Unavailable
from routecast.ports import Commit


def commit(writer: Writer, batches: Sequence[Sequence[DecisionRecord]], received: int) -> Commit:
    """Write batches in one transaction (`ports.Store.commit`)."""
    with writer.transaction() as current:
        counted = counted_as(batches, current.folded_names)
        decisions = _all_of(counted)
        if decisions and _insert(current, decisions, received):
            return _finish(current, counted, received)
    # Some ids are known, and SQLite does not say which ones. Try again, and look the ids up first.
    with writer.transaction() as current:
        counted = counted_as(batches, current.folded_names)
        stored = stored_contents(current.db, map(identity_of, _all_of(counted)))
        fresh = _fresh(counted, stored)
        decisions = _all_of(fresh)
        if decisions:
            if not _insert(current, decisions, received):
                raise Unavailable("ids changed under a transaction; nothing was kept")
            committed = _finish(current, fresh, received)
        else:
            committed = Commit(current.position, [0] * len(batches), None)
    return replace(committed, conflicts=count_conflicts(counted, stored, committed.full))


def _all_of(batches: Iterable[Iterable[DecisionRecord]]) -> list[DecisionRecord]:
    return list(chain.from_iterable(batches))


def _fresh(
    batches: Sequence[Sequence[DecisionRecord]], stored: Collection[tuple[str, str]]
) -> list[list[DecisionRecord]]:
    """Return the decisions whose ids are not stored, the first one of each id."""
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
    cells.add(chain.from_iterable(batches))
    return cells


def _insert(current: WriterTransaction, decisions: Sequence[DecisionRecord], received: int) -> bool:
    """Insert decisions; return False if an id is known: then the transaction must be undone."""
    current.series.learn(map(key_of, decisions))
    db, numbers, seq = current.db, current.series, current.next_position.seq
    rows = [(d.id, d.owner, numbers[key_of(d)], seq, received, *values_of(d)) for d in decisions]
    before = db.total_changes()
    insert_rows(db, "insert_decisions", rows)
    return db.total_changes() - before == len(rows)


def _finish(
    current: WriterTransaction, inserted: Sequence[Sequence[DecisionRecord]], received: int
) -> Commit:
    """Delete the decisions without room, and end the commit of the rest."""
    cells = _count(inserted)
    full = _find_full(current, inserted, cells)
    if full:
        query(current.db, "take_back", msgspec.json.encode(list(full)).decode())
        inserted = [[d for d in batch if identity_of(d) not in full] for batch in inserted]
        cells = _count(inserted)
        if not cells.minutes:
            current.commit()  # keeps the numbers of new series; there are no decisions
            return Commit(current.position, [0] * len(inserted), None, full)
    counts = [len(batch) for batch in inserted]
    return _end(current, cells, received, counts, pack_parts(cells, received), full)


def _find_full(
    current: WriterTransaction, inserted: Sequence[Sequence[DecisionRecord]], cells: Cells
) -> Full:
    """Return the decisions for which the sums of their series have no room."""
    keys = current.totals.to_check(cells, most_added(cells))
    if not keys:
        return {}
    return find_full(chain.from_iterable(inserted), _totals(current, keys))


def _totals(current: WriterTransaction, keys: Set[Key]) -> PeriodCells:
    """Return the sums over all time of some series, which must be known."""
    return current.totals.exact(keys, current.folding.unfolded())


def _end(
    current: WriterTransaction,
    cells: Cells,
    received: int,
    inserted: list[int],
    parts: Sequence[PackedPart],
    full: Full,
) -> Commit:
    """Write the delta and the position, fold what is due, and end the transaction."""
    delta = Delta(current.next_position, cells, received)
    current.folding.add(delta.position.seq, parts)
    current.folding.after_commit(len(cells))
    current.advance()
    current.commit()
    return Commit(delta.position, inserted, delta, full)


# -- large batches ------------------------------------------------------------------------------


def begin_large(writer: Writer) -> tuple[str, FoldedNames, frozenset[Key]]:
    """Return the epoch, its folded names, and the series near their limit."""
    with writer.transaction() as current:
        return current.position.epoch, current.folded_names, current.totals.near()


def exact_totals(writer: Writer, keys: Set[Key]) -> PeriodCells:
    """Return the sums over all time of some series, without their histograms."""
    with writer.transaction() as current:
        current.series.learn(keys)
        return _totals(current, keys)


def number_series(writer: Writer, keys: Sequence[SeriesKey]) -> dict[SeriesKey, int]:
    """Return the numbers of some series; new ones are committed at once."""
    with writer.transaction() as current:
        before = current.db.total_changes()
        current.series.learn(keys)
        if current.db.total_changes() > before:
            current.commit()
        return {key: current.series[key] for key in keys}


def commit_staged(
    writer: Writer, staged: Staged, epoch: str, received: int
) -> Commit | Set[Key] | None:
    """Write a large batch that was prepared with the folded names of an epoch.

    Returns None if ids or the epoch have changed: prepare it again. Returns the keys of series that
    have no room for it, if there are any: prepare it again with their exact totals.
    """
    if not staged.size:
        with writer.transaction() as current:
            position = current.position
        return Commit(position, staged.inserted, None, staged.full, staged.conflicts)
    with _attached(writer.connection(), staged.image), writer.transaction() as current:
        if current.position.epoch != epoch:
            return None
        if without_room := _without_room(current, staged):
            return without_room
        db = current.db
        before = db.total_changes()
        query(db, "insert_staged", current.next_position.seq, received)
        if db.total_changes() - before != staged.size:
            return None
        committed = _end(
            current, staged.cells, received, staged.inserted, staged.parts, staged.full
        )
    return replace(committed, conflicts=staged.conflicts)


def _without_room(current: WriterTransaction, staged: Staged) -> Set[Key]:
    """Return the series whose sums have no room for a prepared batch."""
    growth = sum(part.largest for part in staged.parts)
    keys = current.totals.to_check(staged.cells, growth)
    if not keys:
        return keys
    current.series.learn(keys)
    totals = _totals(current, keys)
    added = staged.cells.total()
    return {key for key in keys if field_without_room(totals[key], added[key])}


@contextmanager
def _attached(db: apsw.Connection, image: bytes) -> Iterator[None]:
    """Attach a database in memory as `staged`."""
    _detach(db)  # it may have failed the last time
    query(db, "attach_staged")
    try:
        db.deserialize("staged", image)
        yield
    finally:
        _detach(db)


def _detach(db: apsw.Connection) -> None:
    # It must not fail: the commit is already made.
    if "staged" in db.db_names():
        with suppress(apsw.Error):
            query(db, "detach_staged")
