"""`HistoryLimits`: how many histories may run, for each client, and in bytes for all clients."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, TypeVar

from routecast.core.history import HistoryQuery
from routecast.core.time_series import MAX_SERIES
from routecast.errors import Unavailable

T = TypeVar("T")

# Different histories of one address that may wait, be read or be sent at the same time: as many as
# a browser has connections to one server, and two more. Equal histories are read once, and count as
# one.
MAX_EACH: Final = 8
# Answers that may be larger than this are large, in bytes.
SMALL_ANSWER: Final = 65_536
# Bytes of large answers that are made or sent at the same time, for all clients and for one.
MAX_ANSWER_BYTES: Final = 64 * 2**20
MAX_BYTES_EACH: Final = MAX_ANSWER_BYTES // 4
# The number of large answers that may wait for room, and the seconds for which each may wait.
MAX_WAITING_ANSWERS: Final = 256
ROOM_WAIT_SECONDS: Final = 10.0
# The bytes of one value in an answer; only very rare numbers are longer.
VALUE_BYTES: Final = 16


def most_bytes(query: HistoryQuery) -> int:
    """Return the approximate maximum size of the answer to a query, in bytes."""
    series = 1 if query.group_by is None else MAX_SERIES + 1
    return query.points * len(query.fields) * series * VALUE_BYTES


class HistoryLimits:
    """Counts the histories that are running. `client` is the address of a client."""

    def __init__(self) -> None:
        self._asked: dict[str, Counter[HistoryQuery]] = {}
        self._bytes: Counter[str] = Counter()
        self._room = asyncio.Condition()
        self._waiting = 0

    @asynccontextmanager
    async def enter(self, client: str, query: HistoryQuery) -> AsyncIterator[None]:
        """Count a query as running within the context; leave the context once its answer is sent.

        Raises Unavailable if the client has too many histories, or if there is no room in time.
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
            raise Unavailable("too many large histories wait already", retry_after=5)
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
