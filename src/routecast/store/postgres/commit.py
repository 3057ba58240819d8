"""A commit: decisions whose ids are new, what they add to the rollups, and the next position."""

import asyncio
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import asyncpg

from routecast.core.decision import Decision
from routecast.core.delta import Delta
from routecast.core.rollup import Bucket, Cells, Sums
from routecast.errors import SumFull
from routecast.ports import DELTAS_KEPT, Commit
from routecast.protocol import Position
from routecast.store.postgres.fold import LARGEST_SUM, fold
from routecast.store.postgres.session import LOST, SQL, Session, number_series, query, value

COLUMNS: Final = (
    "generation",
    "commit",
    "place",
    "id",
    "project",
    "series",
    "decided",
    "confidence",
    "cost",
    "latency",
    "input_tokens",
    "output_tokens",
    "fallback",
    "reason",
)
_NOT_YET: Final = Position("", 0)
_NOTHING: Final = (0,) * (len(Sums.COLUMNS) - 1)

# A decision, its place among those sent, and which of the batches it is of.
_Sent = tuple[Decision, int, int]


@dataclass(frozen=True, slots=True)
class Written:
    """A commit that lacks only the end of its transaction, and what to know it by afterwards."""

    commit: Commit
    transaction: str = ""
    number: int = 0
    token: int = 0


class Unsettled(Exception):
    """The server was lost while it ended a transaction: whether that was made is not known."""

    def __init__(self, written: Written) -> None:
        super().__init__(f"transaction {written.transaction} may or may not have been committed")
        self.written = written


@dataclass(frozen=True, slots=True)
class _Way:
    """How to go about it: the fast ways first, though they may fail where slow ones do not."""

    copy: bool = True  # insert all, which fails when the current generation holds some id
    exact: bool = False  # look whether sums have room; else it fails when they might not


async def commit(session: Session, batches: Sequence[Sequence[Decision]], received: int) -> Commit:
    """Do what `ports.Store.commit` says. Raises Unsettled besides what asyncpg does."""
    sent = _first_mentions(batches)
    if not sent:
        return await _nothing(session, len(batches))
    await number_series(session, (decision[1:7] for decision, _, _ in sent))
    way = _Way()
    while True:
        try:
            return await _commit(session, sent, len(batches), received, way)
        except asyncpg.UniqueViolationError:
            way = _Way(copy=False, exact=way.exact)
        except asyncpg.NumericValueOutOfRangeError:
            way = _Way(copy=way.copy, exact=True)


def _first_mentions(batches: Sequence[Sequence[Decision]]) -> list[_Sent]:
    """Return each id's first mention, in an order in which no two nodes wait for each other."""
    first: dict[tuple[Any, ...], _Sent] = {}
    for number, batch in enumerate(batches):
        for decision in batch:
            first.setdefault(decision[:2], (decision, len(first), number))  # by id and project
    return [first[identity] for identity in sorted(first)]


async def _commit(
    session: Session, sent: list[_Sent], batches: int, received: int, way: _Way
) -> Commit:
    written = None
    try:
        async with session.transaction():
            written = await _write(session, sent, batches, received, way)
    except LOST as error:
        if written is None or written.commit.delta is None:
            raise
        raise Unsettled(written) from error
    return written.commit


async def settle(session: Session, written: Written) -> bool | None:
    """Return whether a commit was made after all; None while its transaction still runs."""
    with suppress(asyncpg.InvalidParameterValueError):  # after a crash the name is not in use yet,
        if await value(session, "is_running", written.transaction):  # or another's: then wait, too
            return None
    made: bool = await value(session, "is_committed", written.number, written.token)
    return made


