"""A commit to PostgreSQL: decisions whose ids are new, their delta, and the next position."""

import asyncio
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final, NamedTuple, TypeVar

import asyncpg

from routecast.adapters.store.postgres.columns import DECISION_COLUMNS
from routecast.adapters.store.postgres.connection import (
    POSTGRES_SQL,
    SCHEMA,
    DatabaseSession,
    learn_folded,
    query,
    rest_since,
    transaction,
    value,
)
from routecast.adapters.store.postgres.failures import LOST
from routecast.adapters.store.postgres.series import keep_numbers, number_series
from routecast.adapters.store.postgres.totals import PostgresTotals
from routecast.core.cardinality import fold_names
from routecast.core.conflicts import Content, count_conflicts
from routecast.core.decision import VALUE_FIELDS, DecisionRecord, identity_of
from routecast.core.delta import Delta
from routecast.core.overflow import LARGEST_SUM, Full, field_without_room, find_full, most_added
from routecast.core.rollup import Cells, PeriodCells, key_of
from routecast.ports import MAX_BULK_GROUP, MAX_GROUP, Commit
from routecast.protocol import Position

# The maximum number of rows sent at a time: the event loop encodes them.
ROWS_AT_ONCE: Final = 1_000
# At most this number of decisions is counted on the event loop: that costs less than a thread.
SMALL_COMMIT: Final = 50
T = TypeVar("T")

_NOT_YET: Final = Position("", 0)


class _New(NamedTuple):
    """The decisions that a commit inserts, and their delta, also as bytes.

    No sum of a series grows by more than `largest`.
    """

    sent: list[DecisionRecord]
    delta: Delta
    packed: bytes
    largest: int


@dataclass(frozen=True, slots=True)
class Written:
    """A commit whose transaction has not ended yet, and how to recognise it afterwards.

    `folded` is the seq of the rollups a moment before its end.
    """

    commit: Commit
    transaction: str = ""
    number: int = 0
    token: int = 0
    folded: int = 0


class Unsettled(Exception):
    """The server was lost at the end of a transaction: whether it was committed is unknown."""

    def __init__(self, written: Written) -> None:
        super().__init__(f"transaction {written.transaction} may or may not have been committed")
        self.written = written


class _OtherHistory(Exception):
    """The session may not know the present folded names, or the numbers of series."""


@dataclass(frozen=True, slots=True)
class _CommitMode:
    """How to commit. The fast mode comes first; if it fails, a slower mode handles the case."""

    copy: bool = True  # insert all decisions; fails if the current generation has one of the ids
    exact: bool = False  # look for decisions that do not fit; if False, it fails if some may not


async def commit(
    session: DatabaseSession, batches: Sequence[Sequence[DecisionRecord]], received: int
) -> Written:
    """Write batches in one transaction (`ports.Store.commit`).

    Raises Unsettled, and the exceptions of asyncpg.
    """
    sent = await _in_thread_if_many(sum(map(len, batches)), _first_mentions, batches)
    if not sent:
        return await _nothing(session, batches)
    mode = _CommitMode()
    while True:
        try:
            counted = await _counted(session, sent)
            return await _commit(session, batches, counted, received, mode)
        except _OtherHistory:
            session.naming.history = ""
        except asyncpg.UniqueViolationError:
            mode = _CommitMode(copy=False, exact=mode.exact)
        except asyncpg.NumericValueOutOfRangeError:
            mode = _CommitMode(copy=mode.copy, exact=True)


async def _in_thread_if_many(size: int, work: Callable[..., T], *args: Any) -> T:
    """Do some work for `size` decisions; in a thread if they are many."""
    return await asyncio.to_thread(work, *args) if size > MAX_GROUP else work(*args)


def _keys(sent: Sequence[DecisionRecord]) -> set[tuple[str, ...]]:
    return set(map(key_of, sent))


def _first_mentions(batches: Sequence[Sequence[DecisionRecord]]) -> list[DecisionRecord]:
    """Return the first decision of each id, in an order in which nodes cannot deadlock."""
    sent = list(chain.from_iterable(batches))
    sent.reverse()  # a dict keeps the last of equal keys
    first = dict(zip(map(identity_of, sent), sent, strict=True))
    return [first[identity] for identity in sorted(first)]


async def _counted(session: DatabaseSession, sent: list[DecisionRecord]) -> list[DecisionRecord]:
    """Return decisions with folded names replaced; the session then knows all their series."""
    naming = session.naming
    if not naming.history:
        await learn_folded(session)
    keep_numbers(session, naming.history)
    counted = sent
    if naming.folded:
        counted = await _in_thread_if_many(len(sent), fold_names, sent, naming.folded)
    await number_series(session, await _in_thread_if_many(len(sent), _keys, counted))
    return counted


