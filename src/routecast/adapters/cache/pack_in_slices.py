"""Packing a snapshot for a cache, without holding the event loop for long."""

from routecast.core.snapshot import Snapshot
from routecast.slices import Slices


async def pack_in_slices(snapshot: Snapshot, slices: Slices) -> list[bytes]:
    """Return a snapshot as it is at the call, packed, in pieces.

    Each step is a slice. Commits that the snapshot takes meanwhile are not in the pieces.
    """
    with snapshot.packing() as packing:
        for _ in packing.steps():
            await slices.turn()
    return list(packing.pieces())
