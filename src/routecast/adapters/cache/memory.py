"""The cache of a single process."""

import asyncio

from routecast.core.snapshot import Snapshot
from routecast.ports import Clock
from routecast.protocol import Position


class MemoryCache:
    """Keeps a snapshot as bytes for `lifetime` seconds (`ports.Cache`)."""

    def __init__(self, clock: Clock, lifetime: float = 30.0) -> None:
        self._clock = clock
        self._lifetime = int(lifetime * 1_000_000)
        self._held: tuple[Position, int, bytes] | None = None

    async def get(self) -> Snapshot | None:
        if self._held is None:
            return None
        _, expires, packed = self._held
        if self._clock.now() >= expires:
            self._held = None
            return None
        return await asyncio.to_thread(Snapshot.unpack, packed)

    async def put(self, snapshot: Snapshot) -> None:
        if self._held is not None and self._held[1] > self._clock.now():
            held = self._held[0]
            if held.epoch == snapshot.position.epoch and held.seq > snapshot.position.seq:
                return
        expires = self._clock.now() + self._lifetime
        position = snapshot.position
        packed = await asyncio.to_thread(snapshot.pack)  # many cells take long
        self._held = (position, expires, packed)

    async def invalidate(self, position: Position) -> None:
        if self._held is not None:
            held = self._held[0]
            if held.epoch != position.epoch or held.seq < position.seq:
                self._held = None

    async def close(self) -> None:
        self._held = None
