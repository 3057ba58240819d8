"""Staging: a large batch is prepared on another thread, so that the writer has little to do.

The rows are put into a database in memory, in the order of the index of ids. The writer gets an
image of it and inserts all rows with one statement, which does not hold the interpreter's lock.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, Final

import apsw
import msgspec

from routecast.adapters.store.sqlite.connection import BUSY_MS, insert_rows, query
from routecast.adapters.store.sqlite.deltas import PackedPart, pack_parts
from routecast.adapters.store.sqlite.series import SeriesKey
from routecast.core.cardinality import FoldedNames, fold_names
from routecast.core.conflicts import Content, count_conflicts
from routecast.core.decision import DecisionRecord, identity_of, values_of
from routecast.core.overflow import Full, find_full
from routecast.core.rollup import Cells, PeriodCells, key_of
from routecast.ports import MAX_GROUP

# The flags allow URIs: that of an attached database can say that no file must be created.
_IN_MEMORY: Final = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE | apsw.SQLITE_OPEN_URI

_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(list[list[Any]]).decode
_places: Final = msgspec.json.Decoder(list[int]).decode


@dataclass(frozen=True, slots=True)
class Staged:
    """A commit that is ready to be written: decisions with new ids, and their sums.

    `full` are the decisions that are left out because a sum has no room for them. `conflicts`
    counts, for each batch, the decisions that differ from the one that has their id.
    """

    image: bytes  # of a database with these decisions
    size: int
    inserted: list[int]  # the number for each batch
    cells: Cells
    parts: list[PackedPart]
    full: Full
    conflicts: list[int]


def counted_as(
    batches: Sequence[Sequence[DecisionRecord]], folded: FoldedNames
) -> Sequence[Sequence[DecisionRecord]]:
    """Return batches with folded names replaced."""
    return [fold_names(batch, folded) for batch in batches] if folded else batches


def keys_of(batches: Sequence[Sequence[DecisionRecord]]) -> list[SeriesKey]:
    """Return the keys of all series that the decisions belong to, each once."""
    return list(set(map(key_of, chain.from_iterable(batches))))


def stage(
    path: Path,
    batches: Sequence[Sequence[DecisionRecord]],
    numbers: Mapping[SeriesKey, int],
    totals: PeriodCells,
    received: int,
) -> Staged:
    """Prepare the commit of some batches.

    `numbers` are the numbers of all their series; `totals` are the sums over all time of those
    series that may lack room.
    """
    decisions = list(chain.from_iterable(batches))
    with closing(apsw.Connection(":memory:", flags=_IN_MEMORY)) as db:
        places, stored = _stage_new(db, path, decisions, numbers)
        full = _leave_out_full(db, places, decisions, totals) if totals else {}
        image = db.serialize("main")
    conflicts = []
    if len(places) < len(decisions):
        conflicts = count_conflicts(batches, stored, full)
    if full:
        places = [place for place in places if identity_of(decisions[place]) not in full]
    ends = [bisect_left(places, end) for end in accumulate(map(len, batches))]
    inserted = [end - first for first, end in zip([0, *ends], ends, strict=False)]
    cells = Cells()
    cells.add(decisions[place] for place in places)
    parts = pack_parts(cells, received)
    return Staged(image, len(places), inserted, cells, parts, full, conflicts)


def _stage_new(
    db: apsw.Connection, path: Path, decisions: Sequence[DecisionRecord], numbers: Mapping[Any, int]
) -> tuple[list[int], dict[tuple[str, str], Content]]:
    """Stage the decisions whose ids are new, the first one of each id.

    Returns their indexes in `decisions`, and the stored contents of the others.
    """
    db.set_busy_timeout(BUSY_MS)
    query(db, "attach_stored", f"{path.absolute().as_uri()}?mode=rw")
    query(db, "create_staged")
    db.execute("BEGIN")
    rows = [
        (place, d.id, d.owner, numbers[key_of(d)], *values_of(d))
        for place, d in enumerate(decisions)
    ]
    insert_rows(db, "stage_decisions", rows)
    query(db, "drop_known")
    db.execute("COMMIT")
    left = _places(query(db, "staged_places")[0][0])
    stored: dict[tuple[str, str], Content] = {}
    if len(left) < len(decisions):
        new = set(left)
        known = (identity_of(d) for place, d in enumerate(decisions) if place not in new)
        stored = stored_contents(db, known, attached=True)
    query(db, "detach_stored")
    return left, stored


def _leave_out_full(
    db: apsw.Connection,
    places: Sequence[int],
    decisions: Sequence[DecisionRecord],
    totals: PeriodCells,
) -> Full:
    """Delete those staged decisions for which the sums of their series have no room."""
    full = find_full((d for d in map(decisions.__getitem__, places) if key_of(d) in totals), totals)
    if full:
        query(db, "take_back_staged", _encode(list(full)).decode())
    return full


def stored_contents(
    db: apsw.Connection, identities: Iterable[tuple[str, str]], *, attached: bool = False
) -> dict[tuple[str, str], Content]:
    """Return the stored contents of those identities that are stored.

    With `attached`, they are read from the database that is attached as `stored`.
    """
    sent, name = list(identities), "attached_contents" if attached else "stored_contents"
    found: dict[tuple[str, str], Content] = {}
    # In parts, because decoding one holds the interpreter's lock.
    for first in range(0, len(sent), MAX_GROUP):
        part = _encode(sent[first : first + MAX_GROUP]).decode()
        for identity, project, *content in _decode(query(db, name, part)[0][0]):
            found[identity, project] = Content(*content)
    return found
