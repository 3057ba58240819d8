"""Messages that wait to be sent, bounded: the oldest make room for the newest."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from routecast.protocol import Position

# Bytes that wait at most: the deltas of some minutes, for an engine that comes back.
MAX_WAITING_BYTES: Final = 16 * 1024 * 1024
# Bytes taken at a time: what a slow line carries in the time a call has.
BATCH_BYTES: Final = 256 * 1024
# What a message without a delta takes, and every one beside its delta.
_OVERHEAD: Final = 128


@dataclass(frozen=True, slots=True)
class BusMessage:
    """A delta's position and bytes, or where the database stands when `delta` is None."""

    position: Position
    delta: bytes | None = None

    @property
    def size(self) -> int:
        """About how many bytes it takes."""
        return _OVERHEAD + len(self.delta or b"")


class DropOldestBuffer:
    """A queue whose policy is to drop the oldest; `on_drop` hears of each."""

    def __init__(self, on_drop: Callable[[], None] = lambda: None) -> None:
        self._on_drop = on_drop
        self._waiting: deque[BusMessage] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, message: BusMessage) -> None:
        """Add a message, at the cost of the oldest ones."""
        self._waiting.append(message)
        self._bytes += message.size
        self._drop()

    def take(self, limit: int = BATCH_BYTES) -> list[BusMessage]:
        """Return the oldest messages, of about `limit` bytes; at least one if any waits."""
        taken, size = [], 0
        while self._waiting and size < limit:
            message = self._waiting.popleft()
            size += message.size
            taken.append(message)
        self._bytes -= size
        return taken

    def put_back(self, taken: Sequence[BusMessage]) -> None:
        """Give back what was taken and could not be sent, to its old place."""
        self._waiting.extendleft(reversed(taken))
        self._bytes += sum(message.size for message in taken)
        self._drop()

    def _drop(self) -> None:
        while self._bytes > MAX_WAITING_BYTES:
            self._bytes -= self._waiting.popleft().size
            self._on_drop()
