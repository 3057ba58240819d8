"""The temporary records that nodes share: keys in Redis that expire."""

from collections.abc import Sequence
from typing import Any, Final

from routecast.adapters.redis_client import RedisLink, is_done

# Scripts, because they take one step on every version of Redis.
_TAKE_RECORD: Final = """
local held = redis.call('GET', KEYS[1])
redis.call('DEL', KEYS[1])
return {'record', held}
"""
_PUT_RECORD: Final = """
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
_DELETE_RECORD: Final = """
redis.call('DEL', KEYS[1])
redis.call('INCR', KEYS[2])
return 1
"""


class RedisRecords:
    """Keeps records in Redis (`ports.TemporaryRecords`)."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link
        self._version = link.key("records")

    async def put(self, name: str, record: bytes, seconds: float) -> None:
        args = (self._key(name), record, max(round(seconds * 1000), 1))
        await self._link.call(lambda redis: redis.eval(_PUT_RECORD, 1, *args), is_done)

    async def get(self, names: Sequence[str]) -> list[bytes | None]:
        if not names:
            return []
        keys = [self._key(name) for name in names]
        return await self._link.call(
            lambda redis: redis.mget(keys), lambda reply: _records(reply, len(keys))
        )

    async def take(self, name: str) -> bytes | None:
        key = self._key(name)
        return await self._link.call(lambda redis: redis.eval(_TAKE_RECORD, 1, key), _taken)

    async def delete(self, name: str) -> None:
        keys = (self._key(name), self._version)
        await self._link.call(lambda redis: redis.eval(_DELETE_RECORD, 2, *keys), is_done)

    async def version(self) -> str:
        (version,) = await self._link.call(
            lambda redis: redis.mget([self._version]), lambda reply: _records(reply, 1)
        )
        return "" if version is None else version.decode("latin-1")

    async def close(self) -> None:
        await self._link.close()

    def _key(self, name: str) -> str:
        return self._link.key(f"record:{name}")


def _records(reply: Any, count: int) -> list[bytes | None]:
    """Read the reply of MGET."""
    if not isinstance(reply, list) or len(reply) != count:
        raise ValueError("the reply has not as many values as there are keys")
    if not all(value is None or isinstance(value, bytes) for value in reply):
        raise ValueError("the values are not in the form that Redis sends")
    return reply


def _taken(reply: Any) -> bytes | None:
    """Read the reply of the script `_TAKE_RECORD`, whose first word only that script returns."""
    word, *rest = reply
    record = rest[0] if rest else None  # a missing key ends the array
    if word != b"record" or not (record is None or isinstance(record, bytes)):
        raise ValueError("the record is not in the form that the script returns")
    return record
