"""The cache that nodes share: one snapshot in Redis."""

import asyncio
import logging
from typing import Any, Final

from routecast.adapters.cache.pack_in_slices import pack_in_slices
from routecast.adapters.redis_client import (
    MAX_CHARACTERS_SHOWN,
    RedisLink,
    compress_pieces,
    decompress,
    is_done,
)
from routecast.core.packing import FORM
from routecast.core.snapshot import Snapshot
from routecast.errors import Unavailable
from routecast.protocol import Position
from routecast.slices import Slices

log = logging.getLogger(__name__)

# Compressed bytes; a larger snapshot could not be sent within one call, and is not cached.
MAX_SNAPSHOT_BYTES: Final = 32 * 1024 * 1024

# Scripts compare and change in one step, because several nodes do so at the same time.
_PUT: Final = """
local held = redis.call('HMGET', KEYS[1], 'epoch', 'seq')
if held[1] == ARGV[1] and tonumber(held[2]) > tonumber(ARGV[2]) then return 0 end
redis.call('HSET', KEYS[1], 'epoch', ARGV[1], 'seq', ARGV[2], 'snapshot', ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return 1
"""
_INVALIDATE: Final = """
local held = redis.call('HMGET', KEYS[1], 'epoch', 'seq')
if held[1] == ARGV[1] and tonumber(held[2]) >= tonumber(ARGV[2]) then return 0 end
redis.call('DEL', KEYS[1])
return 1
"""


class RedisCache:
    """Keeps a snapshot for `lifetime` seconds, compressed (`ports.Cache`)."""

    def __init__(
        self, link: RedisLink, lifetime: float = 30.0, slices: Slices | None = None
    ) -> None:
        self._link = link
        self._slices = slices or Slices()
        # Versions with different forms of snapshots use different keys.
        self._key = link.key(f"snapshot:{FORM}")
        self._milliseconds = round(lifetime * 1000)

    async def get(self) -> Snapshot | None:
        packed = await self._link.call(lambda redis: redis.hmget(self._key, "snapshot"), _only)
        if packed is None:
            return None
        try:  # a large one takes long: in a thread, so that streams continue
            return await asyncio.to_thread(lambda: Snapshot.unpack(decompress(packed)))
        except Exception as error:  # any program may have written it
            log.warning(
                "The snapshot in Redis cannot be read: %s", f"{error!r}"[:MAX_CHARACTERS_SHOWN]
            )
            return None

    async def put(self, snapshot: Snapshot) -> None:
        position = snapshot.position  # later commits are not in the pieces
        pieces = await pack_in_slices(snapshot, self._slices)
        packed = await asyncio.to_thread(compress_pieces, pieces)
        if len(packed) > MAX_SNAPSHOT_BYTES:
            raise Unavailable(f"a snapshot of {len(packed)} bytes is too large for the cache")
        args = (position.epoch, position.seq, packed, self._milliseconds)
        await self._link.call(lambda redis: redis.eval(_PUT, 1, self._key, *args), is_done)

    async def invalidate(self, position: Position) -> None:
        args = (position.epoch, position.seq)
        await self._link.call(lambda redis: redis.eval(_INVALIDATE, 1, self._key, *args), is_done)

    async def close(self) -> None:
        await self._link.close()


def _only(values: Any) -> bytes | None:
    """Read the reply to HMGET with one field."""
    (value,) = values
    if value is not None and not isinstance(value, bytes):
        raise TypeError("a field is no text")
    return value
