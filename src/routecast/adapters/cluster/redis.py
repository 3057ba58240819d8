"""The cluster of the nodes that share a Redis."""

import asyncio
import math
import secrets
import time
from collections.abc import Awaitable, Mapping
from contextlib import suppress
from functools import partial
from hashlib import sha256
from typing import Any, Final

from routecast.adapters.redis_client import (
    MAX_CHARACTERS_SHOWN,
    RedisClient,
    RedisLink,
    compress,
    decompress,
    is_done,
)
from routecast.core.key_rows import pack_records, unpack_records
from routecast.core.keys import AccessRecords
from routecast.core.token_bucket import Quota
from routecast.errors import Unavailable
from routecast.ports import PRESENCE_SECONDS

# The questions that Redis keeps, and the answers to each: more than there are nodes.
MAX_QUESTIONS: Final = 1_000
MAX_ANSWERS: Final = 1_000
# No node waits for an answer to a question that is this much older than the newest one.
QUESTION_MILLISECONDS: Final = 2_000
# Questions and answers expire after these times.
QUESTIONS_MILLISECONDS: Final = 3_600_000
ANSWER_MILLISECONDS: Final = 10_000
# A read waits for at most this time, which must be shorter than the client's timeout.
WAIT_MILLISECONDS: Final = 500
# Entries read at a time.
MAX_READ: Final = 100

# A script, because its reply shows that the server is Redis: no other program would give it.
_CLAIM: Final = """
if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return 1 end
return 0
"""
# A hash has for each node the time at which its report expires, and its number of streams; another
# one has that time and its summary. The time is Redis's own, so that the clocks of nodes do not
# matter.
_NOW: Final = "local t = redis.call('TIME') local now = t[1] * 1000 + math.floor(t[2] / 1000)"
_REPORT: Final = f"""{_NOW}
local ends = string.format('%.0f ', now + ARGV[3])
redis.call('HSET', KEYS[1], ARGV[1], ends .. string.format('%d', ARGV[2]))
redis.call('HSET', KEYS[2], ARGV[1], ends .. ARGV[4])
for i = 1, 2 do
  if redis.call('PTTL', KEYS[i]) < tonumber(ARGV[3]) then
    redis.call('PEXPIRE', KEYS[i], ARGV[3])
  end
end
return 1
"""
_TOTAL: Final = f"""{_NOW}
local sum = 0
local counts = redis.call('HGETALL', KEYS[1])
for i = 1, #counts, 2 do
  local ends, count = counts[i + 1]:match('^(%d+) (%d+)$')
  if tonumber(ends) > now then sum = sum + count
  else redis.call('HDEL', KEYS[1], counts[i]) end
end
return {{'streams', sum}}
"""
_SUMMARIES: Final = f"""{_NOW}
local found = {{'summaries'}}
local reports = redis.call('HGETALL', KEYS[1])
for i = 1, #reports, 2 do
  local ends, summary = reports[i + 1]:match('^(%d+) (.*)$')
  if tonumber(ends) <= now then redis.call('HDEL', KEYS[1], reports[i])
  elseif summary ~= '' then found[#found + 1] = summary end
end
return found
"""
# For each key a hash with what was left at a time. It expires when the whole quota is there again.
_SPEND: Final = f"""{_NOW}
local amount, window = tonumber(ARGV[1]), tonumber(ARGV[2])
local found = {{'left'}}
for i = 1, #KEYS do
  local known = redis.call('HMGET', KEYS[i], 'left', 'at')
  local left = tonumber(known[1] or '') or amount
  local passed = math.max(0, now - (tonumber(known[2] or '') or now))
  left = math.min(amount, left + passed * amount / window) - tonumber(ARGV[i + 2])
  local text = string.format('%.3f', left)
  redis.call('HSET', KEYS[i], 'left', text, 'at', string.format('%.0f', now))
  local full = math.ceil((amount - left) * window / amount) + 1000
  redis.call('PEXPIRE', KEYS[i], string.format('%.0f', full))
  found[i + 1] = text
end
return found
"""