async def _write(
    session: Session, sent: list[_Sent], batches: int, received: int, way: _Way
) -> Written:
    """Write all but the end of the transaction."""
    generation, oldest, *kept_from, number = (await query(session, "begin_commit"))[0]
    if oldest < generation:
        sent = await _unknown(session, sent, generation, kept_from)
    if way.copy and sent:  # all are inserted, or none: what they add up to is counted meanwhile
        counting = asyncio.ensure_future(asyncio.to_thread(_delta, sent, received))
        await _copy(session, sent, generation, number)
    elif sent:
        sent = await _insert_new(session, sent, generation, number)
        counting = asyncio.ensure_future(asyncio.to_thread(_delta, sent, received))
    if not sent:
        return Written(await _nothing(session, batches))
    inserted = [0] * batches
    for _, _, batch in sent:
        inserted[batch] += 1
    delta, packed, largest = await counting
    if way.exact:
        await _check_room(session, delta.cells.total())
    token = secrets.randbits(63)
    row = await query(
        session,
        "add_delta",
        *(generation, number, received, token, len(sent), largest, packed, way.exact),
    )
    epoch, seq, transaction = row[0]
    position = Position(epoch, seq)
    done = Commit(position, inserted, Delta(position, delta.cells, received))
    return Written(done, transaction, number, token)


async def _nothing(session: Session, batches: int) -> Commit:
    """Return the commit of nothing new."""
    position = Position(*(await query(session, "position"))[0])
    return Commit(position, [0] * batches, None)


async def _unknown(
    session: Session, sent: list[_Sent], generation: int, kept_from: Sequence[int]
) -> list[_Sent]:
    """Return those that no older generation holds."""
    ids, projects = zip(*(decision[:2] for decision, _, _ in sent), strict=True)
    rows = await query(session, "known_ids", projects, ids, generation, *kept_from)
    known = {row["number"] for row in rows}
    return [one for number, one in enumerate(sent, 1) if number not in known]


def _rows(
    session: Session, sent: list[_Sent], generation: int, number: int
) -> list[tuple[Any, ...]]:
    """Return decisions as rows of COLUMNS."""
    series = session.series
    return [(generation, number, place, *d[:2], series[d[1:7]], *d[7:]) for d, place, _ in sent]


async def _copy(session: Session, sent: list[_Sent], generation: int, number: int) -> None:
    """Insert all of some decisions; fails when the current generation holds one of their ids."""
    rows = _rows(session, sent, generation, number)
    await session.copy_records_to_table(f"decisions_{generation}", records=rows, columns=COLUMNS)


async def _insert_new(
    session: Session, sent: list[_Sent], generation: int, number: int
) -> list[_Sent]:
    """Insert those decisions whose ids the current generation does not hold; return them."""
    columns = zip(*_rows(session, sent, generation, number), strict=True)
    sql = SQL["insert_new_decisions"].format(generation=generation)
    places = {row["place"] for row in await session.fetch(sql, *columns)}
    return [one for one in sent if one[1] in places]


def _delta(sent: list[_Sent], received: int) -> tuple[Delta, bytes, int]:
    """Return what decisions add, also as bytes, and a number that no sum in it is over."""
    cells = Cells()
    cells.add([decision for decision, _, _ in sent])
    delta = Delta(_NOT_YET, cells, received)
    return delta, delta.pack(), sum(sums.largest for sums in cells)


async def _check_room(session: Session, added: Bucket) -> None:
    """Raise SumFull unless each sum has room for what is added. Until the end nobody adds more."""
    await query(session, "lock_history")
    await query(session, "lock_rollups")
    await fold(session, DELTAS_KEPT)
    keys = list(added)
    numbers = [session.series[key] for key in keys]
    rows = await query(session, "rollups_at", "total", [0] * len(keys), numbers)
    held = {row["series"]: tuple(row[2:-1]) for row in rows}
    for key, number in zip(keys, numbers, strict=True):
        sums = added[key].row()[:-1]
        if any(a + b > LARGEST_SUM for a, b in zip(sums, held.get(number, _NOTHING), strict=True)):
            raise SumFull("a sum of its series is at its limit of 64 bits")
