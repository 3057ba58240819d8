"""The temporary records of a single process."""

import heapq
from collections.abc import Sequence
from typing import Final

from routecast.errors import Unavailable
from routecast.ports import Clock

# Bytes of all records together: 20,000 sessions and tickets.
MAX_RECORD_BYTES: Final = 16 * 2**20
# What a record takes beside its name and its content.
RECORD_OVERHEAD: Final = 300
# The ends of records that are not there any more: they are removed once they are as many as those
# that are there, and this number.
OLD_ENDS: Final = 1_000


class MemoryRecords:
    """Keeps records in a dictionary (`ports.TemporaryRecords`)."""

    def __init__(self, clock: Clock, max_bytes: int = MAX_RECORD_BYTES) -> None:
        self._clock = clock
        self._max_bytes = max_bytes
        self._held: dict[str, tuple[int, bytes]] = {}  # when each ends, in microseconds, and it
        # A heap, so that a record without room costs no look at all the others.
        self._ends: list[tuple[int, str]] = []
        self._bytes = 0
        self._version = 0

    async def put(self, name: str, record: bytes, seconds: float) -> None:
        now = self._clock.now()
        self._drop_ended(now)
        size = _size(name, record)
        before = _size(name, self._held[name][1]) if name in self._held else 0
        if self._bytes - before + size > self._max_bytes:
            raise Unavailable("there is no room for more tickets and sessions", retry_after=10)
        self._remove(name)
        end = now + round(seconds * 1_000_000)
        self._held[name] = (end, record)
        self._bytes += size
        heapq.heappush(self._ends, (end, name))
        if len(self._ends) > 2 * len(self._held) + OLD_ENDS:
            self._ends = [(end, name) for name, (end, _) in self._held.items()]
            heapq.heapify(self._ends)

    async def replace(self, name: str, record: bytes, seconds: float) -> bool:
        if self._get(name) is None:
            return False
        await self.put(name, record, seconds)
        return True

    async def get(self, names: Sequence[str]) -> list[bytes | None]:
        return [self._get(name) for name in names]

    async def take(self, name: str) -> bytes | None:
        record = self._get(name)
        self._remove(name)
        return record

    async def delete(self, name: str) -> None:
        self._remove(name)
        self._version += 1

    async def version(self) -> str:
        return str(self._version)

    async def close(self) -> None:
        self._held.clear()
        self._ends.clear()
        self._bytes = 0

    def _get(self, name: str) -> bytes | None:
        end, record = self._held.get(name, (0, b""))
        return record if self._clock.now() < end else None

    def _remove(self, name: str) -> None:
        if name in self._held:
            self._bytes -= _size(name, self._held.pop(name)[1])

    def _drop_ended(self, now: int) -> None:
        while self._ends and self._ends[0][0] <= now:
            _, name = heapq.heappop(self._ends)
            if name in self._held and self._held[name][0] <= now:  # else it was put again
                self._remove(name)


def _size(name: str, record: bytes) -> int:
    return len(name) + len(record) + RECORD_OVERHEAD
