"""The log of commits in a SQLite file: the position of the last one, and the deltas.

A delta is stored in parts. The rows of its parts have its position; the packed bytes do not.
"""

import itertools
from collections.abc import Iterator
from operator import attrgetter
from typing import Final, NamedTuple

import apsw

from routecast.adapters.store.sqlite.connection import query, select, transaction
from routecast.core.delta import Delta, following
from routecast.core.overflow import LARGEST_SUM, most_added
from routecast.core.rollup import Cells
from routecast.errors import MissingDeltas
from routecast.protocol import Position

# The cells of one part: packing or unpacking it holds the interpreter's lock for a few ms.
PART_CELLS: Final = 100


def position(db: apsw.Connection) -> Position:
    """Return the position of the last commit."""
    epoch, seq, *_ = query(db, "history")[0]
    return Position(epoch, seq)


def read(db: apsw.Connection, after: Position) -> list[Delta]:
    """Return the deltas after a position. Raises MissingDeltas if they are not kept any more."""
    with transaction(db, "BEGIN"):
        last = position(db)
        if last.epoch != after.epoch or last.seq < after.seq:
            raise MissingDeltas(f"{last} after {after}")
        found = following(deltas_after(db, after), after)
    if len(found) != last.seq - after.seq:
        raise MissingDeltas(f"the deltas after seq {after.seq} are not kept any more")
    return found


def deltas_after(db: apsw.Connection, after: Position, parts: int = 0) -> Iterator[Delta]:
    """Yield the deltas of the commits after a position, in order.

    `parts` is the number of parts of the first delta that are left out.
    """
    every = parts_after(db, after, parts)
    for position, group in itertools.groupby(every, attrgetter("position")):
        cells, received = Cells(), 0
        for part in group:
            received = part.received
            for minute, added in part.cells.minutes.items():  # parts have no cell in common
                cells.minutes.setdefault(minute, {}).update(added)
        yield Delta(position, cells, received)


def parts_after(db: apsw.Connection, after: Position, parts: int = 0) -> Iterator[Delta]:
    """Yield the same deltas in parts, as they are stored: no large delta is in memory at once."""
    for seq, packed in select(db, "deltas", after.seq, parts):
        part = Delta.unpack(packed)
        yield Delta(Position(after.epoch, seq), part.cells, part.received)


class PackedPart(NamedTuple):
    """A part of a delta, ready to be stored."""

    cells: Cells
    number: int  # the number of cells
    largest: int  # the largest growth of any sum when it is folded
    packed: bytes


def pack_parts(cells: Cells, received: int) -> list[PackedPart]:
    """Return a delta in packed parts, without its position."""
    nowhere = Position("", 0)
    return [
        PackedPart(
            part,
            len(part),
            min(LARGEST_SUM, most_added(part)),
            Delta(nowhere, part, received).pack(),
        )
        for part in cells.split(PART_CELLS)
    ]