class RedisCluster:
    """Claims, numbers of streams, and keys in Redis (`ports.Cluster`)."""

    def __init__(self, link: RedisLink, presence_seconds: float = PRESENCE_SECONDS) -> None:
        self._link = link
        self._node = secrets.token_hex(8)
        self._counts = link.key("census")
        self._access = link.key("access")
        self._summaries = link.key("summaries")
        self._milliseconds = round(presence_seconds * 1000)
        self._has_reported = False
        self._questions = link.key("questions")
        self._last_question: bytes | None = None  # the id; None until it is known

    async def claim(self, work: str, seconds: float) -> bool:
        key, milliseconds = self._link.key(f"claim:{work}"), round(seconds * 1000)
        args = (self._node, milliseconds)
        return await self._link.call(lambda redis: redis.eval(_CLAIM, 1, key, *args), is_done)

    async def report_connections(self, connections: int, summary: bytes = b"") -> None:
        self._has_reported = True
        args = (self._counts, self._summaries, self._node, connections, self._milliseconds, summary)
        await self._link.call(lambda redis: redis.eval(_REPORT, 2, *args), is_done)

    async def total_connections(self) -> int:
        return await self._link.call(lambda redis: redis.eval(_TOTAL, 1, self._counts), _count)

    async def share_access(self, records: AccessRecords) -> None:
        packed = await asyncio.to_thread(pack_records, records)
        held: dict[Any, Any] = {"version": records.version, "records": packed}
        await self._link.call(lambda redis: redis.hset(self._access, mapping=held), _number)

    async def shared_version(self) -> str | None:
        version = await self._link.call(lambda redis: redis.hmget(self._access, "version"), _field)
        return None if version is None else version.decode("utf-8", "replace")

    async def shared_access(self) -> AccessRecords | None:
        packed = await self._link.call(lambda redis: redis.hmget(self._access, "records"), _field)
        if packed is None:
            return None
        try:
            return await asyncio.to_thread(unpack_records, packed)
        except ValueError as error:  # any program may have written it
            raise Unavailable(f"the keys in Redis: {error}"[:MAX_CHARACTERS_SHOWN]) from None

    async def summaries(self) -> list[bytes]:
        return await self._link.call(
            lambda redis: redis.eval(_SUMMARIES, 1, self._summaries), _texts
        )

    async def ask(self, question: bytes, nodes: int, seconds: float) -> list[bytes]:
        identity = secrets.token_hex(8)
        packed, key = compress(question), self._link.key(f"answers:{identity}")
        fields: dict[Any, Any] = {"id": identity, "question": packed}
        await self._append(self._questions, fields, MAX_QUESTIONS, QUESTIONS_MILLISECONDS)
        answers: list[bytes] = []
        last, end = b"0", time.monotonic() + seconds
        while len(answers) < nodes and (left := end - time.monotonic()) > 0:
            wait = min(math.ceil(1000 * left), WAIT_MILLISECONDS)
            found = await self._link.call(partial(_read_after, key, last, wait), _entries)
            answers += [fields_of_one.get(b"answer", b"") for _, fields_of_one in found]
            last = found[-1][0] if found else last
        return [await asyncio.to_thread(_unpack, each) for each in answers]

    async def questions(self) -> list[tuple[str, bytes]]:
        if self._last_question is None:
            newest = await self._link.call(
                lambda redis: redis.xrevrange(self._questions, count=1), _listed
            )
            self._last_question = newest[0][0] if newest else b"0"
            return []
        read = partial(_read_after, self._questions, self._last_question, WAIT_MILLISECONDS)
        found = await self._link.call(read, _entries)
        if not found:
            return []
        self._last_question = found[-1][0]
        oldest = _milliseconds(found[-1][0]) - QUESTION_MILLISECONDS
        return [
            (
                fields.get(b"id", b"").decode("ascii", "replace"),
                _unpack(fields.get(b"question", b"")),
            )
            for at, fields in found
            if _milliseconds(at) >= oldest
        ]

    async def answer(self, identity: str, answer: bytes) -> None:
        key = self._link.key(f"answers:{identity}")
        fields: dict[Any, Any] = {"answer": await asyncio.to_thread(compress, answer)}
        await self._append(key, fields, MAX_ANSWERS, ANSWER_MILLISECONDS)

    async def _append(self, key: str, fields: dict[Any, Any], most: int, lifetime: int) -> None:
        """Append an entry to a stream that has a limit of entries, and expires after a while."""

        async def append(redis: Any) -> Any:
            pipeline = redis.pipeline(transaction=False)
            pipeline.xadd(key, fields, maxlen=most)
            pipeline.pexpire(key, lifetime)
            return await pipeline.execute()

        await self._link.call(append, _is_added)

    async def spend(self, limit: str, quota: Quota, spent: Mapping[str, int]) -> dict[str, float]:
        keys = [self._link.key(f"limit:{limit}:{_digest(client)}") for client in spent]
        args = (quota.amount, round(quota.seconds * 1000), *spent.values())
        left = await self._link.call(
            lambda redis: redis.eval(_SPEND, len(keys), *keys, *args), _numbers
        )
        if len(left) != len(keys):
            raise Unavailable("Redis answered for other allowances than it was asked for")
        return dict(zip(spent, left, strict=True))

    async def close(self) -> None:
        has_reported, self._has_reported = self._has_reported, False
        if has_reported:
            with suppress(Unavailable):  # then the report expires by itself
                for reports in (self._counts, self._summaries):
                    await self._link.call(partial(_delete, reports, self._node))
        await self._link.close()


