"""Pages of connections: those of one node, and how those of several nodes become one."""

from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeVar

import msgspec

from routecast.core.connections_query import Place

RowType = TypeVar("RowType")


class NodePage(msgspec.Struct, Generic[RowType], frozen=True):
    """A page of a node's connections, in order, with the place of each.

    `total` is the number of connections that match on all pages. `next` is the place after which
    the next page begins, None on the last one.
    """

    node: str
    total: int
    next: Place | None
    places: list[Place]
    connections: list[RowType]


class MergedPage(NamedTuple, Generic[RowType]):
    """A page of the connections of several nodes, in order."""

    total: int
    next: Place | None
    connections: list[RowType]


def merge_pages(pages: Sequence[NodePage[RowType]], limit: int) -> MergedPage[RowType]:
    """Return one page of at most `limit` connections of pages that begin after the same place."""
    # Beyond the place where a node's page ends, that node may have more.
    ends = [page.next for page in pages if page.next is not None]
    end = min(ends, default=None)
    rows = [
        (place, row)
        for page in pages
        for place, row in zip(page.places, page.connections, strict=True)
        if end is None or place <= end
    ]
    rows.sort(key=_place_of)
    if len(rows) > limit:
        del rows[limit:]
        end = rows[-1][0]
    total = sum(page.total for page in pages)
    return MergedPage(total, end, [row for _, row in rows])


def _place_of(row: tuple[Place, object]) -> Place:
    return row[0]
