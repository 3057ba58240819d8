"""The bus between nodes: a Redis Stream, which keeps its last messages to be read again."""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, Final, TypeAlias

from routecast.adapters.bus.send_buffer import BATCH_BYTES, BusMessage, DropOldestBuffer
from routecast.adapters.redis_client import (
    MAX_CHARACTERS_SHOWN,
    RedisLink,
    compress,
    decompress,
    refusal,
)
from routecast.core.delta import Delta, following
from routecast.errors import Declined, MissingDeltas, Unavailable
from routecast.instruments import Instruments
from routecast.ports import DELTAS_KEPT, Listener
from routecast.protocol import Position
from routecast.service_parts import run_parts

log = logging.getLogger(__name__)

# A larger delta is sent as its position alone: nodes then read it from the database.
MAX_DELTA_BYTES: Final = 256 * 1024
# The memory of Redis that the stream may take, approximately.
STREAM_BYTES: Final = 64 * 1024 * 1024
# Redis deletes a stream after this time without a write, in seconds.
STREAM_SECONDS: Final = 24 * 3600
# A read waits for at most this time, which must be shorter than the client's timeout.
BLOCK_MILLISECONDS: Final = 500
# The remaining messages are sent for at most this time when the bus is closed, in seconds.
BUS_CLOSE_SECONDS: Final = 1.0
# The time between two log lines that say that Redis refuses messages, in seconds.
QUIET_SECONDS: Final = 60.0
# Messages read at a time.
PAGE: Final = 100

# An id in a stream: a time in milliseconds, and a number within that millisecond.
StreamId: TypeAlias = tuple[int, int]
Fields: TypeAlias = Mapping[bytes, bytes]
StreamEntry: TypeAlias = tuple[StreamId, Fields]
_START: Final[StreamId] = (0, 0)


class RedisBus:
    """Sends and receives deltas by a Redis Stream (`ports.Bus`)."""

    def __init__(self, link: RedisLink, instruments: Instruments) -> None:
        self._link = link
        self._stream = link.key("deltas")
        self._node = secrets.token_hex(8).encode()
        self._listeners: dict[object, Listener] = {}  # by a token: one may listen twice
        self._buffer = DropOldestBuffer(instruments.bus_dropped.inc)
        self._filled = asyncio.Event()
        self._mean = 0.0  # the mean size of recent messages, in bytes
        self._sending = _Direction("sent")
        self._receiving = _Direction("received", "not connected yet")

    @property
    def failing(self) -> str | None:
        return self._receiving.failing or self._sending.failing

    @property
    def outages(self) -> int:
        return self._receiving.outages + self._sending.outages

    def publish(self, delta: Delta) -> None:
        self._notify(delta)
        packed = compress(delta.pack())
        small = len(packed) <= MAX_DELTA_BYTES
        self._put(BusMessage(delta.position, packed if small else None))

    def announce(self, position: Position) -> None:
        self._put(BusMessage(position))

    def _notify(self, message: Delta | Position) -> None:
        for listener in tuple(self._listeners.values()):
            listener(message)

    def _put(self, message: BusMessage) -> None:
        self._buffer.put(message)
        self._filled.set()

    def listen(self, listener: Listener) -> Callable[[], None]:
        token = object()
        self._listeners[token] = listener

        def stop() -> None:
            self._listeners.pop(token, None)

        return stop

    async def run(self) -> None:
        try:
            await run_parts(self._send, self._follow)
        except Exception:  # until it is started again, messages are not received
            self._receiving.mark_failing(Unavailable("it does not listen"))
            raise

    async def close(self) -> None:
        self._listeners.clear()
        with suppress(Unavailable, TimeoutError):
            async with asyncio.timeout(BUS_CLOSE_SECONDS):
                while self._buffer and not self.failing:
                    await self._send_some()
        await self._link.close()

    # -- sending --------------------------------------------------------------------------------

    async def _send(self) -> None:
        limit = BATCH_BYTES
        while True:
            await self._filled.wait()
            self._filled.clear()
            try:
                while self._buffer:
                    await self._send_some(limit)
                    limit = BATCH_BYTES
            except Unavailable as error:
                self._sending.mark_failing(error)
                self._filled.set()
                # A frozen Redis runs all commands that it was sent when it resumes: send few.
                limit = 1
                await self._link.pause()

    async def _send_some(self, limit: int = BATCH_BYTES) -> None:
        """Send the oldest messages in one round trip; keep those that fail, to send them later."""
        messages = self._buffer.take(limit)
        try:
            refused = await self._link.call(lambda redis: self._add(redis, messages), _read_added)
        except BaseException:  # cancelled, too
            self._buffer.put_back(messages)
            raise
        # Messages that were added must not be sent again, even if others failed.
        left = [message for message, why in zip(messages, refused, strict=True) if why]
        self._buffer.put_back(left)
        if left:
            raise Declined(next(filter(None, refused)))
        self._sending.mark_healthy()

    async def _add(self, redis: Any, messages: Iterable[BusMessage]) -> Any:
        pipeline = redis.pipeline(transaction=False)
        for message in messages:
            self._mean += (message.size - self._mean) / PAGE
            position, delta = message.position, message.delta
            fields = {"node": self._node, "epoch": position.epoch, "seq": position.seq}
            if delta is not None:
                fields["delta"] = delta
            kept = min(DELTAS_KEPT, int(STREAM_BYTES / self._mean))
            pipeline.xadd(self._stream, fields, maxlen=kept)
        pipeline.pexpire(self._stream, STREAM_SECONDS * 1000)
        return await pipeline.execute(raise_on_error=False)

    # -- receiving ------------------------------------------------------------------------------

    async def _follow(self) -> None:
        last_id: StreamId | None = None  # of the last message; None until there is a connection
        page = PAGE
        while True:
            try:
                if last_id is None:
                    last_id = await self._newest()
                    self._receiving.mark_healthy()
                entries = await self._read(last_id, page)
                if not entries and await self._newest() < last_id:
                    # The stream is new, or was restored from an older state. Its ids are behind the
                    # last one that was read, so reading after that one would miss messages.
                    last_id = _START
            except Unavailable as error:
                self._receiving.mark_failing(error)
                page = 1  # the page may have been too large for the timeout
                await self._link.pause()
                continue
            page = min(2 * page, PAGE)
            self._receiving.mark_healthy()
            for at, fields in entries:
                last_id = at
                self._receive(fields)
                await asyncio.sleep(0)  # a page of large messages must not block the loop

    async def _read(self, after: StreamId, count: int) -> list[StreamEntry]:
        return await self._link.call(
            lambda redis: redis.xread({self._stream: _text(after)}, count, BLOCK_MILLISECONDS),
            lambda found: _entries(found[0][1]) if found else [],
        )

    async def _newest(self) -> StreamId:
        newest = await self._page("+", 1)
        return newest[0][0] if newest else _START

    async def _page(self, before: str, count: int) -> list[StreamEntry]:
        """Return messages up to an id, the newest first."""
        return await self._link.call(
            lambda redis: redis.xrevrange(self._stream, before, count=count), _entries
        )

    def _receive(self, fields: Fields) -> None:
        if fields.get(b"node") == self._node:
            return
        try:
            message = _delta(fields) if b"delta" in fields else _position(fields)
        except Exception as error:  # another program may have written it
            log.warning("A message on the bus cannot be read: %s", _why(error))
        else:
            self._notify(message)

    async def deltas(self, after: Position) -> list[Delta]:
        newer, last = await self._after(after)
        try:
            found = following([_delta(fields) for fields in newer.values()], after)
        except MissingDeltas:
            raise
        except Exception as error:
            raise MissingDeltas(f"a message on the bus cannot be read: {_why(error)}") from None
        if last > after.seq + len(found):
            raise MissingDeltas(f"the bus announced seq {last}, but does not have it")
        return found

    async def _after(self, after: Position) -> tuple[dict[int, Fields], int]:
        """Return the messages with deltas after a position and the last seq of all messages.

        Messages of several nodes may be out of order, so each page is read to its end.
        """
        newer: dict[int, Fields] = {}
        last, known, before = after.seq, False, "+"
        while page := await self._page(before, PAGE):
            for _, fields in page:
                try:
                    position = _position(fields)
                except ValueError as error:
                    raise MissingDeltas(f"a message on the bus cannot be read: {error}") from None
                if position.epoch != after.epoch:
                    if not known:
                        raise MissingDeltas(f"epoch {position.epoch} after {after.epoch}")
                    return newer, last
                known = True
                last = max(last, position.seq)
                if b"delta" in fields and position.seq > after.seq:
                    newer.setdefault(position.seq, fields)  # pages begin with the newest message
            if last - after.seq == len(newer):
                break
            before = f"({_text(page[-1][0])}"
        return newer, last