async def _commit(
    session: DatabaseSession,
    batches: Sequence[Sequence[DecisionRecord]],
    sent: list[DecisionRecord],
    received: int,
    mode: _CommitMode,
) -> Written:
    written = None
    try:
        async with transaction(session):
            written = await _write(session, batches, sent, received, mode)
    except LOST as error:
        if written is None or written.commit.delta is None:
            raise
        raise Unsettled(written) from error
    return written


async def settle(session: DatabaseSession, written: Written) -> bool | None:
    """Return whether a commit was made; None while its transaction still runs."""
    # After a crash of the server, the transaction's number may not exist yet (an error), or another
    # transaction may have it: then this waits for that one, which does no harm.
    with suppress(asyncpg.InvalidParameterValueError):
        if await value(session, "is_running", written.transaction):
            return None
    made: bool = await value(session, "is_committed", written.number, written.token)
    return made


async def _write(
    session: DatabaseSession,
    batches: Sequence[Sequence[DecisionRecord]],
    sent: list[DecisionRecord],
    received: int,
    mode: _CommitMode,
) -> Written:
    """Do all of a commit except the end of the transaction."""
    generation, oldest, *kept_from, number, history = (await query(session, "begin_commit"))[0]
    if history != session.naming.history:
        raise _OtherHistory
    first_mentions = sent
    if oldest < generation:
        sent = await _unknown(session, sent, generation, kept_from)
    counting = None
    if mode.copy and sent:  # all are inserted, or the statement fails
        counting = await _copy(session, sent, generation, number, received)
    elif sent:
        sent = await _insert_new(session, sent, generation, number)
    known = await _known(session, first_mentions, sent, kept_from)
    if not sent:
        return await _nothing(
            session, batches, conflicts=await _conflicts(session, batches, sent, known)
        )
    new = await (counting or _count(sent, received))
    full: Full = {}
    inserted = sent
    if mode.exact:
        new, full = await _leave_out_full(session, batches, new, generation)
    conflicts = await _conflicts(session, batches, inserted, known, full)
    if not new.sent:
        return await _nothing(session, batches, full, conflicts)
    token = secrets.randbits(63)
    series = session.series  # read once: a pooled session forwards each attribute
    touched = [series[key] for key in set(new.delta.cells.keys())]
    row = await query(
        session,
        "write_delta",
        *(generation, number, received, token),
        *(len(new.sent), new.largest, new.packed, mode.exact, touched),
    )
    epoch, seq, transaction, folded = row[0]
    position = Position(epoch, seq)
    added = Delta(position, new.delta.cells, received)
    done = Commit(position, _inserted(batches, new.sent), added, full, conflicts)
    return Written(done, transaction, number, token, folded)


async def _nothing(
    session: DatabaseSession,
    batches: Sequence[Sequence[DecisionRecord]],
    full: Full | None = None,
    conflicts: list[int] | None = None,
) -> Written:
    """Return the commit of a transaction in which nothing was new."""
    position = Position(*(await query(session, "position"))[0])
    return Written(Commit(position, [0] * len(batches), None, full or {}, conflicts or []))


async def _known(
    session: DatabaseSession,
    sent: list[DecisionRecord],
    new: list[DecisionRecord],
    kept_from: Sequence[int],
) -> dict[tuple[str, str], Content]:
    """Return the stored contents of those decisions that are not new."""
    if len(new) == len(sent):
        return {}
    inserted = set(map(identity_of, new))
    known = [one for one in map(identity_of, sent) if one not in inserted]
    stored: dict[tuple[str, str], Content] = {}
    for first in range(0, len(known), ROWS_AT_ONCE):
        began = time.monotonic()
        ids, projects = zip(*known[first : first + ROWS_AT_ONCE], strict=True)
        for row in await query(session, "stored_contents", projects, ids, *kept_from):
            identity, project, *content = row
            stored[identity, project] = Content(*content)
        if len(sent) > MAX_GROUP:
            await rest_since(began)
    return stored


async def _conflicts(
    session: DatabaseSession,
    batches: Sequence[Sequence[DecisionRecord]],
    inserted: Sequence[DecisionRecord],
    known: Mapping[tuple[str, str], Content],
    full: Full | None = None,
) -> list[int]:
    """Return how many decisions of each batch differ from the one that has their id."""
    size = sum(map(len, batches))
    if len(inserted) == size:
        return []
    folded = session.naming.folded

    def count() -> list[int]:
        counted = [fold_names(batch, folded) for batch in batches] if folded else batches
        return count_conflicts(counted, known, full or {})

    return await _in_thread_if_many(size, count)


def _inserted(
    batches: Sequence[Sequence[DecisionRecord]], sent: Sequence[DecisionRecord]
) -> list[int]:
    """Return how many of the inserted decisions each batch was the first to contain."""
    if len(sent) == sum(map(len, batches)):
        return [len(batch) for batch in batches]
    left = set(map(identity_of, sent))
    counts = []
    for batch in batches:
        brought = left.intersection(map(identity_of, batch))
        left -= brought
        counts.append(len(brought))
    return counts


