"""A bounded buffer of messages to send; when it is full, the oldest are dropped."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from routecast.protocol import Position

# The maximum number of bytes that wait: the deltas of some minutes, while the engine is away.
MAX_WAITING_BYTES: Final = 16 * 1024 * 1024
# Bytes taken at a time: as many as a slow network can carry within the timeout of a call.
BATCH_BYTES: Final = 256 * 1024
# Bytes of a message without its delta.
_OVERHEAD: Final = 128


@dataclass(frozen=True, slots=True)
class BusMessage:
    """A delta's position and bytes; without a delta, an announced position."""

    position: Position
    delta: bytes | None = None

    @property
    def size(self) -> int:
        """The approximate size of the message, in bytes."""
        return _OVERHEAD + len(self.delta or b"")


class DropOldestBuffer:
    """A queue that drops its oldest messages; `on_drop` is called for each."""

    def __init__(self, on_drop: Callable[[], None] = lambda: None) -> None:
        self._on_drop = on_drop
        self._waiting: deque[BusMessage] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, message: BusMessage) -> None:
        """Add a message; drop the oldest ones if there is no room."""
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
        """Put messages that could not be sent back to the front."""
        self._waiting.extendleft(reversed(taken))
        self._bytes += sum(message.size for message in taken)
        self._drop()

    def _drop(self) -> None:
        while self._bytes > MAX_WAITING_BYTES:
            self._bytes -= self._waiting.popleft().size
            self._on_drop()
