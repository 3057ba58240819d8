"""The cache of a single process."""

import asyncio

from routecast.adapters.cache.pack_in_slices import pack_in_slices
from routecast.core.snapshot import Snapshot
from routecast.ports import Clock
from routecast.protocol import Position
from routecast.slices import Slices


class MemoryCache:
    """Keeps a snapshot as bytes for `lifetime` seconds (`ports.Cache`)."""

    def __init__(self, clock: Clock, lifetime: float = 30.0, slices: Slices | None = None) -> None:
        self._clock = clock
        self._slices = slices or Slices()
        self._lifetime = int(lifetime * 1_000_000)
        self._held: tuple[Position, int, list[bytes]] | None = None

    async def get(self) -> Snapshot | None:
        if self._held is None:
            return None
        _, expires, pieces = self._held
        if self._clock.now() >= expires:
            self._held = None
            return None
        return await asyncio.to_thread(lambda: Snapshot.unpack(b"".join(pieces)))

    async def put(self, snapshot: Snapshot) -> None:
        position = snapshot.position  # later commits are not in the pieces
        pieces = await pack_in_slices(snapshot, self._slices)
        now = self._clock.now()
        if self._held is not None and self._held[1] > now:
            held = self._held[0]
            if held.epoch == position.epoch and held.seq > position.seq:
                return
        self._held = (position, now + self._lifetime, pieces)

    async def invalidate(self, position: Position) -> None:
        if self._held is not None:
            held = self._held[0]
            if held.epoch != position.epoch or held.seq < position.seq:
                self._held = None

    async def close(self) -> None:
        self._held = None
