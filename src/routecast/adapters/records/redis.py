"""The temporary records that nodes share: keys in Redis that expire."""

import secrets
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from routecast.adapters.redis_client import RedisLink, is_done

# Scripts, because they take one step. A record is a hash with one field, so that Redis must allow
# no other commands than for the rest.
_PUT_RECORD: Final = """
redis.call('HSET', KEYS[1], 'record', ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
"""
_REPLACE_RECORD: Final = """
if not redis.call('HMGET', KEYS[1], 'record')[1] then return 0 end
redis.call('HSET', KEYS[1], 'record', ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
"""
_GET_RECORDS: Final = """
local found = {'records'}
for i = 1, #KEYS do found[i + 1] = redis.call('HMGET', KEYS[i], 'record')[1] end
return found
"""
_TAKE_RECORD: Final = """
local held = redis.call('HMGET', KEYS[1], 'record')[1]
redis.call('DEL', KEYS[1])
return {'records', held}
"""
_DELETE_RECORD: Final = """
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[2], 'record', ARGV[1])
return 1
"""


class RedisRecords:
    """Keeps records in Redis (`ports.TemporaryRecords`)."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link
        self._version = link.key("records")

    async def put(self, name: str, record: bytes, seconds: float) -> None:
        await self._write(_PUT_RECORD, name, record, seconds)

    async def replace(self, name: str, record: bytes, seconds: float) -> bool:
        return await self._write(_REPLACE_RECORD, name, record, seconds)

    async def get(self, names: Sequence[str]) -> list[bytes | None]:
        if not names:
            return []
        keys = [self._key(name) for name in names]
        return await self._call(_GET_RECORDS, keys)

    async def take(self, name: str) -> bytes | None:
        (record,) = await self._call(_TAKE_RECORD, [self._key(name)])
        return record

    async def delete(self, name: str) -> None:
        args = (self._key(name), self._version, secrets.token_hex(8))
        await self._link.call(lambda redis: redis.eval(_DELETE_RECORD, 2, *args), is_done)

    async def version(self) -> str:
        (version,) = await self._call(_GET_RECORDS, [self._version])
        return "" if version is None else version.decode("latin-1")

    async def _write(self, script: str, name: str, record: bytes, seconds: float) -> bool:
        args = (self._key(name), record, max(round(seconds * 1000), 1))
        return await self._link.call(lambda redis: redis.eval(script, 1, *args), is_done)

    async def _call(self, script: str, keys: Sequence[str]) -> list[bytes | None]:
        return await self._link.call(
            lambda redis: redis.eval(script, len(keys), *keys), partial(_records, len(keys))
        )

    async def close(self) -> None:
        await self._link.close()

    def _key(self, name: str) -> str:
        return self._link.key(f"record:{name}")


def _records(count: int, reply: Any) -> list[bytes | None]:
    """Read the reply of a script that returns records, after a word that only it returns."""
    records: list[bytes | None]
    word, *records = reply
    if word != b"records" or len(records) != count:
        raise ValueError("the records are not in the form that the script returns")
    if not all(record is None or isinstance(record, bytes) for record in records):
        raise ValueError("the records are not in the form that the script returns")
    return list[bytes | None](records)