class _Direction:
    """One direction of the traffic: why it fails, and how often it has failed.

    The circuit breaker logs that Redis cannot be reached. This class logs that Redis refuses
    messages: once, and again after QUIET_SECONDS at the earliest.
    """

    def __init__(self, verb: str, failing: str | None = None) -> None:
        self._verb = verb
        self._is_logged = False
        self._quiet_until = 0.0
        self.failing = failing
        self.outages = int(failing is not None)

    def mark_failing(self, error: Unavailable) -> None:
        self.outages += self.failing is None
        self.failing = str(error)
        now = time.monotonic()
        if isinstance(error, Declined) and not self._is_logged and now >= self._quiet_until:
            log.error("Deltas cannot be %s: %s", self._verb, error)
            self._is_logged = True
            self._quiet_until = now + QUIET_SECONDS

    def mark_healthy(self) -> None:
        self.failing = None
        if self._is_logged:
            log.warning("Deltas are %s again", self._verb)
            self._is_logged = False


def _read_added(replies: Any) -> list[str | None]:
    """Read the replies to `_add`: the refusal of each message, None if it was added."""
    # The last reply is that of PEXPIRE; `redis_check.py` reports if it is not allowed.
    *added, _ = replies
    for reply in added:
        if refusal(reply) is None:
            _id(reply)
    return [refusal(reply) for reply in added]


def _entries(found: Iterable[tuple[bytes, Fields]]) -> list[StreamEntry]:
    return [(_id(text), _fields(fields)) for text, fields in found]


def _fields(found: Fields) -> Fields:
    if not isinstance(found, dict):
        raise TypeError("a message has no fields")
    return found


def _id(text: bytes) -> StreamId:
    """Return an id. Raises ValueError or another error if it is not an id."""
    milliseconds, _, number = text.partition(b"-")
    return int(milliseconds), int(number)


def _text(of: StreamId) -> str:
    return f"{of[0]}-{of[1]}"


def _why(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:MAX_CHARACTERS_SHOWN]


def _position(fields: Fields) -> Position:
    try:
        return Position(fields[b"epoch"].decode(), int(fields[b"seq"]))
    except KeyError as missing:
        raise ValueError(f"it has no {missing}") from None


def _delta(fields: Fields) -> Delta:
    return Delta.unpack(decompress(fields[b"delta"]))
