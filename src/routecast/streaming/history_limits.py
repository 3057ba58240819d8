"""Which histories may be asked for now: bounded for each client, and in bytes over all of them."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, TypeVar

from routecast.core.history import HistoryQuery
from routecast.core.time_series import MAX_SERIES
from routecast.errors import Unavailable

T = TypeVar("T")

# Different histories of one client's address that wait, are read, or are being sent: as many as a
# browser has connections to one server, and two more. Equal ones are read once and count as one.
MAX_EACH: Final = 8
# Answers that may be larger than this are large, in bytes.
SMALL_ANSWER: Final = 65_536
# Bytes of large answers being made or sent, over all clients, and of one client's.
MAX_ANSWER_BYTES: Final = 64 * 2**20
MAX_BYTES_EACH: Final = MAX_ANSWER_BYTES // 4
# Large answers that may wait for room, and for how many seconds.
MAX_WAITING_ANSWERS: Final = 256
ROOM_WAIT_SECONDS: Final = 10.0
# Bytes that a value of an answer takes, at most but for very odd numbers.
VALUE_BYTES: Final = 16


def most_bytes(query: HistoryQuery) -> int:
    """Return about how many bytes the answer to a query has at most."""
    series = 1 if query.group_by is None else MAX_SERIES + 1
    return query.points * len(query.fields) * series * VALUE_BYTES


class HistoryLimits:
    """Counts the histories under way. Clients are told apart by their addresses."""

    def __init__(self) -> None:
        self._asked: dict[str, Counter[HistoryQuery]] = {}
        self._bytes: Counter[str] = Counter()
        self._room = asyncio.Condition()
        self._waiting = 0

    @asynccontextmanager
    async def enter(self, client: str, query: HistoryQuery) -> AsyncIterator[None]:
        """Let a query in; leave the context once its answer is sent.

        Raises Unavailable where the client has too many already, or there is no room in time.
        """
        asked = self._asked.get(client, Counter())
        if query not in asked and len(asked) >= MAX_EACH:
            raise Unavailable(f"at most {MAX_EACH} different histories of one address at a time")
        size = most_bytes(query)
        self._asked[client] = asked
        asked[query] += 1
        try:
            if size > SMALL_ANSWER:
                async with self._held(client, min(size, MAX_BYTES_EACH)):
                    yield
            else:
                yield
        finally:
            _lower(asked, query, 1)
            if not asked:
                self._asked.pop(client, None)

    @asynccontextmanager
    async def _held(self, client: str, size: int) -> AsyncIterator[None]:
        if self._waiting >= MAX_WAITING_ANSWERS:
            raise Unavailable("too many large histories are asked for at once", retry_after=5)
        self._waiting += 1
        try:
            async with asyncio.timeout(ROOM_WAIT_SECONDS), self._room:
                await self._room.wait_for(lambda: self._fits(client, size))
                self._bytes[client] += size
        except TimeoutError:
            raise Unavailable("too many large histories are being sent", retry_after=5) from None
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            _lower(self._bytes, client, size)
            async with self._room:
                self._room.notify_all()

    def _fits(self, client: str, size: int) -> bool:
        over_all = self._bytes.total() + size <= MAX_ANSWER_BYTES
        return over_all and self._bytes[client] + size <= MAX_BYTES_EACH


def _lower(counts: Counter[T], counted: T, by: int) -> None:
    counts[counted] -= by
    if not counts[counted]:
        del counts[counted]
