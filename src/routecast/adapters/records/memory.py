"""The temporary records of a single process."""

from collections.abc import Sequence
from typing import Final

from routecast.errors import Unavailable
from routecast.ports import Clock

# Bytes of all records together: sessions of 20,000 people, or more than 50,000 tickets.
MAX_RECORD_BYTES: Final = 16 * 2**20
# What a record takes beside its name and its content.
RECORD_OVERHEAD: Final = 200


class MemoryRecords:
    """Keeps records in a dictionary (`ports.TemporaryRecords`)."""

    def __init__(self, clock: Clock, max_bytes: int = MAX_RECORD_BYTES) -> None:
        self._clock = clock
        self._max_bytes = max_bytes
        self._held: dict[str, tuple[int, bytes]] = {}  # when each ends, in microseconds, and it
        self._bytes = 0
        self._version = 0

    async def put(self, name: str, record: bytes, seconds: float) -> None:
        size = _size(name, record)
        if self._bytes + size > self._max_bytes:
            self._drop_ended()
        if self._bytes + size > self._max_bytes:
            raise Unavailable("there is no room for more tickets and sessions", retry_after=10)
        self._remove(name)
        self._held[name] = (self._clock.now() + round(seconds * 1_000_000), record)
        self._bytes += size

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
        self._bytes = 0

    def _get(self, name: str) -> bytes | None:
        end, record = self._held.get(name, (0, b""))
        return record if self._clock.now() < end else None

    def _remove(self, name: str) -> None:
        if name in self._held:
            self._bytes -= _size(name, self._held.pop(name)[1])

    def _drop_ended(self) -> None:
        now = self._clock.now()
        for name in [name for name, (end, _) in self._held.items() if end <= now]:
            self._remove(name)


def _size(name: str, record: bytes) -> int:
    return len(name) + len(record) + RECORD_OVERHEAD