async def _unknown(
    session: DatabaseSession, sent: list[DecisionRecord], generation: int, kept_from: Sequence[int]
) -> list[DecisionRecord]:
    """Return the decisions that no older generation has."""
    ids, projects = zip(*map(identity_of, sent), strict=True)
    rows = await query(session, "known_ids", projects, ids, generation, *kept_from)
    known = {row["number"] for row in rows}
    return [one for number, one in enumerate(sent, 1) if number not in known]


def _columns(
    session: DatabaseSession, sent: Sequence[DecisionRecord], generation: int, number: int
) -> list[Sequence[Any]]:
    """Return decisions as columns, in the order of DECISION_COLUMNS."""
    size = len(sent)
    fields = dict(zip(DecisionRecord._fields, zip(*sent, strict=True), strict=True))
    series = list(map(session.series.__getitem__, map(key_of, sent)))
    commit = [generation] * size, [number] * size, range(size)
    values = (fields[name] for name in VALUE_FIELDS)
    return [*commit, fields["id"], fields["owner"], series, *values]


async def _copy(
    session: DatabaseSession,
    sent: list[DecisionRecord],
    generation: int,
    number: int,
    received: int,
) -> "asyncio.Future[_New]":
    """Insert all these decisions, and count their sums meanwhile.

    Fails if the current generation has one of their ids.
    """
    columns = await _in_thread_if_many(len(sent), _columns, session, sent, generation, number)
    counting: list[asyncio.Future[_New]] = []

    def rows(first: int, end: int) -> Iterator[tuple[Any, ...]]:
        yield from zip(*(column[first:end] for column in columns), strict=True)
        if end >= len(sent):
            # The server has got all rows, and needs time for them: count meanwhile.
            counting.append(asyncio.ensure_future(_count(sent, received)))

    for first in range(0, len(sent), ROWS_AT_ONCE):
        began, records = time.monotonic(), rows(first, first + ROWS_AT_ONCE)
        await session.copy_records_to_table(
            f"decisions_{generation}", records=records, columns=DECISION_COLUMNS, schema_name=SCHEMA
        )
        if len(sent) > MAX_BULK_GROUP:
            await rest_since(began)
    return counting[0]


async def _insert_new(
    session: DatabaseSession, sent: list[DecisionRecord], generation: int, number: int
) -> list[DecisionRecord]:
    """Insert and return those decisions whose ids the current generation does not have."""
    sql = POSTGRES_SQL["insert_new_decisions"].format(generation=generation)
    rows = await session.fetch(sql, *_columns(session, sent, generation, number))
    return [sent[row["place"]] for row in rows]


async def _count(sent: list[DecisionRecord], received: int) -> _New:
    """Return the delta of decisions."""

    def count() -> _New:
        cells = Cells()
        cells.add(sent)
        delta, largest = Delta(_NOT_YET, cells, received), most_added(cells)
        if largest > LARGEST_SUM:  # a sum may be too large to be packed: check all of them
            fits = max(sums.largest for sums in cells.total().values()) <= LARGEST_SUM
            return _New(sent, delta, delta.pack() if fits else b"", LARGEST_SUM)
        return _New(sent, delta, delta.pack(), largest)

    return await asyncio.to_thread(count) if len(sent) > SMALL_COMMIT else count()


async def _leave_out_full(
    session: DatabaseSession,
    batches: Sequence[Sequence[DecisionRecord]],
    new: _New,
    generation: int,
) -> tuple[_New, Full]:
    """Delete those decisions for which the sums of their series have no room.

    After this call, no other node commits before the transaction ends.
    """
    totals = PostgresTotals(session, set(new.delta.cells.keys()))
    await totals.update()
    # Most of them are found before the lock makes other nodes wait.
    new, full = await _without_full(session, batches, new, totals.sums, generation)
    await query(session, "lock_history")
    await totals.update()
    new, more = await _without_full(session, batches, new, totals.sums, generation)
    return new, full | more


async def _without_full(
    session: DatabaseSession,
    batches: Sequence[Sequence[DecisionRecord]],
    new: _New,
    held: PeriodCells,
    generation: int,
) -> tuple[_New, Full]:
    """Delete those decisions that do not fit into the sums of their series."""

    def find() -> Full:
        added = new.delta.cells.total()
        if all(not field_without_room(held[key], added[key]) for key in added):
            return {}
        left = {identity_of(one): one for one in new.sent}
        in_order = map(identity_of, chain.from_iterable(batches))
        return find_full((left.pop(identity) for identity in in_order if identity in left), held)

    full = await asyncio.to_thread(find)
    if not full:
        return new, full
    ids, projects = zip(*full, strict=True)
    await session.execute(POSTGRES_SQL["take_back"].format(generation=generation), projects, ids)
    fitting = [one for one in new.sent if identity_of(one) not in full]
    return await _count(fitting, new.delta.received), full