def _delete(key: str, field: str, redis: RedisClient) -> Awaitable[Any]:
    return redis.hdel(key, field)


def _read_after(key: str, last: bytes, wait: int, redis: RedisClient) -> Awaitable[Any]:
    return redis.xread({key: last}, MAX_READ, wait)


def _entries(reply: Any) -> list[tuple[bytes, dict[bytes, bytes]]]:
    """Read the reply of XREAD for one stream: the entries with their ids."""
    return _listed(reply[0][1]) if reply else []


def _listed(reply: Any) -> list[tuple[bytes, dict[bytes, bytes]]]:
    """Read the reply of XREVRANGE, or a part of that of XREAD."""
    entries = list(reply)
    for at, fields in entries:
        _milliseconds(at)
        if not isinstance(fields, dict):
            raise TypeError("an entry has no fields")
    return entries


def _unpack(packed: bytes) -> bytes:
    try:
        return decompress(packed)
    except ValueError:  # any program may have written it; it is not readable either
        return b""


def _milliseconds(at: bytes) -> int:
    """Return the time in the id of an entry. Raises ValueError if it is not an id."""
    return int(at.partition(b"-")[0])


def _is_added(replies: Any) -> None:
    """Read the replies of XADD, the id of the entry, and of PEXPIRE."""
    _milliseconds(replies[0])


def _digest(client: str) -> str:
    """Return a key's part for a client: names may be long, and must not be readable there."""
    return sha256(client.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _numbers(reply: Any) -> list[float]:
    """Read the reply of the script `_SPEND`, whose first word only that script returns."""
    word, *texts = reply
    if word != b"left":
        raise ValueError("what is left is not in the form that the script returns")
    return [float(text) for text in texts]


def _texts(reply: Any) -> list[bytes]:
    """Read the reply of the script `_SUMMARIES`, whose first word only that script returns."""
    word, *found = reply
    texts = [text for text in found if isinstance(text, bytes)]
    if word != b"summaries" or len(texts) < len(found):
        raise ValueError("the summaries are not in the form that the script returns")
    return texts


def _count(reply: Any) -> int:
    """Read the reply of the script `_TOTAL`, whose first word only that script returns."""
    word, count = reply
    if word != b"streams" or type(count) is not int:
        raise ValueError("the sum of streams is not in the form that the script returns")
    return count


def _field(reply: Any) -> bytes | None:
    """Read the reply of HMGET for one field."""
    (found,) = reply
    if found is not None and not isinstance(found, bytes):
        raise ValueError("the field of a hash is not in the form that Redis sends")
    return found


def _number(reply: Any) -> int:
    """Read the reply of HSET: the number of new fields."""
    if type(reply) is not int:
        raise ValueError("the number of new fields is not in the form that Redis sends")
    return reply
